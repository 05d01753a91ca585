package cbt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

var (
	_ Tracker     = (*Writer)(nil)
	_ Sealer      = (*Writer)(nil)
	_ io.WriterAt = (*Writer)(nil)
)

// Writer is the [Tracker] of a program that writes the volume itself: it
// passes writes on and records them. It knows of no write that goes around it;
// who hears of one calls [Writer.Lose].
//
// Writes may run at the same time as each other and as every method. The
// tracker adds no lock to the path of a write.
type Writer struct {
	dst      io.WriterAt
	identity string
	m        *DirtyMap

	// mu makes a take and the trust it depends on one step.
	mu    sync.Mutex
	trust Trust
}

// WriterOptions configures [Wrap]. The zero value is usable.
type WriterOptions struct {
	Block    int64  // bytes, see NewDirtyMap; default BlockSize of the volume
	Identity string // of the volume, at most MaxIdentity bytes

	// Saved is the map that [Writer.Map] returned when the tracker was last
	// stopped cleanly. Its file must be gone before the first write: after a
	// crash it would be out of date. Without it the epoch is lost until the
	// next Seal.
	Saved *Map
}

// Wrap returns a tracker in front of dst, a volume of size bytes. It refuses a
// saved map of another size or identity, or without an epoch.
func Wrap(dst io.WriterAt, size int64, o WriterOptions) (*Writer, error) {
	m, err := NewDirtyMap(size, o.Block)
	if err != nil {
		return nil, fmt.Errorf("wrap volume %q: %w", o.Identity, err)
	}
	if n := len(o.Identity); n > MaxIdentity {
		return nil, fmt.Errorf("wrap volume: identity of %d bytes, limit %d", n, MaxIdentity)
	}
	w := &Writer{dst: dst, identity: o.Identity, m: m}
	w.trust.Lost = "no saved map: writes before this start are not known"
	if o.Saved == nil {
		return w, nil
	}
	switch s := o.Saved; {
	case s.VolumeSize != size:
		return nil, fmt.Errorf("wrap volume %q of %d bytes: the saved map is of one of %d", o.Identity, size, s.VolumeSize)
	case s.Identity != o.Identity:
		return nil, fmt.Errorf("wrap volume %q: the saved map is of volume %q", o.Identity, s.Identity)
	case s.Epoch == 0:
		return nil, fmt.Errorf("wrap volume %q: the saved map names no epoch", o.Identity)
	}
	for r := range o.Saved.Runs() {
		m.Add(r)
	}
	w.trust = Trust{Since: o.Saved.Epoch}
	return w, nil
}

// WriteAt writes p to the volume and records it, also when the write fails:
// what it left on the device is not known. A write that reaches out of the
// volume is refused before a byte moves.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	n := int64(len(p))
	if err := w.fits(off, n); err != nil {
		return 0, err
	}
	before := w.m.begin(Dirty, off, n)
	// Deferred: a write that panics may have reached the device, too.
	defer w.m.done(before, Dirty, off, n)
	return w.dst.WriteAt(p, off)
}

// Do records op, which writes (s is [Dirty]) or discards ([Discarded]) the n
// bytes at off of the volume in its own way, and calls it. After a discard
// that fails the bytes are dirty. It returns the error of op, and refuses
// bytes out of the volume without calling it.
func (w *Writer) Do(s State, off, n int64, op func() error) error {
	if err := w.fits(off, n); err != nil {
		return err
	}
	if s != Discarded {
		s = Dirty
	}
	before := w.m.begin(s, off, n)
	failed := true
	defer func() {
		if failed {
			w.m.Mark(off, n)
			return
		}
		w.m.done(before, s, off, n)
	}()
	err := op()
	failed = err != nil
	return err
}

// fits refuses bytes out of the volume: they would grow it unseen.
func (w *Writer) fits(off, n int64) error {
	if off < 0 || n < 0 || off > w.m.size || n > w.m.size-off {
		return fmt.Errorf("write %d bytes at %#x of volume %q: it has %d bytes", n, off, w.identity, w.m.size)
	}
	return nil
}

