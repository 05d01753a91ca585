package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
)

// The in-flight race. A write is marked when it is queued; the mark is taken;
// the block is read, and its old content is sent and proven; then the write
// lands. Nothing would ever tell of it. So while a session reads, a second set
// of programs marks each write again when it ends:
//
//   - of a disk that is driven by requests, a request knows its place to the
//     end. A write that was under way before the programs came is seen as well;
//   - of any other, the iterator of a bio has moved on by then, so where it
//     begins is remembered by its address when it is queued. The end of a write
//     that was not remembered, because it was queued before the programs came or
//     because there was no room, is a stranger's: it is counted.
//
// An end that was not marked, a stranger's or one that came while the program was
// at work on the same processor, makes the next take report again all that this
// session has ever taken. Its mark is among that, or is still to be taken.
//
// These programs cost up to 10%, so they come with the first take and go with
// [Tracker.Rest]. They are pinned too: if the session is killed, they go on to
// mark until the tracker is opened again and rests.
//
// A session may only rest when no write is under way that was marked before the
// last take. On a device that is never quiet it does not rest: the marks go on.
//
// The same programs settle a start beside writers. A write that was queued before
// the programs of the queue came has no mark. Of a disk that is driven by
// requests it gets one at its end, so an epoch may be sealed beside it; of any
// other it would end as a stranger, and the seal waits until there is none.
//
// Where nobody can see that there is none, because the kernel does not count all
// that is under way, the programs are there from the start to the stop, and an end
// of a stranger loses the epoch: it may be of a write from before the start. An end
// that came while the program was at work on the same processor, which some drivers
// make frequent, is then taken for that of a write that is remembered: what is still
// remembered is reported, see recall.

var sessionPrograms = []string{"mark_request", "mark_bio", "remember_bio"} // in the order of attaching

func (t *Tracker) sessionDir() string  { return filepath.Join(t.dir, "links") }
func (t *Tracker) inflightPin() string { return filepath.Join(t.dir, "inflight") }

// armed reports whether the programs of a session are at work.
func (t *Tracker) armed() bool {
	_, err := os.Stat(t.sessionDir())
	return err == nil
}

// arm puts the programs of a session to work.
//
//  1. load them, pin the map of what is in flight
//  2. attach and pin each in a directory of another name
//  3. give the directory its name: the session is armed
//
// Killed before 3 the programs may run, which does no harm, and the next arm
// removes them.
func (t *Tracker) arm() error {
	if t.armed() {
		return nil
	}
	if err := t.sweepSession(); err != nil {
		return err
	}
	t.strangers, t.recalled = t.rec.get(offStrangers), 0 // programs that are new have missed nothing
	t.rec.set(offSeenStranger, t.strangers)
	spec, err := loadSpec("session", sessionObject)
	if err != nil {
		return err
	}
	spec.Maps["bitmap"] = bitmapSpec(t.rec.get(offWords))
	request := uint32(0)
	if t.request {
		request = 1
	}
	for name, x := range map[string]uint32{"disk_number": t.rec.get32(offDisk), "view_number": uint32(t.number), "by_request": request} {
		if err := spec.Variables[name].Set(x); err != nil {
			return fmt.Errorf("set %s of the session programs: %w", name, err)
		}
	}
	if err := spec.Variables["paths_of"].Set(t.pathsOf()); err != nil {
		return fmt.Errorf("set paths_of of the session programs: %w", err)
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"views": t.k.maps["views"], "bitmap": t.bitmap},
	})
	if err != nil {
		return explainLoad(err)
	}
	defer c.Close()
	return t.pinSession(c)
}

// pathsOf is the name of the disk if it may be NVMe's paths to one taken together.
func (t *Tracker) pathsOf() (name [32]byte) {
	if d, err := lookNumber(kernelNumber(t.rec.get32(offDisk))); err == nil && !d.request && strings.HasPrefix(filepath.Base(d.diskDir), "nvme") {
		copy(name[:len(name)-1], filepath.Base(d.diskDir))
	}
	return name
}

// settles reports whether writes that were queued before the start are marked at
// their end, or lose the epoch then.
func (t *Tracker) settles() bool {
	return (t.request || t.rec.get(offUncounted) != 0) && t.armed()
}

// ebb waits until no stranger has ended for a while: most writes that were under
// way at the start of a device whose quiet moments nobody sees. One that comes
// later is told by trust.
func (t *Tracker) ebb(ctx context.Context) {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for quiet, before := 0, t.rec.get(offStrangers); quiet < quietTicks; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := t.rec.get(offStrangers)
		if quiet++; now != before {
			quiet, before = 0, now
		}
	}
}

