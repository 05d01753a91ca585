package failback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// lines is how one role attends to its connections: what ends the session is
// told to the peer, whoever of our goroutines met it, and every connection is
// closed in the end.
//
//	ours fails ──▶ Error to the peer ──▶ read on until the peer closes, or partingTime ──▶ close
//	what comes is not what was sent ──▶ the same, bytes in place of frames
//	peer's fails, or a link breaks ──▶ close
//	session over (Bye both ways) ──▶ close
type lines struct {
	control *transport.Conn
	cancel  context.CancelCauseFunc
	heard   atomic.Pointer[error] // what the peer said it met
	ended   chan struct{}         // closed when the session came to its end
	drained chan struct{}         // closed when the control link has been read to its end
	parting atomic.Bool           // our Bye is on its way: the peer may close further streams
	over    atomic.Bool           // Bye was exchanged: what the links say now does not matter
	redone  atomic.Bool           // the target has finished a stage first: see lateError
}

// partingTime is how long a peer may take to hear why we stop.
const partingTime = 2 * time.Second

// attend begins to look after control. The group's goroutines live under the
// context it returns; wait for them with lines.wait.
func attend(ctx context.Context, control *transport.Conn) (*lines, *errgroup.Group, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	l := &lines{control: control, cancel: cancel, ended: make(chan struct{}), drained: make(chan struct{})}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		l.part(gctx)
		return nil
	})
	return l, g, gctx
}

// wait returns when every goroutine of g has, which live under ctx: why the
// first of them failed, or nil. Whoever came after only noticed that ctx had ended.
func (l *lines) wait(ctx context.Context, g *errgroup.Group) error {
	err := g.Wait()
	if err != nil {
		err = l.late(context.Cause(ctx))
	}
	l.cancel(err)
	if cut(err) {
		if heard := l.heard.Load(); heard != nil {
			return *heard
		}
		return newLinkError(err)
	}
	return err
}

