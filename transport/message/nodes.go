package message

import "encoding/binary"

// NodeRange is the half-open range [First, End) of nodes of one level.
type NodeRange struct{ First, End int64 }

// Nodes asks for hashes of the target's tree.
//
//	off size field
//	  0    4 id         the answer carries the same
//	  4    1 level      0 leaves; at most 63
//	  5      count      uv, 1 to 4096
//	         then for each: gap uv (nodes since the end of the one before), n uv (not 0);
//	         sorted, disjoint; ends are at most 2^50
type Nodes struct {
	ID     uint32
	Level  uint8
	Ranges []NodeRange
}

// Append adds the encoding to b.
func (m Nodes) Append(b []byte) []byte {
	b = append(put32(b, m.ID), m.Level)
	b = binary.AppendUvarint(b, uint64(len(m.Ranges)))
	end := int64(0)
	for _, g := range m.Ranges {
		b = binary.AppendUvarint(b, uint64(g.First-end))
		b = binary.AppendUvarint(b, uint64(g.End-g.First))
		end = g.End
	}
	return b
}

// Decode reads the encoding in b. The list reuses what m.Ranges has room for.
func (m *Nodes) Decode(b []byte) error {
	r := reader{b: b, message: "Nodes"}
	m.ID = r.u32("id")
	m.Level = r.between("level", 0, 63)
	n := r.count("count", MaxRanges)
	if r.err == nil && n == 0 {
		r.bad("count", "0")
	}
	m.Ranges = m.Ranges[:0]
	end := uint64(0)
	for i := 0; i < n && r.err == nil; i++ {
		first := end + r.uv("gap", maxNode-end)
		k := r.uv("n", maxNode-first)
		if k == 0 {
			r.bad("n", "range %d is empty", i)
		}
		end = first + k
		m.Ranges = append(m.Ranges, NodeRange{First: int64(first), End: int64(end)})
	}
	return r.end()
}

// NodeHashes answers a [Nodes], in one message or several.
//
//	off size field
//	  0    4 id
//	  4    4 count      at most 32768
//	  8      hashes     count times 32 bytes, in the order asked
//	  +    1 last       1 if the answer ends with this message, else 0
type NodeHashes struct {
	ID     uint32
	Hashes []byte // 32 bytes each
	Last   bool
}

// Append adds the encoding to b. Hashes is a multiple of 32 long.
func (m NodeHashes) Append(b []byte) []byte {
	b = put32(put32(b, m.ID), uint32(len(m.Hashes)/hashLen))
	return putBool(append(b, m.Hashes...), m.Last)
}

// Decode reads the encoding in b. Hashes is a part of b.
func (m *NodeHashes) Decode(b []byte) error {
	r := reader{b: b, message: "NodeHashes"}
	m.ID = r.u32("id")
	m.Hashes = r.sums("hashes", int(min(r.u32("count"), MaxHashes+1)), hashLen)
	m.Last = r.bool("last")
	return r.end()
}
