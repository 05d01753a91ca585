package failback

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// clients are what a user may ask of a peer, each with the volume here.
var clients = map[string]func(ctx context.Context, here Side, there Side, path string) error{
	"sync to it": func(ctx context.Context, here, there Side, _ string) error {
		_, err := Sync(ctx, here, there, Options{Workers: 2})
		return err
	},
	"sync from it": func(ctx context.Context, here, there Side, _ string) error {
		_, err := Sync(ctx, there, here, Options{Workers: 2})
		return err
	},
	"compare with it": func(ctx context.Context, here, there Side, _ string) error {
		_, err := Compare(ctx, here, there, Options{Workers: 2})
		return err
	},
	"compare it": func(ctx context.Context, here, there Side, _ string) error {
		_, err := Compare(ctx, there, here, Options{Workers: 2})
		return err
	},
	"digest": func(ctx context.Context, _, there Side, path string) error {
		_, err := Digest(ctx, there, path, Options{})
		return err
	},
}

// TestGarbageServer: whatever answers in place of a server, a client says so,
// with nothing written and nothing left.
func TestGarbageServer(t *testing.T) {
	frame := func(k transport.Kind, p []byte) []byte {
		return (&transport.Frame{Kind: k, Raw: len(p), Body: p}).Append(nil)
	}
	opened := message.Opened{Version: 1, Volume: hostileInfo()}.Append(nil)
	for name, c := range map[string]struct {
		answer []byte
		want   string
	}{
		"a web server":     {[]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "frame too large"},
		"an ssh server":    {[]byte("SSH-2.0-OpenSSH_9.6\r\nplease log in, would you\r\n"), "frame too large"},
		"zeroes":           {make([]byte, 4096), "kind 0"},
		"noise":            {randomBytes(9, 64<<10), "frame"},
		"nothing":          {nil, "EOF"},
		"half a header":    {make([]byte, 7), "EOF"},
		"another message":  {frame(kindBye, nil), "frame of kind 26 where 2 belongs"},
		"another version":  {frame(kindOpened, message.Opened{Version: 9, Volume: hostileInfo()}.Append(nil)), "version 9"},
		"half an answer":   {frame(kindOpened, opened[:20]), "malformed Opened"},
		"an answer and on": {frame(kindOpened, append(bytes.Clone(opened), 0)), "left over"},
		"a refusal":        {frame(kindError, message.Error{Code: message.CodeRefused, Text: "go away", Volume: "x"}.Append(nil)), "go away"},
		"half a refusal":   {frame(kindError, []byte{1, 200, 0, 'x'}), "malformed Error"},
		"answer, then end": {frame(kindOpened, opened), "EOF"},
	} {
		for what, ask := range clients {
			t.Run(name+"/"+what, func(t *testing.T) {
				g := &guarded{memory: randomVolume(1, hostileSize)}
				path := filepath.Join(t.TempDir(), "d.fbt")
				within(t, func(t *testing.T) {
					near, far := transport.Pipe()
					var wg sync.WaitGroup
					wg.Go(func() { _, _ = io.Copy(io.Discard, far) })
					wg.Go(func() {
						_, _ = far.Write(c.answer)
						_ = far.(interface{ CloseWrite() error }).CloseWrite()
					})
					before := everAllocated()
					err := ask(context.Background(), Side{Volume: g, Name: "here"}, dialOnce("there", near), path)
					spent := everAllocated() - before
					_ = far.Close()
					wg.Wait()
					if err == nil || !strings.Contains(err.Error(), c.want) {
						t.Errorf("got %v, want %q", err, c.want)
					}
					if spent > wrongMost {
						t.Errorf("%d bytes were allocated, the bound is %d", spent, wrongMost)
					}
				})
				if len(g.written) > 0 {
					t.Errorf("written: %v", g.written)
				}
				if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			})
		}
	}
}

