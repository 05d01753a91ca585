package message

// maxStats is the most counters in a Seal or Sealed.
const maxStats = 32

// Stat is one counter. The ids: 1 read bytes, 2 written bytes, 3 zeroed bytes,
// 4 verified bytes, 5 discarded bytes. A receiver passes over ids it does not know.
type Stat struct {
	ID    uint8 // not 0
	Value uint64
}

// Seal ends the work of the source: the root it has come to.
//
//	off size field
//	  0    1 algorithm  0 none, 1 SHA-256, 2 BLAKE3
//	  1   32 root       zeroes if there is no algorithm
//	 33    1 count      at most 32
//	 34      stats      each: id u8, value u64; ids rise
type Seal struct {
	Algorithm uint8
	Root      [32]byte
	Stats     []Stat
}

// Append adds the encoding to b.
func (m Seal) Append(b []byte) []byte { return appendSeal(b, m) }

// Decode reads the encoding in b. The list reuses what m.Stats has room for.
func (m *Seal) Decode(b []byte) error {
	r := reader{b: b, message: "Seal"}
	r.seal(m)
	return r.end()
}

// Sealed answers a [Seal] with the root of the target. It begins alike.
//
//	off size field
//	  0    1 algorithm  0 none, 1 SHA-256, 2 BLAKE3
//	  1   32 root       zeroes if there is no algorithm
//	 33    1 count      at most 32
//	 34      stats      each: id u8, value u64; ids rise
//	  +      stamp      str8: changes when the target's volume is written; empty if nothing tells
type Sealed struct {
	Algorithm uint8
	Root      [32]byte
	Stats     []Stat
	Stamp     string // changes when the target is written
}

// Append adds the encoding to b.
func (m Sealed) Append(b []byte) []byte {
	return putStr8(appendSeal(b, Seal{m.Algorithm, m.Root, m.Stats}), m.Stamp)
}

// Decode reads the encoding in b. The list reuses what m.Stats has room for.
func (m *Sealed) Decode(b []byte) error {
	r, s := reader{b: b, message: "Sealed"}, Seal{Stats: m.Stats}
	r.seal(&s)
	m.Algorithm, m.Root, m.Stats = s.Algorithm, s.Root, s.Stats
	m.Stamp = r.str8("stamp")
	return r.end()
}

func appendSeal(b []byte, m Seal) []byte {
	b = append(append(b, m.Algorithm), m.Root[:]...)
	b = append(b, uint8(len(m.Stats)))
	for _, s := range m.Stats {
		b = put64(append(b, s.ID), s.Value)
	}
	return b
}

func (r *reader) seal(m *Seal) {
	m.Algorithm = r.between("algorithm", 0, 2)
	m.Root = [hashLen]byte{}
	copy(m.Root[:], r.bytes("root", hashLen))
	if m.Algorithm == 0 && m.Root != [hashLen]byte{} {
		r.bad("root", "without an algorithm")
	}
	n := r.between("count", 0, maxStats)
	m.Stats = m.Stats[:0]
	last := uint8(0)
	for i := 0; i < int(n) && r.err == nil; i++ {
		s := Stat{ID: r.u8("stat id"), Value: r.u64("stat value")}
		if r.err == nil && s.ID <= last {
			r.bad("stat id", "%d after %d", s.ID, last)
		}
		last = s.ID
		m.Stats = append(m.Stats, s)
	}
}
