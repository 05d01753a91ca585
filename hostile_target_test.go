package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// TestHostileTarget: L9. What a target says wrong ends the session with its
// reason at the source, which reads nothing outside its volume and is not written.
func TestHostileTarget(t *testing.T) {
	var crimes []crime
	crimes = append(crimes, openingCrimes...)
	crimes = append(crimes, digestCrimes...)
	crimes = append(crimes, ackCrimes...)
	for _, c := range crimes {
		t.Run(c.name, func(t *testing.T) { c.againstSource(t) })
	}
}

// openingCrimes come before anything is sent.
var openingCrimes = []crime{
	{name: "smaller than the source", want: "the end would not fit", do: func(v *villain) {
		v.answer(func(m *message.Info) { m.Volume.Size = 512 })
	}},
	{name: "larger than the source", want: "is it the right volume", do: func(v *villain) {
		v.answer(func(m *message.Info) { m.Volume.Size = 1 << 62 })
	}},
	{name: "no stage", want: "does not stage", options: Options{Stage: true}, do: func(v *villain) { v.answer(nil) }},
	{name: "a map past its end", want: "extent ends at", do: func(v *villain) {
		v.answer(func(m *message.Info) { m.Volume.Mapped = true })
		v.say(message.Extents{Purpose: extentsDirty, Last: true, Extents: []message.Extent{{Off: 0, End: 1 << 62}}})
	}},
	{name: "a map without end", want: "list that goes on with nothing", do: func(v *villain) {
		v.answer(func(m *message.Info) { m.Volume.Mapped = true })
		for range 1000 {
			v.say(message.Extents{Purpose: extentsDirty})
		}
	}},
	{name: "another list", want: "list of purpose 3", do: func(v *villain) {
		v.answer(func(m *message.Info) { m.Volume.Mapped = true })
		v.say(message.Extents{Purpose: extentsCandidates, Last: true})
	}},
	{name: "a list nobody asked for", want: "frame of kind 6", do: func(v *villain) {
		v.answer(nil)
		v.must(kindPlan, nil)
		v.say(message.Extents{Purpose: extentsDirty, Last: true})
	}},
	{name: "itself twice", want: "frame of kind 5", do: func(v *villain) {
		v.must(kindStart, nil)
		v.say(message.Info{Volume: hostileInfo()}, message.Info{Volume: hostileInfo()}, message.Info{Volume: hostileInfo()})
	}},
	{name: "a window of nothing", want: "malformed Agree: window", do: func(v *villain) {
		v.answer(nil)
		v.agree(1)
	}},
	{name: "agreement twice", want: "frame of kind 8", do: func(v *villain) {
		v.answer(nil)
		v.agree(12 << 20)
		v.say(message.Agree{Window: 12 << 20})
		for u := range uint64(hostileSize >> 20) { // noticed at once or, where it waits unread, at the seal
			v.say(message.Digests{Unit: u, Size: 16, Sums: bytes.Repeat([]byte{0xee}, 16*16)})
		}
		for range hostileSize >> 20 {
			if p, ok := v.hear(kindWant); ok {
				var w message.Want
				if err := w.Decode(p); err != nil {
					v.t.Error(err)
				}
				v.say(message.Pieces{Unit: w.Unit, Leaves: w.Leaves, Sums: bytes.Repeat([]byte{0xdd}, 16*256)})
			}
		}
		if _, ok := v.hear(kindBarrier); ok {
			v.say(message.Ack{ID: 1})
		}
	}},
	{name: "agreement, then silence", want: "peer silent", quiet: true, do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
	}},
	{name: "agreement, then gone", want: "unexpected EOF", quiet: true, do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		_ = v.rw.Close()
	}},
	{name: "a refusal in its own words", want: "not today", quiet: true, do: func(v *villain) {
		v.must(kindStart, nil)
		v.say(message.Error{Code: message.CodeRefused, Text: "not today", Volume: "theirs"})
	}},
	{name: "an error with a terminal's words", want: "malformed Error: text", quiet: true, do: func(v *villain) {
		v.must(kindStart, nil)
		v.raw(kindError, append([]byte{1, 4, 0}, "\x1b[2J\x00\x00\x00\x00"...))
	}},
	{name: "keep-alive without end", want: "flood of keep-alive", quiet: true, do: func(v *villain) {
		for range 1<<17 + 1 {
			v.frame(&transport.Frame{Kind: transport.Ping})
		}
	}},
}

