package transport

import (
	"context"
	"time"
)

// Run keeps the connection alive: it pings the peer when nothing was written
// for KeepAlive, answers its pings, and ends a read that waits for longer than
// Timeout where the stream itself has no deadlines.
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
	err := c.keep()
	if !stop() {
		<-finished
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
	}
	return err
}

// keep returns when the connection is closed or broken.
func (c *Conn) keep() error {
	timer := time.NewTimer(c.untilNext())
	defer timer.Stop()
	for {
		var err error
		select {
		case <-c.closed:
			return nil
		case <-c.pinged:
			err = c.signal(Pong)
		case <-timer.C:
			if c.silent() {
				c.timedOut.Store(true)
				return c.cause(nil)
			}
			if c.idle() >= c.opts.KeepAlive && c.opts.KeepAlive > 0 {
				err = c.signal(Ping)
			}
			timer.Reset(c.untilNext())
		}
		if err != nil {
			select {
			case <-c.closed: // the error says no more than that
				return nil
			default:
				return err
			}
		}
	}
}

// signal sends a frame of its own kind, unless a frame is being written: then
// the peer gets bytes anyway, and nobody here may wait for it to read them.
// (If reader and peer's reader both waited to write a pong, neither would read.)
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

// idle is how long nothing was written.
func (c *Conn) idle() time.Duration {
	return time.Duration(c.since() - c.lastWrite.Load())
}

// silent says whether a read has waited too long and only we can end it.
func (c *Conn) silent() bool {
	t := c.waiting.Load()
	return t != 0 && c.opts.Timeout > 0 && time.Duration(c.since()-t) >= c.opts.Timeout
}

// untilNext is how long neither a ping nor a time-out can be due.
func (c *Conn) untilNext() time.Duration {
	next := time.Hour
	if c.opts.KeepAlive > 0 {
		next = min(next, c.opts.KeepAlive-c.idle())
	}
	if c.opts.Timeout > 0 {
		left := c.opts.Timeout
		if t := c.waiting.Load(); t != 0 {
			left -= time.Duration(c.since() - t)
		}
		next = min(next, left)
	}
	return max(next, time.Millisecond)
}
