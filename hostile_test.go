package failback

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// Places in a volume of hostileSize. The candidates of most sessions here are
// first and third.
var (
	first  = cbt.Extent{Off: 0, End: 64 << 10}
	second = cbt.Extent{Off: 64 << 10, End: 128 << 10}
	third  = cbt.Extent{Off: 128 << 10, End: 192 << 10}
)

func content(x cbt.Extent) []byte { return bytes.Repeat([]byte{0xab}, int(x.Len())) }

// TestHostileSource: L9, L4. What a source with every right says wrong ends the
// session with its reason; nothing outside the candidates is written, and no more
// memory is taken than what is under way.
func TestHostileSource(t *testing.T) {
	var crimes []crime
	crimes = append(crimes, greetingCrimes...)
	crimes = append(crimes, listingCrimes...)
	crimes = append(crimes, dataCrimes...)
	crimes = append(crimes, bombCrimes(t)...)
	crimes = append(crimes, askingCrimes...)
	crimes = append(crimes, endingCrimes...)
	crimes = append(crimes, streamCrimes...)
	for _, c := range crimes {
		t.Run(c.name, func(t *testing.T) { c.againstTarget(t, Side{}, true) })
	}
}

// greetingCrimes come before anything is agreed.
var greetingCrimes = []crime{
	{name: "larger than the target", want: "the end would not fit", do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: message.VolumeInfo{Size: 1 << 62, Align: 512}})
	}},
	{name: "smaller than the target", want: "is it the right volume", do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: message.VolumeInfo{Size: 512, Align: 512}})
	}},
	{name: "a volume without a size", want: "malformed Start: size", do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: message.VolumeInfo{Align: 512}})
	}},
	{name: "more streams than there can be", want: "64 streams", do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo(), Streams: 64})
	}},
	{name: "streams that never come", want: "stream 1 did not come", alive: true, do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo(), Streams: 16})
	}},
	{name: "streams that never come, where silence is no end", want: "stream 1 did not come within 5m0s", alive: true, options: Options{Timeout: -1}, do: func(v *villain) {
		v.say(message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo(), Streams: 16})
	}},
	{name: "a start with bytes behind it", want: "left over", do: func(v *villain) {
		m := message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo()}
		v.raw(kindStart, append(m.Append(nil), 0))
	}},
	{name: "a start that is cut", want: "malformed Start", do: func(v *villain) {
		v.raw(kindStart, message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo()}.Append(nil)[:40])
	}},
	{name: "nodes of no tree", want: "a tree that is not kept", do: func(v *villain) {
		v.greet(nil)
		v.say(message.Nodes{ID: 1, Ranges: []message.NodeRange{{First: 0, End: 1 << 50}}})
	}},
	{name: "a plan that rests on no tree", want: "there is none of", do: func(v *villain) {
		v.greet(nil)
		m := hostilePlan(nil)
		m.From, m.Digest = uint8(fromTree), 1
		v.say(m)
	}},
	{name: "a plan of pieces with digests of leaves", want: "plan of level 2", do: func(v *villain) {
		v.greet(nil)
		m := hostilePlan(nil)
		m.Level, m.Digest = 2, 2
		v.say(m)
	}},
	{name: "a plan that goes on with nothing", want: "there is no journal", do: func(v *villain) {
		v.greet(nil)
		m := hostilePlan(nil)
		m.Resume = 1 << 20
		v.say(m)
	}},
	{name: "an error that is none", want: "malformed Error", quiet: true, do: func(v *villain) { v.raw(kindError, []byte{77}) }},
	{name: "its own error", want: "because I can", quiet: true, do: func(v *villain) {
		v.say(message.Error{Code: message.CodeInternal, Text: "because I can"})
	}},
	{name: "silence", want: "peer silent", quiet: true, do: func(*villain) {}},
	{name: "gone", want: "unexpected EOF", quiet: true, do: func(v *villain) { _ = v.rw.Close() }},
	{name: "keep-alive without end", want: "flood of keep-alive", quiet: true, do: func(v *villain) {
		for range 1<<17 + 1 {
			v.frame(&transport.Frame{Kind: transport.Ping})
		}
	}},
}

