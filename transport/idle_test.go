package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdle: a connection that carries nothing but keep-alive ends after Idle,
// whoever could have said something; one that is of use does not.
func TestIdle(t *testing.T) {
	t.Run("nobody says anything", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x, y := Pipe()
			defer y.Close()
			a, b := New(x, Options{}), New(y, Options{})
			a.LimitIdle(time.Minute)
			ran := make(chan error, 1)
			go func() { ran <- a.Run(t.Context()) }()
			go func() { _ = b.Run(t.Context()) }()
			go func() { _, _ = b.Read() }()
			idles(t, a, time.Minute)
			if err := <-ran; !errors.Is(err, ErrIdle) {
				t.Errorf("Run: %v", err)
			}
		})
	})
	t.Run("the peer takes nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x, y := Pipe()
			defer y.Close()
			a, b := New(x, Options{}), New(y, Options{})
			a.LimitIdle(time.Minute)
			go func() { _ = a.Run(t.Context()) }()
			go func() { _ = b.Run(t.Context()) }() // it pings, and nobody reads its end
			sent := make(chan error, 1)
			go func() { sent <- a.Send(9, make([]byte, MaxRaw)) }()
			idles(t, a, time.Minute)
			if err := <-sent; !errors.Is(err, ErrIdle) {
				t.Errorf("the write that was stuck: %v", err)
			}
		})
	})
	t.Run("frames now and then", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := limited(Pipe())
			defer b.Close()
			go func() { _ = a.Run(t.Context()) }()
			go func() { _ = b.Run(t.Context()) }()
			go func() { _, _ = a.Read() }()
			got := make(chan error, 1)
			go func() {
				for range 20 {
					f, err := b.Read()
					if err != nil {
						got <- err
						return
					}
					f.Release()
				}
				got <- nil
			}()
			for range 20 {
				<-time.After(59 * time.Second)
				check(t, a.Send(7, nil))
			}
			check(t, <-got)
		})
	})
}

// limited makes two connections that may be idle for a minute.
func limited(x, y io.ReadWriteCloser) (a, b *Conn) {
	a, b = New(x, Options{}), New(y, Options{})
	a.LimitIdle(time.Minute)
	b.LimitIdle(time.Minute)
	return a, b
}

// idles reads until the connection ends, which must be for idleness and after about d.
func idles(t *testing.T, c *Conn, d time.Duration) {
	t.Helper()
	began := time.Now()
	_, err := c.Read()
	if took := time.Since(began); took < d-time.Millisecond || took > d+time.Second {
		t.Errorf("it ended after %v", took)
	}
	if !errors.Is(err, ErrIdle) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v", err)
	}
	if want := fmt.Sprint(d); !bytes.Contains([]byte(err.Error()), []byte(want)) {
		t.Errorf("it does not say %s: %v", want, err)
	}
}

// TestFlood: keep-alive without end is an error; between other frames it is not.
func TestFlood(t *testing.T) {
	var b []byte
	seq := uint32(0)
	put := func(k Kind, n int) {
		for range n {
			b = (&Frame{Kind: k, Seq: seq}).Append(b)
			seq++
		}
	}
	put(Ping, maxKeepAlives)
	put(3, 1)
	put(Pong, maxKeepAlives)
	put(3, 1)
	put(Ping, maxKeepAlives/2)
	put(Pong, maxKeepAlives)
	c := New(&stream{Reader: bytes.NewReader(b)}, Options{})
	for range 2 {
		f, err := c.Read()
		check(t, err)
		f.Release()
	}
	_, err := c.Read()
	var at *FrameError
	if !errors.Is(err, ErrFlood) || !errors.As(err, &at) || at.Seq != 3*maxKeepAlives+2 || at.Off != int64(3*maxKeepAlives+2)*HeaderSize {
		t.Errorf("after %d frames: %v", seq, err)
	}
	if _, again := c.Read(); again != err {
		t.Errorf("again: %v", again)
	}
}
