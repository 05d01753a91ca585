package failback

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/failback/failback/cbt"
)

// takeUp decides whether the session goes on with an interrupted one: below
// facts.from both sides are equal, by the target's journal. That holds if the
// plan rests on the same things and the source was not written since.
func (s *source) takeUp() error {
	s.facts.basis = s.basis()
	info := &s.facts.info
	if s.resume == resumeNot || s.live != nil {
		// Of a source that is written nothing that was found equal is so for long, and
		// its tracker may hold again what it held then. Only the undo log is gone on with.
		return nil
	}
	why := ""
	switch {
	case !info.Journal:
		why = "it has no journal of an interrupted sync"
	case info.Done == 0 && info.Basis != [32]byte{}: // without a basis it is an undo's mark
		return nil // there is nothing to hold against: only its undo log is gone on with
	case info.Basis != s.facts.basis:
		why = "the interrupted sync rested on other maps or trees, or another rung was asked for"
	case info.Stamp != s.facts.stamp:
		why = s.written(info.Stamp)
	case info.Done > s.facts.size || info.Done%sectorSize != 0:
		return protocolf("a journal that says %d of %d bytes are done", info.Done, s.facts.size)
	}
	switch {
	case why == "":
	case s.resume == resumeMust:
		return &RefusedError{Volume: s.facts.theirs.name, Reason: why, Next: "sync without --resume: both sides will be compared"}
	default:
		return nil
	}
	s.facts.from = info.Done
	s.facts.mine.above(info.Done)
	s.facts.theirs.above(info.Done)
	if s.unwatched() && s.o.Events.Note != nil {
		s.o.Events.Note(noteUnwatched(s.facts.theirs.name))
	}
	return nil
}

// written says why the source may have been since a sync that began at the stamp then.
func (s *source) written(then string) string {
	switch now := s.facts.stamp; {
	case then == "":
		return fmt.Sprintf("nothing told, when the interrupted sync began, whether the source %s is written, so it may have been since", s.name)
	case now == "":
		return fmt.Sprintf("nothing tells any more whether the source %s was written since the interrupted sync began", s.name)
	default:
		return fmt.Sprintf("the source %s was written since the interrupted sync began (%s, now %s)", s.name, then, now)
	}
}

// unwatched reports whether the session goes on with one that was killed: it is
// its user's word that nobody else has written the target since.
func (s *source) unwatched() bool { return s.facts.from > 0 && s.facts.info.Unwatched }

// tellUnwatched is for a target whose source, at a peer, cannot tell our user.
func (t *target) tellUnwatched() {
	if t.asked != nil && t.plan.Resume > 0 && t.log.unwatched && t.o.Events.Note != nil {
		t.o.Events.Note(noteUnwatched(t.name))
	}
}

func noteUnwatched(target string) string {
	return target + ": nothing says whether somebody has written it since the interrupted sync, which did not come to record that; --verify full finds out"
}

// above leaves of a position what is said of the volume from off on.
func (p *position) above(off int64) {
	rest := rest(off, p.size)
	p.allocated = cbt.Intersect(p.allocated, rest)
	p.dirty = cbt.Intersect(p.dirty, rest)
}

// rest is what lies from off on.
func rest(off, size int64) []cbt.Extent {
	if off >= size {
		return nil
	}
	return []cbt.Extent{{Off: off, End: size}}
}

// basis is a hash of everything that the plan rests on but the content of the
// volumes and what they have allocated: a session that has another one looks at
// other candidates, and cannot go on with this one.
func (s *source) basis() [32]byte {
	h := sha256.New()
	number(h, uint64(s.mode), uint64(s.o.Rung), uint64(s.facts.size))
	if s.doubt() != "" {
		// Whatever maps and trees say, everything is compared.
		number(h, uint64(s.facts.mine.size), uint64(s.facts.theirs.size))
		return [32]byte(h.Sum(nil))
	}
	for _, p := range []*position{&s.facts.mine, &s.facts.theirs} {
		number(h, uint64(p.size), boolBit(p.mapped), uint64(p.epoch), uint64(len(p.dirty)))
		for _, x := range p.dirty {
			number(h, uint64(x.Off), uint64(x.End))
		}
		if t := p.tree; t != nil {
			number(h, uint64(t.algorithm), uint64(t.leaf), uint64(t.size))
			h.Write(t.root[:])
		}
	}
	return [32]byte(h.Sum(nil))
}

func number(h hash.Hash, v ...uint64) {
	var b [8]byte
	for _, x := range v {
		binary.LittleEndian.PutUint64(b[:], x)
		h.Write(b[:])
	}
}

func boolBit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// from leaves of a decision what lies from off on, and says so. With unwatched
// nothing says whether the target was written since.
func (d decision) from(off int64, unwatched bool) decision {
	if off == 0 {
		return d
	}
	l := newLayout(d.Volume, d.leaf, cbt.Intersect(d.candidates, rest(off, d.Volume)))
	d.candidates, d.Candidates = l.candidates, cbt.Total(l.candidates)
	d.Reason += fmt.Sprintf("; resumed: an interrupted sync had come to %d of %d bytes", off, d.Volume)
	if unwatched {
		d.Reason += "; nothing says whether the target was written since"
	}
	return d
}
