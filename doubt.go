package failback

import (
	"github.com/failback/failback/cbt"
)

// What a target holds is in doubt when its medium did not hold what was written to
// it, when its journal is damaged, when a sync from elsewhere had begun to
// overwrite it, or when its stamp tells of somebody else's write. No map and no
// tree vouches for it then, and the place where it is wrong may be anywhere: all of
// it is read, from its medium, and compared (L1, L7). The journal carries the doubt
// on until a session has come to its end that did so.

// doubt says why nothing vouches for what the target holds, or "".
func (s *source) doubt() string {
	switch {
	case s.mode != modeSync:
		return ""
	case s.medium:
		return "the target's medium did not hold what was written to it"
	case s.facts.info.Doubt:
		return "the target is in doubt: its medium did not hold what was written to it, its journal is damaged, or somebody else has written it"
	}
	return ""
}

// covered refuses a plan that takes the target's tree for the target after it was
// written, or, of a target in doubt, does not look at everything: at the session's
// end the doubt would be forgotten, and what is wrong with it.
func (t *target) covered(l *layout) error {
	compared := t.plan.Level == 0 || origin(t.plan.From) == fromVolume
	if t.log.spent && !compared {
		return protocolf("plan rests on a tree of the target, which was written since")
	}
	if !t.log.doubt && !t.start.Medium {
		return nil
	}
	whole := cbt.Intersect(wholeOf(t.span()), rest(t.plan.Resume, t.span()))
	if t.facts.sparse {
		whole = cbt.Intersect(cbt.Normalize(t.facts.allocated), whole)
	}
	if !compared || t.plan.Level == 0 && Rung(t.plan.Rung) != RungFull || len(cbt.Subtract(whole, l.candidates)) > 0 {
		return protocolf("plan of %d bytes, of a target that is in doubt as a whole", t.plan.Candidates)
	}
	return nil
}
