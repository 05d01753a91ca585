package cbttest

import (
	"fmt"
	"io"
	"sync"
)

// Memory is a volume in memory whose writes can be held on their way. Each
// write is atomic to readers.
type Memory struct {
	mu   sync.RWMutex
	data []byte
	gate chan struct{} // the next write waits for it; nil: it does not
	here chan struct{} // closed when that write waits
}

// NewMemory returns a volume of size zero bytes.
func NewMemory(size int64) *Memory { return &Memory{data: make([]byte, size)} }

// ReadAt implements [io.ReaderAt].
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 || off > int64(len(m.data)) {
		return 0, fmt.Errorf("read at %#x of %d bytes", off, len(m.data))
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements [io.WriterAt]. It waits first if it is the write that
// HoldNext was called for.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	m.pass()
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off > int64(len(m.data))-int64(len(p)) {
		return 0, fmt.Errorf("write %d bytes at %#x of %d", len(p), off, len(m.data))
	}
	return copy(m.data[off:], p), nil
}

// Discard makes n bytes at off zero.
func (m *Memory) Discard(off, n int64) error {
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}

// HoldNext makes the next write wait, before a byte of it lands, until release
// is called. held is closed when it waits.
func (m *Memory) HoldNext() (held <-chan struct{}, release func()) {
	gate, here := make(chan struct{}), make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gate, m.here = gate, here
	return here, func() { close(gate) }
}

// pass waits at the gate, if there is one.
func (m *Memory) pass() {
	m.mu.Lock()
	gate, here := m.gate, m.here
	m.gate, m.here = nil, nil
	m.mu.Unlock()
	if gate != nil {
		close(here)
		<-gate
	}
}

// Stall returns a [Subject.Stall] for a tracker whose writes go through w and
// end in m.
func (m *Memory) Stall(w io.WriterAt) func(p []byte, off int64) (land func() error) {
	return func(p []byte, off int64) func() error {
		held, release := m.HoldNext()
		ended := make(chan error, 1)
		go func() { // ends when land is called
			_, err := w.WriteAt(p, off)
			ended <- err
		}()
		<-held
		return func() error {
			release()
			return <-ended
		}
	}
}
