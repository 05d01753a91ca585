package failback

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestRelayItself: L4. A volume is no target for itself, by way of one server.
func TestRelayItself(t *testing.T) {
	within(t, func(t *testing.T) {
		g := &guarded{memory: randomVolume(1, hostileSize)}
		far, wait := wired(t.Context(), ServerOptions{}, nil, Side{Volume: g, Name: "db"})
		_, err := Sync(t.Context(), far[0], far[0], Options{Codec: "none", RetryFor: time.Minute})
		wait()
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.busy || !strings.Contains(err.Error(), "one and the same volume") || refused.Volume != "db" {
			t.Errorf("got %v", err)
		}
		if len(g.written) > 0 {
			t.Errorf("it was written at %v", g.written)
		}
	})
}

// TestRelayCloses: how connections close after the session is no part of it.
func TestRelayCloses(t *testing.T) {
	within(t, func(t *testing.T) {
		each := func(_ string, _ int, w *wire) { w.onClose = func() error { return errors.New("ssh: exit status 255") } }
		src, dst := randomVolume(1, 1<<20), randomVolume(2, 1<<20)
		a, b, wait := overWires(t.Context(), true, true, ServerOptions{}, each, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
		report, err := Sync(t.Context(), a, b, Options{Codec: "none", Streams: 2})
		if served := wait(); err != nil || report == nil || len(served) > 0 || !bytes.Equal(src.b, dst.b) {
			t.Errorf("%v, the servers %v", err, served)
		}
	})
}

// TestRelayEnds: whoever ends a relayed session, both peers hear why, and a link
// is closed only when its peer has had the time to read that.
func TestRelayEnds(t *testing.T) {
	broken := errors.New("lp0 on fire")
	for _, c := range []struct {
		name string
		want string
		ours bool // neither of the peers
	}{
		{"cancelled", context.Canceled.Error(), true}, {"source", broken.Error(), false}, {"target", broken.Error(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				src, dst := &faulty{memory: randomVolume(1, 6<<20)}, &faulty{memory: randomVolume(2, 6<<20)}
				var reads atomic.Int64
				fail := func(int64) error {
					switch {
					case reads.Add(1) < 4:
						return nil
					case c.ours:
						cancel()
						return nil
					}
					return broken
				}
				if c.name == "target" {
					dst.write = fail
				} else {
					src.read = fail
				}
				var mu sync.Mutex
				early := map[string]bool{}
				each := func(side string, i int, w *wire) {
					w.onClose = func() error {
						mu.Lock()
						defer mu.Unlock()
						early[side] = early[side] || i == 0 && !w.far.closed.Load()
						return nil
					}
				}
				a, b, wait := overWires(t.Context(), true, true, ServerOptions{Options: Options{Workers: 2}}, each, Side{Volume: src, Name: "source"}, Side{Volume: dst, Name: "target"})
				began := time.Now()
				_, err := Sync(ctx, a, b, Options{Codec: "none", Streams: 2})
				took := time.Since(began)
				for _, served := range wait() {
					if !strings.Contains(served.Error(), c.want) {
						t.Errorf("a server says %v", served)
					}
				}
				if err == nil || !strings.Contains(err.Error(), c.want) || took >= partingTime {
					t.Errorf("%v after %v", err, took)
				}
				for side, is := range early {
					if is && side != c.name { // who said it waits for us
						t.Errorf("the link of the %s was closed before it had read why", side)
					}
				}
				cancel()
			})
		})
	}
}
