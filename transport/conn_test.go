package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pair returns two connections over a pipe; Run of both runs until the test
// ends, and must then return want.
func pair(t *testing.T, oa, ob Options, want error) (a, b *Conn) {
	x, y := Pipe()
	a, b = New(x, oa), New(y, ob)
	for _, c := range []*Conn{a, b} {
		done := make(chan error, 1)
		go func() { done <- c.Run(context.Background()) }()
		t.Cleanup(func() {
			c.Close()
			if err := <-done; !errors.Is(err, want) && !errors.Is(err, io.ErrClosedPipe) { // the other end may be closed already
				t.Errorf("Run: %v, want %v", err, want)
			}
		})
	}
	return a, b
}

// TestKeepAlive: two idle connections stay up for an hour, by pings alone.
func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, Options{}, Options{}, nil)
		errs := make(chan error, 2)
		for _, c := range []*Conn{a, b} {
			go func() {
				f, err := c.Read()
				if err == nil {
					f.Release()
				}
				errs <- err
			}()
		}
		<-time.After(time.Hour) // of the bubble's clock
		select {
		case err := <-errs:
			t.Fatalf("an idle connection ended: %v", err)
		default:
		}
		check(t, a.Send(26, nil))
		check(t, <-errs)
		check(t, b.Send(26, nil))
		check(t, <-errs)
		// In an hour of 5 s there are 720 pings a side, each answered at most once.
		if n := a.Stats().FramesOut; n < 720 || n > 1450 {
			t.Errorf("%d frames out in an hour", n)
		}
	})
}

// TestPong: a side that never pings by itself answers.
func TestPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, Options{}, Options{KeepAlive: -1}, nil)
		errs := make(chan error, 2)
		for _, c := range []*Conn{a, b} {
			go func() { _, err := c.Read(); errs <- err }()
		}
		<-time.After(10 * time.Minute)
		if got, want := b.Stats().FramesOut, a.Stats().FramesOut; got != want || got < 119 {
			t.Errorf("%d pongs to %d pings", got, want)
		}
		a.Close()
		b.Close()
		for range 2 {
			if err := <-errs; !errors.Is(err, os.ErrClosed) && err != io.EOF {
				t.Errorf("after Close: %v", err)
			}
		}
	})
}

// TestTimeoutWatchdog: a peer that says nothing is given up, by Run where the
// stream has no deadlines.
func TestTimeoutWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, silent := Pipe()
		defer silent.Close()
		go io.Copy(io.Discard, silent)
		c := New(x, Options{Timeout: 7 * time.Second, KeepAlive: 2 * time.Second})
		ran := make(chan error, 1)
		go func() { ran <- c.Run(t.Context()) }()
		began := time.Now()
		_, err := c.Read()
		if took := time.Since(began); !errors.Is(err, ErrTimeout) || !errors.Is(err, os.ErrDeadlineExceeded) || took != 7*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		if err := <-ran; !errors.Is(err, ErrTimeout) {
			t.Errorf("Run: %v", err)
		}
		if err := c.Send(1, nil); !errors.Is(err, ErrTimeout) {
			t.Errorf("Send: %v", err)
		}
	})
}

// TestTimeoutBlocked: the peer neither speaks nor reads; the ping that waits for
// it does not keep Run from giving it up.
func TestTimeoutBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, silent := Pipe()
		defer silent.Close()
		full, err := x.Write(make([]byte, pipeRing))
		check(t, err)
		c := New(x, Options{})
		ran := make(chan error, 1)
		go func() { ran <- c.Run(t.Context()) }()
		began := time.Now()
		_, err = c.Read()
		if took := time.Since(began); !errors.Is(err, ErrTimeout) || took != 30*time.Second {
			t.Errorf("%d bytes before: after %v: %v", full, took, err)
		}
		if err := <-ran; !errors.Is(err, ErrTimeout) {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestTimeoutDeadline: where the stream has deadlines no Run is needed.
func TestTimeoutDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, silent := net.Pipe()
		defer silent.Close()
		c := New(x, Options{Timeout: 7 * time.Second})
		defer c.Close()
		began := time.Now()
		_, err := c.Read()
		if took := time.Since(began); !errors.Is(err, ErrTimeout) || took != 7*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// TestSlowIsNotSilent: bytes that trickle keep a connection up, and so does a
// reader that is busy elsewhere.
func TestSlowIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, Options{Limit: 20 << 10, KeepAlive: -1}, Options{Timeout: 2 * time.Second}, nil)
		go a.Send(13, text(MaxRaw)) // 51 s
		<-time.After(time.Minute)   // nobody reads
		f, err := b.Read()
		check(t, err)
		f.Release()
	})
}

