package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/failback/failback/transport"
)

// faulty is a volume that fails where its hooks do. Each may be nil.
type faulty struct {
	*memory
	read, medium, write, sync func(off int64) error
}

func hook(f func(int64) error, off int64) error {
	if f == nil {
		return nil
	}
	return f(off)
}

func (v *faulty) ReadAt(p []byte, off int64) (int, error) {
	if err := hook(v.read, off); err != nil {
		return 0, err
	}
	return v.memory.ReadAt(p, off)
}

func (v *faulty) ReadMediumAt(p []byte, off int64) (int, error) {
	if err := hook(v.medium, off); err != nil {
		return 0, err
	}
	return v.memory.ReadAt(p, off)
}

func (v *faulty) WriteAt(p []byte, off int64) (int, error) {
	if err := hook(v.write, off); err != nil {
		return 0, err
	}
	return v.memory.WriteAt(p, off)
}

func (v *faulty) Sync() error { return hook(v.sync, 0) }

// within runs f where time stands still unless everybody waits, and fails if a
// goroutine or a buffer is left when it returns.
func within(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	before := buffersOut()
	synctest.Test(t, f)
	if n := buffersOut() - before; n != 0 {
		t.Errorf("%d buffers were not given back", n)
	}
}

// pipeServe makes sides reachable through pipes at one server. The function it
// returns waits until every connection is served to its end.
func pipeServe(ctx context.Context, o Options, sides ...Side) ([]Side, func() []error) {
	srv := NewServer(ServerOptions{Options: o, Lookup: func(_ context.Context, name string, _ bool) (Served, error) {
		for _, s := range sides {
			if s.Name == name {
				return Served{Side: s}, nil
			}
		}
		return Served{}, &RefusedError{Volume: name, Reason: "it is not served here", Next: "look at the server's list"}
	}})
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	var far []Side
	for _, s := range sides {
		far = append(far, Side{Name: s.Name, Dial: func(context.Context) (io.ReadWriteCloser, error) {
			near, there := transport.Pipe()
			wg.Go(func() {
				err := srv.Handle(ctx, there)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
			return near, nil
		}})
	}
	return far, func() []error {
		wg.Wait()
		return errs
	}
}

// pipes puts both sides where a topology has them, over pipes.
func pipes(ctx context.Context, i int, src, dst Side) (a, b Side, wait func()) {
	o := Options{Codec: "none", Workers: 3}
	a, b = src, dst
	var waits []func() []error
	if topologies[i].sourceServed {
		dirty := src.Dirty
		src.Dirty = nil
		far, w := pipeServe(ctx, o, src)
		a, waits = far[0], append(waits, w)
		a.Dirty = dirty
	}
	if topologies[i].targetServed {
		far, w := pipeServe(ctx, o, dst)
		b, waits = far[0], append(waits, w)
	}
	return a, b, func() {
		for _, w := range waits {
			w()
		}
	}
}

// TestFaults: whatever fails, wherever it is, the caller gets the reason of the
// one who met it, with the volume's name, and nothing is left behind.
func TestFaults(t *testing.T) {
	broken := errors.New("lp0 on fire")
	once := func(n int64) func(int64) error {
		var calls atomic.Int64
		return func(int64) error {
			if calls.Add(1) > n {
				return broken
			}
			return nil
		}
	}
	for _, f := range []struct {
		name   string
		volume string
		hook   func(src, dst *faulty, n int64)
	}{
		{"source read", "src", func(src, _ *faulty, n int64) { src.read = once(n) }},
		{"target read", "dst", func(_, dst *faulty, n int64) { dst.read = once(n) }},
		{"target write", "dst", func(_, dst *faulty, n int64) { dst.write = once(n) }},
		{"target sync", "dst", func(_, dst *faulty, n int64) { dst.sync = once(0) }},
		{"target medium", "dst", func(_, dst *faulty, n int64) { dst.medium = once(n) }},
	} {
		for i, topo := range topologies {
			for _, n := range []int64{0, 3} {
				t.Run(fmt.Sprintf("%s after %d/%s", f.name, n, topo.name), func(t *testing.T) {
					within(t, func(t *testing.T) {
						src, dst := &faulty{memory: randomVolume(1, 6<<20)}, &faulty{memory: randomVolume(2, 6<<20)}
						f.hook(src, dst, n)
						a, b, wait := pipes(t.Context(), i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
						_, err := Sync(t.Context(), a, b, Options{Streams: topo.streams, Codec: "none"})
						wait()
						if err == nil || !strings.Contains(err.Error(), broken.Error()) || !strings.Contains(err.Error(), f.volume) {
							t.Errorf("got %v", err)
						}
					})
				})
			}
		}
	}
}

// TestFaultsCompare: the same for a comparison, whose sinks read what differs again.
func TestFaultsCompare(t *testing.T) {
	for i, topo := range topologies {
		for _, n := range []int64{0, 20, 25, 30} {
			t.Run(fmt.Sprintf("%s/%d", topo.name, n), func(t *testing.T) {
				within(t, func(t *testing.T) {
					src, dst := &faulty{memory: randomVolume(1, 6<<20)}, randomVolume(2, 6<<20)
					var calls atomic.Int64
					src.read = func(int64) error {
						if calls.Add(1) > n {
							return errors.New("lp0 on fire")
						}
						return nil
					}
					a, b, wait := pipes(t.Context(), i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
					_, err := Compare(t.Context(), a, b, Options{Streams: topo.streams, Codec: "none"})
					wait()
					if err == nil || !strings.Contains(err.Error(), "lp0 on fire") {
						t.Errorf("got %v", err)
					}
				})
			})
		}
	}
}

// TestCancel: a session that is cancelled ends with that word, at any moment.
func TestCancel(t *testing.T) {
	for i, topo := range topologies {
		for _, n := range []int64{1, 5, 20} {
			t.Run(fmt.Sprintf("%s/%d", topo.name, n), func(t *testing.T) {
				within(t, func(t *testing.T) {
					src, dst := &faulty{memory: randomVolume(1, 6<<20)}, randomVolume(2, 6<<20)
					ctx, cancel := context.WithCancel(t.Context())
					var calls atomic.Int64
					src.read = func(int64) error {
						if calls.Add(1) == n {
							cancel()
						}
						return nil
					}
					a, b, wait := pipes(t.Context(), i, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
					_, err := Sync(ctx, a, b, Options{Streams: topo.streams, Codec: "none"})
					wait()
					if !errors.Is(err, context.Canceled) {
						t.Errorf("got %v", err)
					}
				})
			})
		}
	}
	_ = bytes.Equal
}
