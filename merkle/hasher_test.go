package merkle

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestHasherAgainstNaive(t *testing.T) {
	t.Parallel()
	for _, s := range testShapes() {
		h := mustHasher(t, s)
		volume := testVolume(s, 7)
		want := newNaive(s, volume)
		leaves := hashLeaves(h.Clone(), volume, nil)
		tree, err := NewTree(s, leaves)
		if err != nil {
			t.Fatal(err)
		}
		for level := range want.levels {
			if int64(len(want.levels[level])) != s.Width(level) {
				t.Fatalf("%+v: level %d has %d nodes, Width says %d", s, level, len(want.levels[level]), s.Width(level))
			}
			for i, w := range want.levels[level] {
				if tree.levels[level][i] != w {
					t.Fatalf("%+v: node %d of level %d differs from the naive tree", s, i, level)
				}
			}
		}
		if got := mustRoot(t, tree); got != want.root {
			t.Errorf("%+v: root %v, naive %v", s, got, want.root)
		}
	}
}

func TestZeroSubtreesAgainstNaive(t *testing.T) {
	t.Parallel()
	for _, s := range testShapes() {
		h := mustHasher(t, s)
		want := newNaive(s, make([]byte, s.Size))
		for level := range want.levels {
			for i, w := range want.levels[level] {
				if h.Zero(level, int64(i)) != w {
					t.Fatalf("%+v: zero node %d of level %d differs from the naive tree", s, i, level)
				}
			}
		}
	}
}

// No hash of one kind is that of another kind over the same bytes, and each
// fact of the shape changes the root.
func TestDomains(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		s := Shape{Size: 1 << 20, Leaf: 4096, Algorithm: a}
		h := mustHasher(t, s)
		x := h.Leaf([]byte("x"))
		seen := map[Hash]string{}
		for name, v := range map[string]Hash{
			"leaf of a hash":   h.Leaf(x[:]),
			"node of one":      h.Node(1, []Hash{x}),
			"node of level 2":  h.Node(2, []Hash{x}),
			"node of two":      h.Node(1, []Hash{x, x}),
			"node of sixteen":  h.Node(1, make([]Hash, 16)),
			"node of too many": h.Node(1, make([]Hash, 17)),
			"node of zero":     h.Node(1, nil),
			"root":             h.Root(x),
			"root, size":       mustHasher(t, Shape{Size: 1<<20 + 1, Leaf: 4096, Algorithm: a}).Root(x),
			"root, leaf":       mustHasher(t, Shape{Size: 1 << 20, Leaf: 8192, Algorithm: a}).Root(x),
		} {
			if seen[v] != "" {
				t.Errorf("%v: %s and %s have the same hash", a, name, seen[v])
			}
			seen[v] = name
		}
	}
}

func TestHasherRefuses(t *testing.T) {
	t.Parallel()
	good := Shape{Size: 1, Leaf: 4096, Algorithm: BLAKE3}
	bad := []Shape{
		{},
		{Size: 0, Leaf: 4096, Algorithm: BLAKE3},
		{Size: -1, Leaf: 4096, Algorithm: BLAKE3},
		{Size: 1, Leaf: 0, Algorithm: BLAKE3},
		{Size: 1, Leaf: 2048, Algorithm: BLAKE3},
		{Size: 1, Leaf: 5000, Algorithm: BLAKE3},
		{Size: 1, Leaf: 8 << 20, Algorithm: BLAKE3},
		{Size: 1, Leaf: 4096},
		{Size: 1, Leaf: 4096, Algorithm: 3},
		{Size: MaxLeaves*4096 + 1, Leaf: 4096, Algorithm: BLAKE3},
		{Size: 1<<63 - 1, Leaf: 4 << 20, Algorithm: BLAKE3},
	}
	for _, s := range bad {
		if _, err := NewHasher(s); !errors.Is(err, ErrShape) {
			t.Errorf("%+v: %v", s, err)
		}
		if _, err := NewTree(s, nil); !errors.Is(err, ErrShape) {
			t.Errorf("tree of %+v: %v", s, err)
		}
	}
	if _, err := NewTree(good, make([]Hash, 2)); !errors.Is(err, ErrShape) {
		t.Errorf("tree with too many leaves: %v", err)
	}
	largest := Shape{Size: MaxLeaves * 4096, Leaf: 4096, Algorithm: SHA256}
	if err := largest.Validate(); err != nil || largest.Levels() != maxLevels {
		t.Errorf("largest shape: %v, %d levels", err, largest.Levels())
	}
}

func TestShapeCoordinates(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 16 << 40, Leaf: 64 << 10, Algorithm: SHA256}
	if s.Leaves() != 1<<28 || s.Levels() != 8 || s.Width(7) != 1 || s.Width(1) != 1<<24 || s.Width(8) != 0 || s.Width(-1) != 0 {
		t.Errorf("16 TiB: %d leaves, %d levels", s.Leaves(), s.Levels())
	}
	if got := s.FileSize(); got < 8<<30 || got > 9300<<20 {
		t.Errorf("16 TiB: tree file of %d bytes", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Shape{
			Size:      rapid.Int64Range(1, 1<<44).Draw(t, "size"),
			Leaf:      4096 << rapid.IntRange(0, 10).Draw(t, "leaf"),
			Algorithm: BLAKE3,
		}
		if err := s.Validate(); err != nil {
			t.Skip(err)
		}
		l := s.layout()
		end := int64(headerSize)
		for level := l.top(); level >= 0; level-- {
			if l.off[level] < end || l.off[level]-end >= pageSize || l.off[level]%pageSize != 0 || l.width[level] != s.Width(level) {
				t.Fatalf("level %d lies at %d, the one above ends at %d", level, l.off[level], end)
			}
			end = l.place(level, l.width[level])
		}
		if end != l.size || l.width[l.top()] != 1 {
			t.Fatalf("levels end at %d, the file at %d", end, l.size)
		}
		last := s.LeafExtent(s.Leaves() - 1)
		if last.End != s.Size || last.Off >= last.End || last.End-last.Off > s.Leaf {
			t.Fatalf("last leaf %+v", last)
		}
	})
}

func TestHashText(t *testing.T) {
	t.Parallel()
	h := Hash{0: 0xab, 31: 0x01}
	back, err := ParseHash(h.String())
	if err != nil || back != h {
		t.Errorf("%v, %v", back, err)
	}
	text, err := h.MarshalText()
	if err != nil || string(text) != h.String() {
		t.Errorf("%s, %v", text, err)
	}
	for _, s := range []string{"", "ab", strings.Repeat("0", 63), strings.Repeat("0", 65), strings.Repeat("g", 64)} {
		if _, err := ParseHash(s); err == nil {
			t.Errorf("%q is a hash", s)
		}
	}
}

func TestAlgorithmNames(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		if b, err := ParseAlgorithm(a.String()); err != nil || a != b {
			t.Errorf("%v: %v, %v", a, b, err)
		}
	}
	for _, name := range []string{"", "md5", "gmac", Algorithm(9).String()} {
		if _, err := ParseAlgorithm(name); !errors.Is(err, ErrShape) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestIsZero(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		buf := make([]byte, rapid.IntRange(0, 300).Draw(t, "size"))
		skip := rapid.IntRange(0, len(buf)).Draw(t, "skip") // odd addresses too
		p := buf[skip:]
		if !IsZero(p) {
			t.Fatal("zeroes are not zero")
		}
		if len(p) == 0 {
			return
		}
		p[rapid.IntRange(0, len(p)-1).Draw(t, "at")] = 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if IsZero(p) {
			t.Fatal("a bit was not seen")
		}
	})
}