// listingCrimes are lists of candidates.
var listingCrimes = []crime{
	{name: "another list", want: "list of purpose 1", do: lists(message.Extents{Purpose: extentsDirty, Last: true})},
	{name: "past the end", want: "extent ends at", do: lists(message.Extents{Purpose: extentsCandidates, Last: true,
		Extents: []message.Extent{{Off: hostileSize - 4096, End: hostileSize + 4096}}})},
	{name: "far past the end", want: "extent ends at", do: lists(message.Extents{Purpose: extentsCandidates, Last: true,
		Extents: []message.Extent{{Off: 1 << 61, End: 1 << 62}}})},
	{name: "other candidates than the plan told", want: "candidates of 65536 bytes, the plan had 0", do: lists(message.Extents{
		Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})})},
	{name: "back again in the next frame", want: "extents out of order", do: lists(
		message.Extents{Purpose: extentsCandidates, Extents: wireExtents([]cbt.Extent{third})},
		message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})})},
	{name: "the same again in the next frame", want: "extents out of order", do: lists(
		message.Extents{Purpose: extentsCandidates, Extents: wireExtents([]cbt.Extent{first})},
		message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})})},
	{name: "no whole leaves", want: "not aligned", do: lists(message.Extents{Purpose: extentsCandidates, Last: true,
		Extents: []message.Extent{{Off: 512, End: 1024}}})},
	{name: "more than are there", want: "malformed Extents: count", do: func(v *villain) {
		v.greet(nil)
		v.say(hostilePlan(nil))
		v.raw(kindExtents, []byte{extentsCandidates, 1, 0x80, 0x80, 2}) // 32768 of them in no bytes
	}},
	{name: "lists of nothing without end", want: "list that goes on with nothing", do: func(v *villain) {
		v.greet(nil)
		v.say(hostilePlan(nil))
		for range 1000 {
			v.say(message.Extents{Purpose: extentsCandidates})
		}
	}},
	{name: "a list without end", want: "list of more than", most: 256 << 20, do: func(v *villain) {
		v.mark()
		v.greet(nil)
		v.say(hostilePlan(nil))
		m := message.Extents{Purpose: extentsCandidates}
		for i := range int64(maxListed/message.MaxExtents + 1) {
			m.Extents = m.Extents[:0]
			for k := range int64(message.MaxExtents) {
				off := 2 * (i*message.MaxExtents + k)
				m.Extents = append(m.Extents, message.Extent{Off: off, End: off + 1})
			}
			v.say(m)
		}
		v.bounded(64 << 20)
	}},
}

// lists says lists in place of the candidates.
func lists(list ...message.Extents) func(*villain) {
	return func(v *villain) {
		v.greet(nil)
		v.say(hostilePlan(nil))
		for _, m := range list {
			v.say(m)
		}
	}
}

