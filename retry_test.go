package failback

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// TestRetry loses the connection again and again; the sync goes on by itself.
func TestRetry(t *testing.T) {
	within(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		const size = 48 << 20
		src := namedVolume("source", randomVolume(1, size))
		dst := namedVolume("target", randomVolume(2, size))
		path := filepath.Join(t.TempDir(), "t.fbj")
		dst.write = func(int64) error {
			<-time.After(3 * time.Millisecond)
			return nil
		}
		far, wait := pipeServe(ctx, Options{}, Side{Volume: dst, Name: "b", Journal: path})
		dials := 0
		b := cutAfter(far[0], func() int64 { dials++; return int64(dials) * 16 << 20 })
		var told []error
		o := Options{Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1, RetryFor: time.Minute,
			Events: Events{Retry: func(err error, _ time.Duration) { told = append(told, err) }}}
		report, err := Sync(ctx, Side{Volume: src, Name: "a"}, b, o)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		wait()
		if !bytes.Equal(src.b, dst.b) {
			t.Error("the volumes differ")
		}
		if report.Attempts < 2 || report.Attempts != len(told)+1 || report.ResumedFrom == 0 {
			t.Errorf("%d attempts, told of %v, resumed from %d", report.Attempts, told, report.ResumedFrom)
		}
	})
}

// cutAfter is a way to a peer whose connections break after so many bytes went out.
func cutAfter(s Side, bytes func() int64) Side {
	dial := s.Dial
	s.Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		k := &cutConn{ReadWriteCloser: c}
		k.left.Store(bytes())
		return k, nil
	}
	return s
}

type cutConn struct {
	io.ReadWriteCloser
	left atomic.Int64
}

func (c *cutConn) Write(p []byte) (int, error) {
	if c.left.Add(-int64(len(p))) < 0 {
		return 0, errors.Join(syscall.ECONNRESET, c.Close())
	}
	return c.ReadWriteCloser.Write(p)
}

// TestTakeOver: a peer that comes again while the server has not noticed that it
// was lost does not find the volume held by itself.
func TestTakeOver(t *testing.T) {
	within(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		const size = 48 << 20
		src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
		dst.write = func(int64) error {
			<-time.After(10 * time.Millisecond)
			return nil
		}
		path := filepath.Join(t.TempDir(), "j")
		held := make(chan struct{}, 1) // the volume can be open once
		srv := NewServer(ServerOptions{Lookup: func(context.Context, string, bool) (Served, error) {
			select {
			case held <- struct{}{}:
			default:
				return Served{}, &RefusedError{Volume: "b", Reason: "it is held", Next: "wait"}
			}
			return Served{Side: Side{Volume: dst, Name: "b", Journal: path}, Close: func() error { <-held; return nil }}, nil
		}})
		var wg sync.WaitGroup
		dials := 0
		b := Side{Name: "b", Dial: func(context.Context) (io.ReadWriteCloser, error) {
			near, far := transport.Pipe()
			wg.Go(func() { _ = srv.Handle(ctx, far) })
			dials++
			if dials > 1 {
				return near, nil
			}
			return &silentCut{ReadWriteCloser: near, due: func() bool {
				rec, err := journal.Read(journal.Disk, path)
				return err == nil && rec.Done > 0
			}}, nil
		}}
		o := Options{Window: 2 << 20, Codec: "none", RetryFor: time.Minute, Checkpoint: time.Millisecond}
		report, err := Sync(ctx, Side{Volume: src, Name: "a"}, b, o)
		if err != nil || report.Attempts != 2 || report.ResumedFrom == 0 || !bytes.Equal(src.b, dst.b) {
			t.Errorf("%+v, %v", report, err)
		}
		cancel()
		wg.Wait()
	})
}

// A silentCut breaks, once due, at our end only: the other end hears nothing more.
type silentCut struct {
	io.ReadWriteCloser
	due func() bool
}

func (c *silentCut) Write(p []byte) (int, error) {
	if c.due() {
		return 0, syscall.ECONNRESET
	}
	return c.ReadWriteCloser.Write(p)
}

func (c *silentCut) Close() error { return nil }

