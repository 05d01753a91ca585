package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
	"golang.org/x/sys/unix"
)

var (
	_ cbt.Tracker = (*Tracker)(nil)
	_ cbt.Sealer  = (*Tracker)(nil)
)

// Tracker is the hold of this process on what the kernel records of one block
// device. One process has it at a time. Closed or killed, the recording goes on.
//
// Memory of the kernel: three bits a block, 96 MiB for 1 TiB in blocks of 4 KiB.
type Tracker struct {
	device  string
	request bool // of device
	number  int  // of the view
	dir     string
	pins    *pins // unlocked
	k       *kernel
	bitmap  *ebpf.Map
	memory  shared // of bitmap
	lock    *os.File

	// mu orders all methods. The programs know no lock.
	mu     sync.Mutex
	rec    view
	planes *planes
	closed bool

	// m has all that user space holds: taken from the programs and not proven.
	// The plane held is its shadow.
	m   *cbt.DirtyMap
	out int // taken maps

	seen      *cbt.DirtyMap // all that was taken since the session is armed
	strangers uint64        // writes that ended without a mark and are answered for
	adopted   bool          // the session was armed by another process
	recalled  uint64        // ends that had passed the programs by when what they remember was last marked
	forgave   bool          // a seal put right that a write went without its first mark; until rest
}

// errUndrained says that the start is not over.
var errUndrained = errors.New("writes that were under way when tracking began have not ended yet, as far as anybody can see (Drain waits for that): pause the writers for a moment")

// lostEarly is the same of a write that may have been under way when tracking began.
const lostEarly = "a write ended without a mark, which may have been under way when tracking began"

func (t *Tracker) errorf(what string, err error) error {
	return fmt.Errorf("%s of tracked %s: %w", what, t.device, err)
}

// open maps the memory of view i. The caller has the pins locked.
func (t *Tracker) open(i int) error {
	t.number, t.dir, t.rec = i, t.pins.view(i), t.k.views.view(i)
	if err := t.rec.check(); err != nil {
		return err
	}
	lock, err := lockDir(t.dir, false)
	if err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrOpen
		}
		return fmt.Errorf("lock %s: %w", t.dir, err)
	}
	t.lock = lock
	if err := t.openBitmap(); err != nil {
		return err
	}
	for _, m := range []**cbt.DirtyMap{&t.m, &t.seen} {
		if *m, err = cbt.NewDirtyMap(t.planes.size, t.planes.block); err != nil {
			return err
		}
	}
	t.planes.heldTo(t.m)
	t.strangers = t.rec.get(offSeenStranger)
	t.adopted = t.armed()
	if !t.adopted {
		return nil
	}
	return t.answerEnds()
}

// openBitmap maps the planes.
func (t *Tracker) openBitmap() error {
	var err error
	if t.bitmap, err = ebpf.LoadPinnedMap(t.dir+"/bitmap", nil); err != nil {
		return fmt.Errorf("open the pinned bitmap: %w", err)
	}
	words := t.rec.get(offWords) * planeCount
	if uint64(t.bitmap.MaxEntries()) != words || t.bitmap.ValueSize() != 8 {
		return fmt.Errorf("the pinned bitmap has %d values of %d bytes, want %d of 8", t.bitmap.MaxEntries(), t.bitmap.ValueSize(), words)
	}
	if t.memory, err = mapShared(t.bitmap, words*8); err != nil {
		return err
	}
	t.planes = planesOf(t.memory, t.rec)
	return nil
}

// Close gives the tracker back; the recording goes on. It rests first, see
// [Tracker.Rest], where the device has a quiet moment until ctx ends, and counts
// maps that are out as put back whole.
func (t *Tracker) Close(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.out = 0 // the plane has them
	err := t.rest(ctx)
	if errors.Is(err, ErrBusy) {
		err = nil
	}
	return errors.Join(err, t.release())
}

// release gives back what open acquired.
func (t *Tracker) release() error {
	t.closed = true
	t.planes, t.rec = nil, nil
	err := t.memory.close()
	t.memory = nil
	if t.bitmap != nil {
		err = errors.Join(err, t.bitmap.Close())
	}
	if t.lock != nil {
		err = errors.Join(err, t.lock.Close())
	}
	return errors.Join(err, t.k.close())
}

// Take implements cbt.Tracker. The first one puts the programs to work that
// mark a write when it ends, see session.go; [Tracker.Rest] ends them. Cost: one
// pass over the bitmap, 64 MiB in some 20 ms, and for the first take some
// 100 ms.
func (t *Tracker) Take(ctx context.Context, since cbt.Epoch) (*cbt.Taken, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return nil, t.errorf("take the map", err)
	}
	if t.closed {
		return nil, t.errorf("take the map", os.ErrClosed)
	}
	if err := t.trust().Check(since); err != nil {
		return nil, t.errorf("take the map", err)
	}
	if err := t.arm(); err != nil {
		return nil, t.errorf("take the map", err)
	}
	// Before the bits: an end without a mark that comes later is the next take's.
	if err := t.answerEnds(); err != nil {
		return nil, t.errorf("take the map", err)
	}
	t.planes.move(t.m)
	// Once more: what became known meanwhile is about this take, too. The bits
	// are user space's already, which changes nothing.
	if err := t.trust().Check(since); err != nil {
		return nil, t.errorf("take the map", err)
	}
	taken := t.m.Take()
	for r := range taken.Runs() {
		t.seen.Mark(r.Off, r.Len())
	}
	t.out++
	return taken, nil
}

// PutBack implements cbt.Tracker.
func (t *Tracker) PutBack(taken *cbt.Taken, proven []cbt.Extent) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return t.errorf("put back", os.ErrClosed)
	}
	if err := t.m.PutBack(taken, proven); err != nil {
		return t.errorf("put back", err)
	}
	t.out--
	t.planes.hold(t.m.Runs())
	return nil
}

// Map returns what is not proven, taken maps included, and clears nothing. It
// has the identity and the epoch. The map of a tracker that vouches for nothing
// has epoch 0: who loads it does not believe it. Cost: see cbt.DirtyMap.Map.
func (t *Tracker) Map() (*cbt.Map, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, t.errorf("map", os.ErrClosed)
	}
	if err := t.answerEnds(); err != nil {
		return nil, t.errorf("map", err)
	}
	return t.snapshot()
}

func (t *Tracker) snapshot() (*cbt.Map, error) {
	all, err := cbt.NewDirtyMap(t.planes.size, t.planes.block)
	if err != nil {
		return nil, err
	}
	for r := range t.m.Runs() {
		all.Add(r)
	}
	t.planes.peek(all)
	return t.label(all.Map()), nil
}

// label writes on a map whose it is, and since when it has every write.
func (t *Tracker) label(m *cbt.Map) *cbt.Map {
	m.Identity = t.rec.text(offIdentity)
	if trust := t.trust(); trust.Lost == "" {
		m.Epoch = trust.Since
	}
	return m
}

// Add marks all that m holds: what an earlier tracker of the same volume knew.
// Whoever calls it knows that nothing was written in between.
func (t *Tracker) Add(m *cbt.Map) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return t.errorf("add to", os.ErrClosed)
	case m.VolumeSize != t.planes.size:
		return t.errorf("add to", fmt.Errorf("the map is of %d bytes, the volume has %d", m.VolumeSize, t.planes.size))
	}
	for r := range m.Runs() {
		t.planes.mark(r.Extent)
	}
	return nil
}
