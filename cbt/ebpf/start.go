package ebpf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
)

// Options configures [Start] and [Open]. The zero value is usable.
type Options struct {
	Block    int64  // bytes, see cbt.NewDirtyMap; default cbt.BlockSize of the volume
	Identity string // of the volume, at most cbt.MaxIdentity bytes; default what the kernel calls it
	Name     string // that people call it, at most cbt.MaxIdentity bytes; may be ""
	FS       string // where bpffs is or is to be mounted; default /sys/fs/bpf

	// Drain is how long Start waits for writes that are under way; default
	// 300 ms. If they take longer, Start succeeds. Then Seal refuses, or, on a
	// disk that is driven by requests, the end of writes is marked until Rest
	// or Close sees a quiet moment.
	//
	// None can be seen where the kernel does not count all that is under way,
	// see Uncounted and Holds of Status. There the end of writes is marked until
	// Stop. On a disk that is not driven by requests a write from before the
	// start that ends after the first Seal then loses the epoch.
	Drain time.Duration
}

// ErrNotTracked says that nothing records the device.
var ErrNotTracked = errors.New("the device is not tracked")

// ErrOpen says that another process has the tracker of the device open.
var ErrOpen = errors.New("another process has the tracker open")

// ErrTracked says that the device is tracked already.
var ErrTracked = errors.New("the device is tracked already")

// Start makes the kernel record every write to a device from now on, also after
// this process has ended, until [Tracker.Stop] or a reboot. The tracker vouches
// for nothing before the first Seal. Cost: some 100 ms for the first device of
// a machine, less than 10 for others, and Options.Drain.
func Start(ctx context.Context, path string, o Options) (*Tracker, error) {
	d, err := lookDevice(path)
	if err != nil {
		return nil, err
	}
	if err := d.refuse(); err != nil {
		return nil, err
	}
	rec, err := newView(d, o)
	if err != nil {
		return nil, fmt.Errorf("track %s: %w", path, err)
	}
	p, err := makePins(o.FS)
	if err != nil {
		return nil, fmt.Errorf("track %s: %w", path, err)
	}
	defer p.close()
	t := &Tracker{device: path, request: d.request, pins: p}
	if t.k, err = ensureKernel(p); err != nil {
		return nil, fmt.Errorf("track %s: %w", path, err)
	}
	rec.set(offUncounted, d.uncounted()) // before the programs come: a write that is queued now may never be counted
	if err := t.begin(d, rec); err != nil {
		return nil, errors.Join(fmt.Errorf("track %s: %w", path, err), t.k.dismiss(p), t.release())
	}
	if o.Drain == 0 {
		o.Drain = 300 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, o.Drain)
	defer cancel()
	if t.drain(ctx) {
		t.rec.set(offDrained, 1)
	} else if t.request || t.rec.get(offUncounted) != 0 {
		if err := t.arm(); err != nil {
			return nil, errors.Join(fmt.Errorf("track %s: %w", path, err), t.k.forget(p, t.number), t.k.dismiss(p), t.release())
		}
		t.ebb(ctx)
	}
	return t, nil
}

// Drain waits until the writes that were under way when tracking began have
// ended. [Start] has done it, if the device had a quiet moment. It returns the
// error of ctx when that ended first. On a disk that is not driven by requests and
// whose quiet moments nobody can see there is nothing to wait for: it returns nil.
func (t *Tracker) Drain(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.errorf("drain", os.ErrClosed)
	}
	if !t.request && t.settles() {
		return nil
	}
	if t.rec.get(offDrained) == 0 && !t.drain(ctx) {
		why := context.Cause(ctx)
		if why == nil {
			why = errUndrained
		}
		return t.errorf("drain", t.explainBusy(why))
	}
	t.rec.set(offDrained, 1)
	return nil
}

// newView is the record of a device that is not tracked yet.
func newView(d device, o Options) (view, error) {
	size := int64(d.sectors) * sector
	if o.Block == 0 {
		o.Block = cbt.BlockSize(size)
	}
	if o.Identity == "" {
		o.Identity = d.identity()
	}
	if len(o.Identity) > cbt.MaxIdentity || len(o.Name) > cbt.MaxIdentity {
		return nil, fmt.Errorf("identity of %d bytes and name of %d, limit %d", len(o.Identity), len(o.Name), cbt.MaxIdentity)
	}
	if _, err := cbt.NewDirtyMap(size, o.Block); err != nil { // refuses what no map has
		return nil, err
	}
	// In 64-bit words, for its fields are aligned to that.
	v := view(shared(make([]byte, viewSize)))
	v.set(offStart, d.start)
	v.set(offEnd, d.start+d.sectors)
	v.set32(offShift, uint32(bits.TrailingZeros64(uint64(o.Block/sector))))
	if d.whole() {
		v.set32(offWhole, 1)
	}
	v.set(offWords, wordsOf(d.sectors, v.get32(offShift)))
	v.set32(offDisk, uint32(d.disk))
	v.set(offDevice, uint64(d.number))
	v.set(offDiskSeq, d.diskseq)
	v.set(offThin, d.mapping().thin)
	v.set(offStarted, uint64(time.Now().UnixNano()))
	v.setText(offIdentity, o.Identity)
	v.setText(offName, o.Name)
	return v, nil
}

