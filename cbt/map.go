package cbt

import (
	"fmt"
	"iter"
)

// maxRuns bounds a map in memory and on disk: 8 bytes each, 64 MiB.
const maxRuns = 8 << 20

// MaxIdentity is the length limit of [Map.Identity], in bytes.
const MaxIdentity = 255

// Map is a dirty map at rest: what was written to a volume since an epoch.
// It is made by [DirtyMap.Map], [NewMap], [ReadMap] or [LoadMap].
type Map struct {
	VolumeSize int64  // bytes, at least 1
	BlockSize  int64  // bytes, power of two from MinBlock to MaxBlock
	Identity   string // what volume it belongs to, at most MaxIdentity bytes; "" if not known
	Epoch      Epoch  // the map holds every write since; 0 if not known

	runs []packedRun
}

// packedRun is a run in 8 bytes: MaxBlocks is 2^29.
type packedRun struct {
	first  uint32 // block
	length uint32 // blocks, at least 1; the top bit says discarded
}

const discardedBit = 1 << 31

func pack(r blockRun) packedRun {
	p := packedRun{first: uint32(r.first), length: uint32(r.end - r.first)}
	if r.state == Discarded {
		p.length |= discardedBit
	}
	return p
}

func (p packedRun) unpack() blockRun {
	r := blockRun{first: int64(p.first), state: Dirty}
	if p.length&discardedBit != 0 {
		r.state = Discarded
	}
	r.end = r.first + int64(p.length&^discardedBit)
	return r
}

// packRuns collects the runs that scan yields. When there are more than limit
// it scans again and joins what lies closer and closer together until they
// fit. It reports too much, never too little.
func packRuns(limit int, scan func() iter.Seq[blockRun]) []packedRun {
	for near := int64(0); ; near = max(1, near*2) {
		if out, ok := packJoined(limit, near, scan()); ok {
			return out
		}
	}
}

// packJoined collects runs and joins those less than near blocks apart. What
// is joined becomes dirty, for a clean block between two discarded ones still
// holds data. It gives up past limit runs.
func packJoined(limit int, near int64, runs iter.Seq[blockRun]) ([]packedRun, bool) {
	var out []packedRun
	var open blockRun
	for r := range runs {
		if open.state != Clean && r.first-open.end < near {
			open.end, open.state = r.end, Dirty
			continue
		}
		if open.state != Clean {
			out = append(out, pack(open))
		}
		if open = r; len(out) == limit {
			return nil, false
		}
	}
	if open.state != Clean {
		out = append(out, pack(open))
	}
	return out, true
}

// NewMap returns the map of runs, which may come in any order and overlap; of
// two states of one block the higher holds. Runs grow outward to whole blocks,
// see [DirtyMap.Mark] and [DirtyMap.Discard]. block is 0 for [BlockSize]. A
// run that reaches out of the volume is refused: it belongs to another volume.
func NewMap(size, block int64, runs iter.Seq[Run]) (*Map, error) {
	m, err := NewDirtyMap(size, block)
	if err != nil {
		return nil, err
	}
	for r := range runs {
		if r.Off < 0 || r.End > size {
			return nil, fmt.Errorf("make map: %v reaches out of the volume of %d bytes", r, size)
		}
		m.Add(r)
	}
	return m.Map(), nil
}

// Runs yields the runs of m in order.
func (m *Map) Runs() iter.Seq[Run] { return byteRuns(m.VolumeSize, m.BlockSize, m.blockRuns()) }

func (m *Map) blockRuns() iter.Seq[blockRun] {
	return func(yield func(blockRun) bool) {
		for _, p := range m.runs {
			if !yield(p.unpack()) {
				return
			}
		}
	}
}

// Extents returns the normal list of all that is dirty or discarded in m.
// Cost: 16 bytes an extent; Runs has the same without the memory.
func (m *Map) Extents() []Extent { return extentsOf(m.Runs()) }

// Bytes returns how many bytes m holds in each state. Cost: O(runs).
func (m *Map) Bytes() (dirty, discarded int64) {
	for r := range m.Runs() {
		if r.State == Discarded {
			discarded += r.Len()
		} else {
			dirty += r.Len()
		}
	}
	return dirty, discarded
}

// check refuses a map that no file may hold: its fields are open to callers.
func (m *Map) check() error {
	if err := checkGeometry(m.VolumeSize, m.BlockSize); err != nil {
		return err
	}
	if len(m.Identity) > MaxIdentity {
		return fmt.Errorf("identity of %d bytes, limit %d", len(m.Identity), MaxIdentity)
	}
	if n := len(m.runs); n > 0 {
		if last, end := m.runs[n-1].unpack(), blocks(m.VolumeSize, m.BlockSize); last.end > end {
			return fmt.Errorf("runs end at block %d, the volume at block %d", last.end, end)
		}
	}
	return nil
}
