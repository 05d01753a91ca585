package message

// Digests carries the digests of one unit: of its leaves, or of its pieces if
// the plan's level is 2, in order.
//
//	off size field
//	  0    8 unit       number of the unit
//	  8    1 size       bytes of each digest, 16 or 32
//	  9    2 count      1 to 32768
//	 11      digests    count times size bytes
type Digests struct {
	Unit uint64
	Size uint8  // bytes of one digest, 16 or 32
	Sums []byte // the digests one after the other
}

// Append adds the encoding to b. Sums is a multiple of Size long.
func (m Digests) Append(b []byte) []byte {
	b = append(put64(b, m.Unit), m.Size)
	b = put16(b, uint16(len(m.Sums)/max(1, int(m.Size))))
	return append(b, m.Sums...)
}

// Decode reads the encoding in b. Sums is a part of b.
func (m *Digests) Decode(b []byte) error {
	r := reader{b: b, message: "Digests"}
	m.Unit = r.u64("unit")
	m.Size = r.u8("size")
	if r.err == nil && m.Size != digestLen && m.Size != hashLen {
		r.bad("size", "%d bytes, must be 16 or 32", m.Size)
	}
	n := r.u16("count")
	if r.err == nil && n == 0 {
		r.bad("count", "0")
	}
	m.Sums = r.sums("digests", int(n), int(m.Size))
	return r.end()
}

// Want asks for the pieces of those leaves of a unit whose digests differ.
//
//	off size field
//	  0    8 unit       number of the unit
//	  8    8 leaves     bit i is leaf i of the unit
type Want struct {
	Unit   uint64
	Leaves uint64
}

// Append adds the encoding to b.
func (m Want) Append(b []byte) []byte { return put64(put64(b, m.Unit), m.Leaves) }

// Decode reads the encoding in b.
func (m *Want) Decode(b []byte) error {
	r := reader{b: b, message: "Want"}
	m.Unit, m.Leaves = r.u64("unit"), r.u64("leaves")
	return r.end()
}

// Pieces answers a [Want]: the digests of the pieces of the leaves asked for.
//
//	off size field
//	  0    8 unit       number of the unit
//	  8    8 leaves     bit i is leaf i of the unit
//	 16    1 size       16
//	 17    2 count      0 to 32768
//	 19      digests    count times 16 bytes
type Pieces struct {
	Unit   uint64
	Leaves uint64
	Sums   []byte // 16 bytes for each piece
}

// Append adds the encoding to b. Sums is a multiple of 16 long.
func (m Pieces) Append(b []byte) []byte {
	b = append(put64(put64(b, m.Unit), m.Leaves), digestLen)
	return append(put16(b, uint16(len(m.Sums)/digestLen)), m.Sums...)
}

// Decode reads the encoding in b. Sums is a part of b.
func (m *Pieces) Decode(b []byte) error {
	r := reader{b: b, message: "Pieces"}
	m.Unit, m.Leaves = r.u64("unit"), r.u64("leaves")
	r.between("size", digestLen, digestLen)
	m.Sums = r.sums("digests", int(r.u16("count")), digestLen)
	return r.end()
}

// Release says that the source is done with every unit below Unit.
//
//	off size field
//	  0    8 unit
type Release struct{ Unit uint64 }

// Append adds the encoding to b.
func (m Release) Append(b []byte) []byte { return put64(b, m.Unit) }

// Decode reads the encoding in b.
func (m *Release) Decode(b []byte) error {
	r := reader{b: b, message: "Release"}
	m.Unit = r.u64("unit")
	return r.end()
}
