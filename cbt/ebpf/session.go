package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
//     because there was no room, is a stranger's: it is counted, and the next
//     take reports again all that this session has ever taken. Its mark is among
//     that, or is still to be taken.
//
// These programs cost up to 10%, so they come with the first take and go with
// [Tracker.Rest]. They are pinned too: if the session is killed, they go on to
// mark until the tracker is opened again and rests.
//
// A session may only rest when no write is under way that was marked before the
// last take. When that cannot be seen, all that it has taken is marked again.

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
	t.strangers = t.rec.get(offStrangers)
	t.rec.set(offSeenStranger, t.strangers)
	if err := t.sweepSession(); err != nil {
		return err
	}
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
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: map[string]*ebpf.Map{"views": t.k.maps["views"], "bitmap": t.bitmap},
	})
	if err != nil {
		return explainLoad(err)
	}
	defer c.Close()
	return t.pinSession(c)
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
// scheduler or a plug for some milliseconds.
const (
	drainTick  = 5 * time.Millisecond
	quietTicks = 4
)

// drain waits until no write to the disk is under way, and reports whether it
// has seen that before ctx ended.
func (t *Tracker) drain(ctx context.Context) bool {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for quiet := 0; ; {
		d, err := lookNumber(kernelNumber(t.rec.get32(offDisk)))
		if err == nil && d.quiet() {
			quiet++
		} else {
			quiet = 0
		}
		if quiet >= quietTicks {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// Rest ends what [Tracker.Take] began: the marks at the end of writes. It waits
// until no write is under way. Where ctx ends first, it marks all that was
// taken since the first take once more, which is sound and much. Rest returns
// an error, and the marks go on, while a taken map is out.
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
	if !t.drain(ctx) || t.rec.get(offStrangers) != t.strangers {
		if t.adopted {
			t.lose("writes were under way when a session that was killed left off, and they did not end in time")
		}
		for r := range t.seen.Runs() {
			t.planes.mark(r.Extent)
		}
	}
	if err := t.sweepSession(); err != nil {
		return err
	}
	t.adopted = false
	seen, err := cbt.NewDirtyMap(t.planes.size, t.planes.block)
	if err != nil {
		return err
	}
	t.seen = seen
	return nil
}