// againstClient runs a hostile served source against a client that has asked for
// something, its volume at hand.
func againstClient(t *testing.T, ask func(context.Context, Side, Side, string) error, may []cbt.Extent, do func(*villain), want string) {
	t.Helper()
	g := &guarded{memory: randomVolume(1, hostileSize)}
	was := clone(g.memory)
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		v := newVillain(t, far)
		done := make(chan struct{})
		go func() {
			defer close(done)
			v.welcome()
			v.must(kindTask, nil)
			do(v)
			v.leave(false)
		}()
		err := ask(context.Background(), Side{Volume: g, Name: "here"}, dialOnce("there", near), "")
		<-done
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	})
	c := crime{may: may}
	c.unharmed(t, g, was)
}

// TestHostileServedSource: a source that a client has asked to be compared does
// not get to write, and one that was asked to be copied writes what it plans.
func TestHostileServedSource(t *testing.T) {
	t.Run("writes where a comparison was asked for", func(t *testing.T) {
		againstClient(t, clients["compare it"], nil, func(v *villain) {
			v.say(message.Start{Session: v.open.Session, Mode: uint8(modeSync), Volume: hostileInfo()})
		}, "asked for was a comparison")
	})
	t.Run("sends data in a comparison", func(t *testing.T) {
		againstClient(t, clients["compare it"], nil, func(v *villain) {
			v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
			v.plan(first)
			v.data(content(first), first)
		}, "only looks")
	})
	t.Run("data outside its own candidates", func(t *testing.T) {
		againstClient(t, clients["sync from it"], nil, func(v *villain) {
			v.greet(nil)
			v.plan(first, third)
			v.data(content(second), second)
		}, "not among the candidates")
	})
	t.Run("a report that is none", func(t *testing.T) {
		againstClient(t, clients["sync from it"], nil, func(v *villain) {
			sealed(v)
			v.say(message.Report{Last: true, Chunk: []byte("[[[[")}, message.Bye{})
		}, "report: ")
	})
	t.Run("candidates past the end", func(t *testing.T) {
		againstClient(t, clients["sync from it"], nil, func(v *villain) {
			v.greet(nil)
			v.say(hostilePlan(nil), message.Extents{Purpose: extentsCandidates, Last: true, Extents: []message.Extent{{Off: 0, End: 1 << 40}}})
		}, "extent ends at")
	})
}

// TestHostileJoin: a connection that joins finds its own session or none.
func TestHostileJoin(t *testing.T) {
	for _, c := range []struct {
		name, want string
		join       message.Open
	}{
		{"no session", "no session of this id", message.Open{Session: [16]byte{9}, Stream: 1, Volume: "dst"}},
		{"another volume", "no session of this id", message.Open{Session: hostileSession, Stream: 1, Volume: "ds"}},
		{"a stream too many", "stream 16 has no place", message.Open{Session: hostileSession, Stream: 16, Volume: "dst"}},
		{"the last number", "stream 255 has no place", message.Open{Session: hostileSession, Stream: 255, Volume: "dst"}},
		{"the same again", "stream 3 has no place", message.Open{Session: hostileSession, Stream: 3, Volume: "dst"}},
		{"stream 0", "malformed Open: stream", message.Open{Session: hostileSession, Volume: "dst"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				srv := NewServer(ServerOptions{Lookup: func(context.Context, string, bool) (Served, error) {
					return Served{Side: Side{Volume: randomVolume(1, hostileSize), Name: "dst"}}, nil
				}})
				var wg sync.WaitGroup
				come := func(m message.Open) (*villain, *error) {
					near, far := transport.Pipe()
					err := new(error)
					wg.Go(func() { *err = srv.Handle(context.Background(), far) })
					v := newVillain(t, near)
					m.MinVersion, m.MaxVersion = 1, 1
					v.say(m)
					return v, err
				}
				main, _ := come(message.Open{Session: hostileSession, Role: roleTarget, Write: true, Volume: "dst"})
				main.must(kindOpened, nil)
				third, _ := come(message.Open{Session: hostileSession, Role: roleJoin, Stream: 3, Volume: "dst"})
				third.must(kindOpened, nil)
				c.join.Role = roleJoin
				bad, err := come(c.join)
				bad.leave(false)
				if bad.told == nil || !strings.Contains(bad.told.Error(), c.want) {
					t.Errorf("told %v, want %q", bad.told, c.want)
				}
				_ = main.rw.Close()
				wg.Wait()
				if *err == nil || !strings.Contains((*err).Error(), c.want) {
					t.Errorf("the server says %v, want %q", *err, c.want)
				}
				main.leave(false)
				third.leave(false) // its session is over, and so is it
			})
		})
	}
}