func TestLimit(t *testing.T) {
	for _, limit := range []int64{1 << 10, 100 << 10, 12_500_000, 50 << 20, 1 << 30} {
		synctest.Test(t, func(t *testing.T) {
			w := &watched{began: time.Now(), limit: limit}
			c := New(w, Options{Limit: limit})
			n := int64(0)
			for n < 3*limit && n < 64<<20 {
				check(t, c.Send(1, make([]byte, min(limit, MaxRaw))))
				n += min(limit, MaxRaw) + HeaderSize
			}
			want := time.Duration(float64(n) / float64(limit) * float64(time.Second))
			if took := time.Since(w.began); took > want+want/50 || took < want-want/50-20*time.Millisecond {
				t.Errorf("%d bytes at %d bytes/s took %v, want %v", n, limit, took, want)
			}
			<-time.After(time.Minute) // saves up nothing
			w.began, w.n = time.Now(), 0
			check(t, c.Send(1, make([]byte, min(limit, MaxRaw))))
			if w.excess > max(64<<10, limit/100) {
				t.Errorf("%d bytes ahead of the limit of %d bytes/s", w.excess, limit)
			}
			if s := c.Stats(); s.Blocked < want*9/10 {
				t.Errorf("blocked for %v of %v", s.Blocked, want)
			}
		})
	}
}

// watched keeps how far the bytes were ahead of the limit.
type watched struct {
	stream
	began     time.Time
	n, excess int64
	limit     int64
}

func (w *watched) Write(b []byte) (int, error) {
	w.n += int64(len(b))
	w.excess = max(w.excess, w.n-int64(time.Since(w.began).Seconds()*float64(w.limit)))
	return len(b), nil
}

// TestCloseEnds: Close ends a write that waits for the peer, one that waits for
// the limit, one that waits for its turn, a read, and Run.
func TestCloseEnds(t *testing.T) {
	for _, limit := range []int64{0, 10 << 10} {
		synctest.Test(t, func(t *testing.T) {
			x, y := Pipe()
			defer y.Close()
			c := New(x, Options{Limit: limit})
			errs := make(chan error, 4)
			for range 2 {
				go func() { errs <- c.Send(1, make([]byte, MaxRaw)) }()
			}
			go func() { _, err := c.Read(); errs <- err }()
			ctx, cancel := context.WithCancel(t.Context())
			ran := make(chan error, 1)
			go func() { ran <- c.Run(ctx) }()
			synctest.Wait()
			cancel()
			if err := <-ran; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
			for range 3 {
				if err := <-errs; !errors.Is(err, os.ErrClosed) {
					t.Errorf("limit %d: %v", limit, err)
				}
			}
			check(t, c.Close()) // again
		})
	}
}

