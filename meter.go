package failback

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/failback/failback/cbt"
)

// meter is a side's volume with its bytes counted where they move.
type meter struct {
	v    Volume
	name string

	read     atomic.Int64 // to compare and to send
	written  atomic.Int64
	zeroed   atomic.Int64
	verified atomic.Int64 // read from the medium to prove what lies there
	saved    atomic.Int64 // kept in an undo log before it was overwritten
	unsaved  atomic.Int64 // overwritten without, though there is one

	busy underWay
}

// ReadAt implements io.ReaderAt for what reads a volume without knowing it is counted.
func (m *meter) ReadAt(p []byte, off int64) (int, error) {
	m.busy.reads.Add(1)
	defer m.busy.reads.Add(-1)
	n, err := m.v.ReadAt(p, off)
	m.read.Add(int64(n))
	return n, err
}

// readAt fills p or says what could not be read.
func (m *meter) readAt(p []byte, off int64) error {
	m.busy.reads.Add(1)
	defer m.busy.reads.Add(-1)
	n, err := m.v.ReadAt(p, off)
	return m.checkRead(&m.read, n, len(p), off, err)
}

// readMedium is readAt past this machine's caches, where the volume can do that.
func (m *meter) readMedium(p []byte, off int64) error {
	m.busy.reads.Add(1)
	defer m.busy.reads.Add(-1)
	r, ok := m.v.(MediumReader)
	if !ok {
		n, err := m.v.ReadAt(p, off)
		return m.checkRead(&m.verified, n, len(p), off, err)
	}
	n, err := r.ReadMediumAt(p, off)
	return m.checkRead(&m.verified, n, len(p), off, err)
}

func (m *meter) checkRead(count *atomic.Int64, n, want int, off int64, err error) error {
	count.Add(int64(n))
	if n == want {
		return nil // io.EOF beside a full read says nothing
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return m.named(err, fmt.Sprintf("read %s at %#x, %d of %d bytes", m.name, off, n, want))
}

// named says what was tried, unless the volume has said so itself.
func (m *meter) named(err error, what string) error {
	_, disk := m.v.(*Disk)
	_, stage := m.v.(*stage)
	if (disk || stage) && err != io.ErrUnexpectedEOF && err != io.ErrShortWrite {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (m *meter) writeAt(p []byte, off int64) error {
	m.busy.writes.Add(1)
	defer m.busy.writes.Add(-1)
	n, err := m.v.WriteAt(p, off)
	m.written.Add(int64(n))
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return m.named(err, fmt.Sprintf("write %s at %#x, %d of %d bytes", m.name, off, n, len(p)))
	}
	return nil
}

// zeroAt makes the range read as zeroes by whatever is cheapest for the volume.
func (m *meter) zeroAt(ctx context.Context, off, n int64) error {
	if z, ok := m.v.(Zeroer); ok {
		m.busy.writes.Add(1)
		defer m.busy.writes.Add(-1)
		if err := z.ZeroAt(off, n); err != nil {
			return m.named(err, fmt.Sprintf("zero %s at %#x, %d bytes", m.name, off, n))
		}
		m.zeroed.Add(n)
		return nil
	}
	z := zeroes()
	for end := off + n; off < end; off += int64(len(z)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.writeAt(z[:min(int64(len(z)), end-off)], off); err != nil {
			return err
		}
	}
	m.zeroed.Add(n)
	return nil
}

// A syncError is a volume that could not be made durable. What was written since
// it last was may be gone, though a cache still shows it.
type syncError struct{ err error }

func (e *syncError) Error() string { return e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

func (m *meter) sync() error {
	m.busy.flushes.Add(1)
	defer m.busy.flushes.Add(-1)
	if err := m.v.Sync(); err != nil {
		return &syncError{m.named(err, "flush "+m.name)}
	}
	return nil
}

// identity is what the volume calls itself, empty if it has no name of its own.
func (m *meter) identity() string {
	if i, ok := m.v.(Identifier); ok {
		return i.Identity()
	}
	return ""
}

// stamp changes when the volume is written; empty if nothing tells.
func (m *meter) stamp() (string, error) {
	s, ok := m.v.(Stamper)
	if !ok {
		return "", nil
	}
	text, err := s.Stamp()
	if err != nil {
		return "", m.named(err, "ask "+m.name+" whether it was written")
	}
	return clip(text), nil
}

// writes is what the volume itself counts of writes to it, whoever makes them; "" if
// it does not. Unlike a stamp it is the same as long as nobody writes.
func (m *meter) writes() (string, error) {
	c, ok := m.v.(interface{ writes() (string, error) })
	if !ok {
		return "", nil
	}
	text, err := c.writes()
	if err != nil {
		return "", m.named(err, "ask "+m.name+" whether it was written")
	}
	return clip(text), nil
}

// reserve makes sure that there is room for the n bytes at off, where the volume can.
func (m *meter) reserve(off, n int64) error {
	r, ok := m.v.(interface{ reserve(off, n int64) error })
	if !ok {
		return nil
	}
	return r.reserve(off, n)
}

// allocated returns the ranges that may hold data, and whether the volume knows.
func (m *meter) allocated(ctx context.Context) ([]cbt.Extent, bool, error) {
	a, ok := m.v.(Allocator)
	if !ok {
		return nil, false, nil
	}
	x, err := a.Allocated(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("list allocated ranges of %s: %w", m.name, err)
	}
	return cbt.Normalize(x), true, nil
}
