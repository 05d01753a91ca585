package merkle

import (
	"context"
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// remote counts requests, and answers in stretches of its own.
type remote struct {
	NodeReader
	step   int
	calls  int
	spans  int64
	nodes  int64
	mangle func(first int64, nodes []Hash) (int64, []Hash)
}

func (r *remote) ReadNodes(ctx context.Context, level int, spans []Range, yield func(int64, []Hash) error) error {
	r.calls++
	r.spans += int64(len(spans))
	return r.NodeReader.ReadNodes(ctx, level, spans, func(first int64, nodes []Hash) error {
		r.nodes += int64(len(nodes))
		if r.mangle != nil {
			first, nodes = r.mangle(first, slices.Clone(nodes))
		}
		for len(nodes) > 0 {
			n := min(len(nodes), r.step)
			if err := yield(first, nodes[:n]); err != nil {
				return err
			}
			first, nodes = first+int64(n), nodes[n:]
		}
		return nil
	})
}

func treeOf(t testing.TB, s Shape, leaves []Hash) *Tree {
	t.Helper()
	tree, err := NewTree(s, leaves)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestDiffAgainstNaive(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.Int64Range(1, 70000).Draw(rt, "leaves")
		if rapid.Bool().Draw(rt, "small") {
			n = n%300 + 1
		}
		s := Shape{Size: (n-1)*4096 + 512, Leaf: 4096, Algorithm: BLAKE3}
		a := make([]Hash, n)
		for i := range a {
			a[i] = Hash{1, byte(i), byte(i >> 8)}
		}
		b := slices.Clone(a)
		for range rapid.IntRange(0, 30).Draw(rt, "runs") {
			first := rapid.Int64Range(0, n-1).Draw(rt, "first")
			step := rapid.Int64Range(1, 3).Draw(rt, "step")
			for i := first; i < min(n, first+rapid.Int64Range(1, 900).Draw(rt, "len")*step); i += step {
				b[i][31] ^= 1
			}
		}
		want := (&naive{levels: [][]Hash{a}}).diff(&naive{levels: [][]Hash{b}})
		ra := &remote{NodeReader: treeOf(t, s, a), step: rapid.IntRange(1, 5000).Draw(rt, "stretch")}
		rb := &remote{NodeReader: treeOf(t, s, b), step: rapid.IntRange(1, 5000).Draw(rt, "stretch")}
		got, stats, err := Diff(context.Background(), ra, rb)
		if err != nil || !slices.Equal(got, want) {
			rt.Fatalf("diff %v, naive %v, %v", got, want, err)
		}
		leaves := int64(0)
		for _, r := range want {
			leaves += r.Len()
		}
		if ra.calls > MaxBatches || rb.calls > MaxBatches || stats.Batches != ra.calls || stats.Nodes != ra.nodes || stats.Nodes != rb.nodes || stats.Leaves != leaves {
			rt.Errorf("%+v, counted %d and %d calls, %d nodes", stats, ra.calls, rb.calls, ra.nodes)
		}
		if most := 600*leaves + 9000; stats.Nodes > min(most, n*5/4) {
			rt.Errorf("%d of %d leaves differ, %d nodes read", leaves, n, stats.Nodes)
		}
	})
}

