package cbt

import (
	"cmp"
	"fmt"
	"slices"
)

// Extent is the half-open byte range [Off, End) of a volume, 0 <= Off.
// It is empty when End <= Off.
//
// A list of extents is normal when it is sorted by Off and its extents are
// neither empty, nor overlapping, nor adjacent. One set of bytes has exactly
// one normal list. [Normalize] makes a list normal; the other functions over
// lists ask for normal lists and return them.
type Extent struct{ Off, End int64 }

// Len returns the number of bytes in e, 0 when it is empty.
func (e Extent) Len() int64 {
	if e.Empty() {
		return 0
	}
	return e.End - e.Off
}

// Empty reports whether e holds no byte.
func (e Extent) Empty() bool { return e.End <= e.Off }

// Contains reports whether the byte at off lies in e.
func (e Extent) Contains(off int64) bool { return e.Off <= off && off < e.End }

// Overlaps reports whether e and o have a byte in common.
func (e Extent) Overlaps(o Extent) bool {
	return max(e.Off, o.Off) < min(e.End, o.End)
}

// String returns e as "[0x1000,0x3000)".
func (e Extent) String() string { return fmt.Sprintf("[%#x,%#x)", e.Off, e.End) }

// Normalize returns the normal list of the bytes in x, which may be in any
// order, overlap and hold empty extents. It sorts x in place and the result
// uses its memory. Cost: O(n log n), no allocation.
func Normalize(x []Extent) []Extent {
	slices.SortFunc(x, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	out := x[:0]
	for _, e := range x {
		out = appendJoined(out, e)
	}
	return out
}

// appendJoined appends e to the normal list out, whose extents all begin at
// or before e.Off.
func appendJoined(out []Extent, e Extent) []Extent {
	if e.Empty() {
		return out
	}
	if n := len(out); n > 0 && e.Off <= out[n-1].End {
		out[n-1].End = max(out[n-1].End, e.End)
		return out
	}
	return append(out, e)
}

// Union returns the bytes that lie in a or in b, in new memory.
// Cost: O(len(a) + len(b)).
func Union(a, b []Extent) []Extent {
	var out []Extent
	if n := len(a) + len(b); n > 0 {
		out = make([]Extent, 0, n)
	}
	for len(a) > 0 && len(b) > 0 {
		if a[0].Off <= b[0].Off {
			out, a = appendJoined(out, a[0]), a[1:]
		} else {
			out, b = appendJoined(out, b[0]), b[1:]
		}
	}
	for _, rest := range [][]Extent{a, b} {
		for _, e := range rest {
			out = appendJoined(out, e)
		}
	}
	return out
}

// Intersect returns the bytes that lie in both a and b, in new memory.
// Cost: O(len(a) + len(b)).
func Intersect(a, b []Extent) []Extent {
	var out []Extent
	for len(a) > 0 && len(b) > 0 {
		e := Extent{max(a[0].Off, b[0].Off), min(a[0].End, b[0].End)}
		if !e.Empty() {
			out = append(out, e)
		}
		if a[0].End <= b[0].End {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// Subtract returns the bytes of a that do not lie in b, in new memory.
// Cost: O(len(a) + len(b)).
func Subtract(a, b []Extent) []Extent {
	var out []Extent
	for _, e := range a {
		for len(b) > 0 && b[0].End <= e.Off {
			b = b[1:]
		}
		// An extent of b may reach past e into the next of a: it stays in b.
		for i := 0; i < len(b) && b[i].Off < e.End; i++ {
			if left := (Extent{e.Off, b[i].Off}); !left.Empty() {
				out = append(out, left)
			}
			e.Off = max(e.Off, b[i].End)
		}
		if !e.Empty() {
			out = append(out, e)
		}
	}
	return out
}

// Align returns x grown outward to multiples of unit bytes and clipped to the
// volume [0, size), in new memory. unit is at least 1. Cost: O(len(x)).
func Align(x []Extent, unit, size int64) []Extent {
	var out []Extent
	for _, e := range x {
		e = clip(e, size)
		if e.Empty() {
			continue
		}
		e.Off -= e.Off % unit
		if over := e.End % unit; over != 0 {
			// Compared before it is added: the sum may not fit.
			e.End += min(unit-over, size-e.End)
		}
		out = appendJoined(out, e)
	}
	return out
}

// clip returns the part of e inside the volume [0, size).
func clip(e Extent, size int64) Extent {
	return Extent{max(e.Off, 0), min(e.End, size)}
}

// Total returns the number of bytes in x.
func Total(x []Extent) int64 {
	var n int64
	for _, e := range x {
		n += e.Len()
	}
	return n
}

// Coarsen returns a list of at most limit extents that covers x, by closing
// the smallest gaps first, the leftmost of equal ones. It covers too much,
// never too little. A limit below 1 counts as 1. When x is short enough it is
// returned as it is, else the result is in new memory.
// Cost: O(n log n), 8 bytes an extent.
func Coarsen(x []Extent, limit int) []Extent {
	limit = max(limit, 1)
	if len(x) <= limit {
		return x
	}
	gaps := make([]int64, 0, len(x)-1)
	for i := 1; i < len(x); i++ {
		gaps = append(gaps, x[i].Off-x[i-1].End)
	}
	slices.Sort(gaps)
	closing := len(x) - limit
	widest := gaps[closing-1] // the widest gap to close
	// Of the gaps exactly that wide only so many are closed.
	below, _ := slices.BinarySearch(gaps, widest)
	ties := closing - below

	out := make([]Extent, 0, limit)
	out = append(out, x[0])
	for _, e := range x[1:] {
		last := &out[len(out)-1]
		gap := e.Off - last.End
		switch {
		case gap < widest:
			last.End = e.End
		case gap == widest && ties > 0:
			ties--
			last.End = e.End
		default:
			out = append(out, e)
		}
	}
	return out
}
