package transport

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestWindow(t *testing.T) {
	w := NewWindow(10)
	ctx := t.Context()
	check(t, w.Take(ctx, 4))
	check(t, w.Take(ctx, 6))
	check(t, w.Take(ctx, 0))
	check(t, w.Give(3))
	for _, n := range []int64{8, -1, 1 << 62} {
		if err := w.Give(n); !errors.Is(err, ErrCredit) {
			t.Errorf("give %d where 7 are out: %v", n, err)
		}
	}
	for _, n := range []int64{11, -1} {
		if err := w.Take(ctx, n); !errors.Is(err, ErrTooLarge) {
			t.Errorf("take %d of 10: %v", n, err)
		}
	}
	check(t, w.Take(ctx, 3))
	check(t, w.Give(10))
	if n := testing.AllocsPerRun(100, func() { w.Take(ctx, 5); w.Give(5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestWindowOrder: who came first is served first, and a long wait that is
// given up lets the next one through.
func TestWindowOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWindow(10)
		check(t, w.Take(t.Context(), 8))
		order := make(chan int64, 3)
		errs := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { errs <- w.Take(ctx, 9) }()
		synctest.Wait()
		for _, n := range []int64{2, 1} {
			go func() {
				w.Take(t.Context(), n)
				order <- n
			}()
			synctest.Wait()
		}
		select {
		case n := <-order:
			t.Errorf("%d overtook", n)
		default:
		}
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if n := <-order; n != 2 {
			t.Errorf("%d before 2", n)
		}
		check(t, w.Give(8))
		<-order
		check(t, w.Give(3))
		check(t, w.Take(t.Context(), 10))
	})
}

// TestWindowBounds: many takers and givers, some of whom give up, never have
// more out than the window holds, and leave it whole.
func TestWindowBounds(t *testing.T) {
	const size = 100
	w := NewWindow(size)
	var out atomic.Int64
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for j := range 2000 {
				ctx, cancel := context.WithCancel(context.Background())
				if (i+j)%3 == 0 {
					go cancel()
				}
				n := int64((i*7+j)%size) + 1
				if w.Take(ctx, n) == nil {
					if out.Add(n) > size {
						t.Error("too much out")
					}
					out.Add(-n)
					if err := w.Give(n); err != nil {
						t.Error(err)
					}
				}
				cancel()
			}
		})
	}
	g.Wait()
	check(t, w.Take(t.Context(), size))
}