// Volumes of every size up to the largest take at most MaxBatches requests, and
// traffic follows the differences.
func TestDiffCost(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{1, 64 << 10, 1 << 20, 4 << 30, 64 << 30, 1 << 40, 16 << 40, 256 << 40} {
		s := Shape{Size: size, Leaf: 64 << 10, Algorithm: BLAKE3}
		h := mustHasher(t, s)
		for _, k := range []int64{1, 10, 1000} {
			if k > s.Leaves() {
				continue
			}
			set := map[int64]Hash{}
			for i := range k {
				set[i*(s.Leaves()/k)] = Hash{1, byte(i), byte(i >> 8)}
			}
			a := &remote{NodeReader: newSparseTree(h, nil), step: 999}
			b := &remote{NodeReader: newSparseTree(h, set), step: 1 << 20}
			got, stats, err := Diff(context.Background(), a, b)
			if err != nil {
				t.Fatal(err)
			}
			var found []int64
			for _, r := range got {
				for i := r.First; i < r.End; i++ {
					found = append(found, i)
				}
			}
			if !slices.Equal(found, slices.Sorted(maps.Keys(set))) {
				t.Errorf("size %d: found %d leaves of %d", size, len(found), k)
			}
			if a.calls > MaxBatches || b.calls > MaxBatches {
				t.Errorf("size %d: %d and %d requests", size, a.calls, b.calls)
			}
			if stats.Nodes > 600*k+9000 {
				t.Errorf("size %d, %d leaves differ: %d nodes read", size, k, stats.Nodes)
			}
			t.Logf("%14d bytes, %4d leaves differ: %d requests, %d spans, %d nodes", size, k, a.calls, a.spans, stats.Nodes)
		}
	}
}

// sparseTree is a tree of any size in which all but a few leaves are zero.
type sparseTree struct {
	h      *Hasher
	levels []map[int64]Hash
}

func newSparseTree(h *Hasher, leaves map[int64]Hash) *sparseTree {
	t := &sparseTree{h: h, levels: []map[int64]Hash{leaves}}
	for level := 1; level < h.shape.Levels(); level++ {
		above := map[int64]Hash{}
		for i := range t.levels[level-1] {
			first := groupStart(i)
			var group []Hash
			for j := first; j < groupEnd(first+1, h.shape.Width(level-1)); j++ {
				group = append(group, t.at(level-1, j))
			}
			above[i/FanOut] = h.Node(level, group)
		}
		t.levels = append(t.levels, above)
	}
	return t
}

func (t *sparseTree) at(level int, i int64) Hash {
	if h, ok := t.levels[level][i]; ok {
		return h
	}
	return t.h.Zero(level, i)
}

func (t *sparseTree) Shape() Shape { return t.h.shape }

func (t *sparseTree) Root(context.Context) (Hash, error) {
	return t.h.Clone().Root(t.at(t.h.shape.Levels()-1, 0)), nil
}

func (t *sparseTree) ReadNodes(_ context.Context, level int, spans []Range, yield func(int64, []Hash) error) error {
	for _, r := range spans {
		for at := r.First; at < r.End; at += 512 {
			var nodes []Hash
			for i := at; i < min(r.End, at+512); i++ {
				nodes = append(nodes, t.at(level, i))
			}
			if err := yield(at, nodes); err != nil {
				return err
			}
		}
	}
	return nil
}