// cut reports whether err says no more than that a connection is gone. The peer
// may have said why.
func cut(err error) bool {
	for _, e := range []error{os.ErrClosed, io.ErrClosedPipe, net.ErrClosed, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// part waits for the session's end and closes the control link.
func (l *lines) part(ctx context.Context) {
	select {
	case <-l.ended:
	case <-ctx.Done():
		if cause := l.late(context.Cause(ctx)); firsthand(cause) {
			// Closing at once could overtake the message (a reset drops what is
			// not yet read), so we wait for the peer to close.
			stuck := time.AfterFunc(partingTime, func() { _ = l.control.Close() })
			sendError(l.control, cause)
			<-l.drained
			stuck.Stop()
		}
	}
	_ = l.control.Close() // what it could say of a session that is over changes nothing
}

// A lateError is a refusal, of which one may conclude that nothing was touched, that
// came when something was: the target had finished what an earlier sync has staged.
type lateError struct{ refused RefusedError }

func (e *lateError) Error() string {
	return "a staged sync that was interrupted is finished first, so the target was written; this one then ended: " + e.refused.Error()
}

// Class says in a few words what kind of error it is.
func (e *lateError) Class() string { return "refused, when an interrupted sync had been finished" }

// Next is what to do about it.
func (e *lateError) Next() string { return e.refused.Next }

// late makes a lateError of a refusal that is one. A peer's word is its own.
func (l *lines) late(err error) error {
	var refused *RefusedError
	if !l.redone.Load() || !firsthand(err) || !errors.As(err, &refused) || refused.busy {
		return err
	}
	return &lateError{*refused}
}

// keep looks after one link: pings, time-outs, and what the peer says. take
// handles a frame, which it releases, and reports whether it was the last.
func (l *lines) keep(ctx context.Context, g *errgroup.Group, c *transport.Conn, take func(*transport.Frame) (bool, error)) {
	g.Go(func() error {
		// The link outlives ctx: it still has to carry why.
		if err := c.Run(context.WithoutCancel(ctx)); err != nil && !l.over.Load() {
			return &linkError{err}
		}
		return nil
	})
	g.Go(func() error {
		if c == l.control {
			defer close(l.drained)
		}
		return l.read(ctx, c, take)
	})
	if c != l.control {
		g.Go(func() error {
			select {
			case <-l.ended:
			case <-l.drained:
			}
			_ = c.Close()
			return nil
		})
	}
}

// read hands frames to take until the last. After an error the rest is read
// and thrown away, so that the peer comes to read ours.
func (l *lines) read(ctx context.Context, c *transport.Conn, take func(*transport.Frame) (bool, error)) error {
	var failed error
	for {
		f, err := c.Read()
		switch {
		case err != nil:
			return l.unread(ctx, c, failed, err)
		case failed != nil:
			f.Release()
			continue
		}
		last, err := take(f)
		if last && err == nil {
			return nil
		}
		if err != nil {
			failed = err
			l.cancel(err)
			if !firsthand(err) {
				l.heard.Store(&err)
				return err
			}
		}
	}
}

// unread is the end of reading c, for err. Once it has failed, or the session is
// over, what the link says besides does not matter.
func (l *lines) unread(ctx context.Context, c *transport.Conn, failed, err error) error {
	switch {
	case l.over.Load(), c != l.control && l.parting.Load():
		return failed
	case ctx.Err() == nil:
		failed = errors.Join(failed, newLinkError(err))
		l.cancel(failed) // before the wait below: it is what the peer is told
	}
	if garbled(err) {
		c.Discard()
	}
	return failed
}

// A linkError is a connection that broke under a session.
type linkError struct{ err error }

func (e *linkError) Error() string { return "connection to the other side: " + e.err.Error() }
func (e *linkError) Unwrap() error { return e.err }

// newLinkError names the error of a read: an end without Bye is a cut.
func newLinkError(err error) error {
	var link *linkError
	if errors.As(err, &link) {
		return err
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return &linkError{err}
}

// A heardError is one that the peer met and told.
type heardError struct{ err error }

func (e *heardError) Error() string { return e.err.Error() }
func (e *heardError) Unwrap() error { return e.err }

// garbled reports whether err is that a peer's bytes make no frames. Only we know:
// the link is there, and the peer believes that it was understood.
func garbled(err error) bool {
	return errors.Is(err, transport.ErrCorrupt) || errors.Is(err, transport.ErrTooLarge) || errors.Is(err, transport.ErrFlood)
}

// firsthand reports whether the peer does not know of err yet, and can be told.
func firsthand(err error) bool {
	var heard *heardError
	var link *linkError
	return err != nil && !errors.As(err, &heard) && (!errors.As(err, &link) || garbled(err))
}

// sendError tells the peer why we stop. It may not get there; our own caller has the error.
func sendError(c *transport.Conn, err error) {
	m := message.Error{Code: codeOf(err), Text: err.Error()}
	var refused *RefusedError
	if errors.As(err, &refused) {
		m.Text, m.Next, m.Volume = refused.Reason, refused.Next, refused.Volume
	}
	var saving *undoError
	if errors.As(err, &saving) {
		m.Next = saving.Next()
	}
	var staging *stageError
	if errors.As(err, &staging) {
		m.Next = staging.Next()
	}
	var late *lateError
	if errors.As(err, &late) {
		m.Next, m.Volume = late.Next(), late.refused.Volume
	}
	var verify *VerifyError
	if errors.As(err, &verify) {
		m.Volume = verify.Volume
	}
	_ = c.Send(kindError, m.Append(nil))
}

// peerError makes an error of what the peer says. A refusal is one on this side too.
func peerError(p []byte) error {
	var m message.Error
	if err := m.Decode(p); err != nil {
		return fmt.Errorf("error of the other side: %w", err)
	}
	if m.Code == message.CodeRefused || m.Code == message.CodeBusy {
		return &heardError{&RefusedError{Volume: m.Volume, Reason: m.Text, Next: m.Next, busy: m.Code == message.CodeBusy}}
	}
	return &heardError{&PeerError{Code: m.Code, Text: m.Text, Next: m.Next, Volume: m.Volume}}
}
