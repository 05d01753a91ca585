package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrCredit is in the chain of an error when a peer gives back more than was taken.
var ErrCredit = errors.New("more credit than was taken")

// Window bounds the bytes that are under way: sent, and not yet consumed by the
// peer. It is safe for concurrent use; takers are served in the order they came.
type Window struct {
	size    int64
	mu      sync.Mutex
	free    int64 // bytes; 0 <= free <= size
	waiting []*taker
}

type taker struct {
	n     int64
	ready chan struct{} // closed once n is granted
}

// NewWindow returns a window of size bytes, at least 1.
func NewWindow(size int64) *Window {
	size = max(size, 1)
	return &Window{size: size, free: size}
}

// Take takes n bytes of credit and waits until they are there or ctx ends. More
// than the whole window is an error, for it would never be there.
func (w *Window) Take(ctx context.Context, n int64) error {
	if n < 0 || n > w.size {
		return fmt.Errorf("take %d bytes from a window of %d: %w", n, w.size, ErrTooLarge)
	}
	w.mu.Lock()
	if len(w.waiting) == 0 && n <= w.free {
		w.free -= n
		w.mu.Unlock()
		return nil
	}
	t := &taker{n: n, ready: make(chan struct{})}
	w.waiting = append(w.waiting, t)
	w.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
	}
	w.leave(t)
	return ctx.Err()
}

// leave takes t out of the line, or gives back what it was granted meanwhile.
func (w *Window) leave(t *taker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, other := range w.waiting {
		if other == t {
			w.waiting = append(w.waiting[:i], w.waiting[i+1:]...)
			w.grant() // t may have stood before one that fits
			return
		}
	}
	w.free += t.n
	w.grant()
}

// Give returns n bytes of credit. More than is out is [ErrCredit], and changes nothing.
func (w *Window) Give(n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n < 0 || n > w.size-w.free {
		return fmt.Errorf("give %d bytes where %d are out: %w", n, w.size-w.free, ErrCredit)
	}
	w.free += n
	w.grant()
	return nil
}

func (w *Window) grant() {
	for len(w.waiting) > 0 && w.waiting[0].n <= w.free {
		t := w.waiting[0]
		w.free -= t.n
		w.waiting[0] = nil
		w.waiting = w.waiting[1:]
		close(t.ready)
	}
}