// Two files, one of them built, one updated.
func TestDiffFiles(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 70000 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	volume := make([]byte, s.Size)
	a, b := buildFile(t, s, volume), buildFile(t, s, volume)
	set := map[int64]Hash{3: {1}, 4: {1}, 60000: {2}, 69999: {3}}
	if _, err := b.Update(context.Background(), 2, ascending(set)); err != nil {
		t.Fatal(err)
	}
	got, _, err := Diff(context.Background(), a, b)
	if want := []Range{{3, 5}, {60000, 60001}, {69999, 70000}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	same, stats, err := Diff(context.Background(), a, a)
	if err != nil || len(same) != 0 || stats != (DiffStats{}) {
		t.Errorf("a tree differs from itself: %v, %+v, %v", same, stats, err)
	}
}

func TestDiffRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := Shape{Size: 5000 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	leaves := make([]Hash, 5000)
	for i := range leaves {
		leaves[i] = Hash{1, byte(i), byte(i >> 8)}
	}
	a := treeOf(t, s, slices.Clone(leaves))
	leaves[77][0] ^= 1
	b := treeOf(t, s, leaves)
	other := s
	other.Size--
	if _, _, err := Diff(ctx, a, treeOf(t, other, leaves)); !errors.Is(err, ErrShape) {
		t.Errorf("other size: %v", err)
	}
	for name, c := range map[string]struct {
		mangle func(int64, []Hash) (int64, []Hash)
		want   error
	}{
		"shifted":  {func(first int64, n []Hash) (int64, []Hash) { return first + 1, n }, ErrCorrupt},
		"too many": {func(first int64, n []Hash) (int64, []Hash) { return first, append(n, Hash{}) }, ErrCorrupt},
		"too few":  {func(first int64, n []Hash) (int64, []Hash) { return first, n[:len(n)-1] }, nil},
		"nothing":  {func(first int64, n []Hash) (int64, []Hash) { return first, nil }, io.ErrUnexpectedEOF},
		"no change": {func(first int64, n []Hash) (int64, []Hash) {
			return first, slices.Clone(a.levels[0][first : first+int64(len(n))])
		}, ErrCorrupt},
	} {
		r := &remote{NodeReader: b, step: 100, mangle: c.mangle}
		if name == "no change" { // at the leaves only
			r.mangle = func(first int64, n []Hash) (int64, []Hash) {
				if n[0][0] == 1 && n[0][1] == byte(first) {
					return c.mangle(first, n)
				}
				return first, n
			}
		}
		_, _, err := Diff(ctx, a, r)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop := errors.New("stop")
	if _, err := DiffEach(ctx, a, b, func(Range) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("emit's error: %v", err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := Diff(done, a, b); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	closed, _, err := Build(ctx, sliceReader(make([]byte, s.Size)), s, filepath.Join(t.TempDir(), "v"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Diff(ctx, a, closed); err == nil {
		t.Error("diff with a closed file")
	}
}

// A list that grows over its limit covers all that was added, in order.
func TestSpanListMerges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := spanList{limit: rapid.IntRange(1, 20).Draw(t, "limit")}
		var added []Range
		at := int64(0)
		for range rapid.IntRange(0, 200).Draw(t, "adds") {
			at += rapid.Int64Range(0, 9).Draw(t, "gap")
			r := Range{at, at + rapid.Int64Range(1, 3).Draw(t, "len")}
			if err := l.add(r); err != nil {
				t.Fatal(err)
			}
			added, at = append(added, r), r.End
		}
		if len(l.spans) > 2*l.limit {
			t.Fatalf("%d spans, limit %d", len(l.spans), l.limit)
		}
		sum := int64(0)
		for _, r := range added {
			sum += r.Len()
			i := slices.IndexFunc(l.spans, func(s Range) bool { return s.First <= r.First && r.End <= s.End })
			if i < 0 {
				t.Fatalf("%v is not covered", r)
			}
		}
		for i := range l.spans {
			if i > 0 && l.spans[i].First <= l.spans[i-1].End {
				t.Fatalf("spans %v touch", l.spans)
			}
		}
		if l.exact() && sum != l.total() {
			t.Fatalf("exact, but covers %d of %d", l.total(), sum)
		}
	})
}

// More spans than one request may have: the result is exact nevertheless.
func TestDiffManySpans(t *testing.T) {
	t.Parallel()
	n := int64(40000)
	s := Shape{Size: n * 4096, Leaf: 4096, Algorithm: BLAKE3}
	a := make([]Hash, n)
	for i := range a {
		a[i] = Hash{1, byte(i), byte(i >> 8)}
	}
	b := slices.Clone(a)
	for i := 0; i < len(b); i += 2 {
		b[i][31] = 1
	}
	got, stats, err := Diff(context.Background(), treeOf(t, s, a), treeOf(t, s, b))
	want := (&naive{levels: [][]Hash{a}}).diff(&naive{levels: [][]Hash{b}})
	if err != nil || !slices.Equal(got, want) || stats.Leaves != n/2 {
		t.Errorf("%d ranges of %d, %+v, %v", len(got), len(want), stats, err)
	}
}