// dataCrimes are data that does not belong.
var dataCrimes = []crime{
	{name: "data outside the candidates", want: "not among the candidates", do: writes(second)},
	{name: "data half outside", want: "not among the candidates", do: writes(cbt.Extent{Off: 60 << 10, End: 68 << 10})},
	{name: "data across a gap", want: "not among the candidates", do: writes(cbt.Extent{Off: 0, End: 192 << 10})},
	{name: "data past the end", want: "not among the candidates", do: writes(cbt.Extent{Off: hostileSize, End: hostileSize + 4096})},
	{name: "data that is not whole pieces", want: "not among the candidates", do: writes(cbt.Extent{Off: 512, End: 1024})},
	{name: "one good span and one outside", want: "not among the candidates", do: writes(first, second)},
	{name: "overlapping spans", want: "malformed Data: off", do: writes(first, cbt.Extent{Off: 4096, End: 8192})},
	{name: "spans out of order", want: "malformed Data: off", do: writes(third, first)},
	{name: "a span of nothing", want: "malformed Data: len", do: writes(cbt.Extent{Off: 4096, End: 4096})},
	{name: "less content than spans", want: "bytes of data for", do: func(v *villain) {
		v.moving(first, third)
		v.data(make([]byte, 4096), first)
	}},
	{name: "more content than spans", want: "bytes of data for", do: func(v *villain) {
		v.moving(first, third)
		v.data(make([]byte, 128<<10), first)
	}},
	{name: "fewer digests than pieces", want: "malformed Data: digests", do: func(v *villain) {
		v.moving(first, third)
		m := message.Data{Spans: wireExtents([]cbt.Extent{first}), Sums: make([]byte, 16)}
		v.frame(&transport.Frame{Kind: kindData, Raw: 64 << 10, Head: m.Append(nil), Body: content(first)})
	}},
	{name: "more spans than are there", want: "malformed Data", do: func(v *villain) {
		v.moving(first, third)
		v.frame(&transport.Frame{Kind: kindData, Raw: 4096, Head: []byte{0, 8}, Body: make([]byte, 4096)})
	}},
	{name: "digests of something else", want: "the medium does not hold", may: []cbt.Extent{first}, do: func(v *villain) {
		v.moving(first, third)
		v.data(content(first), first)
		v.say(message.Barrier{ID: 1, Frames: 1, Final: true})
	}},
	{name: "zeroes outside", want: "not among the candidates", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Zero{Spans: wireExtents([]cbt.Extent{second})})
	}},
	{name: "zeroes from here to eternity", want: "not among the candidates", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Zero{Spans: []message.Extent{{Off: 0, End: 1 << 40}}})
	}},
	{name: "a discard outside", want: "not among the candidates", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Discard{Spans: wireExtents([]cbt.Extent{second})})
	}},
	{name: "data in a dry run", want: "a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.DryRun = true })
		v.plan(first, third)
		v.data(content(first), first)
	}},
	{name: "data in a comparison", want: "a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
		v.plan(first, third)
		v.data(content(first), first)
	}},
	{name: "zeroes in a comparison", want: "a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
		v.plan(first, third)
		v.say(message.Zero{Spans: wireExtents([]cbt.Extent{first})})
	}},
	{name: "a pass in a comparison", want: "a pass in a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
		v.plan(first, third)
		v.say(message.Pass{Purpose: 1, Leaf: defaultLeaf})
	}},
	{name: "a pass in a dry run", want: "a pass in a session that only looks", do: func(v *villain) {
		v.greet(func(m *message.Start) { m.DryRun = true })
		v.plan(first, third)
		v.say(message.Pass{Purpose: 2, Digest: 2, Leaf: defaultLeaf})
	}},
	{name: "data after the last barrier", want: "data after the final barrier", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Barrier{ID: 1, Final: true})
		v.must(kindAck, nil)
		v.data(content(first), first)
	}},
	{name: "much to remember without a barrier", want: "protocol violation: more", may: []cbt.Extent{{Off: 0, End: 1 << 20}}, most: 640 << 20, do: func(v *villain) {
		v.mark()
		v.moving(cbt.Extent{Off: 0, End: 1 << 20})
		var spans []message.Extent
		for off := int64(0); off < 1<<20; off += 512 {
			spans = append(spans, message.Extent{Off: off, End: off + 512})
		}
		for range maxKept/(16*len(spans)) + 1 {
			v.say(message.Zero{Spans: spans})
			if _, ok := v.hear(kindCredit); !ok {
				return
			}
		}
		v.bounded(64 << 20)
	}},
}

// writes sends data for spans in a session whose candidates are first and third.
func writes(spans ...cbt.Extent) func(*villain) {
	return func(v *villain) {
		v.moving(first, third)
		v.data(make([]byte, cbt.Total(spans)), spans...)
	}
}

// askingCrimes are requests for what the target does not owe.
var askingCrimes = []crime{
	{name: "pieces of a unit that is not there", want: "pieces of unit 7", do: asks(message.Want{Unit: 7, Leaves: 1})},
	{name: "pieces of a unit beyond all", want: "which is not open to one", do: asks(message.Want{Unit: 1<<64 - 1, Leaves: 1})},
	{name: "pieces of no leaf", want: "which is not open to one", do: asks(message.Want{Unit: 0})},
	{name: "pieces of a leaf that is not there", want: "leaf 2 and more of unit 0", do: asks(message.Want{Unit: 0, Leaves: 4})},
	{name: "pieces twice", want: "which is not open to one", do: asks(message.Want{Unit: 0, Leaves: 1}, message.Want{Unit: 0, Leaves: 1})},
	{name: "pieces of a unit that is released", want: "which is not open to one", do: asks(message.Release{Unit: 1}, message.Want{Unit: 0, Leaves: 1})},
	{name: "release of what was not sent", want: "release of units below 2", do: asks(message.Release{Unit: 2})},
	{name: "release of all there can be", want: "release of units below", do: asks(message.Release{Unit: 1<<64 - 1})},
	{name: "release of nothing", want: "release of units below 0", do: asks(message.Release{})},
	{name: "release twice", want: "release of units below 1", do: asks(message.Release{Unit: 1}, message.Release{Unit: 1})},
}