// TestHostileStream: a further stream carries data and barriers, and nothing else.
func TestHostileStream(t *testing.T) {
	for k, p := range everyKind() {
		switch k {
		case kindData, kindZero, kindDiscard, kindBarrier, kindError:
			continue
		}
		t.Run(fmt.Sprint(k), func(t *testing.T) {
			within(t, func(t *testing.T) {
				srv := NewServer(ServerOptions{Lookup: func(context.Context, string, bool) (Served, error) {
					return Served{Side: Side{Volume: randomVolume(1, hostileSize), Name: "dst"}}, nil
				}})
				var wg sync.WaitGroup
				var errs [2]error
				come := func(i int, m message.Open) *villain {
					near, far := transport.Pipe()
					wg.Go(func() { errs[i] = srv.Handle(context.Background(), far) })
					v := newVillain(t, near)
					m.MinVersion, m.MaxVersion, m.Session, m.Volume = 1, 1, hostileSession, "dst"
					v.say(m)
					v.must(kindOpened, nil)
					return v
				}
				main := come(0, message.Open{Role: roleTarget, Write: true})
				side := come(1, message.Open{Role: roleJoin, Stream: 1})
				main.open.Session = hostileSession
				main.greet(func(m *message.Start) { m.Streams = 2 })
				main.plan(first, third)
				side.raw(k, p)
				main.leave(false)
				side.leave(false)
				wg.Wait()
				if want := fmt.Sprintf("frame of kind %d on stream 1", k); errs[0] == nil || !strings.Contains(errs[0].Error(), want) {
					t.Errorf("got %v, want %q", errs[0], want)
				}
			})
		})
	}
}

// TestHostileLeavesNothing: over real sockets no descriptor is left, and the
// server serves the next peer as ever.
func TestHostileLeavesNothing(t *testing.T) {
	dst := randomVolume(1, hostileSize)
	far := serve(t, Side{Volume: dst, Name: "dst"}, Options{Workers: 2})
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("no /proc to count descriptors in: %v", err)
		}
		return len(list)
	}
	if _, err := Sync(t.Context(), Side{Volume: randomVolume(2, hostileSize)}, far, Options{}); err != nil {
		t.Fatal(err)
	}
	before := open()
	for _, list := range [][]crime{listingCrimes, dataCrimes, askingCrimes, streamCrimes} {
		for _, c := range list {
			if strings.HasPrefix(c.want, "peer silent") || c.most > 0 {
				continue // these take half a minute of real time, or a lot of memory
			}
			rw, err := far.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			v := newVillain(t, rw)
			v.begin(nil, true)
			c.do(v)
			v.leave(false)
		}
	}
	src := randomVolume(3, hostileSize)
	if _, err := Sync(t.Context(), Side{Volume: src}, far, Options{}); err != nil {
		t.Errorf("the server does not serve any more: %v", err)
	}
	if !bytes.Equal(src.b, dst.b) {
		t.Error("the volumes are not equal")
	}
	for deadline := time.Now().Add(5 * time.Second); open() > before && time.Now().Before(deadline); {
		settle(far)
	}
	if n := open(); n > before {
		t.Errorf("%d descriptors were open before, %d are now", before, n)
	}
}

// settle waits for the server to get around to what is closed: it answers a peer
// that says nothing sensible only after it has accepted all that came before.
func settle(far Side) {
	rw, err := far.Dial(context.Background())
	if err != nil {
		return
	}
	_ = rw.(net.Conn).SetReadDeadline(time.Now().Add(time.Second))
	_, _ = rw.Write(make([]byte, 64))
	_, _ = io.Copy(io.Discard, rw)
	_ = rw.Close()
}
