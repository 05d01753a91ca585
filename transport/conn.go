package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
)

// ErrTimeout is in the chain of an error when the peer was silent for too long.
// errors.Is also finds os.ErrDeadlineExceeded in it.
var ErrTimeout = fmt.Errorf("peer silent: %w", os.ErrDeadlineExceeded)

// ErrIdle is in the chain of an error when a connection carried nothing but
// keep-alive for too long. errors.Is also finds os.ErrDeadlineExceeded in it.
var ErrIdle = fmt.Errorf("connection idle: %w", os.ErrDeadlineExceeded)

// Options configures a [Conn]. The zero value is usable.
type Options struct {
	// Limit is the most bytes per second that go out, 0 none. Bytes leave in
	// steps of 5 ms worth, at least 1 KiB and at most 64 KiB.
	Limit int64
	// KeepAlive is how long nothing may be written before a ping is. Default 5s;
	// negative never pings.
	KeepAlive time.Duration
	// Timeout is how long a Read waits for the next byte. It must be longer than
	// the peer's KeepAlive. Default 30s; negative waits for ever.
	Timeout time.Duration
}

func (o Options) withDefaults() Options {
	if o.KeepAlive == 0 {
		o.KeepAlive = 5 * time.Second
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return o
}

// Conn carries frames over a byte stream. Send, SendFrame, Forward, Stats and
// Close are safe for any number of goroutines; Read is for one at a time.
//
// Run keeps the connection alive while it lasts, and During while something else
// does. Without them no ping is sent or answered, and a stream without read
// deadlines has no time-out.
type Conn struct {
	rw   io.ReadWriteCloser
	near bool // rw is a pipe: no compression makes a copy in memory faster
	opts Options
	born time.Time // durations below are since then

	writing chan struct{} // holds one element while a frame is written; guards out
	out     writeSide

	in       frameReader // the reading goroutine's alone
	readErr  error       // likewise; what every Read returns from now on
	deadline readDeadliner
	waiting  atomic.Int64 // since when a read waits for bytes, 0 if none does

	pinged    chan struct{} // holds one element if a pong is due
	closed    chan struct{}
	closeOnce sync.Once
	closeErr  error
	timedOut  atomic.Bool
	idled     atomic.Bool
	idle      time.Duration // set before Run; 0: it may be idle for ever

	keepAlives int // pings and pongs since the last other frame; the reading goroutine's
	lastWrite  atomic.Int64
	lastUse    atomic.Int64 // when a frame other than keep-alive last came or went
	count      counters
}

// readDeadliner is what network connections and some files have.
type readDeadliner interface{ SetReadDeadline(time.Time) error }

// writeSide is what the goroutine that holds Conn.writing may touch.
type writeSide struct {
	seq   uint64
	err   error // what every write returns from now on
	hash  xxhash.Digest
	pace  pacer
	small []byte // for control frames of up to smallFrame bytes of payload
}

const smallFrame = 4096 - HeaderSize

// New returns a connection over rw and starts nothing. Closing rw must make its
// Read and Write return. A Write gets one whole frame, unless there is a limit.
func New(rw io.ReadWriteCloser, o Options) *Conn {
	c := &Conn{
		rw:      rw,
		opts:    o.withDefaults(),
		born:    time.Now(),
		writing: make(chan struct{}, 1),
		pinged:  make(chan struct{}, 1),
		closed:  make(chan struct{}),
	}
	c.out.pace.limit = o.Limit
	c.deadline, _ = rw.(readDeadliner)
	_, c.near = rw.(*pipeEnd)
	c.in.r = bufio.NewReaderSize((*source)(c), 8<<10)
	return c
}

// Close closes the stream under the connection. Every Read, Send and Run returns.
// It does not wait for the peer: say and hear Bye first.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.closeErr = c.rw.Close()
	})
	return c.closeErr
}

// LimitIdle says how long the connection may carry nothing but pings and pongs,
// in both directions, before Run ends it with [ErrIdle]; without it, and with 0,
// for ever. A write that the peer does not take carries nothing. It is called
// before Run.
func (c *Conn) LimitIdle(d time.Duration) {
	c.idle = d
	c.lastUse.Store(c.since())
}

// since is the time on the connection's clock, never 0.
func (c *Conn) since() int64 { return int64(time.Since(c.born)) + 1 }

// cause replaces what the stream says once we closed it by why we did.
func (c *Conn) cause(err error) error {
	if c.idled.Load() {
		return fmt.Errorf("%w (nothing but keep-alive for %v)", ErrIdle, c.idle)
	}
	if c.timedOut.Load() {
		return fmt.Errorf("%w (nothing came for %v)", ErrTimeout, c.opts.Timeout)
	}
	select {
	case <-c.closed:
		return os.ErrClosed
	default:
		return err
	}
}

// Read returns the next frame; the caller releases it. Pings and pongs are not
// returned. The error is io.EOF where the peer's stream ended between two
// frames, else it is a [*FrameError]; every later Read returns the same.
func (c *Conn) Read() (*Frame, error) {
	for c.readErr == nil {
		f, err := c.in.next()
		if err != nil {
			c.readErr = err
			break
		}
		c.count.received(f)
		if f.Kind < Ping {
			c.keepAlives = 0
			c.lastUse.Store(c.since())
			return f, nil
		}
		if c.keepAlives++; c.keepAlives > maxKeepAlives {
			c.readErr = &FrameError{Seq: c.in.seq - 1, Off: c.in.off - HeaderSize, Err: fmt.Errorf("%w: %d in a row", ErrFlood, c.keepAlives)}
		}
		if f.Kind == Ping {
			select {
			case c.pinged <- struct{}{}:
			default: // one pong answers all
			}
		}
		f.Release()
	}
	return nil, c.readErr
}

