package failback

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"

	"github.com/failback/failback/transport"
)

// A wire is a connection to a server, which tests look at from its near end.
type wire struct {
	io.ReadWriteCloser
	closed  sync.Once
	onClose func() error                    // nil: nothing besides closing
	spoil   func(out bool, n int, b []byte) // may change the n-th frame that goes out, or comes in
	out     int
	far     farEnd
}

// farEnd is the server's end of one.
type farEnd struct {
	io.ReadWriteCloser
	of     *wire
	in     int
	closed atomic.Bool
}

func newWire() *wire {
	near, there := transport.Pipe()
	w := &wire{ReadWriteCloser: near}
	w.far.ReadWriteCloser, w.far.of = there, w
	return w
}

// spoiled is what arrives of a frame. A write is one frame.
func (w *wire) spoiled(out bool, n *int, b []byte) []byte {
	if w.spoil != nil {
		b = bytes.Clone(b)
		w.spoil(out, *n, b)
		*n++
	}
	return b
}

func (w *wire) Write(b []byte) (int, error) {
	return w.ReadWriteCloser.Write(w.spoiled(true, &w.out, b))
}

func (f *farEnd) Write(b []byte) (int, error) {
	return f.ReadWriteCloser.Write(f.of.spoiled(false, &f.in, b))
}

func (w *wire) Close() (err error) {
	err = w.ReadWriteCloser.Close()
	w.closed.Do(func() {
		if w.onClose != nil {
			err = w.onClose()
		}
	})
	return err
}

func (f *farEnd) Close() error {
	f.closed.Store(true)
	return f.ReadWriteCloser.Close()
}

// wired makes sides reachable at one server, over wires that each prepares by
// its side's name and its number there. wait gives what the server's handlers returned.
func wired(ctx context.Context, o ServerOptions, each func(name string, i int, w *wire), sides ...Side) (far []Side, wait func() []error) {
	if o.Lookup == nil {
		o.Lookup = func(_ context.Context, name string, _ bool) (Served, error) {
			for _, s := range sides {
				if s.Name == name {
					return Served{Side: s}, nil
				}
			}
			return Served{}, &RefusedError{Volume: name, Reason: "it is not served here", Next: "look at the server's list"}
		}
	}
	srv := NewServer(o)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, s := range sides {
		dialed := 0
		far = append(far, Side{Name: s.Name, Dial: func(context.Context) (io.ReadWriteCloser, error) {
			mu.Lock()
			i := dialed
			dialed++
			mu.Unlock()
			w := newWire()
			if each != nil {
				each(s.Name, i, w)
			}
			wg.Go(func() {
				err := srv.Handle(ctx, &w.far)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					errs = append(errs, err)
				}
			})
			return w, nil
		}})
	}
	return far, func() []error {
		wg.Wait()
		return errs
	}
}

// overWires puts a pair of sides where a topology has them, over wires.
func overWires(ctx context.Context, sourceServed, targetServed bool, o ServerOptions, each func(string, int, *wire), src, dst Side) (a, b Side, wait func() []error) {
	a, b = src, dst
	var served []Side
	if sourceServed {
		served = append(served, src)
	}
	if targetServed {
		served = append(served, dst)
	}
	far, wait := wired(ctx, o, each, served...)
	if sourceServed {
		a, far = far[0], far[1:]
	}
	if targetServed {
		b = far[0]
	}
	return a, b, wait
}
