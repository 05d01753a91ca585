package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// TestStreamsClosed: whatever a session comes to, no connection of it stays open.
func TestStreamsClosed(t *testing.T) {
	for _, topo := range topologies {
		for _, how := range []string{"equal", "refused", "lost"} {
			t.Run(topo.name+"/"+how, func(t *testing.T) {
				within(t, func(t *testing.T) {
					var open atomic.Int64
					each := func(_ string, i int, w *wire) {
						open.Add(1)
						w.onClose = func() error { open.Add(-1); return nil }
						if how == "lost" && i == 0 {
							w.spoil = func(out bool, n int, _ []byte) {
								if out && n == 3 {
									_ = w.ReadWriteCloser.Close()
								}
							}
						}
					}
					src, dst := Side{Volume: randomVolume(1, 1<<20), Name: "src"}, Side{Volume: randomVolume(2, 1<<20), Name: "dst"}
					if how == "refused" {
						dst.Volume = randomVolume(2, 1<<19)
					}
					a, b, wait := overWires(t.Context(), topo.sourceServed, topo.targetServed, ServerOptions{}, each, src, dst)
					_, err := Sync(t.Context(), a, b, Options{Codec: "none", Streams: 3})
					wait()
					if remote := topo.sourceServed || topo.targetServed; (err == nil) != (how == "equal" || how == "lost" && !remote) {
						t.Errorf("got %v", err)
					}
					if n := open.Load(); n != 0 {
						t.Errorf("%d connections are left open", n)
					}
				})
			})
		}
	}
}

// TestCorruptionTold: a side on which other bytes arrive than were sent says so,
// before it closes, and the initiator does not try such a link again.
func TestCorruptionTold(t *testing.T) {
	for _, damage := range []struct {
		name, want string
		do         func([]byte)
	}{
		{"a bit of the content", "corrupt frame: checksum", func(b []byte) { b[len(b)-1] ^= 1 }},
		{"a length", "frame too large", func(b []byte) { b[7] = 0x40 }},
	} {
		for _, c := range []struct {
			name                       string
			sourceServed, targetServed bool
			side                       string // whose link
			out                        bool   // from the initiator
			stream                     int
		}{
			{"push, to the target", false, true, "dst", true, 0},
			{"push, to the target on a further stream", false, true, "dst", true, 2},
			{"push, from the target", false, true, "dst", false, 0},
			{"pull, to the source", true, false, "src", true, 0},
			{"pull, from the source", true, false, "src", false, 0},
			{"pull, from the source on a further stream", true, false, "src", false, 1},
			{"relay, to the source", true, true, "src", true, 0},
			{"relay, from the source", true, true, "src", false, 0},
			{"relay, to the target", true, true, "dst", true, 0},
			{"relay, from the target", true, true, "dst", false, 0},
		} {
			t.Run(c.name+"/"+damage.name, func(t *testing.T) {
				within(t, func(t *testing.T) {
					var dials atomic.Int64
					var early atomic.Bool
					each := func(side string, i int, w *wire) {
						if dials.Add(1); side != c.side {
							return
						}
						if i == c.stream {
							w.spoil = func(out bool, n int, b []byte) {
								if out == c.out && n == 2 {
									damage.do(b)
								}
							}
						}
						if i == 0 && !c.out { // else it is the server that says why, and waits for us
							w.onClose = func() error { early.Store(!w.far.closed.Load()); return nil }
						}
					}
					src, dst := Side{Volume: randomVolume(1, 6<<20), Name: "src"}, Side{Volume: randomVolume(2, 6<<20), Name: "dst"}
					a, b, wait := overWires(t.Context(), c.sourceServed, c.targetServed, ServerOptions{Options: Options{Workers: 2}}, each, src, dst)
					began := time.Now()
					_, err := Sync(t.Context(), a, b, Options{Codec: "none", Streams: 3, RetryFor: 10 * time.Minute})
					took := time.Since(began)
					for _, served := range wait() {
						if !strings.Contains(served.Error(), damage.want) {
							t.Errorf("a server says %v", served)
						}
					}
					if err == nil || !strings.Contains(err.Error(), damage.want) {
						t.Errorf("got %v, want %q", err, damage.want)
					}
					if dials.Load() > 6 || took > time.Minute {
						t.Errorf("%d connections in %v", dials.Load(), took)
					}
					if early.Load() {
						t.Error("the link was closed before the other side had read why")
					}
				})
			})
		}
	}
}

