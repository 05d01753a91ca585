package failback

import (
	"errors"
	"fmt"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// TestPlanTable: the rung is a function of what both sides know, highest first (L3).
func TestPlanTable(t *testing.T) {
	const size = 1 << 20
	tree := func(a merkle.Algorithm) *treeFacts { return &treeFacts{size: size, algorithm: a, leaf: defaultLeaf} }
	dirty := []cbt.Extent{{Off: 0, End: 4096}}
	none := []cbt.Extent{}
	some := []cbt.Extent{{Off: 131072, End: 196608}}
	for _, c := range []struct {
		name   string
		s, t   position
		r      request
		rung   Rung
		so, to origin
		bytes  int64
		leaf   int64
	}{
		{"nothing known", position{}, position{}, request{}, RungMerkle, fromVolume, fromVolume, size, defaultLeaf},
		{"holes on both sides", position{sparse: true, allocated: some}, position{sparse: true, allocated: dirty}, request{},
			RungMerkle, fromVolume, fromVolume, 2 * 65536, defaultLeaf},
		{"empty target", position{sparse: true, allocated: some}, position{sparse: true}, request{}, RungAllocated, fromVolume, fromPeer, 65536, 0},
		{"empty target, compared", position{sparse: true, allocated: some}, position{sparse: true}, request{mode: modeCompare},
			RungMerkle, fromVolume, fromVolume, 65536, defaultLeaf},
		{"source map", position{mapped: true, dirty: dirty}, position{}, request{}, RungExact, fromVolume, fromVolume, 4096, 0},
		{"target map", position{}, position{mapped: true, dirty: dirty}, request{}, RungExact, fromVolume, fromVolume, 4096, 0},
		{"both maps", position{mapped: true, dirty: dirty}, position{mapped: true, dirty: some}, request{}, RungExact, fromVolume, fromVolume, 4096 + 65536, 0},
		{"source tree", position{tree: tree(merkle.SHA256)}, position{}, request{}, RungMerkle, fromTree, fromVolume, size, defaultLeaf},
		{"target tree", position{}, position{tree: tree(merkle.BLAKE3)}, request{}, RungMerkle, fromVolume, fromTree, size, defaultLeaf},
		{"trees of two algorithms", position{tree: tree(merkle.SHA256)}, position{tree: tree(merkle.BLAKE3)}, request{}, RungMerkle, fromVolume, fromTree, size, defaultLeaf},
		{"both trees, equal roots, maps", position{tree: tree(merkle.SHA256), mapped: true, dirty: dirty}, position{tree: tree(merkle.SHA256), mapped: true}, request{treeDiff: &none},
			RungExact, fromVolume, fromVolume, 4096, 0},
		{"both trees differ", position{tree: tree(merkle.SHA256)}, position{tree: tree(merkle.SHA256)}, request{treeDiff: &some}, RungMerkle, fromVolume, fromVolume, 65536, 0},
		{"forced merkle", position{mapped: true, dirty: dirty}, position{}, request{rung: RungMerkle}, RungMerkle, fromVolume, fromVolume, size, defaultLeaf},
		{"forced full", position{mapped: true, dirty: dirty}, position{}, request{rung: RungFull}, RungFull, fromVolume, fromPeer, size, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.size, c.t.size, c.s.name, c.t.name = size, size, "s", "t"
			if c.r.mode == 0 {
				c.r.mode = modeSync
			}
			d, err := plan(c.s, c.t, c.r)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(d.Rung, d.source, d.target, d.Candidates, d.leaf)
			if want := fmt.Sprint(c.rung, c.so, c.to, c.bytes, c.leaf); got != want {
				t.Errorf("got %s, want %s (%s)", got, want, d.Reason)
			}
			if d.Reason == "" || d.Candidates != cbt.Total(d.candidates) {
				t.Errorf("plan %+v", d)
			}
		})
	}
}

// TestPlanRefuses: a rung that cannot be vouched for is refused, never replaced.
func TestPlanRefuses(t *testing.T) {
	p := position{name: "v", size: 1 << 20}
	var refused *RefusedError
	for _, r := range []request{{mode: modeSync, rung: RungExact}, {mode: modeSync, rung: RungAllocated}} {
		if _, err := plan(p, p, r); !errors.As(err, &refused) || refused.Next == "" {
			t.Errorf("%v: %v", r.rung, err)
		}
	}
	var usage *UsageError
	for _, r := range []request{{mode: modeSync, rung: RungResidue}, {mode: modeCompare, rung: RungFull}} {
		if _, err := plan(p, p, r); !errors.As(err, &usage) {
			t.Errorf("%v: %v", r.rung, err)
		}
	}
}