// unmarkedEnds counts the writes that ended without a mark since the start, and
// were not remembered.
func (t *Tracker) unmarkedEnds() (uint64, error) {
	n := t.rec.get(offStrangers)
	if !t.armed() {
		return n, nil
	}
	names := sessionPrograms
	if t.settles() && !t.request {
		names = []string{"remember_bio"}
	}
	missed, err := missedEvents(t.sessionDir(), names)
	return n + missed, err
}

// recall marks what the programs remember of writes: each is under way, or its end
// passed the program by. Of one whose memory the kernel has used again the programs
// have marked it.
func (t *Tracker) recall() error {
	if t.request || !t.settles() {
		return nil
	}
	missed, err := missedEvents(t.sessionDir(), sessionPrograms)
	if err != nil || missed == t.recalled {
		return err
	}
	m, err := ebpf.LoadPinnedMap(t.inflightPin(), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open the map of writes under way: %w", err)
	}
	defer m.Close()
	start, end := t.rec.get(offStart), t.rec.get(offEnd)
	bios := make([]uint64, 1024) // their addresses
	places := make([]struct{ Sector, End uint64 }, len(bios))
	// In batches: to go from one to the next begins anew where that one has ended.
	for cursor := (ebpf.MapBatchCursor{}); err == nil; {
		var n int
		n, err = m.BatchLookup(&cursor, bios, places, nil)
		for _, at := range places[:n] {
			if first, last := max(at.Sector, start), min(at.End, end); first < last {
				t.planes.mark(cbt.Extent{Off: int64(first-start) * sector, End: int64(last-start) * sector})
			}
		}
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) { // which is the end of it
		return fmt.Errorf("list the writes under way: %w", err)
	}
	t.recalled = missed
	return nil
}

func (t *Tracker) pinSession(c *ebpf.Collection) error {
	if err := c.Maps["inflight"].Pin(t.inflightPin()); err != nil {
		return fmt.Errorf("pin the map of writes under way: %w", err)
	}
	fresh := t.sessionDir() + "-new"
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("make a directory for pins: %w", err)
	}
	for _, name := range sessionPrograms {
		if err := attachPinned(c.Programs[name], filepath.Join(fresh, name)); err != nil {
			return errors.Join(err, t.sweepSession())
		}
	}
	if err := os.Rename(fresh, t.sessionDir()); err != nil {
		return fmt.Errorf("give the pins their name: %w", err)
	}
	return nil
}

// sweepSession detaches the programs of a session, whole or half attached.
func (t *Tracker) sweepSession() error {
	var err error
	for _, path := range []string{t.sessionDir(), t.sessionDir() + "-new", t.inflightPin()} {
		if e := os.RemoveAll(path); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("detach the session programs: %w", e))
		}
	}
	return err
}

// drainTick is how often the kernel is asked what is under way, and quietTicks
// how often in a row it must say nothing: it does not count what waits in a
// scheduler or a plug for some milliseconds, see device.quiet.
const (
	drainTick  = 5 * time.Millisecond
	quietTicks = 10
)

// drain waits until no write to the disk is under way, and reports whether it
// has seen that before ctx ended. Where nobody can see it, it does not wait.
func (t *Tracker) drain(ctx context.Context) bool { return t.drainUntil(ctx.Done()) }

func (t *Tracker) drainUntil(end <-chan struct{}) bool {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	before := ""
	for quiet := 0; ; {
		d, err := lookNumber(kernelNumber(t.rec.get32(offDisk)))
		if err == nil && !t.watch(d) {
			return false
		}
		now, idle := d.quiet()
		if err == nil && idle && now == before && t.evident(d) {
			quiet++
		} else {
			quiet = 0
		}
		before = now
		if quiet >= quietTicks {
			return true
		}
		select {
		case <-end:
			return false
		case <-tick.C:
		}
	}
}

// watch notes in the record whether the kernel may not count all writes that are
// under way, see device.uncounted, and reports whether it did each time that
// anybody looked since the start: before the programs came, at each take, and as
// long as a quiet moment is waited for.
//
// A write that is queued while the io statistics are off is never counted, also
// when they are turned on again before it ends. So a volume that was seen so is
// never found quiet: no end of its start, no rest, until it is stopped and started
// anew.
func (t *Tracker) watch(d device) bool {
	seen := t.rec.get(offUncounted)
	if why := seen | d.uncounted(); why != seen {
		t.rec.set(offUncounted, why)
		seen = why
	}
	return seen == 0
}

