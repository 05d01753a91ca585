package failback

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A source plays the source's role in one session.
type source struct {
	o       Options
	mode    mode
	session [16]byte
	name    string
	links   []*transport.Conn // links[0] carries control
	vol     *meter            // nil: the side is a kept tree only, or nothing (digest)
	tree    *kept             // the source's kept tree
	peer    *kept             // the target's kept tree, where it lies with the source
	dirty   *cbt.Map
	near    bool          // the target is in this process
	applied stageProgress // of what is staged at the target, as it tells
	live    *live         // nil: nobody writes the source, or is to
	resume  uint8
	medium  bool // the target compares with its medium
	// peerDirty is the target's map, where the caller has it and no tree of it.
	peerDirty *cbt.Map
	// digestPath is where a digest leaves its tree, builder the tree under way.
	digestPath string
	builder    *merkle.Builder

	share   [16]byte
	state   atomic.Uint32 // state, for the goroutine that reads the link
	cmp     atomic.Pointer[comparison]
	control chan inbound
	acks    chan message.Ack
	lines   *lines

	packers []*packer
	out     *outlet // exists before the first frame is read
	chooser *transport.Chooser
	began   time.Time
	settled atomic.Int64 // candidate bytes finished with
	total   atomic.Int64
	phase   atomic.Pointer[string]
	facts   sourceFacts
	report  Report
}

// sourceFacts is what the session has learnt; only the driver touches it.
type sourceFacts struct {
	size     int64 // bytes that are compared: the smaller volume's
	mineSize int64 // the source's own
	mine     position
	theirs   position
	held     []cbt.Extent // where either side may hold data, also below from
	from     int64        // bytes below are equal, by the journal of an interrupted session
	basis    [32]byte
	stamp    string
	treeDiff *[]cbt.Extent // where kept trees of both sides differ; nil: not compared
	info     message.Info
	key      [32]byte
	d        decision
	looked   int64       // candidate bytes of all rounds
	found    *extentList // divergent ranges, when they are asked for
	root     merkle.Hash
	target   targetStats
}

// inbound is a control frame, its payload copied.
type inbound struct {
	kind    transport.Kind
	payload []byte
}

// run carries the session through. Every goroutine it starts has returned when
// it returns, and every link is closed.
func (s *source) run(ctx context.Context) (*Report, error) {
	s.began = time.Now()
	s.control = make(chan inbound, 4)
	s.acks = make(chan message.Ack, 1)
	if _, err := rand.Read(s.share[:]); err != nil {
		return nil, err
	}
	l, g, ctx := attend(ctx, s.links[0])
	s.lines = l
	defer s.vol.tellStuck(ctx, s.o.Events.Note)()
	if s.live != nil {
		s.live.fail = l.cancel
	}
	for i, c := range s.links {
		l.keep(ctx, g, c, func(f *transport.Frame) (bool, error) {
			defer f.Release()
			if i > 0 {
				return false, protocolf("frame of kind %d from the target on stream %d, where it has nothing to say", f.Kind, i)
			}
			return f.Kind == kindBye, s.take(ctx, f)
		})
	}
	g.Go(func() error {
		ticking(ctx, l.ended, s.o.Events.Progress, s.progress)
		return nil
	})
	g.Go(func() error {
		err := s.drive(ctx)
		if err == nil {
			close(l.ended)
		}
		return err
	})
	err := l.wait(ctx, g)
	if s.live != nil {
		err = errors.Join(err, s.live.over(ctx))
	}
	if s.builder != nil {
		err = errors.Join(err, s.builder.Discard())
	}
	if err != nil {
		return nil, err
	}
	return &s.report, nil
}

// drive runs the state machine: each effect gives the next event.
func (s *source) drive(ctx context.Context) error {
	in := intent{writes: s.mode == modeSync && !s.o.DryRun}
	in.check = in.writes && (s.o.Verify == VerifyFull || s.o.Seal != 0)
	in.live = s.live.rounds()
	st, ev := stateIdle, evStart
	for {
		next, eff, err := step(st, ev, in)
		if err != nil {
			return err
		}
		s.state.Store(uint32(next))
		if next == stateDone {
			return nil
		}
		if ev, err = s.perform(ctx, eff); err != nil {
			return err
		}
		st = next
	}
}

