package transport

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestDuring: a connection is kept alive while something else goes on, and is
// there afterwards; Run takes over from it.
func TestDuring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := Pipe()
		a, b := New(x, Options{}), New(y, Options{})
		read := make(chan error, 1)
		go func() {
			_ = b.During(t.Context(), func(context.Context) error {
				f, err := b.Read()
				if err == nil {
					f.Release()
				}
				read <- err
				return nil
			})
		}()
		kept := errors.New("f's own")
		if err := a.During(t.Context(), func(ctx context.Context) error {
			<-time.After(time.Hour)
			if ctx.Err() != nil {
				t.Error("the context has ended")
			}
			return kept
		}); err != kept {
			t.Errorf("During: %v", err)
		}
		select {
		case err := <-read:
			t.Fatalf("the other end was given up: %v", err)
		default:
		}
		check(t, a.Send(26, nil))
		check(t, <-read)
		ran := make(chan error, 1)
		go func() { ran <- a.Run(t.Context()) }()
		go func() { _ = b.Run(t.Context()) }()
		<-time.After(time.Minute)
		check(t, a.Send(26, nil))
		a.Close()
		check(t, <-ran)
	})
}

// TestDuringBroken: what f waits for ends with the connection.
func TestDuringBroken(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(c *Conn, peer io.Closer)
		want error
		took time.Duration
	}{
		{"closed here", func(c *Conn, _ io.Closer) { c.Close() }, os.ErrClosed, 0},
		{"closed there", func(_ *Conn, peer io.Closer) { peer.Close() }, io.ErrClosedPipe, 7 * time.Second}, // the next ping, and time for a last word
		{"of no use", func(*Conn, io.Closer) {}, ErrIdle, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, y := Pipe()
				defer y.Close()
				a := New(x, Options{})
				a.LimitIdle(time.Minute)
				began := time.Now()
				err := a.During(t.Context(), func(ctx context.Context) error {
					c.do(a, y)
					<-ctx.Done()
					return context.Cause(ctx)
				})
				if took := time.Since(began); !errors.Is(err, c.want) || took < c.took-time.Millisecond || took > c.took+time.Millisecond {
					t.Errorf("%v after %v", err, took)
				}
				a.Close()
			})
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x, y := Pipe()
			defer y.Close()
			a := New(x, Options{})
			ctx, cancel := context.WithCancel(t.Context())
			err := a.During(ctx, func(ctx context.Context) error {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("During: %v", err)
			}
			check(t, a.Send(26, nil)) // it is still open
			a.Close()
		})
	})
}

// TestLastWord: a ping that finds the peer gone does not lose what that said before.
func TestLastWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := Pipe()
		a, b := New(x, Options{}), New(y, Options{})
		check(t, b.Send(26, nil))
		check(t, y.Close())
		ran := make(chan error, 1)
		go func() { ran <- a.Run(t.Context()) }()
		<-time.After(6 * time.Second) // the ping was after 5
		f, err := a.Read()
		if err != nil || f.Kind != 26 {
			t.Errorf("read %v, %v", f, err)
		}
		a.Close()
		check(t, <-ran)
	})
}

// TestDiscard: after bytes that make no frame, the peer still gets rid of what it
// has to say and comes to read; nothing is read as a frame any more.
func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := Pipe()
		a, b := New(x, Options{}), New(y, Options{})
		defer a.Close()
		heard := make(chan error, 1)
		go func() {
			_, err := y.Write(make([]byte, 100))
			for range 10 { // more than the pipe holds
				if err == nil {
					err = b.Send(9, make([]byte, 64<<10))
				}
			}
			if err == nil {
				var f *Frame
				if f, err = b.Read(); err == nil {
					f.Release()
				}
			}
			heard <- err
			b.Close()
		}()
		if _, err := a.Read(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Read: %v", err)
		}
		check(t, a.Send(25, nil))
		a.Discard()
		check(t, <-heard)
		if _, err := a.Read(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Read after Discard: %v", err)
		}
		c := reading(nil)
		c.Close()
		c.Discard()
		if _, err := c.Read(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Discard: %v", err)
		}
	})
}
