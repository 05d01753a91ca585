package failback

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// passed takes the source's wish to have the volume read again. What is to be
// read follows.
func (t *target) passed() error {
	if t.pass.Purpose == passRound {
		if err := t.another(); err != nil {
			return err
		}
	}
	if t.asked != nil {
		if err := t.asked.holdPass(&t.pass); err != nil {
			return err
		}
	}
	t.respond.Load().stop()
	t.list = extentReader{purpose: extentsCandidates, size: t.span()}
	return nil
}

// check reads everything listed from the medium and sends its digests (L7).
func (t *target) check(ctx context.Context, g *errgroup.Group) error {
	l, err := t.list.layout(int64(t.pass.Leaf))
	if err != nil {
		return err
	}
	if t.asked != nil {
		if err := t.holdPassed(l); err != nil {
			return err
		}
	}
	if t.sealer, err = newSealer(l, merkle.Algorithm(t.pass.Digest)); err != nil {
		return err
	}
	r := &responder{
		layout: l, conn: t.link, vol: t.vol, key: t.key, digest: merkle.Algorithm(t.pass.Digest),
		from: fromVolume, medium: true, seal: t.sealer, scans: t.o.Workers,
	}
	if t.stage != nil {
		t.sums = newPassSums(l, r.key, r.digest)
		r.sums = t.sums
	}
	r.prepare()
	t.respond.Store(r)
	g.Go(func() error { return r.run(ctx) })
	return nil
}

// holdPassed refuses a pass that leaves out a part of the target that may hold
// something else than zeroes, or that the session was about.
func (t *target) holdPassed(l *layout) error {
	whole := wholeOf(t.span())
	if t.facts.sparse {
		whole = cbt.Intersect(cbt.Union(t.facts.allocated, t.apply.Load().layout.candidates), whole)
	}
	if rest := cbt.Subtract(whole, l.candidates); len(rest) > 0 {
		return protocolf("a pass that leaves out %v", rest[0])
	}
	return nil
}

// sealable refuses a seal that comes too early, or is not the one asked for.
// Digests that are still made would go into a tree that is finished.
func (t *target) sealable(m *message.Seal) error {
	if t.sealer != nil && !t.respond.Load().complete() {
		return protocolf("a seal before all digests of its pass have come")
	}
	if j := t.asked; j != nil && j.writes() {
		switch {
		case j.checks() && t.sealer == nil:
			return protocolf("a seal without the pass over the volumes that was asked for")
		case merkle.Algorithm(m.Algorithm) != j.o.Seal:
			return protocolf("a seal of algorithm %d, asked for was %d", m.Algorithm, j.o.Seal)
		}
	}
	return nil
}
