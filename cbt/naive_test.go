package cbt_test

import (
	"math/bits"

	"github.com/failback/failback/cbt"
	"pgregory.net/rapid"
)

// bitset is a set of the bytes 0 to 63, the naive judge of the extent algebra.
type bitset uint64

const universe = 64

func bitsOf(x []cbt.Extent) bitset {
	var s bitset
	for _, e := range x {
		for off := max(e.Off, 0); off < min(e.End, universe); off++ {
			s |= 1 << off
		}
	}
	return s
}

// extents returns the normal list of s, the slow way.
func (s bitset) extents() []cbt.Extent {
	var out []cbt.Extent
	for off := int64(0); off < universe; off++ {
		if s>>off&1 == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End == off {
			out[n-1].End++
		} else {
			out = append(out, cbt.Extent{Off: off, End: off + 1})
		}
	}
	return out
}

func (s bitset) len() int64 { return int64(bits.OnesCount64(uint64(s))) }

// messy draws a list of extents in any order, with empty and overlapping ones.
func messy() *rapid.Generator[[]cbt.Extent] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) cbt.Extent {
		off := rapid.Int64Range(0, universe).Draw(t, "off")
		return cbt.Extent{Off: off, End: rapid.Int64Range(max(0, off-2), universe).Draw(t, "end")}
	}), 0, 12)
}

// normal draws a normal list, of many extents as often as of few.
func normal() *rapid.Generator[[]cbt.Extent] {
	return rapid.Map(rapid.SliceOfN(rapid.Bool(), universe, universe), func(in []bool) []cbt.Extent {
		var s bitset
		for off, member := range in {
			if member {
				s |= 1 << off
			}
		}
		return s.extents()
	})
}