// ErrFlood is in the chain of an error when a peer sends keep-alive and nothing
// else, more than any idle connection has a use for.
var ErrFlood = errors.New("flood of keep-alive frames")

// maxKeepAlives is how many pings and pongs may come in a row: those of days.
const maxKeepAlives = 1 << 17

// Discard reads what still comes and drops it, until the peer ends the stream or
// the connection is closed: the peer then comes to read what it was told, also
// where an error of Read leaves no way to find the next frame. It stands in for
// Read, which returns nothing but errors from then on.
func (c *Conn) Discard() {
	if c.readErr == nil {
		c.readErr = os.ErrClosed
	}
	_, _ = io.Copy(io.Discard, (*source)(c)) // however it ends, there is nothing more to come
}

// source is Conn as the io.Reader of raw bytes under its frames: it counts them
// and watches the time.
type source Conn

func (s *source) Read(b []byte) (int, error) {
	c := (*Conn)(s)
	if c.deadline != nil && c.opts.Timeout > 0 {
		if err := c.deadline.SetReadDeadline(time.Now().Add(c.opts.Timeout)); err != nil {
			c.deadline = nil // the watchdog in Run will do
		}
	}
	if c.deadline == nil {
		c.waiting.Store(c.since())
	}
	n, err := c.rw.Read(b)
	c.waiting.Store(0)
	c.count.bytesIn.Add(int64(n))
	if err == nil || n > 0 {
		return n, nil // an error that lasts comes again
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.timedOut.Store(true)
	}
	return 0, c.cause(err)
}

// Send writes a frame without a head: a control message. It returns when the
// stream has taken the bytes, and copies them before.
func (c *Conn) Send(k Kind, payload []byte) error {
	if len(payload) > MaxStored {
		return fmt.Errorf("send kind %d: %w: %d bytes, limit %d", k, ErrTooLarge, len(payload), MaxStored)
	}
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	return c.sendLocked(k, payload)
}

func (c *Conn) sendLocked(k Kind, payload []byte) error {
	h := header{kind: k, stored: len(payload), raw: len(payload)}
	if len(payload) <= smallFrame {
		if c.out.small == nil {
			c.out.small = make([]byte, HeaderSize+smallFrame)
		}
		b := c.out.small[:HeaderSize+len(payload)]
		copy(b[HeaderSize:], payload)
		return c.write(h, b, nil)
	}
	f := newFrame(h)
	defer f.Release()
	copy(f.Body, payload)
	return c.write(h, f.room.span(HeaderSize, len(payload)), nil)
}

// SendFrame writes a packet. It returns when the stream has taken the bytes;
// only then may the packet's encoder be used again.
func (c *Conn) SendFrame(p *Packet) error {
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	return c.write(p.header, p.buf, p)
}

// Forward writes a frame that another connection received, as it is but for its
// number and checksum. The frame stays the caller's to release.
func (c *Conn) Forward(f *Frame) error {
	if f.room.mem == nil {
		return fmt.Errorf("forward: frame was not received")
	}
	if err := c.lock(); err != nil {
		return err
	}
	defer c.unlock()
	return c.write(f.header(), f.room.span(HeaderSize+len(f.Head), len(f.Body)), nil)
}

// lock waits for the right to write. A channel, so that Close ends the wait.
func (c *Conn) lock() error {
	select {
	case c.writing <- struct{}{}:
	case <-c.closed:
		return fmt.Errorf("write frame: %w", c.cause(nil))
	}
	select {
	case <-c.closed:
		c.unlock()
		return fmt.Errorf("write frame: %w", c.cause(nil))
	default:
		return nil
	}
}

func (c *Conn) unlock() { <-c.writing }

// write numbers, sums and writes the frame in b: room for the header, then the
// payload. After an error, which may have cut a frame, nothing more is written.
func (c *Conn) write(h header, b []byte, p *Packet) error {
	if c.out.err != nil {
		return c.out.err
	}
	h.put(b)
	seal(b, uint32(c.out.seq), &c.out.hash)
	began := time.Now()
	counts := p != nil && p.chooser != nil && !c.near
	if counts {
		p.chooser.begin(began)
	}
	err := c.push(b)
	ended := time.Now()
	if h.kind < Ping {
		c.lastUse.Store(c.since())
	}
	if counts {
		p.chooser.end(ended, p.level, h.raw, len(b))
	}
	c.lastWrite.Store(c.since())
	c.count.blocked.Add(int64(ended.Sub(began)))
	if err != nil {
		c.out.err = fmt.Errorf("write frame %d: %w", c.out.seq, c.cause(err))
		return c.out.err
	}
	c.out.seq++
	c.count.sent(h)
	return nil
}

// SetLimit changes how many bytes a second go out, from the next frame on; 0: no
// limit. It waits for a frame that is being written.
func (c *Conn) SetLimit(limit int64) {
	select {
	case c.writing <- struct{}{}:
		c.out.pace.limit = limit
		<-c.writing
	case <-c.closed:
	}
}

// push hands b to the stream, at the pace of the limit if there is one.
func (c *Conn) push(b []byte) error {
	for len(b) > 0 {
		n := c.out.pace.step(len(b))
		if err := c.out.pace.wait(n, c.closed); err != nil {
			return err
		}
		k, err := c.rw.Write(b[:n])
		c.count.bytesOut.Add(int64(k))
		if err != nil {
			return err
		}
		if k != n {
			return io.ErrShortWrite
		}
		b = b[n:]
	}
	return nil
}