// begin makes the programs mark the writes to d.
//
//  1. a free view: what an interrupted start left there is removed
//  2. its bitmap, pinned and known to the programs
//  3. its record, all but "live"
//  4. the disk's group: from here on the programs mark
//  5. "live": from here on the tracker can be opened
//
// Killed before 5, the next start that wants the view does 1.
func (t *Tracker) begin(d device, rec view) error {
	free := -1
	for i := range maxViews {
		v := t.k.views.view(i)
		if v.same(d) {
			return fmt.Errorf("%w as %v", ErrTracked, d.number)
		}
		if free < 0 && !v.live() {
			free = i
		}
	}
	if free < 0 {
		return fmt.Errorf("%d volumes are tracked already", maxViews)
	}
	if err := t.k.forget(t.pins, free); err != nil {
		return err
	}
	bitmap, err := ebpf.NewMap(bitmapSpec(rec.get(offWords)))
	if err != nil {
		return fmt.Errorf("make a bitmap of %d MiB: %w", rec.get(offWords)*planeCount*8>>20, err)
	}
	defer bitmap.Close() // t opens it by its pin
	if err := os.Mkdir(t.pins.view(free), 0o700); err != nil {
		return fmt.Errorf("make a directory for pins: %w", err)
	}
	if err := bitmap.Pin(t.pins.view(free) + "/bitmap"); err != nil {
		return fmt.Errorf("pin the bitmap: %w", err)
	}
	if err := t.k.maps["bitmaps"].Put(uint32(free), bitmap); err != nil {
		return fmt.Errorf("give the bitmap to the programs: %w", err)
	}
	if err := t.k.resetCounts(free); err != nil {
		return err
	}
	copy(t.k.views.view(free), rec)
	if err := t.open(free); err != nil {
		return err
	}
	if err := t.k.enter(free, d.disk); err != nil {
		return err
	}
	t.rec.set32(offLive, 1)
	return nil
}

// forget removes all of view i.
func (k *kernel) forget(p *pins, i int) error {
	v := k.views.view(i)
	v.set32(offLive, 0)
	k.leave(i)
	var err error
	if e := k.maps["bitmaps"].Delete(uint32(i)); e != nil && !errors.Is(e, ebpf.ErrKeyNotExist) {
		err = fmt.Errorf("take the bitmap from the programs: %w", e)
	}
	if e := os.RemoveAll(p.view(i)); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("remove the pins of view %d: %w", i, e))
	}
	clear(v)
	return err
}

// Open returns the tracker of a device, which this or another process started.
// For one that has no path any more, path is its number as [Status] has it. It
// returns an error that wraps [ErrOpen] while another process has it open.
func Open(path string, o Options) (*Tracker, error) {
	d, err := lookDevice(path)
	if err != nil && d.number == 0 {
		return nil, err
	}
	t := &Tracker{device: d.path, request: d.request}
	p, err := openPins(o.FS)
	if err == nil {
		defer p.close()
		t.pins = p
		t.k, err = openKernel(p)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotTracked
	}
	if err != nil {
		return nil, fmt.Errorf("open the tracker of %s: %w", path, err)
	}
	err = ErrNotTracked
	for i := range maxViews {
		if t.k.views.view(i).same(d) {
			err = t.open(i)
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the tracker of %s: %w", path, err), t.release())
	}
	return t, nil
}

// Stop ends the recording and returns what was not proven, as
// [Tracker.Map] does: what to save, if the device is quiet from before Stop on.
// What is written later is seen by nobody. Maps that are out count as put back
// whole. The tracker is closed afterwards, also after an error.
//
//  1. writes that ended without a mark are answered for, and those that are under
//     way: a session may have taken their marks
//  2. the record is not live: killed from here on, the volume is not tracked
//     any more, and the next start removes what is left
//  3. the programs leave the volume, and those at work are waited for
//  4. the map is read
//  5. pins and record go; with the last volume the programs go, too
func (t *Tracker) Stop() (*cbt.Map, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, t.errorf("stop", os.ErrClosed)
	}
	p, err := openPins(t.pins.mount)
	if err != nil {
		return nil, errors.Join(t.errorf("stop", err), t.release())
	}
	defer p.close()
	answered := errors.Join(t.answerEnds(), t.answerUnderWay())
	trust := t.trust() // before the end: a stopped view looks detached
	t.rec.set32(offLive, 0)
	t.k.leave(t.number)
	err = errors.Join(answered, t.k.settle(t.number, t.bitmap))
	m, e := t.snapshot()
	if err = errors.Join(err, e); err == nil && trust.Lost == "" {
		m.Epoch = trust.Since
	}
	err = errors.Join(err, t.sweepSession(), t.k.forget(p, t.number), t.k.dismiss(p))
	if err = errors.Join(err, t.release()); err != nil {
		return nil, t.errorf("stop", err)
	}
	return m, nil
}

// dismiss ends the programs when there is no view left.
func (k *kernel) dismiss(p *pins) error {
	for i := range maxViews {
		if k.views.view(i).live() {
			return nil
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove the pins of the programs: %w", err)
	}
	return nil
}