// digestCrimes are digests and pieces that do not fit what was planned.
var digestCrimes = []crime{
	digests("of another size", "digests of 32 bytes", message.Digests{Size: 32, Sums: make([]byte, 32*16)}),
	digests("too few", "bytes of digests for unit 0 of", message.Digests{Size: 16, Sums: make([]byte, 16*15)}),
	digests("too many", "of at most 16 digests", message.Digests{Size: 16, Sums: make([]byte, 16*17)}),
	digests("far too many", "of at most 16 digests", message.Digests{Size: 16, Sums: make([]byte, 16*32768)}),
	digests("of a unit far ahead", "which were not expected", message.Digests{Unit: lookahead, Size: 16, Sums: make([]byte, 16)}),
	digests("of a unit beyond all", "digests of 16 bytes", message.Digests{Unit: 1<<64 - 1, Size: 16, Sums: make([]byte, 16)}),
	digests("of one unit twice", "which were not expected", message.Digests{Unit: 5, Size: 16, Sums: make([]byte, 16*16)}, message.Digests{Unit: 5, Size: 16, Sums: make([]byte, 16*16)}),
	{name: "digests of a unit that is not there", want: "digests of unit 9, of 6 there are", do: func(v *villain) {
		v.answer(nil)
		v.agree(12 << 20)
		v.say(message.Digests{Unit: 9, Size: 16, Sums: make([]byte, 16)})
		v.differ()
	}},
	pieced("of a unit nobody asked about", "pieces of unit 5, which were not asked for", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: 5, Leaves: 1, Sums: make([]byte, 16*16)}
	}),
	pieced("of a unit that is not there", "which were not asked for", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: 1 << 60, Leaves: w.Leaves, Sums: make([]byte, 16*256)}
	}),
	pieced("of a unit beyond all", "pieces that were not asked for", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: 1<<64 - 1, Leaves: w.Leaves}
	}),
	pieced("of other leaves", "which were not asked for", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: w.Unit, Leaves: 1, Sums: make([]byte, 16*16)}
	}),
	pieced("too few", "255 pieces for unit", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: w.Unit, Leaves: w.Leaves, Sums: make([]byte, 16*255)}
	}),
	pieced("too many", "32768 pieces for unit", func(w message.Want) message.Pieces {
		return message.Pieces{Unit: w.Unit, Leaves: w.Leaves, Sums: make([]byte, 16*32768)}
	}),
}

// digests says digests that do not fit once the plan is agreed.
func digests(name, want string, list ...message.Digests) crime {
	return crime{name: "digests " + name, want: want, do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		for _, m := range list {
			v.say(m)
		}
	}}
}

// pieced answers the first request for pieces with something else.
func pieced(name, want string, wrong func(message.Want) message.Pieces) crime {
	return crime{name: "pieces " + name, want: want, do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		v.digests(0)
		var w message.Want
		v.must(kindWant, &w)
		v.say(wrong(w))
	}}
}

