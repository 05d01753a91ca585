package cbt

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
)

// DirtyMap records the state of each block of a volume. It is exact to the
// block, all its methods may be called at the same time, and Mark and Discard
// take no lock.
//
// Memory: 4 KiB for each 32768 blocks of which one is dirty, the same again
// where one is discarded, and a pointer for each page that is not there. So it
// follows what is dirty and ends at 64 MiB for dirty and 64 MiB for discarded
// blocks. A taken map has the same bound until it is put back.
type DirtyMap struct {
	size, block int64 // bytes

	dirty     plane
	discarded plane // dirty wins where both are set

	// takes is twice the number of takes that are over, plus 1 while one is
	// under way: see begin.
	takes atomic.Uint64

	// mu orders take, put back and reading against each other, never against
	// marking. Under mu bits appear, but none moves or goes.
	mu  sync.Mutex
	out []*Taken // taken and not put back
}

// NewDirtyMap returns a clean map for a volume of size bytes in blocks of
// block bytes, 0 for [BlockSize]. It refuses a block that is not a power of
// two from [MinBlock] to [MaxBlock], and more than [MaxBlocks] blocks.
func NewDirtyMap(size, block int64) (*DirtyMap, error) {
	if block == 0 {
		block = BlockSize(size)
	}
	if err := checkGeometry(size, block); err != nil {
		return nil, fmt.Errorf("make dirty map: %w", err)
	}
	n := blocks(size, block)
	return &DirtyMap{size: size, block: block, dirty: newPlane(n), discarded: newPlane(n)}, nil
}

// Size returns the size of the volume in bytes.
func (m *DirtyMap) Size() int64 { return m.size }

// Block returns the tracking granularity in bytes.
func (m *DirtyMap) Block() int64 { return m.block }

// Mark makes every block that the n bytes at off touch dirty. What lies
// outside of the volume is ignored: there is no block to mark.
// Cost: one atomic OR for each 64 blocks, none where they are dirty already;
// it allocates only at the first mark in a page.
func (m *DirtyMap) Mark(off, n int64) {
	if e := extentOf(off, n, m.size); !e.Empty() {
		m.dirty.set(e.Off/m.block, blocks(e.End, m.block))
	}
}

// Discard makes every block that lies wholly in the n bytes at off discarded,
// unless it is dirty: which of a write and a discard came last on the device
// is not known here, and dirty is sound in both orders. Blocks touched in part
// become dirty. What lies outside of the volume is ignored. Cost: as Mark.
//
// It is called before the device is, and only while no write to the same
// blocks is under way; where that is not known, [Writer.Do] is right, and Mark
// always is.
func (m *DirtyMap) Discard(off, n int64) {
	e := extentOf(off, n, m.size)
	if e.Empty() {
		return
	}
	whole := m.inner(e)
	if whole.first >= whole.end {
		m.Mark(off, n)
		return
	}
	m.dirty.set(e.Off/m.block, whole.first)
	m.dirty.set(whole.end, blocks(e.End, m.block))
	m.discarded.set(whole.first, whole.end)
}

// Add marks or discards the bytes of r, according to its state.
func (m *DirtyMap) Add(r Run) {
	switch r.State {
	case Clean:
	case Discarded:
		m.Discard(r.Off, r.Len())
	default: // Dirty, or a state from the future: in doubt, dirty.
		m.Mark(r.Off, r.Len())
	}
}

// extentOf returns the part of the n bytes at off inside the volume. The sum
// off+n may not fit an int64.
func extentOf(off, n, size int64) Extent {
	if n <= 0 || off >= size {
		return Extent{}
	}
	if off < 0 {
		return clip(Extent{0, off + n}, size)
	}
	return Extent{off, off + min(n, size-off)}
}

// inner returns the blocks that lie wholly in e, clean when there are none.
// The last block of the volume may be short: it is whole when e reaches the
// end.
func (m *DirtyMap) inner(e Extent) blockRun {
	end := e.End / m.block
	if e.End == m.size {
		end = blocks(m.size, m.block)
	}
	return blockRun{first: blocks(e.Off, m.block), end: end}
}

// State returns the state of the block that holds the byte at off, as the next
// Take would return it. Outside of the volume everything is clean.
func (m *DirtyMap) State(off int64) State {
	if off < 0 || off >= m.size {
		return Clean
	}
	switch block := off / m.block; {
	case m.dirty.has(block):
		return Dirty
	case m.discarded.has(block):
		return Discarded
	}
	return Clean
}

// Bytes returns how many bytes the next Take would return in each state.
// Cost: one pass over the pages that exist.
func (m *DirtyMap) Bytes() (dirty, discarded int64) {
	return countBytes(m.size, m.block, len(m.dirty), func(i int, d, x *words) bool {
		a, b := m.dirty.addTo(i, d), m.discarded.addTo(i, x)
		return a || b
	})
}

// Runs yields what is not proven: marked and not taken, or taken and not put
// back (L2). It clears nothing. It misses nothing that was marked before the
// call; of what is marked or proven meanwhile it may show any part.
func (m *DirtyMap) Runs() iter.Seq[Run] {
	return byteRuns(m.size, m.block, blockRuns(len(m.dirty), m.unproven))
}

