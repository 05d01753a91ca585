package merkle

import (
	"errors"
	"fmt"
	"math/bits"
)

// FanOut is the number of children of a node; the last node of a level may
// have fewer. It is part of the format.
const FanOut = 16

// Limits of a [Shape]. They bound what a header from outside can ask for.
const (
	MinLeaf     = 4 << 10  // bytes
	MaxLeaf     = 4 << 20  // bytes
	DefaultLeaf = 64 << 10 // bytes; the leaf size to take without a reason for another
	MaxLeaves   = 1 << 32  // leaves of one tree: 256 TiB in leaves of 64 KiB
)

// maxLevels is the number of levels of a tree of MaxLeaves leaves.
const maxLevels = 9

// ErrShape says that a shape is not one this package makes, or that two shapes
// that must be the same are not.
var ErrShape = errors.New("unusable tree shape")

// Algorithm names the hash of a tree. The numbers are on disk and on the wire.
type Algorithm uint8

// The algorithms, both cryptographic: what a tree proves today it proves in a
// year. BLAKE3 is the faster one; SHA-256 is what auditors ask for by name.
const (
	SHA256 Algorithm = 1
	BLAKE3 Algorithm = 2
)

// String returns the name that [ParseAlgorithm] reads.
func (a Algorithm) String() string {
	switch a {
	case SHA256:
		return "sha256"
	case BLAKE3:
		return "blake3"
	}
	return fmt.Sprintf("algorithm(%d)", uint8(a))
}

// ParseAlgorithm reads the name of an algorithm: sha256 or blake3.
func ParseAlgorithm(name string) (Algorithm, error) {
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		if name == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%w: algorithm %q is neither sha256 nor blake3", ErrShape, name)
}

// Shape is all that fixes a tree's coordinates. Two trees can be compared if
// and only if their shapes are equal.
type Shape struct {
	Size      int64 // bytes of the volume, at least 1; the last leaf may be short
	Leaf      int64 // bytes of a leaf: a power of two from MinLeaf to MaxLeaf
	Algorithm Algorithm
}

// Validate returns an error that is [ErrShape] if s is out of bounds. The other
// methods, and all of this package, rely on it.
func (s Shape) Validate() error {
	switch {
	case s.Leaf < MinLeaf || s.Leaf > MaxLeaf || bits.OnesCount64(uint64(s.Leaf)) != 1:
		return fmt.Errorf("%w: leaf of %d bytes, must be a power of two from %d to %d", ErrShape, s.Leaf, MinLeaf, MaxLeaf)
	case s.Size < 1:
		return fmt.Errorf("%w: volume of %d bytes has no leaves", ErrShape, s.Size)
	case (s.Size-1)/s.Leaf >= MaxLeaves:
		return fmt.Errorf("%w: %d bytes make more than %d leaves of %d bytes; take larger leaves", ErrShape, s.Size, int64(MaxLeaves), s.Leaf)
	case s.Algorithm != SHA256 && s.Algorithm != BLAKE3:
		return fmt.Errorf("%w: unknown hash algorithm %d", ErrShape, uint8(s.Algorithm))
	}
	return nil
}

// Leaves returns the number of leaves.
func (s Shape) Leaves() int64 { return (s.Size-1)/s.Leaf + 1 }

// Levels returns the number of levels, leaves and top included: 1 for a single
// leaf, 8 for 16 TiB in leaves of 64 KiB, at most 9.
func (s Shape) Levels() int {
	levels := 1
	for w := s.Leaves(); w > 1; w = parents(w) {
		levels++
	}
	return levels
}

// Width returns the number of nodes of a level, 0 for a level that is not there.
func (s Shape) Width(level int) int64 {
	if level < 0 || level >= s.Levels() {
		return 0
	}
	w := s.Leaves()
	for range level {
		w = parents(w)
	}
	return w
}

// LeafExtent returns the bytes that leaf i covers. The last leaf ends with the
// volume. i must be in [0, Leaves()).
func (s Shape) LeafExtent(i int64) Extent {
	return Extent{Off: i * s.Leaf, End: min((i+1)*s.Leaf, s.Size)}
}

// FileSize returns the bytes of the finished tree file, holes included.
func (s Shape) FileSize() int64 { return s.layout().size }

// parents returns the width of the level above one of width w.
func parents(w int64) int64 { return (w + FanOut - 1) / FanOut }

// groupStart returns the first node of the group that node i belongs to.
func groupStart(i int64) int64 { return i &^ (FanOut - 1) }

// groupEnd returns the end of the group that node i-1 belongs to, at most width.
func groupEnd(i, width int64) int64 { return min((i+FanOut-1)&^(FanOut-1), width) }

// Range is the half-open range [First, End) of nodes of one level, counted from
// 0. Without further word it is of leaves.
type Range struct{ First, End int64 }

// Len returns the number of nodes in r.
func (r Range) Len() int64 { return r.End - r.First }

// String returns r in the notation of half-open intervals.
func (r Range) String() string { return fmt.Sprintf("[%d,%d)", r.First, r.End) }

// Extent is the half-open range [Off, End) of bytes of a volume.
type Extent struct{ Off, End int64 }

// checkSpans returns an error unless spans are ascending, disjoint, not empty
// and inside the level. A span may end where the next begins.
func checkSpans(s Shape, level int, spans []Range) error {
	if level < 0 || level >= s.Levels() {
		return fmt.Errorf("level %d of a tree of %d levels: %w", level, s.Levels(), ErrShape)
	}
	end := int64(0)
	for _, r := range spans {
		if r.First < end || r.End <= r.First {
			return fmt.Errorf("nodes %v of level %d are empty or out of order: %w", r, level, ErrShape)
		}
		end = r.End
	}
	if w := s.Width(level); end > w {
		return fmt.Errorf("nodes up to %d of level %d, which has %d: %w", end, level, w, ErrShape)
	}
	return nil
}
