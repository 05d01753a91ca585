package transport

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// Run keeps the connection alive: it pings the peer when nothing was written
// for KeepAlive, answers its pings, and ends a read that waits for longer than
// Timeout where the stream itself has no deadlines, or one on which nothing but
// keep-alive goes either way for as long as [Conn.LimitIdle] says.
//
// It returns nil after Close, ctx's error once ctx ended, or why the connection
// broke. In the last two cases it has closed the connection, so that no Read
// or Send outlives it for long.
func (c *Conn) Run(ctx context.Context) error {
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		close(finished)
	})
	err := c.keep(nil)
	if !stop() {
		<-finished
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// During keeps the connection alive as Run does, but only while f runs, and
// leaves it open. It returns f's error. The context that f gets ends with ctx
// and when the connection does, with the reason as its cause. Not to be called
// while Run or another During is under way.
func (c *Conn) During(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop, kept := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(kept)
		err := c.keep(stop)
		if err == nil {
			err = os.ErrClosed
		}
		cancel(err)
	}()
	defer func() {
		close(stop)
		<-kept
	}()
	return f(ctx)
}

// keep pings and watches until the connection is closed, or stop is.
func (c *Conn) keep(stop <-chan struct{}) error {
	pings := make(chan error, 1)
	go func() { pings <- c.ping(stop) }()
	err := c.watch(stop)
	if broken := <-pings; err == nil {
		err = broken
	}
	return err
}

// watch returns when the connection is closed, be it because the peer was silent,
// or when stop is.
func (c *Conn) watch(stop <-chan struct{}) error {
	timer := time.NewTimer(min(c.untilSilent(), c.untilUseless()))
	defer timer.Stop()
	for {
		select {
		case <-c.closed:
			return nil
		case <-stop:
			return nil
		case <-timer.C:
		}
		switch {
		case c.opts.Timeout > 0 && c.untilSilent() <= 0:
			c.timedOut.Store(true)
		case c.idle > 0 && c.untilUseless() <= 0:
			c.idled.Store(true)
		default:
			timer.Reset(min(c.untilSilent(), c.untilUseless()))
			continue
		}
		c.Close()
		return c.cause(nil)
	}
}

// untilUseless is how long the connection may still carry nothing but keep-alive.
func (c *Conn) untilUseless() time.Duration {
	if c.idle <= 0 {
		return time.Hour
	}
	return c.idle - time.Duration(c.since()-c.lastUse.Load())
}

// untilSilent is how long the peer may still say nothing: the whole time-out if
// no read waits, or if the stream has deadlines and needs no watching.
func (c *Conn) untilSilent() time.Duration {
	if c.opts.Timeout <= 0 {
		return time.Hour
	}
	left := c.opts.Timeout
	if t := c.waiting.Load(); t != 0 {
		left -= time.Duration(c.since() - t)
	}
	return left
}

// ping sends pings and pongs until the connection is closed, or stop is, and
// closes the connection if it cannot, a moment later where the peer has closed. It is a goroutine of its own: where its write waits, watch does not.
func (c *Conn) ping(stop <-chan struct{}) error {
	timer := time.NewTimer(c.untilIdle())
	defer timer.Stop()
	for {
		var err error
		select {
		case <-c.closed:
			return nil
		case <-stop:
			return nil
		case <-c.pinged:
			err = c.signal(Pong)
		case <-timer.C:
			if c.opts.KeepAlive > 0 && c.untilIdle() <= 0 {
				err = c.signal(Ping)
			}
			timer.Reset(max(c.untilIdle(), time.Millisecond))
		}
		if err == nil {
			continue
		}
		// The peer may have closed behind its last word, which is to be read yet.
		late := time.NewTimer(c.lastWord(err))
		defer late.Stop()
		select {
		case <-c.closed: // the error says no more than that
			return nil
		case <-stop:
			return nil
		case <-late.C:
			c.Close()
			return err
		}
	}
}

// lastWord is how long to read on after a write that failed.
func (c *Conn) lastWord(err error) time.Duration {
	for _, gone := range []error{io.ErrClosedPipe, syscall.EPIPE, syscall.ECONNRESET} {
		if errors.Is(err, gone) {
			return min(2*time.Second, max(c.opts.Timeout, 0))
		}
	}
	return 0
}

// untilIdle is how long nothing more may be written before a ping is due.
func (c *Conn) untilIdle() time.Duration {
	if c.opts.KeepAlive <= 0 {
		return time.Hour
	}
	return c.opts.KeepAlive - time.Duration(c.since()-c.lastWrite.Load())
}

// signal sends a frame of its own kind, unless a frame is being written: then
// the peer gets bytes anyway. It never waits for its turn, and the reading
// goroutine never writes: if both ends' readers did, neither would read.
func (c *Conn) signal(k Kind) error {
	select {
	case c.writing <- struct{}{}:
	default:
		c.lastWrite.Store(c.since())
		return nil
	}
	defer c.unlock()
	return c.sendLocked(k, nil)
}
