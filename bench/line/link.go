// Package line puts slower lines between two processes of this machine: [Link] relays connections with a delay and a rate,
// [Network] joins two network namespaces by a line with a rate that loses packets.
package line

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Options describes a line. The zero value is one without delay or limit.
type Options struct {
	Delay time.Duration // one way; half of the round trip
	Rate  int64         // bytes a second in each direction; 0 is no limit
	// Buffer is how many bytes may be on the line in each direction; a sender waits beyond it. The default is what Rate
	// brings within Delay and a little more, as on a real line, and 64 MiB without a Rate: 3 GB/s at 20 ms.
	Buffer int64
}

// A Link relays connections over a line that is slower than this machine: every byte arrives Delay after it could leave,
// and leaves once those before it are out at Rate. Bytes wait in a queue with their times, so that a delay costs no
// throughput while the Buffer holds what is on the way.
type Link struct {
	listen net.Listener
	to     func(context.Context) (net.Conn, error)
	opts   Options
	bytes  [2]atomic.Int64 // towards the server, towards the client
}

// NewLink makes a link that accepts from l and dials the other end by to. Nothing runs before [Link.Run].
func NewLink(l net.Listener, to func(context.Context) (net.Conn, error), o Options) (*Link, error) {
	switch {
	case o.Buffer == 0 && o.Rate > 0:
		o.Buffer = int64(float64(o.Rate)*o.Delay.Seconds()) + 4*linkChunk
	case o.Buffer == 0:
		o.Buffer = 64 << 20
	}
	if o.Delay < 0 || o.Rate < 0 || o.Buffer < linkChunk {
		return nil, fmt.Errorf("link of delay %v, rate %d, buffer %d: want none below 0, and a buffer of at least %d",
			o.Delay, o.Rate, o.Buffer, linkChunk)
	}
	return &Link{listen: l, to: to, opts: o}, nil
}

// Bytes returns how much has arrived towards the server and towards the client.
func (l *Link) Bytes() (toServer, toClient int64) { return l.bytes[0].Load(), l.bytes[1].Load() }

// Run relays until ctx ends, then closes the listener and all connections. Connections share the line. A connection that
// breaks ends both its halves and nothing else. Every goroutine it starts has returned when it returns.
func (l *Link) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { l.listen.Close() })
	defer stop()
	lines := [2]*direction{newLine(l.opts, &l.bytes[0]), newLine(l.opts, &l.bytes[1])}
	g.Go(func() error {
		for {
			client, err := l.listen.Accept()
			if ctx.Err() != nil {
				if err == nil {
					client.Close()
				}
				return ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("accept on link: %w", err)
			}
			g.Go(func() error { l.relay(ctx, client, lines); return nil })
		}
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// relay carries one connection until both its directions have ended.
func (l *Link) relay(ctx context.Context, client net.Conn, lines [2]*direction) {
	defer client.Close()
	server, err := l.to(ctx)
	if err != nil {
		return // the client sees its connection end, as over a real line
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var wg sync.WaitGroup
	for i, ends := range [2][2]net.Conn{{client, server}, {server, client}} {
		wg.Go(func() { lines[i].carry(ctx, ends[1], ends[0]) })
	}
	wg.Wait()
}

// linkChunk is the most that is read at once, in bytes.
const linkChunk = 64 << 10

// A direction is one half of a link.
type direction struct {
	opts Options
	seen *atomic.Int64

	mu   sync.Mutex
	free time.Time // when the last byte given to the line has left
}

func newLine(o Options, seen *atomic.Int64) *direction { return &direction{opts: o, seen: seen} }

// due returns when n bytes that are given to the line now arrive.
func (l *direction) due(n int, now time.Time) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.free.Before(now) {
		l.free = now
	}
	if l.opts.Rate > 0 {
		l.free = l.free.Add(time.Duration(float64(n) / float64(l.opts.Rate) * float64(time.Second)))
	}
	return l.free.Add(l.opts.Delay)
}

// A parcel is on the line until due. One without bytes is the end of the stream.
type parcel struct {
	b   []byte
	due time.Time
}

// carry moves bytes from one connection to another until the stream ends or breaks, and passes the end on. What is on the
// line when one end goes still arrives at the other, as on a real line: the other direction is not carry's to end.
func (l *direction) carry(ctx context.Context, to, from net.Conn) {
	depth := int(l.opts.Buffer / linkChunk)
	queue, free := make(chan parcel, depth), make(chan []byte, depth)
	var wg sync.WaitGroup
	wg.Go(func() { l.deliver(ctx, to, queue, free) })
	l.collect(ctx, from, queue, free)
	close(queue)
	wg.Wait()
}

// collect reads what comes and gives it its time. A full queue holds the sender back.
func (l *direction) collect(ctx context.Context, from net.Conn, queue chan<- parcel, free <-chan []byte) {
	for {
		var b []byte
		select {
		case b = <-free:
		default:
			b = make([]byte, linkChunk)
		}
		n, err := from.Read(b)
		p := parcel{b[:n], l.due(n, time.Now())}
		if n == 0 {
			p.b = nil
		}
		if n > 0 || err != nil {
			select {
			case queue <- p:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			if n > 0 { // the end comes after the last bytes
				queue <- parcel{due: p.due}
			}
			return
		}
	}
}

// deliver writes parcels when they are due. Behind a connection that is gone it throws them away.
func (l *direction) deliver(ctx context.Context, to net.Conn, queue <-chan parcel, free chan<- []byte) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	gone := false
	for p := range queue {
		if wait := time.Until(p.due); wait > 0 && !gone {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				gone = true
			}
		}
		if gone {
			continue
		}
		if p.b == nil {
			_ = closeWrite(to) // gone or not, nothing follows
			continue
		}
		n, err := to.Write(p.b)
		l.seen.Add(int64(n))
		gone = err != nil
		select {
		case free <- p.b[:linkChunk]:
		default:
		}
	}
}

// closeWrite ends one direction and leaves the other open.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}