// asks says messages once the digests of the only unit are there.
func asks(list ...message.Message) func(*villain) {
	return func(v *villain) {
		v.moving(first, third)
		v.must(kindDigests, &message.Digests{})
		v.say(list...)
	}
}

// endingCrimes are barriers, seals and reports.
var endingCrimes = []crime{
	{name: "a barrier out of order", want: "barrier 2 after 0 frames", do: ends(message.Barrier{ID: 2})},
	{name: "a barrier twice", want: "barrier 1 after 0 frames, where 2", do: ends(message.Barrier{ID: 1}, message.Barrier{ID: 1})},
	{name: "a barrier over frames that were not sent", want: "barrier 1 after 3 frames", do: ends(message.Barrier{ID: 1, Frames: 3})},
	{name: "a barrier beyond the volume", want: "bytes are finished with", do: ends(message.Barrier{ID: 1, Done: hostileSize + 4096})},
	{name: "a barrier after the last", want: "barrier 2 after", do: ends(message.Barrier{ID: 1, Final: true}, message.Barrier{ID: 2, Final: true})},
	{name: "barriers without end", want: "frame of kind 25", quiet: true, do: func(v *villain) {
		v.mark()
		v.moving(first, third)
		for i := range uint64(3000) {
			v.say(message.Barrier{ID: i + 1})
			if !v.must(kindAck, &message.Ack{}) {
				return
			}
		}
		v.bounded(4 << 20)
		v.raw(kindError, message.Error{Code: 1, Text: "frame of kind 25"}.Append(nil))
	}},
	{name: "a seal before everything is acknowledged", want: "not all acknowledged", may: []cbt.Extent{first}, do: func(v *villain) {
		v.moving(first, third)
		v.data(content(first), first)
		v.say(message.Seal{})
	}},
	{name: "a root without a pass", want: "seal without a pass", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Barrier{ID: 1, Final: true})
		v.must(kindAck, nil)
		v.say(message.Seal{Algorithm: 2, Root: [32]byte{1}})
	}},
	{name: "a pass over what is not there", want: "extent ends at", do: func(v *villain) {
		v.moving(first, third)
		v.say(message.Pass{Purpose: 1, Leaf: defaultLeaf},
			message.Extents{Purpose: extentsCandidates, Last: true, Extents: []message.Extent{{Off: 0, End: 1 << 50}}})
	}},
	{name: "an endless report", want: "report of more than", most: 10 * maxReport, do: func(v *villain) {
		v.mark()
		sealed(v)
		chunk := message.Report{Chunk: make([]byte, message.MaxChunk)}
		for range maxReport/message.MaxChunk + 1 {
			v.say(chunk)
		}
		v.bounded(3 * maxReport)
	}},
	{name: "no report", want: "ended without a report", quiet: true, do: func(v *villain) {
		sealed(v)
		v.say(message.Bye{})
	}},
}

func ends(list ...message.Message) func(*villain) {
	return func(v *villain) {
		v.moving(first, third)
		v.say(list...)
	}
}

// sealed brings a session that writes nothing to its last state.
func sealed(v *villain) {
	v.moving(first, third)
	v.must(kindDigests, nil)
	v.say(message.Barrier{ID: 1, Final: true})
	v.must(kindAck, nil)
	v.say(message.Seal{})
	v.must(kindSealed, nil)
}

// TestHostileWindow: more data than the window, while the volume takes none.
func TestHostileWindow(t *testing.T) {
	free := make(chan struct{})
	c := crime{name: "window", want: "more data than the window", most: 96 << 20, options: Options{Window: 2 << 20}, do: func(v *villain) {
		v.mark()
		defer close(free)
		v.moving(wholeOf(hostileSize)...)
		for off := int64(0); off < 4<<20; off += 1 << 20 {
			x := cbt.Extent{Off: off, End: off + 1<<20}
			v.data(content(x), x)
		}
		v.bounded(24 << 20)
		_, _ = v.hear(kindError)
	}, may: wholeOf(hostileSize)}
	c.againstStuck(t, free)
}

