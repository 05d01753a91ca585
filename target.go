package failback

import (
	"context"
	"crypto/rand"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// The target answers. What it may be told next depends on what it was told:
//
//	waiting ──Start──▶ greeted ──Plan──▶ listing ──last Extents──▶ moving
//	                   │  ▲ Nodes                                   │  ▲ Data, Zero, Discard,
//	                   └──┘                                         │  └ Barrier, Want, Release
//	                        ▲                                       │
//	                        └──────────────Pass (round)─────────────┤
//	          ┌─────────────────────────Pass────────────────────────┤
//	          ▼                                                     │ Seal
//	     relisting ──last Extents──▶ checking ──Seal──▶ sealed ◀────┘
//	                                  └ Release           └─Report, Bye──▶ over
type targetState uint8

const (
	targetWaiting targetState = iota
	targetGreeted
	targetListing
	targetMoving
	targetRelisting
	targetChecking
	targetSealed
	targetOver
)

var targetStateNames = [...]string{"waiting", "greeted", "listing", "moving", "relisting", "checking", "sealed", "over"}

func (s targetState) String() string { return targetStateNames[s] }

// targetStep says where a frame leads, and whether it may come at all. Pure.
// marked is set for the frame that ends a list, and for a Pass that is a round.
func targetStep(s targetState, k transport.Kind, marked bool) (targetState, error) {
	switch {
	case s == targetWaiting && k == kindStart:
		return targetGreeted, nil
	case s == targetGreeted && k == kindNodes:
		return s, nil
	case s == targetGreeted && k == kindPlan:
		return targetListing, nil
	case s == targetListing && k == kindExtents:
		return oneOf(marked, targetMoving, s), nil
	case s == targetMoving && isMoving(k):
		return s, nil
	case s == targetMoving && k == kindPass:
		return oneOf(marked, targetListing, targetRelisting), nil
	case s == targetRelisting && k == kindExtents:
		return oneOf(marked, targetChecking, s), nil
	case s == targetChecking && k == kindRelease:
		return s, nil
	case (s == targetMoving || s == targetChecking) && k == kindSeal:
		return targetSealed, nil
	case s == targetSealed && k == kindReport:
		return s, nil
	case s == targetSealed && k == kindBye:
		return targetOver, nil
	}
	return s, protocolf("frame of kind %d from the source in state %v", k, s)
}

func oneOf(cond bool, a, b targetState) targetState {
	if cond {
		return a
	}
	return b
}

func isMoving(k transport.Kind) bool {
	switch k {
	case kindData, kindZero, kindDiscard, kindBarrier, kindWant, kindRelease:
		return true
	}
	return false
}

// A target plays the target's role in one session.
type target struct {
	session  [16]byte // the one that was opened; zero: any
	asked    *job     // we began the session, and hold the source against this; nil: we did not
	o        Options
	name     string
	link     *transport.Conn // control, and the first stream
	join     joiner          // waits for a further stream; nil if none can come
	vol      *meter
	tree     *kept
	dirty    *cbt.Map
	writable bool
	log      logbook
	saveTo   savePlace
	undo     saver // nil: what is overwritten is not saved
	staging        // if the session is staged, vol is the stage over the volume

	began   time.Time
	state   targetState // of the control link; its receiver's alone
	start   message.Start
	plan    message.Plan
	pass    message.Pass
	list    extentReader
	key     [32]byte
	conns   []*transport.Conn
	respond atomic.Pointer[responder]
	apply   atomic.Pointer[applier]
	ready   chan struct{} // closed when apply is there, for joined streams
	sealer  *sealer
	root    *merkle.Hash // of both sides, once they were found to have the same
	facts   position
	report  reportReader
	lines   *lines
}

// run answers one source until its session ends. Every goroutine it starts has
// returned when it returns, and every link is closed.
func (t *target) run(ctx context.Context) (*Report, error) {
	t.began = time.Now()
	t.ready = make(chan struct{})
	if t.ends == nil {
		t.ends = ctx.Done()
	}
	l, g, ctx := attend(ctx, t.link)
	t.lines = l
	defer t.vol.tellStuck(ctx, t.o.Events.Note)()
	l.keep(ctx, g, t.link, func(f *transport.Frame) (bool, error) {
		err := t.take(ctx, g, f)
		if err != nil || t.state != targetOver {
			return false, err
		}
		close(l.ended)
		return true, nil
	})
	g.Go(func() error {
		ticking(ctx, l.ended, t.o.Events.Progress, t.progress)
		return nil
	})
	err := l.wait(ctx, g)
	t.sealer.discard()
	err = errors.Join(err, t.leave(err), t.closeUndo(), t.log.close())
	if err != nil {
		return nil, err
	}
	r, err := t.report.decode()
	if err == nil && t.asked != nil {
		err = t.asked.believe(r, t.evidence())
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// take handles one frame. It never waits for a frame of the source's.
func (t *target) take(ctx context.Context, g *errgroup.Group, f *transport.Frame) error {
	if f.Kind == kindError {
		defer f.Release()
		return peerError(f.Payload())
	}
	marked := false
	var err error
	switch {
	case f.Kind == kindExtents && (t.state == targetListing || t.state == targetRelisting):
		marked, err = t.list.add(f.Payload())
	case f.Kind == kindPass && t.state == targetMoving:
		err = t.pass.Decode(f.Payload())
		marked = t.pass.Purpose == passRound
	}
	next := t.state
	if err == nil {
		next, err = targetStep(t.state, f.Kind, marked)
	}
	if err == nil {
		err = t.looksOnly(f.Kind)
	}
	if err != nil {
		f.Release()
		return err
	}
	t.state = next
	switch f.Kind {
	case kindData, kindZero, kindDiscard:
		return t.apply.Load().add(ctx, 0, f) // the applier releases it
	}
	defer f.Release()
	return t.handle(ctx, g, f, marked)
}

// looksOnly refuses what has no place in a session that writes nothing.
func (t *target) looksOnly(k transport.Kind) error {
	switch k {
	case kindData, kindZero, kindDiscard, kindBarrier:
		if !t.writes() {
			return protocolf("data in a session that only looks")
		}
	case kindPass:
		if !t.writes() {
			return protocolf("a pass in a session that only looks")
		}
	}
	return nil
}

func (t *target) handle(ctx context.Context, g *errgroup.Group, f *transport.Frame, last bool) error {
	p := f.Payload()
	switch f.Kind {
	case kindStart:
		return t.greet(ctx, g, p)
	case kindNodes:
		return t.nodes(ctx, p)
	case kindPlan:
		return t.planned(p)
	case kindExtents:
		if last {
			return t.begin(ctx, g)
		}
		return nil
	case kindBarrier:
		var m message.Barrier
		if err := m.Decode(p); err != nil {
			return err
		}
		return t.apply.Load().barrier(0, m)
	case kindWant:
		var m message.Want
		if err := m.Decode(p); err != nil {
			return err
		}
		return t.respond.Load().want(m)
	case kindRelease:
		var m message.Release
		if err := m.Decode(p); err != nil {
			return err
		}
		return t.respond.Load().release(int64(min(m.Unit, 1<<62)))
	case kindPass:
		return t.passed()
	case kindSeal:
		return t.seal(ctx, g, p)
	case kindReport:
		return t.report.add(p)
	}
	// The source has heard that both sides are equal: nobody will go on with this.
	if err := t.gone(); err != nil {
		return err
	}
	t.lines.over.Store(true) // the source may close any link once it has our word
	return t.link.Send(kindBye, message.Bye{}.Append(nil))
}

// writes reports whether the source may send data, as it said at first.
func (t *target) writes() bool { return mode(t.start.Mode) == modeSync && !t.start.DryRun }

// admit refuses what the source wants if this volume is not one for it (L4).
func (t *target) admit() error {
	if t.writes() && !t.writable {
		return &RefusedError{Volume: t.name, Reason: "it is open for reading only", Next: "serve it for writing, or name another target"}
	}
	theirs, mine := t.start.Volume, volumeInfo(position{name: t.name, size: t.vol.v.Size()}, t.vol)
	if mode(t.start.Mode) == modeSync {
		if err := sizesFit(theirs, mine, t.start.AllowLarger && (t.asked == nil || t.asked.o.AllowLarger)); err != nil {
			return err
		}
	}
	if t.dirty != nil {
		return mapFits(t.dirty, mine, theirs)
	}
	return nil
}

// greet answers the source's Start with what this side knows of itself.
func (t *target) greet(ctx context.Context, g *errgroup.Group, p []byte) error {
	if err := t.start.Decode(p); err != nil {
		return err
	}
	if t.session != [16]byte{} && t.start.Session != t.session {
		return protocolf("start of session %x on a connection of %x", t.start.Session[:4], t.session[:4])
	}
	if t.asked != nil {
		if err := t.asked.holdStart(&t.start); err != nil {
			return err
		}
	}
	if err := t.admit(); err != nil {
		return err
	}
	if err := t.streams(ctx, g); err != nil {
		return err
	}
	t.facts = position{name: t.name, size: t.vol.v.Size()}
	if mode(t.start.Mode) == modeSync {
		if err := t.look(ctx); err != nil {
			return err
		}
	}
	if t.start.Allocated {
		var err error
		if t.facts.allocated, t.facts.sparse, err = t.allocated(ctx); err != nil {
			return err
		}
	}
	if t.tree != nil {
		t.facts.tree = &t.tree.facts
	}
	if t.dirty != nil {
		t.facts.mapped, t.facts.dirty = true, t.dirty.Extents()
	}
	m := message.Info{Volume: volumeInfo(t.facts, t.vol), Staged: t.stage != nil}
	t.log.offer(&m)
	if _, err := rand.Read(m.Share[:]); err != nil {
		return err
	}
	t.key = sessionKey(t.start.Session, t.start.Share, m.Share)
	if err := t.link.Send(kindInfo, m.Append(nil)); err != nil {
		return err
	}
	if t.facts.sparse {
		if err := sendExtents(t.link, extentsAllocated, cbt.Coarsen(t.facts.allocated, maxListed)); err != nil {
			return err
		}
	}
	if t.facts.mapped {
		return sendExtents(t.link, extentsDirty, cbt.Coarsen(t.facts.dirty, maxListed))
	}
	return nil
}

// streams waits for the further connections of the session, each with a receiver of its own.
func (t *target) streams(ctx context.Context, g *errgroup.Group) error {
	n := max(1, int(t.start.Streams))
	if n > maxStreams || (n > 1 && t.join == nil) {
		return protocolf("%d streams, where there can be one", n)
	}
	patience := t.o.Timeout
	if patience <= 0 {
		patience = taskTimeout // silence is no end there, but what never comes is not waited for
	}
	for i := 1; i < n; i++ {
		c, err := t.join(ctx, i, patience)
		if err != nil {
			return err
		}
		t.conns = append(t.conns, c)
		t.lines.keep(ctx, g, c, func(f *transport.Frame) (bool, error) {
			return false, t.takeStream(ctx, i, f)
		})
	}
	return nil
}

// takeStream handles one frame of a further stream.
func (t *target) takeStream(ctx context.Context, i int, f *transport.Frame) error {
	select {
	case <-t.ready:
	case <-ctx.Done():
		f.Release()
		return ctx.Err()
	}
	a := t.apply.Load()
	switch {
	case a == nil:
	case f.Kind == kindData, f.Kind == kindZero, f.Kind == kindDiscard:
		return a.add(ctx, i, f) // the applier releases it
	}
	defer f.Release()
	if a == nil {
		return protocolf("data in a session that only looks")
	}
	if f.Kind != kindBarrier {
		return protocolf("frame of kind %d on stream %d", f.Kind, i)
	}
	var m message.Barrier
	if err := m.Decode(f.Payload()); err != nil {
		return err
	}
	return a.barrier(i, m)
}

func (t *target) nodes(ctx context.Context, p []byte) error {
	var m message.Nodes
	if err := m.Decode(p); err != nil {
		return err
	}
	if t.tree == nil {
		return protocolf("request for nodes of a tree that is not kept")
	}
	return serveNodes(ctx, t.link, t.tree, m)
}

// planned takes the source's plan. The candidates follow.
func (t *target) planned(p []byte) error {
	if err := t.plan.Decode(p); err != nil {
		return err
	}
	if t.plan.Resume > 0 && mode(t.start.Mode) != modeSync {
		return protocolf("a session resumed that writes nothing")
	}
	if t.asked != nil {
		if err := t.asked.holdPlan(&t.plan); err != nil {
			return err
		}
	}
	if mode(t.start.Mode) == modeSync {
		if err := t.log.accept(&t.start, &t.plan, volumeInfo(t.facts, t.vol)); err != nil {
			return err
		}
		t.tellUnwatched()
	}
	t.list = extentReader{purpose: extentsCandidates, size: t.span()}
	from, digest := origin(t.plan.From), merkle.Algorithm(t.plan.Digest)
	switch {
	case t.plan.Level != 1 && (from == fromTree || digest != 0):
		return protocolf("plan of level %d with digests of leaves", t.plan.Level)
	case from == fromTree && t.tree == nil:
		return protocolf("plan rests on a kept tree there is none of")
	case from == fromTree && t.tree.facts.shape() != (merkle.Shape{Size: t.span(), Leaf: int64(t.plan.Leaf), Algorithm: digest}):
		return protocolf("plan rests on a tree of another shape than the one kept")
	}
	if t.o.Events.Plan != nil {
		t.o.Events.Plan(Plan{Rung: Rung(t.plan.Rung), Reason: t.plan.Reason, Volume: t.start.Volume.Size, Candidates: t.plan.Candidates})
	}
	return nil
}

// span is how many bytes the session is about.
func (t *target) span() int64 {
	if mode(t.start.Mode) == modeDigest {
		return t.vol.v.Size()
	}
	return min(t.start.Volume.Size, t.vol.v.Size())
}

// begin starts the work on the candidates that were listed.
func (t *target) begin(ctx context.Context, g *errgroup.Group) error {
	switch {
	case t.state == targetChecking:
		return t.check(ctx, g)
	case t.pass.Purpose == passRound:
		return t.round(ctx, g)
	}
	leaf := int64(0)
	if t.plan.Level == 1 {
		leaf = int64(t.plan.Leaf)
	}
	l, err := t.list.layout(leaf)
	if err != nil {
		return err
	}
	if n := cbt.Total(l.candidates); n != t.plan.Candidates {
		return protocolf("candidates of %d bytes, the plan had %d", n, t.plan.Candidates)
	}
	if err := t.covered(l); err != nil {
		return err
	}
	r := &responder{
		layout: l, conn: t.link, vol: t.vol, tree: t.tree, key: t.key,
		digest: merkle.Algorithm(t.plan.Digest), from: origin(t.plan.From), scans: t.o.Workers,
		medium: t.start.Medium || t.log.rec.Suspect,
	}
	r.prepare()
	t.respond.Store(r)
	if t.writes() {
		if err := t.openUndo(); err != nil {
			return err
		}
		a := newApplier(1 + len(t.conns))
		a.vol, a.layout, a.key, a.conn = t.vol, l, t.key, t.link
		a.writers, a.window, a.most = 2*t.o.Workers, t.o.Window, cbt.Total(l.candidates)
		a.sparing = t.plan.Level == 0
		a.done, a.span = t.plan.Resume, t.span()
		a.log, a.undo = t.keepers()
		a.goesOn = Verification(t.plan.Verify) == VerifyFull || t.plan.Seal != 0
		t.apply.Store(a)
		g.Go(func() error { return a.run(ctx) })
	}
	close(t.ready)
	if err := t.link.Send(kindAgree, message.Agree{Window: uint32(t.o.Window)}.Append(nil)); err != nil {
		return err
	}
	if t.plan.Level != 0 {
		g.Go(func() error { return r.run(ctx) })
	}
	return nil
}