// TestRetryable: what reconnecting can mend, and what it cannot.
func TestRetryable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{newLinkError(io.EOF), true},
		{newLinkError(fmt.Errorf("write frame 3: %w", syscall.EPIPE)), true},
		{&reachError{"b", syscall.ECONNREFUSED}, true},
		{&heardError{&PeerError{Code: message.CodeCancelled}}, true},
		{&heardError{&RefusedError{busy: true}}, true},
		{&heardError{&RefusedError{}}, false},
		{&RefusedError{}, false},
		{&UsageError{}, false},
		{&VerifyError{}, false},
		{&heardError{&PeerError{Code: message.CodeVolume}}, false},
		{newLinkError(fmt.Errorf("frame 4: %w", transport.ErrCorrupt)), false},
		{newLinkError(fmt.Errorf("frame 4: %w", transport.ErrTooLarge)), false},
		{newLinkError(fmt.Errorf("frame 4: %w", transport.ErrFlood)), false},
		{newLinkError(fmt.Errorf("frame 4: %w", transport.ErrTimeout)), true},
		{newLinkError(fmt.Errorf("frame 4: %w", transport.ErrIdle)), false},
		{protocolf("no"), false},
		{newLinkError(&message.ErrMalformed{}), false},
		{&reachError{"b", x509.UnknownAuthorityError{}}, false},
		{&reachError{"b", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, false},
		{context.Canceled, false},
		{errors.New("what is this?"), false},
	} {
		if got := retryable(c.err); got != c.want {
			t.Errorf("%T %v: %v", c.err, c.err, got)
		}
	}
}

// TestRetryEnds: a peer that does not come back is given up in time, one that
// was never there at once.
func TestRetryEnds(t *testing.T) {
	within(t, func(t *testing.T) {
		src, dst := randomVolume(1, 8<<20), randomVolume(2, 8<<20)
		far, wait := pipeServe(t.Context(), Options{}, Side{Volume: dst, Name: "b"})
		dials := 0
		b := cutAfter(far[0], func() int64 { return 4 << 20 })
		there := b.Dial
		b.Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
			if dials++; dials > 1 {
				return nil, syscall.ECONNREFUSED
			}
			return there(ctx)
		}
		began := time.Now()
		_, err := Sync(t.Context(), Side{Volume: src}, b, Options{Codec: "none", RetryFor: 10 * time.Minute})
		wait()
		if took := time.Since(began); !errors.Is(err, syscall.ECONNREFUSED) || took < 10*time.Minute || took > 11*time.Minute || dials < 20 || dials > 60 {
			t.Errorf("%v after %v and %d attempts", err, took, dials)
		}
		began, dials = time.Now(), 1
		_, err = Sync(t.Context(), Side{Volume: src}, b, Options{RetryFor: 10 * time.Minute})
		if took := time.Since(began); !errors.Is(err, syscall.ECONNREFUSED) || took > time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestRetryNeedsProgress: a peer that comes back each time and never gets any
// further is given up too.
func TestRetryNeedsProgress(t *testing.T) {
	within(t, func(t *testing.T) {
		src, dst := randomVolume(1, 8<<20), randomVolume(2, 8<<20)
		far, wait := pipeServe(t.Context(), Options{}, Side{Volume: dst, Name: "b"})
		b := cutAfter(far[0], func() int64 { return 1 << 20 })
		began := time.Now()
		_, err := Sync(t.Context(), Side{Volume: src}, b, Options{Codec: "none", RetryFor: time.Minute})
		wait()
		if took := time.Since(began); err == nil || took < time.Minute || took > 2*time.Minute {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// TestRetryNeedsWork: a peer that stays for longer than that each time, and does
// nothing, is given up as well.
func TestRetryNeedsWork(t *testing.T) {
	within(t, func(t *testing.T) {
		var gone []func()
		dials := 0
		b := Side{Name: "theirs", Dial: func(context.Context) (io.ReadWriteCloser, error) {
			dials++
			if dials > 5 {
				return nil, &RefusedError{Volume: "theirs", Reason: "it is called again and again"}
			}
			near, left := alive(t, func(v *villain) {
				v.welcome()
				v.answer(nil)
				v.agree(2 << 20)
				end := time.After(14 * time.Minute)
				for {
					select {
					case <-time.After(5 * time.Second):
						v.frame(&transport.Frame{Kind: transport.Ping})
						continue
					case <-end:
					}
					_ = v.rw.Close()
					return
				}
			})
			gone = append(gone, left)
			return near, nil
		}}
		_, err := Sync(t.Context(), Side{Volume: randomVolume(1, hostileSize), Name: "src"}, b, Options{Workers: 2, RetryFor: 10 * time.Minute})
		for _, left := range gone {
			left()
		}
		if err == nil || dials > 2 {
			t.Errorf("%v after %d attempts", err, dials)
		}
	})
}
