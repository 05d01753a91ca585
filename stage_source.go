package failback

import (
	"context"
	"errors"
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// What a source does otherwise for a target that stages what comes: nothing is at
// the target until it has said that the session is sealed, so until then the source
// forgets nothing (L2). Its writers need not wait for that: the stage is the point in
// time at which they were at rest.

// restage prepares a live session for a target that stages.
func (s *source) restage(ctx context.Context) error {
	if s.live == nil || !s.facts.info.Staged {
		return nil
	}
	s.live.staged = true
	m, err := s.live.restage(ctx)
	if m != nil {
		s.dirty, s.facts.mine.dirty = m, m.Extents()
	}
	return err
}

// takeApplied notes how far the target has come with applying a stage: of this
// session, or of one before. It says so every second.
func (s *source) takeApplied(st state, m message.Ack) error {
	if m.ID != 0 || st == stateSealing && !s.facts.info.Staged {
		return protocolf("frame of kind %d from the target in state %v", kindAck, st)
	}
	s.applied.written.Store(m.Written)
	s.applied.right.Store(m.Verified)
	if phase := s.phase.Load(); phase == nil || *phase != phaseApply {
		s.enter(phaseApply)
		s.tellApplied()
	}
	return nil
}

// tellApplied has it known at once that the target is being written, or may be: a
// moment later the link may be gone.
func (s *source) tellApplied() {
	if s.o.Events.Progress != nil {
		s.o.Events.Progress(s.progress())
	}
}

// staged is called when all of the session is with the target and it is going to be
// applied. From here on nobody here knows what the target holds.
func (s *source) staged() error {
	s.applied.total.Store(s.out.stats.divergent.Load())
	s.enter(phaseApply)
	s.tellApplied()
	if s.live == nil {
		return nil
	}
	return s.live.rest()
}

// rest lets the writers go on: all that they had written is staged.
func (v *live) rest() error {
	pause, err := v.letGo()
	v.rep.PauseMS = milliseconds(pause)
	return err
}

// restage begins an epoch of the session's own, with all that the tracker holds, once
// it is known that the target stages what comes. When the session is sealed what its
// rounds have proven goes take by take; the epoch that it found may be held for
// another target, which none of that is about: see seal. It returns what the plan may
// rest on, as begin does.
func (v *live) restage(ctx context.Context) (*cbt.Map, error) {
	if !v.rounds() || v.since != v.l.Since {
		return nil, nil // it began one
	}
	e, t := v.nextEpoch(), v.taken
	v.taken = nil
	err := v.l.Tracker.Advance(t, nil, e)
	if err == nil {
		v.since = e
		v.taken, err = v.l.Tracker.Take(ctx, e)
	}
	if err != nil {
		return nil, fmt.Errorf("begin epoch %d of %s: %w", e, v.name, err)
	}
	if !v.tracked {
		return nil, nil
	}
	// The target is as it was left.
	v.l.Since, v.rep.Epoch = e, e
	if v.l.Sealed != nil {
		if err := v.l.Sealed(); err != nil {
			return nil, err
		}
	}
	return v.dirty(e)
}

// A stagedRound is what was taken for a round, and what of it is in the stage.
type stagedRound struct {
	taken  *cbt.Taken
	proven []cbt.Extent
}

// keep notes that a round is in the target's stage. What was taken for it stays out.
func (v *live) keep(proven []cbt.Extent) {
	v.waiting = append(v.waiting, stagedRound{v.taken, proven})
	v.taken = nil
}

// unkeep gives back what was taken for rounds that were staged. With applied they
// are at the target: what a round has left for later and a later one has brought is,
// too. Without, all of it is the tracker's again.
func (v *live) unkeep(applied bool) error {
	var proven []cbt.Extent
	var errs []error
	last := v.taken // what was written since; it is sealed with
	for i := len(v.waiting) - 1; i >= 0; i-- {
		r := v.waiting[i]
		if applied {
			proven = cbt.Union(r.proven, proven)
		}
		v.taken = r.taken
		errs = append(errs, v.putBack(proven))
	}
	v.waiting, v.taken = nil, last
	return errors.Join(errs...)
}