// unproven adds page i of the map and of all that is taken from it. The lock
// is per page, so that a loop over Runs may call any method of m.
func (m *DirtyMap) unproven(i int, dirty, discarded *words) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, b := m.dirty.addTo(i, dirty), m.discarded.addTo(i, discarded)
	found := a || b
	for _, t := range m.out {
		x := discarded
		if m.stale(t) {
			x = dirty
		}
		a, b = orWords(dirty, t.dirty[i]), orWords(x, t.discarded[i])
		found = found || a || b
	}
	return found
}

// stale reports whether the discards of t must count as dirty, under mu. Once
// there was a later take, a write over the discard may be in that one, may be
// proven and gone: the discarded block would come back as the last word.
func (m *DirtyMap) stale(t *Taken) bool { return t.number != m.takes.Load() }

// Map returns what is not proven, as [DirtyMap.Runs] does, in the form that
// can be saved. Identity and Epoch are left to the caller. A map of more runs
// than a file may hold is coarsened: it then reports too much.
// Cost: 8 bytes a run.
func (m *DirtyMap) Map() *Map {
	runs := packRuns(maxRuns, func() iter.Seq[blockRun] { return blockRuns(len(m.dirty), m.unproven) })
	return &Map{VolumeSize: m.size, BlockSize: m.block, runs: runs}
}

// Take empties the map and returns what it held. Each block marked meanwhile
// is in the taken map, or still in m, or in both. The taken map goes back with
// [DirtyMap.PutBack], whole or in part. Cost: one pass over the pages that
// exist, and as much memory as they take.
func (m *DirtyMap) Take() *Taken {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.takes.Add(1)
	t := &Taken{size: m.size, block: m.block, dirty: m.dirty.take(), discarded: m.discarded.take()}
	// After the pages: a write that sees the old number at its end is over
	// before this take, and one that sees the new number at its begin was
	// marked after the pages were read.
	t.number = m.takes.Add(1)
	m.out = append(m.out, t)
	return t
}

// ErrSpent is returned when a taken map is put back that is not out: it was
// put back before, or it was taken elsewhere.
var ErrSpent = errors.New("taken map is not out")

// PutBack ends a take. Every block of t comes back into m, except those that
// lie wholly in proven: the extents the other side has acknowledged as durable
// (L2). proven may be in any order; nil puts everything back. Blocks marked
// since the take stay marked, and discarded ones come back dirty when there
// was another take since. t is spent afterwards and holds nothing.
// PutBack returns [ErrSpent] and changes nothing when t is not out.
func (m *DirtyMap) PutBack(t *Taken, proven []Extent) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.Index(m.out, t)
	if i < 0 {
		return fmt.Errorf("put back: %w", ErrSpent)
	}
	for _, e := range Normalize(slices.Clone(proven)) {
		if e = clip(e, m.size); e.Empty() {
			continue
		}
		whole := m.inner(e)
		clearWords(t.dirty, whole.first, whole.end)
		clearWords(t.discarded, whole.first, whole.end)
	}
	m.dirty.or(t.dirty)
	if m.stale(t) {
		m.dirty.or(t.discarded)
	} else {
		m.discarded.or(t.discarded)
	}
	m.out = slices.Delete(m.out, i, i+1)
	t.dirty, t.discarded = nil, nil
	return nil
}

func (m *DirtyMap) outstanding() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.out)
}

// Taken is what was taken from a map. It does not change until it is put back,
// and is not to be read while or after it is.
type Taken struct {
	size, block int64
	number      uint64 // of DirtyMap.takes when it was over
	dirty       []*words
	discarded   []*words
}

// Runs yields the runs of t in order.
func (t *Taken) Runs() iter.Seq[Run] {
	return byteRuns(t.size, t.block, blockRuns(len(t.dirty), t.page))
}

// Extents returns the normal list of all that is dirty or discarded in t.
// Cost: 16 bytes an extent; Runs has the same without the memory.
func (t *Taken) Extents() []Extent { return extentsOf(t.Runs()) }

// Bytes returns how many bytes t holds in each state.
func (t *Taken) Bytes() (dirty, discarded int64) {
	return countBytes(t.size, t.block, len(t.dirty), t.page)
}

func (t *Taken) page(i int, dirty, discarded *words) bool {
	a, b := orWords(dirty, t.dirty[i]), orWords(discarded, t.discarded[i])
	return a || b
}

// byteRuns turns blocks into bytes; the last block of a volume may be short.
func byteRuns(size, block int64, runs iter.Seq[blockRun]) iter.Seq[Run] {
	return func(yield func(Run) bool) {
		for r := range runs {
			if !yield(Run{Extent{r.first * block, min(r.end*block, size)}, r.state}) {
				return
			}
		}
	}
}

// extentsOf returns the normal list of the bytes in runs, which are in order.
func extentsOf(runs iter.Seq[Run]) []Extent {
	var out []Extent
	for r := range runs {
		out = appendJoined(out, r.Extent)
	}
	return out
}

// countBytes adds up the bits in n pages of src.
func countBytes(size, block int64, n int, src source) (dirty, discarded int64) {
	last := blocks(size, block) - 1
	short := (last+1)*block - size // bytes the last block lacks
	eachPage(n, src, func(i int, d, x *words) bool {
		for k := range d {
			only := x[k] &^ d[k]
			dirty += int64(bits.OnesCount64(d[k])) * block
			discarded += int64(bits.OnesCount64(only)) * block
			if int64(i)*pageBlocks+int64(k)*64 != last-last%64 {
				continue
			}
			dirty -= int64(d[k]>>(last%64)&1) * short
			discarded -= int64(only>>(last%64)&1) * short
		}
		return true
	})
	return dirty, discarded
}
