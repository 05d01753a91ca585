package line

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// startLink runs a link in front of a server and returns a dialer for it. The server gets each connection by itself.
func startLink(t *testing.T, o Options, serve func(net.Conn) error) (*Link, func() net.Conn) {
	t.Helper()
	dir := t.TempDir()
	far, err := net.Listen("unix", filepath.Join(dir, "far"))
	if err != nil {
		t.Fatal(err)
	}
	near, err := net.Listen("unix", filepath.Join(dir, "near"))
	if err != nil {
		t.Fatal(err)
	}
	link, err := NewLink(near, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", far.Addr().String())
	}, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return link.Run(ctx) })
	g.Go(func() error {
		for {
			c, err := far.Accept()
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			if err != nil {
				return err
			}
			g.Go(func() error { return errors.Join(serve(c), c.Close()) })
		}
	})
	t.Cleanup(func() {
		cancel()
		far.Close()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	return link, func() net.Conn {
		c, err := net.Dial("unix", near.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

// echo sends back what comes until the other end has said all.
func echo(c net.Conn) error {
	_, err := io.Copy(c, c)
	return err
}

func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(b)
	return b
}

func TestLinkKeepsEveryByte(t *testing.T) {
	for name, o := range map[string]Options{
		"plain":   {},
		"delayed": {Delay: 3 * time.Millisecond},
		"narrow":  {Rate: 200 << 20, Buffer: 128 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			link, dial := startLink(t, o, echo)
			c, want := dial(), random(3<<20+17)
			var g errgroup.Group
			g.Go(func() error {
				_, err := c.Write(want)
				return errors.Join(err, c.(*net.UnixConn).CloseWrite())
			})
			got, err := io.ReadAll(c)
			if err := errors.Join(err, g.Wait()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatal("what came back is not what was sent")
			}
			up, down := link.Bytes()
			if up != int64(len(want)) || down != int64(len(want)) {
				t.Errorf("counted %d and %d bytes, want %d", up, down, len(want))
			}
		})
	}
}

func TestLinkDelaysBothWays(t *testing.T) {
	const delay = 20 * time.Millisecond
	_, dial := startLink(t, Options{Delay: delay}, echo)
	c := dial()
	start := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// How much longer it takes is the machine's affair; sooner it cannot be.
	if d := time.Since(start); d < 2*delay {
		t.Errorf("a round trip took %v, want at least %v", d, 2*delay)
	}
}

// What a server says last still arrives when it closes at once, though the client speaks on.
func TestLinkDeliversLastWords(t *testing.T) {
	_, dial := startLink(t, Options{Delay: 5 * time.Millisecond}, func(c net.Conn) error {
		_, err := c.Write([]byte("farewell"))
		return err
	})
	c := dial()
	_, _ = c.Write(random(1 << 10)) // may fail: nobody listens
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "farewell" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestLineTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLine(Options{Delay: time.Second, Rate: 1000}, new(atomic.Int64))
	for i, step := range []struct {
		n    int
		at   time.Duration // when it is given to the line
		want time.Duration // when it arrives
	}{
		{500, 0, 1500 * time.Millisecond},
		{500, 0, 2000 * time.Millisecond},                       // waits for the one before
		{1000, 200 * time.Millisecond, 3000 * time.Millisecond}, // the line never rests
		{0, 200 * time.Millisecond, 3000 * time.Millisecond},    // the end arrives with the last byte
		{1000, 10 * time.Second, 12 * time.Second},              // a rest is not saved up
	} {
		if got := l.due(step.n, now.Add(step.at)).Sub(now); got != step.want {
			t.Errorf("step %d: arrives after %v, want %v", i, got, step.want)
		}
	}
	// Without a rate a delay costs no throughput: all that is given at once arrives at once.
	l = newLine(Options{Delay: time.Second}, new(atomic.Int64))
	for range 100 {
		if got := l.due(linkChunk, now).Sub(now); got != time.Second {
			t.Fatalf("arrives after %v, want 1s", got)
		}
	}
}

func TestLinkRefusesNonsense(t *testing.T) {
	for _, o := range []Options{{Delay: -1}, {Rate: -1}, {Buffer: 1}} {
		if _, err := NewLink(nil, nil, o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
