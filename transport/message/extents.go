package message

import "encoding/binary"

// Extent is the half-open range [Off, End) of bytes of a volume.
type Extent struct{ Off, End int64 }

// Extents carries ranges of the volume, sorted, disjoint and not adjacent.
// Each message stands alone: its first gap is an offset.
//
//	off size field
//	  0    1 purpose    1 dirty, 2 allocated, 3 candidates, 4 divergent
//	  1    1 last       1 if the list ends with this message, else 0
//	  2      count      uv, at most 32768
//	         then for each: gap uv (bytes since the end of the one before;
//	         0 only in the first), length uv (bytes, not 0); ends are at most 2^62
type Extents struct {
	Purpose uint8 // 1 dirty, 2 allocated, 3 candidates, 4 divergent
	Last    bool
	Extents []Extent
}

// Append adds the encoding to b.
func (m Extents) Append(b []byte) []byte {
	b = putBool(append(b, m.Purpose), m.Last)
	b = binary.AppendUvarint(b, uint64(len(m.Extents)))
	end := int64(0)
	for _, e := range m.Extents {
		b = binary.AppendUvarint(b, uint64(e.Off-end))
		b = binary.AppendUvarint(b, uint64(e.End-e.Off))
		end = e.End
	}
	return b
}

// Decode reads the encoding in b. The list reuses what m.Extents has room for.
func (m *Extents) Decode(b []byte) error {
	r := reader{b: b, message: "Extents"}
	m.Purpose = r.between("purpose", 1, 4)
	m.Last = r.bool("last")
	n := r.count("count", MaxExtents)
	m.Extents = m.Extents[:0]
	end := uint64(0)
	for i := 0; i < n && r.err == nil; i++ {
		gap := r.uv("gap", maxOffset-end)
		if gap == 0 && i > 0 {
			r.bad("gap", "extent %d is adjacent to the one before", i)
		}
		length := r.uv("length", maxOffset-end-gap)
		if length == 0 {
			r.bad("length", "extent %d is empty", i)
		}
		off := end + gap
		end = off + length
		m.Extents = append(m.Extents, Extent{Off: int64(off), End: int64(end)})
	}
	return r.end()
}

// count reads how many pairs of varints follow, and that there are bytes for so
// many: nobody makes room for more than that.
func (r *reader) count(field string, most uint64) int {
	n := r.uv(field, most)
	if n > uint64(len(r.b)/2) {
		r.bad(field, "%d in %d bytes", n, len(r.b))
		return 0
	}
	return int(n)
}
