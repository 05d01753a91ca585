package failback

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/failback/failback/cbt"
)

// TestBlockSet: what is given is what was not there, as sets of extents have it,
// also where whole pages are.
func TestBlockSet(t *testing.T) {
	const block = 4096
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := int64(3*pageBlocks*block + 512)
		s, seen := newBlockSet(block), []cbt.Extent(nil)
		for range 60 {
			off := r.Int64N(size/block) * block
			x := []cbt.Extent{{Off: off, End: min(size, off+block*(1+r.Int64N(1<<r.IntN(17))))}}
			var got []cbt.Extent
			if err := s.add(x[0], func(e cbt.Extent) error { got = append(got, e); return nil }); err != nil {
				t.Fatal(err)
			}
			if want := cbt.Subtract(x, seen); len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: %v gave %v, want %v", seed, x, got, want)
			}
			seen = cbt.Union(seen, x)
			if i := r.Int64N(size / block); s.has(i) != (len(cbt.Intersect(seen, []cbt.Extent{{Off: i * block, End: (i + 1) * block}})) > 0) {
				t.Fatalf("seed %d: block %d", seed, i)
			}
		}
	}
}
