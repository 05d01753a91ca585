package failback

import (
	"errors"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// roundCrimes are rounds that a live source may not begin, or does not keep to.
var roundCrimes = []crime{
	{name: "a round before anything is acknowledged", want: "a round in the middle of another", may: []cbt.Extent{first}, do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Zero{Spans: wireExtents([]cbt.Extent{first})})
		v.must(kindCredit, nil)
		v.round(first)
	}},
	{name: "a round of which nobody was told the end", want: "a round in the middle of another", may: []cbt.Extent{third}, do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Zero{Spans: wireExtents([]cbt.Extent{third})})
		v.round(first)
	}},
	{name: "a round after the last barrier", want: "a round before the one before it is acknowledged", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Barrier{ID: 1, Final: true})
		v.must(kindAck, nil)
		v.round(first)
	}},
	{name: "a round in a comparison", want: "a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
		v.plan(first, third)
		v.round(first)
	}},
	{name: "a round in a dry run", want: "a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.DryRun = true })
		v.plan(first, third)
		v.round(first)
	}},
	{name: "a round with a digest", want: "a round with digest 1", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Pass{Purpose: passRound, Digest: 1, Leaf: pieceSize})
	}},
	{name: "a round of half pieces", want: "candidates are not aligned", do: func(v *villain) {
		v.moving(first, third)
		v.round(cbt.Extent{Off: 512, End: 1024})
	}},
	{name: "a round past the end", want: "the volume at", do: func(v *villain) {
		v.moving(first, third)
		v.round(cbt.Extent{Off: hostileSize, End: hostileSize + pieceSize})
	}},
	{name: "data of the round before", want: "not among the candidates", may: []cbt.Extent{first}, do: func(v *villain) {
		v.rounds(second)
		v.data(content(first), first)
	}},
	{name: "more data than the rounds have", want: "more data than the", may: []cbt.Extent{first, second}, do: func(v *villain) {
		v.rounds(second)
		for id := uint64(2); id < 4; id++ {
			v.say(message.Zero{Spans: wireExtents([]cbt.Extent{second})})
			if _, ok := v.hear(kindCredit); !ok {
				return
			}
			v.say(message.Barrier{ID: id, Frames: id})
			if _, ok := v.hear(kindAck); !ok {
				return
			}
		}
	}},
	{name: "a seal in the middle of a round", want: "whose data is not all acknowledged", may: []cbt.Extent{first}, do: func(v *villain) {
		v.rounds(second)
		v.say(message.Seal{})
	}},
	{name: "no end of rounds", want: "unexpected EOF", quiet: true, may: []cbt.Extent{first, second}, do: func(v *villain) {
		v.mark()
		v.rounds(second)
		for id := uint64(2); id < 500; id++ {
			v.say(message.Zero{Spans: wireExtents([]cbt.Extent{second})}, message.Barrier{ID: id, Frames: id})
			v.must(kindAck, nil)
			v.round(second)
			v.must(kindAgree, nil)
		}
		v.bounded(wrongMost)
		_ = v.rw.Close()
	}},
}

// round begins a round over candidates.
func (v *villain) round(candidates ...cbt.Extent) {
	v.say(message.Pass{Purpose: passRound, Leaf: pieceSize},
		message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents(candidates)})
}

// rounds brings a session to its second round, with one frame sent in the first.
func (v *villain) rounds(candidates ...cbt.Extent) {
	v.moving(first, third)
	v.say(message.Zero{Spans: wireExtents([]cbt.Extent{first})}, message.Barrier{ID: 1, Frames: 1})
	v.must(kindAck, nil)
	v.round(candidates...)
	v.must(kindAgree, nil)
}

func TestHostileRounds(t *testing.T) {
	for _, c := range roundCrimes {
		t.Run(c.name, func(t *testing.T) { c.againstTarget(t, Side{}, true) })
	}
}

// TestResumedRound: a session that goes on with an interrupted one has no rounds:
// what that one found equal was found so of a source that nobody writes.
func TestResumedRound(t *testing.T) {
	far := &target{plan: message.Plan{Resume: pieceSize}}
	far.apply.Store(&applier{newest: &generation{}})
	if err := far.another(); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "a session that was resumed at 4096") {
		t.Errorf("a round of a resumed session: %v", err)
	}
}
