package failback

import (
	"context"
	"fmt"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// greet says who we are and learns what the target knows of itself.
func (s *source) greet(ctx context.Context) error {
	var err error
	if s.live != nil {
		if s.dirty, err = s.live.begin(ctx); err != nil {
			return err
		}
	}
	// The stamp first: a write between the two then shows in a later one. One of a
	// source that is being written says nothing.
	if s.vol != nil && s.mode == modeSync && s.live == nil {
		if s.facts.stamp, err = s.vol.stamp(); err != nil {
			return err
		}
	}
	mine, err := s.position(ctx)
	if err != nil {
		return err
	}
	s.facts.mine = mine
	start := message.Start{
		Session: s.session, Mode: uint8(s.mode), Share: s.share, Volume: volumeInfo(mine, s.vol),
		AllowLarger: s.o.AllowLarger, DryRun: s.o.DryRun, Streams: uint8(len(s.links)),
		// Where both sides know their holes, these need no reading.
		Allocated: (mine.sparse || s.vol == nil || s.o.Rung == RungAllocated) && !s.exact(),
		Resume:    s.resume, Medium: s.medium, Undo: s.o.undo(), Stage: s.o.Stage, Stamp: s.facts.stamp,
	}
	if s.live != nil && s.dirty != nil {
		start.After, start.Left = s.live.l.After, clip(s.live.l.Left)
	}
	if err := s.send(start); err != nil {
		return err
	}
	p, err := s.expect(ctx, kindInfo)
	if err != nil {
		return err
	}
	s.report.RoundTrips++
	s.lines.redone.Store(*s.phase.Load() == phaseApply)
	s.enter("plan") // what the target has finished first is over
	if err := s.facts.info.Decode(p); err != nil {
		return err
	}
	if start.Stage && !start.DryRun && !s.facts.info.Staged {
		return protocolf("a target that does not stage, as it was asked to")
	}
	return s.learn(ctx, start.Allocated)
}

// exact reports whether the plan will rest on a map alone, so that nobody needs
// to know what is allocated.
func (s *source) exact() bool {
	return s.mode != modeDigest && s.dirty != nil && s.tree == nil && !s.medium &&
		s.o.Rung <= RungExact && s.o.Verify != VerifyFull && s.o.Seal == 0
}

// learn reads the lists that follow the target's Info and checks the sizes.
func (s *source) learn(ctx context.Context, allocated bool) error {
	if s.live != nil && s.dirty != nil && s.live.strayed(&s.facts.info) {
		s.dirty, s.facts.mine.mapped, s.facts.mine.dirty = nil, false, nil
	}
	if err := s.restage(ctx); err != nil {
		return err
	}
	v := s.facts.info.Volume
	theirs := position{name: v.Name, size: v.Size, sparse: v.Sparse && allocated, mapped: v.Mapped}
	var err error
	if theirs.sparse {
		if theirs.allocated, err = s.expectExtents(ctx, extentsAllocated, v.Size); err != nil {
			return err
		}
	}
	if theirs.mapped {
		if theirs.dirty, err = s.expectExtents(ctx, extentsDirty, v.Size); err != nil {
			return err
		}
	}
	if t := v.Tree; t != nil && s.vol != nil {
		theirs.tree = &treeFacts{size: v.Size, algorithm: merkle.Algorithm(t.Algorithm), leaf: int64(t.Leaf), root: t.Root}
	}
	if s.peer != nil {
		theirs.tree = &s.peer.facts
		if s.peer.mapped {
			theirs.mapped, theirs.dirty, theirs.epoch = true, cbt.Union(theirs.dirty, s.peer.dirty), s.peer.epoch
		}
	}
	if m := s.peerDirty; m != nil {
		if err := mapFits(m, v, volumeInfo(s.facts.mine, s.vol)); err != nil {
			return err
		}
		theirs.mapped, theirs.dirty, theirs.epoch = true, cbt.Union(theirs.dirty, m.Extents()), m.Epoch
	}
	if s.live != nil && s.dirty == nil && theirs.tree == nil {
		// A map of the target alone is all that differs if nobody wrote the source.
		theirs.mapped, theirs.dirty = false, nil
	}
	s.facts.theirs = theirs
	s.facts.key = sessionKey(s.session, s.share, s.facts.info.Share)
	return s.fit()
}

// fit settles how many bytes the session is about.
func (s *source) fit() error {
	mine, theirs := &s.facts.mine, &s.facts.theirs
	if s.mode == modeDigest {
		mine.size = theirs.size
	}
	if s.dirty != nil {
		if err := mapFits(s.dirty, volumeInfo(*mine, s.vol), s.facts.info.Volume); err != nil {
			return err
		}
	}
	if k := s.peer; k != nil && k.facts.size != theirs.size {
		return &RefusedError{Volume: theirs.name,
			Reason: fmt.Sprintf("the tree given for it is of a volume of %d bytes, it has %d", k.facts.size, theirs.size),
			Next:   "make the tree again (failback digest), or leave it out"}
	}
	s.facts.size = min(mine.size, theirs.size)
	if s.mode == modeSync {
		if err := sizesFit(volumeInfo(*mine, s.vol), s.facts.info.Volume, s.o.AllowLarger); err != nil {
			return err
		}
	}
	s.facts.mineSize, mine.size = mine.size, s.facts.size
	s.facts.held = allocatedOf(*mine, *theirs)
	if s.mode == modeSync {
		return s.takeUp()
	}
	return nil
}

// sizesFit refuses a target of another size than the source (L4). Both sides ask it.
func sizesFit(source, target message.VolumeInfo, larger bool) error {
	switch {
	case target.Size < source.Size:
		return &RefusedError{Volume: target.Name,
			Reason: fmt.Sprintf("it has %d bytes and the source %s has %d: the end would not fit", target.Size, source.Name, source.Size),
			Next:   "give a target of the same size"}
	case target.Size > source.Size && !larger:
		return &RefusedError{Volume: target.Name,
			Reason: fmt.Sprintf("it has %d bytes and the source %s only %d: is it the right volume?", target.Size, source.Name, source.Size),
			Next:   "if it is, allow a larger target (--allow-larger): its end is not touched"}
	}
	return nil
}

// mapFits refuses a dirty map that is of neither volume: it would vouch for
// blocks of something else.
func mapFits(m *cbt.Map, source, target message.VolumeInfo) error {
	e := &RefusedError{Volume: source.Name, Next: "give the map of this pair, or leave it out: both sides will be compared"}
	switch {
	case m.VolumeSize != source.Size && m.VolumeSize != target.Size:
		e.Reason = fmt.Sprintf("the dirty map is of a volume of %d bytes, not %d", m.VolumeSize, source.Size)
	case m.Identity != "" && source.Identity != "" && target.Identity != "" &&
		m.Identity != source.Identity && m.Identity != target.Identity:
		e.Reason = fmt.Sprintf("the dirty map is of the volume %q, neither of these", m.Identity)
	default:
		return nil
	}
	return e
}

// position says what the source knows of itself.
func (s *source) position(ctx context.Context) (position, error) {
	p := position{name: s.name}
	switch {
	case s.vol != nil:
		p.size = s.vol.v.Size()
	case s.tree != nil:
		p.size = s.tree.facts.size
	default:
		p.size = 512 // a Digest has no source; the target's size will count
	}
	if s.dirty != nil {
		p.mapped, p.dirty, p.epoch = true, s.dirty.Extents(), s.dirty.Epoch
	}
	if s.tree != nil {
		p.tree = &s.tree.facts
	}
	var err error
	switch {
	case s.vol != nil && !s.exact():
		p.allocated, p.sparse, err = s.vol.allocated(ctx)
	case s.vol == nil && s.tree != nil:
		p.sparse = true
		p.allocated, err = s.tree.allocated(ctx)
	}
	return p, err
}

// weigh compares the kept trees of both sides, if both have one.
func (s *source) weigh(ctx context.Context) error {
	if s.mode == modeDigest || s.o.Rung > RungExact || s.doubt() != "" || !treesComparable(s.facts.mine, s.facts.theirs) {
		return nil
	}
	var theirs merkle.NodeReader = &remoteTree{s: s, facts: *s.facts.theirs.tree}
	if s.peer != nil {
		theirs = s.peer.file
	}
	var found extentList
	_, err := merkle.DiffEach(ctx, s.tree.file, theirs, func(r merkle.Range) error {
		found.add(s.tree.facts.extent(r))
		return nil
	})
	if err != nil {
		return fmt.Errorf("compare kept trees: %w", err)
	}
	diff, _ := found.result()
	s.facts.treeDiff = &diff
	return nil
}

// agree makes the plan, tells it, and gets the target's word.
func (s *source) agree(ctx context.Context) error {
	d, err := s.decide()
	if err != nil {
		return err
	}
	s.facts.d, s.facts.looked = d, d.Candidates
	s.total.Store(d.Candidates)
	s.report.Rung, s.report.Reason = d.Rung.String(), d.Reason
	if s.o.Events.Plan != nil {
		s.o.Events.Plan(d.Plan)
	}
	if s.live != nil {
		s.live.plans(d.candidates, s.unknown())
	}
	c := s.comparison(d)
	if s.mode == modeDigest {
		if err := s.collect(c.layout); err != nil {
			return err
		}
	}
	s.cmp.Store(c)
	m := message.Plan{
		Rung: uint8(d.Rung), Reason: d.Reason, Level: d.level(), Digest: uint8(d.digest), From: uint8(d.target),
		Leaf: uint32(max(d.leaf, pieceSize)), Candidates: d.Candidates, Verify: uint8(s.o.Verify), Seal: uint8(s.o.Seal),
		Resume: s.facts.from, Basis: s.facts.basis,
	}
	if err := s.send(m); err != nil {
		return err
	}
	if err := sendExtents(s.links[0], extentsCandidates, d.candidates); err != nil {
		return err
	}
	agreed, err := s.agreed(ctx)
	if err != nil {
		return err
	}
	s.out.open(min(s.o.Window, int64(agreed.Window)))
	return nil
}

// agreed waits until the target has what it needs for a pass.
func (s *source) agreed(ctx context.Context) (m message.Agree, err error) {
	p, err := s.expect(ctx, kindAgree)
	if err != nil {
		return m, err
	}
	s.report.RoundTrips++
	return m, m.Decode(p)
}

// unknown is where the sides may differ as far as what they have allocated tells:
// nowhere else of what is compared, and of a map everywhere.
func (s *source) unknown() []cbt.Extent {
	if s.facts.mine.sparse && s.facts.theirs.sparse {
		return s.facts.held
	}
	return wholeOf(s.facts.mineSize)
}

func (s *source) decide() (decision, error) {
	if s.mode == modeDigest {
		return planDigest(s.facts.mine, s.facts.theirs, s.o), nil
	}
	if s.vol == nil {
		// A digest says what was: a map of the other side since some other moment
		// does not say where that differs.
		s.facts.theirs.mapped, s.facts.theirs.dirty = false, nil
	}
	d, err := plan(s.facts.mine, s.facts.theirs, request{
		mode: s.mode, rung: s.o.Rung, leaf: s.o.Leaf, treeDiff: s.facts.treeDiff, resumed: s.facts.from > 0,
		spent: s.facts.info.Spent, doubt: s.doubt(), repair: s.medium,
	})
	d = d.from(s.facts.from, s.unwatched())
	d.Reason += s.live.words()
	if err == nil && s.vol == nil && d.source != fromTree {
		return d, usagef("%s is a digest: rung %v needs a volume", s.name, d.Rung)
	}
	if err == nil && d.target == fromTree && s.peer != nil {
		d.target = fromPeer
	}
	return d, err
}

// drain has everything made durable and read back.
func (s *source) drain(ctx context.Context) (event, error) {
	why, ev := stopFinal, evDrained
	if s.live != nil && !s.live.last {
		why, ev = stopRound, evRound
	}
	began := time.Now()
	if err := s.out.barrier(ctx, why); err != nil {
		return ev, err
	}
	select {
	case <-s.acks:
		s.report.RoundTrips++
	case <-ctx.Done():
		return ev, context.Cause(ctx)
	}
	if s.live == nil {
		return ev, nil
	}
	return ev, s.live.proven(s.out.stats.divergent.Load(), time.Since(began))
}

// seal exchanges roots and figures.
func (s *source) seal(ctx context.Context) error {
	if s.mode == modeDigest {
		if err := s.collected(ctx); err != nil {
			return err
		}
	}
	if s.live != nil {
		if err := s.live.held(ctx); err != nil {
			return err
		}
	}
	if s.facts.info.Staged {
		if err := s.staged(); err != nil {
			return err
		}
	}
	m := message.Seal{Stats: stats(s.vol)}
	if s.o.Seal != 0 && s.mode == modeSync && !s.o.DryRun {
		m.Algorithm, m.Root = uint8(s.o.Seal), s.facts.root
	}
	if err := s.send(m); err != nil {
		return err
	}
	p, err := s.expect(ctx, kindSealed)
	if err != nil {
		return err
	}
	s.report.RoundTrips++
	var sealed message.Sealed
	if err := sealed.Decode(p); err != nil {
		return err
	}
	if sealed.Algorithm != m.Algorithm || sealed.Root != m.Root {
		return fmt.Errorf("seal: the target's root is %s, ours %s: the volumes are not equal; compare them and sync again",
			merkle.Hash(sealed.Root), merkle.Hash(m.Root))
	}
	s.facts.target = targetStatsOf(sealed.Stats)
	if s.live != nil {
		if s.report.Live, err = s.live.release(sealed.Stamp); err != nil {
			return err
		}
	}
	s.conclude(m.Algorithm)
	return nil
}

// part gives the peer the report and says good-bye.
func (s *source) part(ctx context.Context) error {
	s.report.Seconds.Total = since(s.began)
	if err := sendReport(s.links[0], &s.report); err != nil {
		return err
	}
	s.lines.parting.Store(true)
	if err := s.send(message.Bye{}); err != nil {
		return err
	}
	_, err := s.expect(ctx, kindBye)
	return err
}

// conclude fills the report from what was counted.
func (s *source) conclude(sealed uint8) {
	r, d, t := &s.report, &s.facts.d, &s.facts.target
	r.Source, r.Target = s.facts.mine.name, s.facts.theirs.name
	r.VolumeBytes, r.CandidateBytes = d.Volume, s.facts.looked
	r.TargetReadBytes, r.TargetWrittenBytes, r.TargetVerifiedBytes = t.read, t.written, t.verified
	if s.vol != nil {
		r.SourceReadBytes = s.vol.read.Load()
	}
	r.DivergentBytes = s.out.stats.divergent.Load()
	r.StagedBytes, r.Seconds.Apply = t.staged, float64(t.applying)/1e9
	r.ResumedFrom, r.UndoBytes, r.UnsavedBytes = s.facts.from, t.saved, t.unsaved
	r.RawBytes = s.out.stats.raw.Load()
	r.ZeroBytes = s.out.stats.zero.Load()
	r.Codec = map[string]int64{}
	for i, name := range codecNames {
		if n := s.out.stats.codec[i].Load(); n > 0 {
			r.Codec[name] = n
		}
	}
	for _, l := range s.links {
		st := l.Stats()
		r.WireBytesOut += st.BytesOut
		r.WireBytesIn += st.BytesIn
	}
	if s.rootKept() {
		s.facts.root = s.tree.facts.root
	}
	if sealed != 0 || s.mode == modeDigest || s.rootKept() {
		root := s.facts.root.String()
		r.Root = &root
	}
	s.judge()
}

// rootKept reports whether the source's kept tree is still the source's: then
// its root stands for both sides, without reading anything for it.
func (s *source) rootKept() bool {
	return s.mode == modeSync && !s.o.DryRun && s.o.Seal == 0 && s.tree != nil && (s.dirty == nil || len(s.dirty.Extents()) == 0)
}

// judge says what the session came to.
func (s *source) judge() {
	r := &s.report
	r.Schema, r.Result = schemaSync, ResultEqual
	switch {
	case s.mode == modeDigest:
		r.Schema = schemaDigest
	case s.mode == modeCompare:
		r.Schema = schemaCompare
		if a, b := s.facts.mineSize, s.facts.theirs.size; a != b {
			s.facts.found.add(cbt.Extent{Off: min(a, b), End: max(a, b)})
			r.DivergentBytes += max(a, b) - min(a, b)
		}
		if r.DivergentBytes > 0 {
			r.Result = ResultDifferent
		}
	case s.o.DryRun:
		r.Result = ResultPlanned
	default:
		r.Verified = s.o.Verify.String()
	}
	if f := s.facts.found; f != nil {
		r.Extents, r.Coarse = f.result()
	}
}

// codecNames are the report's words for the codecs, by their number on the wire.
var codecNames = [...]string{"none", "lz4", "zstd"}

// ticking tells progress a few times a second until end is closed.
func ticking(ctx context.Context, end <-chan struct{}, tell func(Progress), now func() Progress) {
	if tell == nil {
		return
	}
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			tell(now())
		case <-end:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (s *source) progress() Progress {
	p := Progress{Done: s.settled.Load(), Total: s.total.Load(), Elapsed: time.Since(s.began)}
	if phase := s.phase.Load(); phase != nil {
		p.Phase = *phase
	}
	if p.Phase == phaseApply {
		p = s.applied.progress(s.began)
	}
	if s.out != nil {
		p.Divergent, p.Raw = s.out.stats.divergent.Load(), s.out.stats.raw.Load()
	}
	for _, l := range s.links {
		st := l.Stats()
		p.Wire += st.BytesIn + st.BytesOut
	}
	return p
}
