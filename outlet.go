package failback

import (
	"context"
	"sync"
	"sync/atomic"

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

// An outlet is the source's end of the streams: it spreads data frames over
// them, keeps to the target's window, and sets barriers.
type outlet struct {
	window atomic.Pointer[transport.Window]
	stats  sendStats

	idle    chan *stream // streams that nobody writes to
	streams []*stream

	mu    sync.Mutex
	since int64  // payload bytes since the last barrier
	next  uint64 // id of the next barrier
	last  uint64 // id of the final one, 0 before it is set
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
	o := &outlet{idle: make(chan *stream, len(conns)), next: 1}
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
	return o.count(raw)
}

// sendControlled sends a zero or discard frame under the same rules.
func (o *outlet) sendControlled(ctx context.Context, m message.Message) error {
	payload := m.Append(nil)
	if err := o.window.Load().Take(ctx, int64(len(payload))+frameCost); err != nil {
		return err
	}
	if err := o.on(ctx, func(s *stream) error { return s.conn.Send(m.Kind(), payload) }); err != nil {
		return err
	}
	return o.count(int64(len(payload)))
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
func (o *outlet) count(n int64) error {
	o.mu.Lock()
	o.since += n
	due := o.since >= barrierBytes
	o.mu.Unlock()
	if !due {
		return nil
	}
	_, err := o.barrier(false)
	return err
}

// barrier sends a barrier on every stream and returns its id. What was sent on
// a stream before it belongs to it, whatever the other streams do meanwhile.
func (o *outlet) barrier(final bool) (uint64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since < barrierBytes && !final {
		return 0, nil // another goroutine has just set it
	}
	o.since = 0
	id := o.next
	o.next++
	if final {
		o.last = id
	}
	for _, s := range o.streams {
		if err := s.barrier(id, final); err != nil {
			return 0, err
		}
	}
	return id, nil
}

func (s *stream) barrier(id uint64, final bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := message.Barrier{ID: id, Frames: s.frames, Final: final}
	return s.conn.Send(m.Kind(), m.Append(nil))
}

// acked holds an acknowledgement against what was asked for and reports
// whether it answers the final barrier.
func (o *outlet) acked(m message.Ack) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.ID != o.acks+1 || m.ID >= o.next {
		return false, protocolf("acknowledgement of barrier %d, %d were sent and %d acknowledged", m.ID, o.next-1, o.acks)
	}
	o.acks = m.ID
	return m.ID == o.last, nil
}
