package failback

import (
	"sort"
	"sync"

	"github.com/failback/failback/cbt"
)

// A layout is what both sides of a session agree to walk: the candidates, cut
// into units by a rule that both apply, so that a unit's number is enough to
// name it on the wire.
//
//	candidates   [======)   [==)          [===================)
//	units        [0        0)  [0  1  1)  [1   2     3     4  )   (by bytes, across gaps)
//
// With leaf > 0 the candidates are aligned to leaves and a unit holds whole
// leaves; else they are aligned to pieces.
type layout struct {
	size       int64        // bytes of the source; nothing at or past it is touched
	leaf       int64        // bytes; 0: digests are per piece
	candidates []cbt.Extent // normal; aligned to grain, clipped to size
}

// A unit is a run of candidates that is read, hashed and compared as one.
type unit struct {
	index int64
	exts  []cbt.Extent
	bytes int64
}

const (
	unitBytes     = 1 << 20
	maxUnitLeaves = 64 // wanted leaves travel as a 64-bit set
)

// grain is the alignment of candidates and the span of one digest.
func (l *layout) grain() int64 {
	if l.leaf > 0 {
		return l.leaf
	}
	return pieceSize
}

// maxUnit is the most bytes a unit of l holds.
func (l *layout) maxUnit() int64 {
	if l.leaf == 0 {
		return unitBytes
	}
	return max(l.leaf, min(unitBytes, maxUnitLeaves*l.leaf))
}

// newLayout aligns candidates and returns the layout that walks them.
func newLayout(size, leaf int64, candidates []cbt.Extent) *layout {
	l := &layout{size: size, leaf: leaf}
	l.candidates = cbt.Align(candidates, l.grain(), size)
	return l
}

// contains reports whether [off, off+n) lies within one candidate.
func (l *layout) contains(off, n int64) bool {
	i := sort.Search(len(l.candidates), func(i int) bool { return l.candidates[i].End > off })
	return i < len(l.candidates) && l.candidates[i].Off <= off && off+n <= l.candidates[i].End
}

// grains calls f for each digest's extent in order: leaf by leaf or piece by piece.
func (u *unit) grains(grain int64, f func(i int, e cbt.Extent)) {
	i := 0
	for _, e := range u.exts {
		for off := e.Off; off < e.End; i++ {
			end := min(e.End, off+grain-off%grain)
			f(i, cbt.Extent{Off: off, End: end})
			off = end
		}
	}
}

// count returns how many digests of the given grain the unit has.
func (u *unit) count(grain int64) int {
	n := 0
	for _, e := range u.exts {
		n += int((e.End+grain-1)/grain - e.Off/grain)
	}
	return n
}

// walker hands out the units of a layout in order. It is safe for concurrent use.
type walker struct {
	l *layout

	mu   sync.Mutex
	i    int   // next candidate
	off  int64 // next offset in it, or 0 for its start
	next int64 // next unit's number
}

func (l *layout) walk() *walker { return &walker{l: l} }

// take returns the next unit, or false when there is none.
func (w *walker) take() (unit, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := unit{index: w.next}
	room := w.l.maxUnit()
	for room > 0 && w.i < len(w.l.candidates) {
		c := w.l.candidates[w.i]
		off := max(c.Off, w.off)
		end := min(c.End, off+room)
		// Candidates are aligned, and so is what is left of a unit's room:
		// a unit ends at a grain's end or at the volume's.
		u.exts = append(u.exts, cbt.Extent{Off: off, End: end})
		u.bytes += end - off
		room -= roundUp(end-off, w.l.grain())
		w.off = end
		if end == c.End {
			w.i, w.off = w.i+1, 0
		}
	}
	if u.bytes == 0 {
		return unit{}, false
	}
	w.next++
	return u, true
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
