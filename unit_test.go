package failback

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/failback/failback/cbt"
)

// TestWalk: units cover the candidates once and in order, within their bounds.
func TestWalk(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 512 * rapid.Int64Range(1, 40000).Draw(t, "sectors")
		leaf := rapid.SampledFrom([]int64{0, 4096, 65536, 4 << 20}).Draw(t, "leaf")
		var raw []cbt.Extent
		for range rapid.IntRange(0, 20).Draw(t, "extents") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			raw = append(raw, cbt.Extent{Off: off, End: rapid.Int64Range(off+1, size).Draw(t, "end")})
		}
		l := newLayout(size, leaf, cbt.Normalize(raw))
		if got := cbt.Subtract(cbt.Normalize(raw), l.candidates); len(got) > 0 {
			t.Fatalf("candidates lack %v", got)
		}
		var seen []cbt.Extent
		w := l.walk()
		for i := int64(0); ; i++ {
			u, ok := w.take()
			if !ok {
				break
			}
			if u.index != i || u.bytes != cbt.Total(u.exts) || u.bytes < 1 || u.bytes > l.maxUnit() {
				t.Fatalf("unit %+v", u)
			}
			n := 0
			u.grains(l.grain(), func(j int, x cbt.Extent) {
				if j != n || x.Off%l.grain() != 0 || x.Len() > l.grain() || (x.Len() < l.grain() && x.End != size) {
					t.Fatalf("grain %d %v of %+v", j, x, u)
				}
				if !l.contains(x.Off, x.Len()) {
					t.Fatalf("%v is not contained", x)
				}
				n++
			})
			if n != u.count(l.grain()) || (leaf > 0 && n > maxUnitLeaves) {
				t.Fatalf("%d grains, count %d", n, u.count(l.grain()))
			}
			seen = append(seen, u.exts...)
		}
		total := cbt.Total(seen)
		if got := cbt.Normalize(seen); total != cbt.Total(l.candidates) || len(cbt.Subtract(l.candidates, got)) > 0 {
			t.Fatalf("walked %v of %v", got, l.candidates)
		}
	})
}
