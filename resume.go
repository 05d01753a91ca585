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
	if s.resume == resumeNot {
		return nil
	}
	if s.medium && (s.o.Verify == VerifyFull || s.o.Seal != 0) {
		// What a check of the whole found wrong may lie anywhere.
		return nil
	}
	why := ""
	switch {
	case !info.Journal:
		why = "it has no journal of an interrupted sync"
	case info.Basis != s.facts.basis:
		why = "the interrupted sync rested on other maps or trees, or another rung was asked for"
	case info.Stamp != "" && s.facts.stamp != "" && info.Stamp != s.facts.stamp:
		why = fmt.Sprintf("the source %s was written since the interrupted sync began (%s, now %s)", s.name, info.Stamp, s.facts.stamp)
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
	return nil
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

// from leaves of a decision what lies from off on, and says so.
func (d decision) from(off int64) decision {
	if off == 0 {
		return d
	}
	l := newLayout(d.Volume, d.leaf, cbt.Intersect(d.candidates, rest(off, d.Volume)))
	d.candidates, d.Candidates = l.candidates, cbt.Total(l.candidates)
	d.Reason += fmt.Sprintf("; resumed: an interrupted sync had come to %d of %d bytes", off, d.Volume)
	return d
}