// TestSlowDial: streams that take long to open, on either side, do not cost
// those that are open already.
func TestSlowDial(t *testing.T) {
	for _, c := range []struct {
		name                       string
		sourceServed, targetServed bool
		slow                       func(side string, i int) time.Duration
		most                       time.Duration
	}{
		{"push", false, true, func(_ string, i int) time.Duration { return time.Duration(min(i, 1)) * 20 * time.Second }, 81 * time.Second},
		{"pull", true, false, func(_ string, i int) time.Duration { return time.Duration(min(i, 1)) * 20 * time.Second }, 81 * time.Second},
		{"relay with a login at the source", true, true, func(side string, i int) time.Duration {
			if side == "src" && i == 0 {
				return 2 * time.Minute
			}
			return 0
		}, 121 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				each := func(side string, i int, _ *wire) { <-time.After(c.slow(side, i)) }
				src, dst := randomVolume(1, 1<<20), randomVolume(2, 1<<20)
				a, b, wait := overWires(t.Context(), c.sourceServed, c.targetServed, ServerOptions{}, each, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"})
				began := time.Now()
				_, err := Sync(t.Context(), a, b, Options{Streams: 16, Codec: "none"})
				if served := wait(); err != nil || len(served) > 0 {
					t.Errorf("got %v, the server %v", err, served)
				}
				if took := time.Since(began); took > c.most {
					t.Errorf("it took %v", took)
				}
				if !bytes.Equal(src.b, dst.b) {
					t.Error("the volumes differ")
				}
			})
		})
	}
}

// TestDialStops: when one stream cannot be opened, those that are waiting are
// not begun, and what is open is closed.
func TestDialStops(t *testing.T) {
	within(t, func(t *testing.T) {
		var open, dials atomic.Int64
		far, wait := wired(t.Context(), ServerOptions{}, func(_ string, _ int, w *wire) {
			open.Add(1)
			w.onClose = func() error { open.Add(-1); return nil }
		}, Side{Volume: randomVolume(2, 1<<20), Name: "dst"})
		there, full := far[0].Dial, errors.New("no place for more")
		far[0].Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
			if dials.Add(1) > 3 {
				return nil, full
			}
			return there(ctx)
		}
		_, err := Sync(t.Context(), Side{Volume: randomVolume(1, 1<<20), Name: "src"}, far[0], Options{Streams: 16})
		wait()
		if !errors.Is(err, full) || dials.Load() > 3+2*dialsAtOnce || open.Load() != 0 {
			t.Errorf("%v after %d dials, %d left open", err, dials.Load(), open.Load())
		}
	})
}

// alive is a peer that does something at first, and then no more than be there.
func alive(t *testing.T, do func(*villain)) (io.ReadWriteCloser, func()) {
	near, far := transport.Pipe()
	v := newVillain(t, far)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(v)
		v.leave(true)
	}()
	return near, func() { <-done }
}

// TestIdleServer: a client does not stay for ever with a server that is alive
// and does nothing, nor come back to it.
func TestIdleServer(t *testing.T) {
	moving := func(v *villain) {
		v.welcome()
		v.answer(nil)
		v.agree(2 << 20)
	}
	for _, c := range []struct {
		name string
		o    Options
		do   func(*villain)
		want error
		took time.Duration
	}{
		{"it does not open", Options{}, func(*villain) {}, transport.ErrIdle, openedTimeout},
		{"no info", Options{}, func(v *villain) { v.welcome() }, transport.ErrIdle, 15 * time.Minute},
		{"no digests", Options{}, moving, transport.ErrIdle, 15 * time.Minute},
		{"as long as it was told", Options{Idle: 90 * time.Second}, moving, transport.ErrIdle, 90 * time.Second},
		{"for ever, if that is wanted", Options{Idle: -1}, moving, context.DeadlineExceeded, 48 * time.Hour},
	} {
		for _, what := range []string{"compare", "sync"} {
			t.Run(c.name+"/"+what, func(t *testing.T) {
				within(t, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), 48*time.Hour)
					defer cancel()
					near, gone := alive(t, c.do)
					src, dst := Side{Volume: randomVolume(1, hostileSize), Name: "src"}, dialOnce("theirs", near)
					o := c.o
					o.Workers, o.Codec = 2, "none"
					began := time.Now()
					var err error
					if what == "compare" {
						_, err = Compare(ctx, src, dst, o)
					} else {
						o.RetryFor = time.Hour
						_, err = Sync(ctx, src, dst, o)
					}
					gone()
					if took := time.Since(began); !errors.Is(err, c.want) || took < c.took || took > c.took+10*time.Second {
						t.Errorf("%v after %v", err, took)
					}
				})
			})
		}
	}
}

