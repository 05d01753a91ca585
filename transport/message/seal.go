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
func (m *Seal) Decode(b []byte) error { return decodeSeal("Seal", b, m) }

// Sealed answers a [Seal] with the root of the target, laid out alike.
type Sealed struct {
	Algorithm uint8
	Root      [32]byte
	Stats     []Stat
}

// Append adds the encoding to b.
func (m Sealed) Append(b []byte) []byte { return appendSeal(b, Seal(m)) }

// Decode reads the encoding in b. The list reuses what m.Stats has room for.
func (m *Sealed) Decode(b []byte) error { return decodeSeal("Sealed", b, (*Seal)(m)) }

func appendSeal(b []byte, m Seal) []byte {
	b = append(append(b, m.Algorithm), m.Root[:]...)
	b = append(b, uint8(len(m.Stats)))
	for _, s := range m.Stats {
		b = put64(append(b, s.ID), s.Value)
	}
	return b
}

func decodeSeal(message string, b []byte, m *Seal) error {
	r := reader{b: b, message: message}
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
	return r.end()
}