// ackCrimes are credit, acknowledgements and seals.
var ackCrimes = []crime{
	{name: "credit for nothing", want: "more credit than was taken", do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		v.digests(0)
		v.must(kindWant, nil)
		v.say(message.Credit{Bytes: 1})
	}},
	{name: "more credit than was taken", want: "more credit than was taken", do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		for u := range uint64(2) { // the first fills a frame
			v.digests(u)
			var w message.Want
			v.must(kindWant, &w)
			v.say(message.Pieces{Unit: w.Unit, Leaves: w.Leaves, Sums: bytes.Repeat([]byte{0xdd}, 16*256)})
		}
		v.must(kindData, nil)
		v.say(message.Credit{Bytes: 1<<32 - 1})
	}},
	{name: "an acknowledgement of nothing", want: "acknowledgement of barrier 1, 0 were sent", do: func(v *villain) {
		v.answer(nil)
		v.agree(2 << 20)
		v.digests(0)
		v.must(kindWant, nil)
		v.say(message.Ack{ID: 1})
	}},
	{name: "an acknowledgement of the next barrier", want: "acknowledgement of barrier 2", do: func(v *villain) {
		v.received()
		v.say(message.Ack{ID: v.final().ID + 1})
	}},
	{name: "an acknowledgement twice", want: "frame of kind 17", do: func(v *villain) {
		v.received()
		m := message.Ack{ID: v.final().ID}
		v.say(m)
		v.must(kindSeal, nil)
		v.say(m)
	}},
	{name: "a seal without being asked", want: "frame of kind 23", do: func(v *villain) {
		v.received()
		v.final()
		v.say(message.Sealed{})
	}},
	{name: "good-bye before the end", want: "frame of kind 26", do: func(v *villain) {
		v.received()
		v.final()
		v.say(message.Bye{})
	}},
	{name: "a seal of something that was not asked for", want: "the volumes are not equal", do: func(v *villain) {
		v.received()
		v.say(message.Ack{ID: v.final().ID})
		v.must(kindSeal, nil)
		v.say(message.Sealed{Algorithm: 2, Root: [32]byte{1}})
	}},
	{name: "a seal with another root", want: "the volumes are not equal", options: Options{Seal: merkle.BLAKE3}, most: 64 << 20, do: func(v *villain) {
		v.received()
		v.say(message.Ack{ID: v.final().ID})
		v.must(kindPass, nil)
		v.candidates()
		h := v.sourceLeaves()
		for u := range uint64(hostileSize >> 20) {
			v.say(message.Digests{Unit: u, Size: 32, Sums: h[u*16*32 : (u+1)*16*32]})
		}
		v.must(kindSeal, nil)
		v.say(message.Sealed{Algorithm: 2, Root: [32]byte{1}})
	}},
	{name: "a full check that does not hold", want: "the medium does not hold", options: Options{Verify: VerifyFull}, most: 64 << 20, do: func(v *villain) {
		v.received()
		v.say(message.Ack{ID: v.final().ID})
		v.must(kindPass, nil)
		v.candidates()
		for u := range uint64(hostileSize >> 20) {
			v.digests(u)
		}
	}},
}

// received plays an honest target up to the last barrier, but for writing anything.
func (v *villain) received() {
	v.answer(nil)
	v.agree(12 << 20)
	v.differ()
}

// sourceLeaves are the hashes of the source's leaves.
func (v *villain) sourceLeaves() []byte {
	h, err := merkle.NewHasher(merkle.Shape{Size: hostileSize, Leaf: defaultLeaf, Algorithm: merkle.BLAKE3})
	if err != nil {
		v.t.Fatal(err)
	}
	var out []byte
	for b := randomBytes(1, hostileSize); len(b) > 0; b = b[defaultLeaf:] {
		leaf := h.Leaf(b[:defaultLeaf])
		out = append(out, leaf[:]...)
	}
	return out
}

// TestNoCredit: a target that gives nothing back holds up a session, with
// bounded memory, until it is given up.
func TestNoCredit(t *testing.T) {
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		v := newVillain(t, far)
		done := make(chan struct{})
		go func() {
			defer close(done)
			v.mark()
			v.welcome()
			v.answer(nil)
			v.agree(2 << 20)
			v.differ()
			v.leave(true)
		}()
		stop := time.AfterFunc(10*time.Minute, func() { v.bounded(32 << 20) })
		defer stop.Stop()
		_, err := Sync(context.Background(), Side{Volume: randomVolume(1, hostileSize), Name: "src"}, dialOnce("theirs", near), Options{Codec: "none", Workers: 2})
		<-done
		if !errors.Is(err, transport.ErrIdle) {
			t.Errorf("got %v", err)
		}
	})
}