// TestIdleBlocked: a peer that is alive and reads nothing holds a write up, and
// not for ever either.
func TestIdleBlocked(t *testing.T) {
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			open := message.Opened{Version: 1, Volume: message.VolumeInfo{Size: 1 << 30, Align: 512}}.Append(nil)
			_, _ = far.Write((&transport.Frame{Kind: kindOpened, Raw: len(open), Body: open}).Append(nil))
			for seq := uint32(1); ; seq++ {
				<-time.After(5 * time.Second)
				if _, err := far.Write((&transport.Frame{Kind: transport.Ping, Seq: seq}).Append(nil)); err != nil {
					return
				}
			}
		})
		var every []cbt.Extent // other block: a list of more than a pipe holds
		for off := int64(0); off < 1<<30; off += 2 * pieceSize {
			every = append(every, cbt.Extent{Off: off, End: off + pieceSize})
		}
		from := dialOnce("theirs", near)
		from.Dirty = dirtyMap(t, 1<<30, every)
		began := time.Now()
		_, err := Sync(t.Context(), from, Side{Volume: hollow{randomVolume(1, pieceSize)}, Name: "here"}, Options{Workers: 2})
		wg.Wait()
		if took := time.Since(began); !errors.Is(err, transport.ErrIdle) || took > 16*time.Minute {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// hollow is a volume that says it is large.
type hollow struct{ *memory }

func (hollow) Size() int64 { return 1 << 30 }

// TestOpenSilent: a peer that says nothing at all is given up after the time-out,
// also over a stream that knows no deadlines.
func TestOpenSilent(t *testing.T) {
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		began := time.Now()
		_, err := Compare(t.Context(), Side{Volume: randomVolume(1, 1<<20), Name: "a"}, dialOnce("b", near), Options{Timeout: 7 * time.Second})
		_ = far.Close()
		if took := time.Since(began); !errors.Is(err, transport.ErrTimeout) || took != 7*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestTakeOverOfHung: who comes again for a session whose volume hangs is told
// so in time, and does not wait on when it has gone itself.
func TestTakeOverOfHung(t *testing.T) {
	for _, stays := range []bool{true, false} {
		t.Run(fmt.Sprintf("stays %v", stays), func(t *testing.T) {
			within(t, func(t *testing.T) {
				free := make(chan struct{})
				hung := &faulty{memory: randomVolume(1, hostileSize), write: func(int64) error { <-free; return nil }}
				srv := NewServer(ServerOptions{Lookup: func(context.Context, string, bool) (Served, error) {
					return Served{Side: Side{Volume: hung, Name: "dst", Journal: filepath.Join(t.TempDir(), "j")}}, nil
				}})
				come := func() (*villain, chan error) {
					near, far := transport.Pipe()
					served := make(chan error, 1)
					go func() { served <- srv.Handle(context.Background(), far) }()
					v := newVillain(t, near)
					v.open = message.Open{MinVersion: 1, MaxVersion: 1, Session: hostileSession, Role: roleTarget, Write: true, Volume: "dst"}
					v.say(v.open)
					return v, served
				}
				lost, stuck := come()
				lost.must(kindOpened, nil)
				lost.moving(first)
				lost.data(content(first), first)
				synctest.Wait()
				began := time.Now()
				again, served := come()
				if stays {
					again.leave(true)
				} else {
					_ = again.rw.Close()
					for range again.mail {
					}
				}
				err := <-served
				took := time.Since(began)
				var refused *RefusedError
				switch {
				case stays && (!errors.As(err, &refused) || !refused.busy || !retryable(again.told) || took != taskTimeout):
					t.Errorf("%v after %v, told %v", err, took, again.told)
				case !stays && (err == nil || took > 15*time.Second):
					t.Errorf("%v after %v", err, took)
				}
				close(free)
				lost.leave(false)
				if err := <-stuck; err == nil {
					t.Error("the session that was lost has ended well")
				}
			})
		})
	}
}