// evident reports whether what the programs have seen speaks against what the
// kernel counts. A driver that is not driven by requests keeps the statistics
// itself, and some keep none, whatever the switch says.
func (t *Tracker) evident(d device) bool {
	if t.request {
		return true
	}
	n, err := t.k.counts(t.number)
	return err == nil && (n.Writes == 0 || d.changed())
}

// explainBusy adds to an error about writes under way why nobody knows of them.
func (t *Tracker) explainBusy(err error) error {
	if t.rec.get(offUncounted)&uncountedStats == 0 {
		return err
	}
	where := "/sys/block/*/queue/iostats"
	if d, e := lookNumber(kernelNumber(t.rec.get32(offDisk))); e == nil {
		where = d.statsFile()
	}
	return fmt.Errorf("%w; the io statistics of the disk are off, or were, and writes that came meanwhile are not counted: echo 1 > %s, then stop and start tracking", err, where)
}

// ErrBusy says that writes were under way all the time, or that nobody knows.
var ErrBusy = errors.New("the device was never quiet, so the marks at the end of writes go on: they cost some of its speed until Rest or Close sees a quiet moment")

// Rest ends what [Tracker.Take] began: the marks at the end of writes. It waits
// until no write is under way. Where ctx ends first it returns [ErrBusy] and the
// marks go on, as they do while a taken map is out. Of a device whose driver may
// hold writes that the kernel does not count (see [Status]) they always go on.
func (t *Tracker) Rest(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.errorf("rest", os.ErrClosed)
	}
	return t.rest(ctx)
}

func (t *Tracker) rest(ctx context.Context) error {
	if !t.armed() {
		return nil
	}
	if t.out > 0 {
		return t.errorf("rest", fmt.Errorf("%d taken maps are out, put them back first", t.out))
	}
	if t.rec.get(offUncounted)&uncountedHolds != 0 {
		return nil // never, see Start
	}
	if !t.drain(ctx) {
		return t.errorf("rest", t.explainBusy(ErrBusy))
	}
	if err := t.answerEnds(); err != nil {
		return err
	}
	t.rec.set(offDrained, 1)
	if err := t.sweepSession(); err != nil {
		return err
	}
	t.adopted, t.forgave = false, false
	seen, err := cbt.NewDirtyMap(t.planes.size, t.planes.block)
	if err != nil {
		return err
	}
	t.seen = seen
	return nil
}

// answerUnderWay makes all that this session has taken dirty again if a write may be
// under way: its mark may be among that, and nobody is to see it end. Where another
// process took it, or it may never have had one, the epoch is lost.
func (t *Tracker) answerUnderWay() error {
	if !t.armed() {
		return nil
	}
	end := make(chan struct{})
	defer time.AfterFunc(stopDrain, func() { close(end) }).Stop()
	switch {
	case t.drainUntil(end):
		return t.answerEnds()
	case t.adopted || t.forgave, t.request && t.rec.get(offDrained) == 0:
		t.lose("a write was under way when tracking was stopped")
	}
	for r := range t.seen.Runs() {
		t.planes.mark(r.Extent)
	}
	return nil
}

// stopDrain is how long the end of tracking waits for writes that are under way.
const stopDrain = 300 * time.Millisecond

const lostEnd = "a write ended without a mark"

// answerEnds makes all that this session has taken dirty again if a write ended
// without a mark. Where its first mark may be among what another process took, or
// where it never had one, the epoch is lost: it is of a write that was under way
// when tracking began, or when a seal put right that one had passed the programs by.
func (t *Tracker) answerEnds() error {
	if err := t.recall(); err != nil {
		return err
	}
	ends, err := t.unmarkedEnds()
	if err != nil || ends == t.strangers {
		return err
	}
	switch {
	case t.rec.get(offDrained) == 0:
		t.lose(lostEarly)
	case t.adopted: // it may be among what the other process took and had proven
		t.lose(lostEnd + ", after a session that did not come to rest")
	case t.forgave:
		t.lose(lostEnd + ", after others had passed the programs by")
	}
	for r := range t.seen.Runs() {
		t.planes.mark(r.Extent)
	}
	t.strangers = ends
	t.rec.set(offSeenStranger, ends) // after the bits: killed before, it is done again
	return nil
}
