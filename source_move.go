package failback

import (
	"context"
	"fmt"
	"runtime"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// planDigest: the target is read whole and its leaves come back, to be kept here.
func planDigest(source, target position, o Options) decision {
	d := decision{source: fromPeer, target: fromVolume, leaf: o.Leaf, digest: o.Hash}
	if d.leaf == 0 {
		d.leaf = defaultLeaf
	}
	d.Rung, d.Reason = RungMerkle, "a digest was asked for: the volume is read once"
	candidates := wholeOf(source.size)
	if target.sparse {
		candidates = target.allocated
	}
	return d.over(source, candidates)
}

// comparison prepares the table in which the digests of both sides meet. It
// exists before the plan is sent: the target's digests may come at once.
func (s *source) comparison(d decision) *comparison {
	c := newComparison(d.layout(), digestSize(d.digest), s.slots(d.layout()))
	c.settled = func(n int64) { s.settled.Add(n) }
	c.blind, c.silent = d.blind, d.target == fromPeer
	if c.silent && !c.blind {
		c.ahead = make(chan struct{}, lookahead)
	}
	if !c.blind { // a target that is not asked holds nothing
		c.release = func(low int64) error { return s.send(message.Release{Unit: uint64(low)}) }
	}
	c.every = s.mode == modeDigest
	if s.vol != nil {
		c.ask = func(unit int64, leaves uint64) error {
			return s.send(message.Want{Unit: uint64(unit), Leaves: leaves})
		}
	}
	return c
}

// slots is how many units may be under way: enough to keep a disk busy, and
// over a link to fill a round trip in which the pieces of differing leaves are
// asked for. In one process, which holds the target's half too, a quarter of
// that will do.
func (s *source) slots(l *layout) int {
	n := 2 * s.o.Window / l.maxUnit()
	if s.near {
		n /= 4
	}
	return int(max(int64(s.o.Workers)+2, min(n, 64)))
}

// move compares every candidate and sends what differs, or lists it.
func (s *source) move(ctx context.Context) error {
	d, c := &s.facts.d, s.cmp.Load()
	if s.mode != modeSync {
		s.facts.found = &extentList{}
	}
	scans, err := s.scans(d, c.layout)
	if err != nil {
		return err
	}
	s.packers = nil
	sinks, err := s.sinks(d, c.layout)
	if err != nil {
		return err
	}
	if len(s.packers) > 0 && s.live == nil {
		c.mark, c.pace = s.out.mark, s.o.Checkpoint
	}
	return c.run(ctx, scans, sinks)
}

// reached returns the offset below which every candidate is finished with: found
// equal, or sent. What is finished counts before what is not sent yet is looked
// at: a packer says what it gathers before its unit is finished.
func (s *source) reached() int64 {
	if s.live != nil {
		return 0 // what is finished with may be written again
	}
	c := s.cmp.Load()
	at := max(s.facts.from, c.reached())
	for _, p := range s.packers {
		at = min(at, p.since())
	}
	return at
}

// scans makes what fills the source's half of the table.
func (s *source) scans(d *decision, l *layout) ([]scanFunc, error) {
	var scans []scanFunc
	for range s.o.Workers {
		var sc *scanner
		var err error
		if s.vol != nil {
			if sc, err = newScanner(s.vol, l, s.facts.key, d.digest); err != nil {
				return nil, err
			}
		}
		scans = append(scans, s.scan(d, sc))
	}
	return scans, nil
}

func (s *source) scan(d *decision, sc *scanner) scanFunc {
	switch {
	case s.mode == modeDigest:
		return func(context.Context, *entry) error { return nil }
	case d.source == fromTree:
		return func(ctx context.Context, e *entry) (err error) {
			e.own.digests, err = s.tree.digests(ctx, &e.unit, sc)
			return err
		}
	}
	// Content is kept when it may be sent; a comparison only needs its digests.
	keep := s.mode == modeSync && !s.o.DryRun
	return func(ctx context.Context, e *entry) (err error) {
		if keep {
			e.buf = getBuf(int(e.unit.bytes))
			e.own, err = sc.unit(&e.unit, e.buf.b)
		} else {
			b := getBuf(int(max(chunkBytes, d.leaf)))
			defer b.put()
			e.own, err = sc.unit(&e.unit, b.b)
		}
		if err == nil && d.target == fromPeer && !d.blind {
			e.remote, err = s.peer.digests(ctx, &e.unit, nil)
		}
		return err
	}
}

// sinks makes what takes the units that differ.
func (s *source) sinks(d *decision, l *layout) ([]sink, error) {
	n := max(2, runtime.GOMAXPROCS(0))
	var sinks []sink
	for range n {
		if s.mode == modeDigest {
			sinks = append(sinks, &collector{builder: s.builder, leaf: l.leaf})
			continue
		}
		f, err := s.finder(d, l)
		if err != nil {
			return nil, err
		}
		if s.mode == modeSync && !s.o.DryRun {
			p := newPacker(f, s.out, s.chooser, d.skipZero)
			if s.live != nil {
				p.later = s.live.later
			}
			s.packers = append(s.packers, p)
			sinks = append(sinks, p)
		} else {
			sinks = append(sinks, &lister{find: f, found: s.facts.found, stats: &s.out.stats})
		}
	}
	return sinks, nil
}

func (s *source) finder(d *decision, l *layout) (*finder, error) {
	if s.vol == nil {
		return newFinder(nil, l, d.blind), nil
	}
	sc, err := newScanner(s.vol, l, s.facts.key, 0)
	if err != nil {
		return nil, err
	}
	return newFinder(sc, l, d.blind), nil
}

// A lister is the sink of a comparison: it notes what differs.
type lister struct {
	find  *finder
	found *extentList // nil: only counted
	stats *sendStats
}

func (l *lister) note(x cbt.Extent) {
	l.stats.divergent.Add(x.Len())
	if l.found != nil {
		l.found.add(x)
	}
}

// differ implements sink. A side without a volume differs by leaves.
func (l *lister) differ(_ context.Context, e *entry) error {
	if l.find.scan == nil {
		e.unit.grains(l.find.grain, func(i int, x cbt.Extent) {
			if e.leaves&(1<<i) != 0 {
				l.note(x)
			}
		})
		return nil
	}
	return l.find.each(e, func(p piece) error {
		l.note(p.extent())
		return nil
	})
}

// flush implements sink.
func (l *lister) flush(context.Context) error { return nil }

// close implements sink.
func (l *lister) close() { l.find.close() }

// A collector is the sink of a digest: it keeps every leaf's hash in a tree.
type collector struct {
	builder *merkle.Builder
	leaf    int64
}

// differ implements sink.
func (c *collector) differ(_ context.Context, e *entry) error {
	return setLeaves(c.builder, &e.unit, c.leaf, e.remote)
}

// flush implements sink.
func (c *collector) flush(context.Context) error { return nil }

// close implements sink.
func (c *collector) close() {}

// setLeaves puts the digests of a unit into a tree under way.
func setLeaves(b *merkle.Builder, u *unit, leaf int64, digests []byte) error {
	for _, x := range u.exts {
		n := int((x.End+leaf-1)/leaf - x.Off/leaf)
		hashes := make([]merkle.Hash, n)
		for i := range hashes {
			hashes[i] = merkle.Hash(digests[i*len(merkle.Hash{}):])
		}
		digests = digests[n*len(merkle.Hash{}):]
		if err := b.SetLeaves(x.Off/leaf, hashes); err != nil {
			return fmt.Errorf("keep hashes of %v: %w", x, err)
		}
	}
	return nil
}

// check compares the whole of both volumes, from the medium (L7). With a seal
// both sides make trees on the way, whose roots are exchanged afterwards.
func (s *source) check(ctx context.Context) error {
	leaf := s.o.Leaf
	if leaf == 0 {
		leaf = defaultLeaf
	}
	// What neither side had allocated, and nobody wrote since, reads as zeroes on both.
	base := cbt.Union(s.facts.held, s.facts.d.candidates)
	l := newLayout(s.facts.size, leaf, cbt.Coarsen(base, maxCandidates))
	c := newComparison(l, digestSize(s.o.Seal), s.slots(l))
	c.release = func(low int64) error { return s.send(message.Release{Unit: uint64(low)}) }
	s.settled.Store(0)
	s.total.Store(cbt.Total(l.candidates))
	c.settled = func(n int64) { s.settled.Add(n) }
	s.cmp.Store(c)
	purpose := passVerify
	if s.o.Seal != 0 {
		purpose = passSeal
	}
	if err := s.send(message.Pass{Purpose: purpose, Digest: uint8(s.o.Seal), Leaf: uint32(leaf)}); err != nil {
		return err
	}
	if err := sendExtents(s.links[0], extentsCandidates, l.candidates); err != nil {
		return err
	}
	t, err := newSealer(l, s.o.Seal)
	if err != nil {
		return err
	}
	defer t.discard()
	wrong := checkSink{leaf: leaf}
	if err := s.checkRun(ctx, c, t, &wrong); err != nil {
		return err
	}
	s.report.RoundTrips++
	if len(wrong.found.list) > 0 {
		x := cbt.Normalize(wrong.found.list)
		return &VerifyError{Volume: s.facts.theirs.name, Extent: x[0], Bytes: cbt.Total(x)}
	}
	s.facts.root, err = t.root(ctx)
	return err
}

func (s *source) checkRun(ctx context.Context, c *comparison, t *sealer, wrong *checkSink) error {
	var scans []scanFunc
	for range s.o.Workers {
		sc, err := newScanner(s.vol, c.layout, s.facts.key, s.o.Seal)
		if err != nil {
			return err
		}
		scans = append(scans, func(_ context.Context, e *entry) (err error) {
			b := getBuf(int(max(chunkBytes, c.layout.leaf)))
			defer b.put()
			if e.own, err = sc.unit(&e.unit, b.b); err != nil {
				return err
			}
			return t.add(&e.unit, e.own.digests)
		})
	}
	return c.run(ctx, scans, []sink{wrong})
}

// checkSink gathers the leaves that a check found different.
type checkSink struct {
	leaf  int64
	found extentList
}

func (k *checkSink) differ(_ context.Context, e *entry) error {
	e.unit.grains(k.leaf, func(i int, x cbt.Extent) {
		if e.leaves&(1<<i) != 0 {
			k.found.add(x)
		}
	})
	return nil
}

func (k *checkSink) flush(context.Context) error { return nil }
func (k *checkSink) close()                      {}