func (s *source) perform(ctx context.Context, eff effect) (event, error) {
	began := time.Now()
	sec := &s.report.Seconds
	switch eff {
	case doGreet:
		s.enter("plan")
		err := s.greet(ctx)
		sec.Plan += since(began)
		return evInfo, err
	case doWeigh:
		err := s.weigh(ctx)
		sec.Plan += since(began)
		return evWeighed, err
	case doPlan:
		err := s.agree(ctx)
		sec.Plan += since(began)
		return evAgreed, err
	case doMove:
		s.enter("transfer")
		err := s.move(ctx)
		sec.Transfer += since(began)
		return evMoved, err
	case doDrain:
		s.enter("flush")
		ev, err := s.drain(ctx)
		sec.Flush += since(began)
		return ev, err
	case doNext:
		s.enter("rest")
		return evAgain, s.another(ctx)
	case doCheck:
		s.enter("verify")
		err := s.check(ctx)
		sec.Verify = since(began)
		return evChecked, err
	case doSeal:
		s.enter("seal")
		err := s.seal(ctx)
		sec.Seal = since(began)
		return evSealed, err
	}
	return evClosed, s.part(ctx)
}

func (s *source) enter(phase string) { s.phase.Store(&phase) }

// take handles one frame of the target's. It never writes and never waits for
// a goroutine that does: two ends that both wait to write would wait for ever.
func (s *source) take(ctx context.Context, f *transport.Frame) error {
	if !accepts(state(s.state.Load()), f.Kind) {
		return protocolf("frame of kind %d from the target in state %v", f.Kind, state(s.state.Load()))
	}
	p := f.Payload()
	switch f.Kind {
	case kindError:
		return peerError(p)
	case kindDigests:
		return s.takeDigests(p)
	case kindPieces:
		return s.takePieces(p)
	case kindCredit:
		var m message.Credit
		if err := m.Decode(p); err != nil {
			return err
		}
		return s.out.give(int64(m.Bytes))
	case kindAck:
		var m message.Ack
		if err := m.Decode(p); err != nil {
			return err
		}
		if st := state(s.state.Load()); st == stateGreeting || st == stateSealing {
			return s.takeApplied(st, m)
		}
		return s.takeAck(m)
	}
	if f.Kind == kindBye {
		s.lines.over.Store(true) // the target may close any link from now on
	}
	select {
	case s.control <- inbound{f.Kind, append([]byte(nil), p...)}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *source) takeDigests(p []byte) error {
	var m message.Digests
	if err := m.Decode(p); err != nil {
		return err
	}
	c := s.cmp.Load()
	if c == nil || int(m.Size) != c.size || m.Unit > 1<<62 {
		return protocolf("digests of %d bytes that were not asked for", m.Size)
	}
	return c.deliver(int64(m.Unit), m.Sums)
}

func (s *source) takePieces(p []byte) error {
	var m message.Pieces
	if err := m.Decode(p); err != nil {
		return err
	}
	c := s.cmp.Load()
	if c == nil || m.Unit > 1<<62 {
		return protocolf("pieces that were not asked for")
	}
	tags := make([]tag, 0, len(m.Sums)/len(tag{}))
	for sums := m.Sums; len(sums) >= len(tag{}); sums = sums[len(tag{}):] {
		tags = append(tags, tag(sums))
	}
	return c.deliverPieces(int64(m.Unit), m.Leaves, tags)
}

// takeAck notes that everything up to a barrier is durable and read back. Only
// the last barrier's answer is waited for.
func (s *source) takeAck(m message.Ack) error {
	last, err := s.out.acked(m)
	if err != nil || !last {
		return err
	}
	select {
	case s.acks <- m:
		return nil
	default:
		return protocolf("barrier %d acknowledged twice", m.ID)
	}
}

// expect returns the payload of the next control frame, which must be of the given kind.
func (s *source) expect(ctx context.Context, kind transport.Kind) ([]byte, error) {
	select {
	case in := <-s.control:
		if in.kind != kind {
			return nil, protocolf("frame of kind %d where %d belongs", in.kind, kind)
		}
		return in.payload, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *source) send(m message.Message) error {
	return s.links[0].Send(m.Kind(), m.Append(nil))
}

// extentList gathers divergent ranges within a bound.
type extentList struct {
	mu     sync.Mutex
	list   []cbt.Extent
	coarse bool
}

// maxExtents bounds the ranges a report keeps: 16 MiB of them.
const maxExtents = 1 << 20

func (l *extentList) add(x cbt.Extent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.list); n > 0 && l.list[n-1].End == x.Off {
		l.list[n-1].End = x.End
		return
	}
	if len(l.list) == 2*maxExtents {
		l.list = cbt.Coarsen(cbt.Normalize(l.list), maxExtents)
		l.coarse = true
	}
	l.list = append(l.list, x)
}

// result returns the normal list, and whether it covers more than was added.
func (l *extentList) result() ([]cbt.Extent, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := cbt.Normalize(l.list)
	return cbt.Coarsen(x, maxExtents), l.coarse || len(x) > maxExtents
}
