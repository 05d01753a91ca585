package merkle

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestProofs(t *testing.T) {
	t.Parallel()
	var trees []*naive
	volumes := map[*naive][]byte{}
	for _, s := range testShapes() {
		volume := testVolume(s, 2)
		n := newNaive(s, volume)
		trees, volumes[n] = append(trees, n), volume
	}
	rapid.Check(t, func(t *rapid.T) {
		for _, want := range trees {
			s := want.shape
			r := drawRange(t, s.Leaves())
			p, err := Prove(context.Background(), &Tree{s, want.root, want.levels}, r)
			if err != nil {
				t.Fatal(err)
			}
			leaves := want.levels[0][r.First:r.End]
			data := volumes[want][r.First*s.Leaf : min(r.End*s.Leaf, s.Size)]
			if err := p.Check(want.root, leaves); err != nil {
				t.Fatal(err)
			}
			if len(data) < 1<<20 {
				if err := p.CheckData(want.root, data); err != nil {
					t.Fatal(err)
				}
			}
			refuseOthers(t, p, want.root, leaves, data)
		}
	})
}

func drawRange(t *rapid.T, n int64) Range {
	first := rapid.Int64Range(0, n-1).Draw(t, "first")
	return Range{first, min(n, first+rapid.Int64Range(1, min(n, 40)).Draw(t, "len"))}
}

// refuseOthers holds a good proof against what it does not prove.
func refuseOthers(t *rapid.T, p *Proof, root Hash, leaves []Hash, data []byte) {
	refused := func(what string, err error) {
		if !errors.Is(err, ErrProof) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	bad := root
	bad[rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1
	refused("other root", p.Check(bad, leaves))
	i := rapid.IntRange(0, len(leaves)-1).Draw(t, "leaf")
	other := slices.Clone(leaves)
	other[i][5] ^= 1
	refused("other leaf", p.Check(root, other))
	refused("leaf missing", p.Check(root, leaves[1:]))
	refused("leaf too many", p.Check(root, append(slices.Clone(leaves), Hash{})))
	more, fewer := *p, *p
	more.Siblings = append(slices.Clone(p.Siblings), Hash{})
	refused("sibling too many", more.Check(root, leaves))
	if n := len(p.Siblings); n > 0 {
		fewer.Siblings = p.Siblings[:n-1]
		refused("sibling missing", fewer.Check(root, leaves))
	}
	refused("data cut", p.CheckData(root, data[1:]))
	if len(data) < 1<<17 {
		changed := bytes.Clone(data)
		changed[rapid.IntRange(0, len(data)-1).Draw(t, "at")] ^= 1
		refused("other data", p.CheckData(root, changed))
	}

	encoded, err := p.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var back Proof
	if err := back.UnmarshalBinary(encoded); err != nil || back.Check(root, leaves) != nil {
		t.Fatalf("encoded and decoded: %v", err)
	}
	at := rapid.IntRange(0, len(encoded)-1).Draw(t, "flip")
	mutated := bytes.Clone(encoded)
	mutated[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	if err := back.UnmarshalBinary(mutated); err == nil {
		err = back.Check(root, leaves)
		refused("mutated", err)
	}
	refused("cut", back.UnmarshalBinary(encoded[:at]))
	refused("trailing", back.UnmarshalBinary(append(bytes.Clone(encoded), 0)))
}

func TestProofRefuses(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 300 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	tree := treeOf(t, s, newNaive(s, testVolume(s, 1)).levels[0])
	ctx := context.Background()
	const far = 1<<63 - 1
	for _, r := range []Range{{0, 0}, {1, 0}, {-1, 1}, {0, 301}, {300, 301}, {far, -far - 1}, {-far - 1, far}, {far, far}} {
		if _, err := Prove(ctx, tree, r); !errors.Is(err, ErrShape) {
			t.Errorf("prove %v: %v", r, err)
		}
		p := &Proof{Shape: s, Range: r}
		if err := p.Check(tree.root, nil); !errors.Is(err, ErrProof) {
			t.Errorf("check %v: %v", r, err)
		}
		if err := p.CheckData(tree.root, nil); !errors.Is(err, ErrProof) {
			t.Errorf("check data %v: %v", r, err)
		}
		if _, err := p.MarshalBinary(); !errors.Is(err, ErrShape) {
			t.Errorf("encode %v: %v", r, err)
		}
	}
	if _, err := (&Proof{Shape: s, Range: Range{0, 1}}).MarshalBinary(); !errors.Is(err, ErrProof) {
		t.Errorf("encode without siblings: %v", err)
	}
	flood := &remote{NodeReader: tree, step: 1 << 20, mangle: func(first int64, _ []Hash) (int64, []Hash) {
		return first, make([]Hash, 1<<16)
	}}
	if _, err := Prove(ctx, flood, Range{5, 6}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("reader that floods: %v", err)
	}
	mute := &remote{NodeReader: tree, step: 1, mangle: func(first int64, _ []Hash) (int64, []Hash) { return first, nil }}
	if _, err := Prove(ctx, mute, Range{5, 6}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("reader that is silent: %v", err)
	}
	if _, err := Prove(ctx, tree, Range{5, 6}); err != nil {
		t.Error(err)
	}
}