// TestBothBlocked: both sides are in a write that nobody reads while pings fall
// due; once they read, all arrives. (An answer to a ping must wait for nobody.)
func TestBothBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := pair(t, Options{KeepAlive: time.Second}, Options{KeepAlive: time.Second}, nil)
		<-time.After(10 * time.Second)
		var g sync.WaitGroup
		for _, c := range []*Conn{a, b} {
			g.Go(func() {
				for range 20 {
					if err := c.Send(9, make([]byte, 200<<10)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		<-time.After(20 * time.Second)
		for _, c := range []*Conn{a, b} {
			g.Go(func() {
				for range 20 {
					f, err := c.Read()
					if err != nil {
						t.Error(err)
						return
					}
					f.Release()
				}
			})
		}
		g.Wait()
	})
}

// failing fails at its n-th write, after half of it.
type failing struct {
	stream
	n int
}

var errBroken = errors.New("broken")

func (f *failing) Write(b []byte) (int, error) {
	if f.n--; f.n == 0 {
		f.out.Write(b[:len(b)/2])
		return len(b) / 2, errBroken
	}
	return f.stream.Write(b)
}

// TestBrokenWrite: after a write that failed nothing more is written.
func TestBrokenWrite(t *testing.T) {
	w := &failing{stream: stream{Reader: bytes.NewReader(nil)}, n: 2}
	c := New(w, Options{})
	check(t, c.Send(1, text(100)))
	for range 3 {
		if err := c.Send(1, text(100)); !errors.Is(err, errBroken) {
			t.Errorf("%v", err)
		}
	}
	if want := HeaderSize + 100 + (HeaderSize+100)/2; w.out.Len() != want {
		t.Errorf("%d bytes written, want %d", w.out.Len(), want)
	}
	if s := c.Stats(); s.BytesOut != int64(w.out.Len()) || s.FramesOut != 1 {
		t.Errorf("%+v", s)
	}
	w = &failing{stream: stream{Reader: bytes.NewReader(nil)}, n: 1}
	c = New(w, Options{KeepAlive: time.Millisecond})
	if err := c.Run(t.Context()); !errors.Is(err, errBroken) {
		t.Errorf("Run whose ping fails: %v", err)
	}
}

// TestManySenders: frames of many goroutines arrive whole, each sender's in order.
func TestManySenders(t *testing.T) {
	const senders, each = 6, 60
	a, b := pair(t, Options{}, Options{}, nil)
	ch, err := NewChooser("lz4", 2)
	check(t, err)
	var g sync.WaitGroup
	for s := range senders {
		g.Go(func() {
			e := NewEncoder(ch)
			for i := range each {
				if s%2 == 0 {
					if err := a.Send(Kind(s+1), bytes.Repeat([]byte{byte(i)}, 1000*s+1)); err != nil {
						t.Error(err)
					}
					continue
				}
				e.Reset(Kind(s + 1))
				body := e.Body()[:3000*s]
				for j := range body {
					body[j] = byte(i)
				}
				p, err := e.Finish(append(e.Head(), byte(i)), body)
				if err == nil {
					err = a.SendFrame(p)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var next [senders]int
	dst := make([]byte, MaxRaw)
	for range senders * each {
		f, err := b.Read()
		check(t, err)
		body, err := Decode(f, dst)
		check(t, err)
		s := int(f.Kind) - 1
		want := 1000*s + 1
		if s%2 == 1 {
			want = 3000 * s
		}
		if len(body) != want || int(body[0]) != next[s] || int(body[len(body)-1]) != next[s] {
			t.Fatalf("sender %d: frame of %d bytes, first %d, expected number %d", s, len(body), body[0], next[s])
		}
		next[s]++
		f.Release()
	}
	g.Wait()
	out, in := a.Stats(), b.Stats()
	if out.Out != in.In || out.Out[LZ4].Raw != 3000*(1+3+5)*each || out.Out[None].Raw != 0 {
		t.Errorf("sent %+v, received %+v", out.Out, in.In)
	}
}

// TestPeerGone: the end of the peer's stream is io.EOF, and writing to it fails.
func TestPeerGone(t *testing.T) {
	a, b := pair(t, Options{}, Options{}, nil)
	check(t, a.Send(26, nil))
	a.Close()
	f, err := b.Read()
	check(t, err)
	f.Release()
	if _, err := b.Read(); err != io.EOF {
		t.Errorf("Read: %v", err)
	}
	if err := b.Send(26, nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Send: %v", err)
	}
}
