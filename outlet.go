package failback

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// frameCost is what a data frame takes of the window besides its payload: it
// bounds how many small frames the target holds.
const frameCost = 64

// barrierBytes is how much payload may be sent before the target is asked to
// make it durable. What it bounds is what the target must remember to verify,
// and what a lost connection makes the next session compare again.
const barrierBytes = 256 << 20

// barrierTime is how long a session goes without a barrier, if it gets anything
// done: what is found equal is not to be compared again either.
const barrierTime = 5 * time.Second

// maxUnacked is how many barriers may be without an answer: the target reads
// back more slowly than it writes, and remembers all that it has not.
const maxUnacked = 8

// An outlet is the source's end of the streams: it spreads data frames over
// them, keeps to the target's window, and sets barriers.
type outlet struct {
	window atomic.Pointer[transport.Window]
	stats  sendStats

	idle    chan *stream // streams that nobody writes to
	streams []*stream

	reached func() int64  // offset; every candidate below is finished with, and sent where it differs
	every   int64         // bytes from one barrier to the next
	setting chan struct{} // holds one element while a barrier is set: they go out in order
	told    atomic.Int64  // reached, as the last barrier said it
	unacked chan struct{} // holds one for each barrier that is not acknowledged

	// mu guards what follows. The goroutine that reads the link takes it, so it
	// is not held while anything is written.
	mu    sync.Mutex
	since int64  // payload bytes since the last barrier
	next  uint64 // id of the next barrier
	last  uint64 // id of the one that is waited for, 0 before it is set
	acks  uint64 // id of the last one that is acknowledged
}

// A stream is one connection and what the source has sent on it.
type stream struct {
	conn   *transport.Conn
	mu     sync.Mutex // held while a data frame or a barrier is written
	frames uint64     // data, zero and discard frames so far
}

// sendStats is counted where the frames are made.
type sendStats struct {
	divergent atomic.Int64
	zero      atomic.Int64
	raw       atomic.Int64
	codec     [3]atomic.Int64 // raw bytes by codec
}

func newOutlet(conns []*transport.Conn) *outlet {
	o := &outlet{
		idle: make(chan *stream, len(conns)), next: 1,
		every: barrierBytes, setting: make(chan struct{}, 1), unacked: make(chan struct{}, maxUnacked),
	}
	for _, c := range conns {
		s := &stream{conn: c}
		o.streams = append(o.streams, s)
		o.idle <- s
	}
	return o
}

// open sets the window, once both sides have said what they hold.
func (o *outlet) open(window int64) { o.window.Store(transport.NewWindow(window)) }

// give takes credit back. Credit before there is a window was never taken.
func (o *outlet) give(n int64) error {
	w := o.window.Load()
	if w == nil {
		return protocolf("credit before any data")
	}
	return w.Give(n)
}

// sendData sends a frame on whichever stream is free, when the window allows.
func (o *outlet) sendData(ctx context.Context, p *transport.Packet, head int) error {
	if err := o.window.Load().Take(ctx, int64(head+p.Stored())+frameCost); err != nil {
		return err
	}
	raw := int64(p.Raw())
	err := o.on(ctx, func(s *stream) error { return s.conn.SendFrame(p) })
	if err != nil {
		return err
	}
	o.stats.raw.Add(raw)
	o.stats.codec[p.Codec()].Add(raw)
	return o.count(ctx, raw)
}

// sendZero sends a frame of zeroes under the same rules. Towards the next
// barrier a span counts as a piece: the target remembers as much of it.
func (o *outlet) sendZero(ctx context.Context, m message.Zero) error {
	payload := m.Append(nil)
	if err := o.window.Load().Take(ctx, int64(len(payload))+frameCost); err != nil {
		return err
	}
	if err := o.on(ctx, func(s *stream) error { return s.conn.Send(m.Kind(), payload) }); err != nil {
		return err
	}
	return o.count(ctx, int64(len(m.Spans))*pieceSize)
}

func (o *outlet) on(ctx context.Context, send func(*stream) error) error {
	select {
	case s := <-o.idle:
		defer func() { o.idle <- s }()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.frames++
		return send(s)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// count sets a barrier when enough has been sent since the last.
func (o *outlet) count(ctx context.Context, n int64) error {
	o.mu.Lock()
	o.since += n
	due := o.since >= o.every
	o.mu.Unlock()
	if !due {
		return nil
	}
	return o.barrier(ctx, stopDue)
}

// mark sets a barrier if anything was finished with since the last.
func (o *outlet) mark(ctx context.Context) error {
	if o.reached() <= o.told.Load() {
		return nil
	}
	return o.barrier(ctx, stopMark)
}

// A stop is what a barrier is for.
type stop uint8

const (
	stopDue   stop = iota // enough was sent
	stopMark              // something is finished with
	stopRound             // the end of a round: its answer is waited for
	stopFinal             // the end of the data: likewise
)

// barrier sends a barrier on every stream, once few enough are unanswered. What
// was sent on a stream before it belongs to it, whatever the other streams do
// meanwhile. Whoever finds one due waits here, so that little more is sent.
func (o *outlet) barrier(ctx context.Context, why stop) error {
	select {
	case o.setting <- struct{}{}:
		defer func() { <-o.setting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if why == stopDue && !o.due() {
		return nil // another goroutine has just set it
	}
	select {
	case o.unacked <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := o.reached() // before anything goes out: what is not sent yet is not counted
	o.told.Store(done)
	o.mu.Lock()
	o.since = 0
	id := o.next
	o.next++
	if why >= stopRound {
		o.last = id
	}
	o.mu.Unlock()
	for _, s := range o.streams {
		if err := s.barrier(message.Barrier{ID: id, Done: done, Final: why == stopFinal}); err != nil {
			return err
		}
	}
	return nil
}

// due reports whether enough has been sent since the last barrier.
func (o *outlet) due() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since >= o.every
}

func (s *stream) barrier(m message.Barrier) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Frames = s.frames
	return s.conn.Send(m.Kind(), m.Append(nil))
}

// acked holds an acknowledgement against what was asked for and reports
// whether it answers a barrier that is waited for.
func (o *outlet) acked(m message.Ack) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.ID != o.acks+1 || m.ID >= o.next {
		return false, protocolf("acknowledgement of barrier %d, %d were sent and %d acknowledged", m.ID, o.next-1, o.acks)
	}
	o.acks = m.ID
	<-o.unacked
	return m.ID == o.last, nil
}