// TestSourceWrongStates: every kind of frame in every state of the source.
func TestSourceWrongStates(t *testing.T) {
	reach := map[state]func(*villain){
		stateGreeting: func(v *villain) { v.must(kindStart, nil) },
		statePlanned:  func(v *villain) { v.answer(nil); v.must(kindPlan, nil) },
		stateMoving: func(v *villain) {
			v.answer(nil)
			v.agree(2 << 20)
			v.digests(0)
			v.must(kindWant, nil)
		},
		stateDraining: func(v *villain) { v.received(); v.final() },
		stateSealing:  func(v *villain) { v.received(); v.say(message.Ack{ID: v.final().ID}); v.must(kindSeal, nil) },
		stateClosing: func(v *villain) {
			v.received()
			v.say(message.Ack{ID: v.final().ID})
			v.must(kindSeal, nil)
			v.say(message.Sealed{})
			v.must(kindBye, nil)
		},
	}
	tried := 0
	for s, come := range reach {
		for k, p := range everyKind() {
			if accepts(s, k) {
				continue
			}
			tried++
			c := crime{want: fmt.Sprintf("frame of kind %d from the target in state %v", k, s), do: func(v *villain) {
				come(v)
				v.raw(k, p)
			}}
			t.Run(fmt.Sprintf("%v/%d", s, k), func(t *testing.T) { c.againstSource(t) })
		}
	}
	if tried < 130 {
		t.Errorf("only %d pairs of state and kind are refused", tried)
	}
}

// TestHostileTree: a kept tree at the target whose nodes do not add up to its
// root, or that answers with something else, is found out.
func TestHostileTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.fbt")
	if _, err := Digest(t.Context(), Side{Volume: randomVolume(1, hostileSize)}, path, Options{}); err != nil {
		t.Fatal(err)
	}
	tree, err := merkle.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	hashes := func(n int) []byte { return bytes.Repeat([]byte{0xcc}, 32*n) }
	for _, c := range []struct {
		name, want string
		answer     func(m message.Nodes, n int) []message.Message
	}{
		{"nodes that do not add up to another root", "none of their children do", func(m message.Nodes, n int) []message.Message {
			out := message.NodeHashes{ID: m.ID, Last: true}
			for _, x := range m.Ranges { // the source's own: nothing differs, but for the root
				err := tree.ReadNodes(context.Background(), int(m.Level), []merkle.Range{merkle.Range(x)}, func(_ int64, nodes []merkle.Hash) error {
					for _, h := range nodes {
						out.Hashes = append(out.Hashes, h[:]...)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
			return []message.Message{out}
		}},
		{"more nodes than were asked for", "more tree nodes", func(m message.Nodes, n int) []message.Message {
			return []message.Message{message.NodeHashes{ID: m.ID, Hashes: hashes(n + 1), Last: true}}
		}},
		{"fewer nodes than were asked for", "fewer tree nodes", func(m message.Nodes, n int) []message.Message {
			return []message.Message{message.NodeHashes{ID: m.ID, Hashes: hashes(n - 1), Last: true}}
		}},
		{"an answer to another request", "tree nodes for request", func(m message.Nodes, n int) []message.Message {
			return []message.Message{message.NodeHashes{ID: m.ID + 1, Hashes: hashes(n), Last: true}}
		}},
		{"no answer", "frame of kind 8", func(message.Nodes, int) []message.Message {
			return []message.Message{message.Agree{Window: 2 << 20}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				near, far := transport.Pipe()
				v := newVillain(t, far)
				done := make(chan struct{})
				go func() {
					defer close(done)
					v.welcome()
					v.answer(func(m *message.Info) {
						m.Volume.Tree = &message.TreeInfo{Algorithm: uint8(merkle.BLAKE3), Leaf: defaultLeaf, Root: [32]byte{7}}
					})
					var m message.Nodes
					v.must(kindNodes, &m)
					n := 0
					for _, x := range m.Ranges {
						n += int(x.End - x.First)
					}
					v.say(c.answer(m, n)...)
					v.leave(false)
				}()
				src := Side{Volume: randomVolume(1, hostileSize), Name: "src", Tree: path, TrustTree: true}
				_, err := Sync(context.Background(), src, dialOnce("theirs", near), Options{Codec: "none", Workers: 2})
				<-done
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
			})
		})
	}
}