// begin records a request before it reaches the device and returns what done
// must be given. The number is read first: a take that can hold the mark then
// ends after it was read.
func (m *DirtyMap) begin(s State, off, n int64) (takes uint64) {
	takes = m.takes.Load()
	if takes%2 != 0 {
		s = Dirty // a take is under way: see done
	}
	m.Add(Run{extentOf(off, n, m.size), s})
	return takes
}

// done records the request again, as dirty, if it and a take overlapped in a
// way that can lose it.
//
// A write: if a take ended since begin, that take has the mark, and who took
// it may have read the block before the write reached it. This is the
// in-flight race. If none ended, any take that has the mark returns later, and
// who took it reads what was written.
//
// A discard must not overlap a take at all to stay one. Else a write that came
// after it on the device may be in that take, be proven and gone, and the
// discard would be the last word on a block that holds data.
func (m *DirtyMap) done(takes uint64, s State, off, n int64) {
	now := m.takes.Load()
	if now/2 != takes/2 || s == Discarded && now != takes {
		m.Mark(off, n)
	}
}

// Take implements [Tracker]. Its context is looked at once: it does not wait.
func (w *Writer) Take(ctx context.Context, since Epoch) (*Taken, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("take dirty map of volume %q: %w", w.identity, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.trust.Check(since); err != nil {
		return nil, fmt.Errorf("take dirty map of volume %q: %w", w.identity, err)
	}
	return w.m.Take(), nil
}

// PutBack implements [Tracker].
func (w *Writer) PutBack(t *Taken, proven []Extent) error {
	if err := w.m.PutBack(t, proven); err != nil {
		return fmt.Errorf("volume %q: %w", w.identity, err)
	}
	return nil
}

// Pending reports whether the next Take would report any of the n bytes at off.
func (w *Writer) Pending(off, n int64) bool {
	for at := off; at < off+n; at += w.m.block {
		if w.m.State(at) != Clean {
			return true
		}
	}
	return n > 0 && w.m.State(off+n-1) != Clean
}

// Trust implements [Tracker].
func (w *Writer) Trust() Trust {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trust
}

// Seal implements [Sealer].
func (w *Writer) Seal(e Epoch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e <= w.trust.Since {
		return fmt.Errorf("seal epoch %d of volume %q: it is at epoch %d already", e, w.identity, w.trust.Since)
	}
	if n := w.m.outstanding(); n > 0 {
		return fmt.Errorf("seal epoch %d of volume %q: %d taken maps are out, put them back first", e, w.identity, n)
	}
	w.trust = Trust{Since: e}
	return nil
}

// Advance implements [Sealer].
func (w *Writer) Advance(t *Taken, proven []Extent, e Epoch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.trust.Check(w.trust.Since)
	switch n := w.m.outstanding(); {
	case err != nil:
	case e <= w.trust.Since:
		err = fmt.Errorf("it is at epoch %d already", w.trust.Since)
	case n > 1:
		err = fmt.Errorf("%d other taken maps are out, put them back first", n-1)
	}
	if err != nil {
		proven = nil
	}
	if err = errors.Join(err, w.m.PutBack(t, proven)); err != nil {
		return fmt.Errorf("advance volume %q to epoch %d: %w", w.identity, e, err)
	}
	w.trust = Trust{Since: e} // who looks in between has to wait for mu, and nothing of this outlives the process
	return nil
}

// Lose makes the tracker vouch for nothing until the next Seal, for the given
// reason: a write went around it, the volume was changed while it was away.
// It forgets no mark.
func (w *Writer) Lose(reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if reason == "" {
		reason = "no reason given"
	}
	w.trust.Lost = reason
}

// Map returns what is not proven, taken maps included, with epoch and
// identity: what to save at a clean stop, once the last write has returned.
// It returns [ErrEpochLost] when the tracker vouches for nothing, for a saved
// map is trusted. Cost: see [DirtyMap.Map].
func (w *Writer) Map() (*Map, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.trust.Check(w.trust.Since); err != nil {
		return nil, fmt.Errorf("map of volume %q: %w", w.identity, err)
	}
	m := w.m.Map()
	m.Identity, m.Epoch = w.identity, w.trust.Since
	return m, nil
}
