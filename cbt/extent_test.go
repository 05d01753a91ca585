package cbt_test

import (
	"math"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
	"pgregory.net/rapid"
)

func TestExtent(t *testing.T) {
	e := cbt.Extent{Off: 0x1000, End: 0x3000}
	if got, want := e.String(), "[0x1000,0x3000)"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
	if e.Len() != 0x2000 || e.Empty() {
		t.Errorf("%v: Len %d, Empty %v", e, e.Len(), e.Empty())
	}
	for off, want := range map[int64]bool{0xfff: false, 0x1000: true, 0x2fff: true, 0x3000: false} {
		if e.Contains(off) != want {
			t.Errorf("%v.Contains(%#x) = %v", e, off, !want)
		}
	}
	for _, c := range []struct {
		o    cbt.Extent
		want bool
	}{
		{cbt.Extent{Off: 0, End: 0x1000}, false},
		{cbt.Extent{Off: 0, End: 0x1001}, true},
		{cbt.Extent{Off: 0x2fff, End: 0x9000}, true},
		{cbt.Extent{Off: 0x3000, End: 0x9000}, false},
		{cbt.Extent{Off: 0x2000, End: 0x2000}, false},
	} {
		if e.Overlaps(c.o) != c.want || c.o.Overlaps(e) != c.want {
			t.Errorf("%v overlaps %v: want %v", e, c.o, c.want)
		}
	}
	if backward := (cbt.Extent{Off: 9, End: 3}); !backward.Empty() || backward.Len() != 0 {
		t.Errorf("%v: Len %d, Empty %v", backward, backward.Len(), backward.Empty())
	}
}

func TestNormalizeAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := messy().Draw(t, "x")
		want := bitsOf(x).extents()
		got := cbt.Normalize(slices.Clone(x))
		if !slices.Equal(got, want) {
			t.Fatalf("Normalize(%v) = %v, want %v", x, got, want)
		}
		if cbt.Total(got) != bitsOf(x).len() {
			t.Fatalf("Total(%v) = %d, want %d", got, cbt.Total(got), bitsOf(x).len())
		}
	})
}

func TestAlgebraAgainstNaive(t *testing.T) {
	ops := []struct {
		name  string
		fast  func(a, b []cbt.Extent) []cbt.Extent
		naive func(a, b bitset) bitset
	}{
		{"Union", cbt.Union, func(a, b bitset) bitset { return a | b }},
		{"Intersect", cbt.Intersect, func(a, b bitset) bitset { return a & b }},
		{"Subtract", cbt.Subtract, func(a, b bitset) bitset { return a &^ b }},
	}
	for _, op := range ops {
		t.Run(op.name, rapid.MakeCheck(func(t *rapid.T) {
			a, b := normal().Draw(t, "a"), normal().Draw(t, "b")
			keepA, keepB := slices.Clone(a), slices.Clone(b)
			want := op.naive(bitsOf(a), bitsOf(b)).extents()
			if got := op.fast(a, b); !slices.Equal(got, want) {
				t.Fatalf("%s(%v, %v) = %v, want %v", op.name, a, b, got, want)
			}
			if !slices.Equal(a, keepA) || !slices.Equal(b, keepB) {
				t.Fatalf("%s changed its arguments", op.name)
			}
		}))
	}
}

func TestAlignAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := normal().Draw(t, "x")
		unit := rapid.Int64Range(1, 20).Draw(t, "unit")
		size := rapid.Int64Range(0, universe).Draw(t, "size")
		in := bitsOf(x) & bitsOf([]cbt.Extent{{Off: 0, End: size}})
		var want bitset
		for off := range size {
			for o := off - off%unit; o < min(size, off-off%unit+unit); o++ {
				want |= in >> o & 1 << off
			}
		}
		if got := cbt.Align(x, unit, size); !slices.Equal(got, want.extents()) {
			t.Fatalf("Align(%v, %d, %d) = %v, want %v", x, unit, size, got, want.extents())
		}
	})
}

func TestAlignAtTheEdgeOfInt64(t *testing.T) {
	const size = math.MaxInt64
	got := cbt.Align([]cbt.Extent{{Off: -5, End: 1}, {Off: size - 1, End: size}}, 1<<20, size)
	want := []cbt.Extent{{Off: 0, End: 1 << 20}, {Off: size - size%(1<<20), End: size}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCoarsen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := normal().Draw(t, "x")
		limit := rapid.IntRange(-1, 20).Draw(t, "limit")
		got := cbt.Coarsen(x, limit)
		limit = max(limit, 1)
		if len(got) > limit || len(x) >= limit && len(got) != limit {
			t.Fatalf("Coarsen(%v, %d) = %v: %d extents", x, limit, got, len(got))
		}
		if missing := cbt.Subtract(x, got); len(missing) > 0 {
			t.Fatalf("L1: Coarsen(%v, %d) = %v lost %v", x, limit, got, missing)
		}
		if !slices.Equal(got, bitsOf(got).extents()) {
			t.Fatalf("Coarsen(%v, %d) = %v is not normal", x, limit, got)
		}
		// No other choice of gaps costs less: what it closed are the smallest.
		closed, left := int64(0), int64(math.MaxInt64)
		for i := 1; i < len(x); i++ {
			gap := cbt.Extent{Off: x[i-1].End, End: x[i].Off}
			if len(cbt.Intersect(got, []cbt.Extent{gap})) > 0 {
				closed = max(closed, gap.Len())
			} else {
				left = min(left, gap.Len())
			}
		}
		if closed > left {
			t.Fatalf("Coarsen(%v, %d) = %v closed a gap of %d and left one of %d", x, limit, got, closed, left)
		}
	})
}

func BenchmarkUnion(b *testing.B) {
	var x, y []cbt.Extent
	for i := range int64(100_000) {
		x = append(x, cbt.Extent{Off: i * 100, End: i*100 + 40})
		y = append(y, cbt.Extent{Off: i*100 + 30, End: i*100 + 60})
	}
	b.ReportAllocs()
	for b.Loop() {
		cbt.Union(x, y)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(x)+len(y)), "ns/extent")
}