// TestHostileBarriers: more barriers than are acknowledged, while a sync is stuck.
func TestHostileBarriers(t *testing.T) {
	free := make(chan struct{})
	c := crime{name: "barriers", want: "none of the last 8 is acknowledged", do: func(v *villain) {
		defer close(free)
		v.moving(first)
		v.data(content(first), first)
		for i := range uint64(maxUnacked + 3) {
			v.say(message.Barrier{ID: i + 1, Frames: 1})
		}
		_, _ = v.hear(kindError)
	}, may: []cbt.Extent{first}}
	c.againstStuck(t, free)
}

// TestHostileReader: a peer that may only read gets no session that writes.
func TestHostileReader(t *testing.T) {
	for _, c := range []crime{
		{name: "a sync", want: "open for reading only", do: func(v *villain) {
			v.say(message.Start{Session: hostileSession, Mode: uint8(modeSync), Volume: hostileInfo()})
		}},
		{name: "data in a comparison", want: "only looks", do: func(v *villain) {
			v.greet(func(m *message.Start) { m.Mode = uint8(modeCompare) })
			v.plan(first)
			v.data(content(first), first)
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.againstTarget(t, Side{}, false) })
	}
}

// TestTargetWrongStates: every kind of frame in every state of the target: what
// has no place there ends the session and says so.
func TestTargetWrongStates(t *testing.T) {
	reach := map[targetState]func(*villain){
		targetWaiting: func(*villain) {},
		targetGreeted: func(v *villain) { v.greet(nil) },
		targetListing: func(v *villain) { v.greet(nil); v.say(hostilePlan(nil)) },
		targetMoving:  func(v *villain) { v.moving(first, third) },
		targetRelisting: func(v *villain) {
			v.moving(first, third)
			v.say(message.Pass{Purpose: 1, Leaf: defaultLeaf})
		},
		targetChecking: func(v *villain) {
			v.moving(first, third)
			v.say(message.Pass{Purpose: 1, Leaf: defaultLeaf}, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})})
		},
		targetSealed: sealed,
	}
	tried := 0
	for s, come := range reach {
		for k, p := range everyKind() {
			if _, err := targetStep(s, k, k == kindExtents); err == nil || k == kindError {
				continue
			}
			tried++
			c := crime{want: fmt.Sprintf("frame of kind %d from the source in state %v", k, s), do: func(v *villain) {
				come(v)
				v.raw(k, p)
			}}
			t.Run(fmt.Sprintf("%v/%d", s, k), func(t *testing.T) { c.againstTarget(t, Side{}, true) })
		}
	}
	if tried < 150 {
		t.Errorf("only %d pairs of state and kind are refused", tried)
	}
}

// everyKind is a well-formed payload for each kind there is, and for some there are not.
func everyKind() map[transport.Kind][]byte {
	all := map[transport.Kind][]byte{27: nil, 100: {1, 2, 3}, 253: nil}
	for _, m := range []message.Message{
		message.Open{MinVersion: 1, MaxVersion: 1, Session: hostileSession, Role: 2, Write: true, Volume: "dst"},
		message.Opened{Version: 1, Volume: hostileInfo()}, message.Task{Mode: 1, Codec: "none"},
		message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo()}, message.Info{Volume: hostileInfo()},
		message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})}, hostilePlan(nil),
		message.Agree{Window: 2 << 20}, message.Digests{Size: 16, Sums: make([]byte, 16)}, message.Want{Leaves: 1},
		message.Pieces{Leaves: 1, Sums: make([]byte, 16)}, message.Release{Unit: 1},
		message.Data{Spans: wireExtents([]cbt.Extent{first})}, message.Zero{Spans: wireExtents([]cbt.Extent{first})},
		message.Discard{Spans: wireExtents([]cbt.Extent{first})}, message.Barrier{ID: 1}, message.Ack{ID: 1}, message.Credit{Bytes: 1},
		message.Nodes{Ranges: []message.NodeRange{{First: 0, End: 1}}}, message.NodeHashes{Last: true}, message.Pass{Purpose: 1, Leaf: defaultLeaf},
		message.Seal{}, message.Sealed{}, message.Report{Last: true, Chunk: []byte("{}")}, message.Error{Code: 1, Text: "x"}, message.Bye{},
	} {
		all[m.Kind()] = m.Append(nil)
	}
	return all
}
