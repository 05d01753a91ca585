package message

// Plan says what the source will do and why, before anything is done (L3). The
// candidates follow as Extents with purpose 3.
//
//	off size field
//	  0    1 rung       1 exact, 2 epochs, 3 residue, 4 merkle, 5 allocated, 6 full
//	  1      reason     str16, at most 1024 bytes
//	  +    1 level      0 nothing is compared, 1 leaves, 2 pieces
//	  +    1 digest     0 keyed by the session, 1 SHA-256, 2 BLAKE3
//	  +    1 from       1 the target reads its volume, 2 the target's kept tree, 3 nobody:
//	                    the source knows
//	  +    4 leaf       bytes; power of two, 4 KiB to 4 MiB
//	  +    8 candidates bytes that are looked at, at most 2^62: those of the list that follows
//	  +    1 verify     0 none, 1 what was written, 2 the whole volume
//	  +    1 seal       0 none, 1 SHA-256, 2 BLAKE3
//	  +    8 resume     bytes; what lies below is not looked at: the journal in Info vouches for it
//	  +   32 basis      hash of what the plan rests on: only a session with the same may go on with this one
type Plan struct {
	Rung       uint8
	Reason     string
	Level      uint8
	Digest     uint8
	From       uint8
	Leaf       uint32 // bytes
	Candidates int64  // bytes
	Verify     uint8
	Seal       uint8
	Resume     int64 // bytes
	Basis      [32]byte
}

// Append adds the encoding to b.
func (m Plan) Append(b []byte) []byte {
	b = putStr16(append(b, m.Rung), m.Reason, maxReason)
	b = put32(append(b, m.Level, m.Digest, m.From), m.Leaf)
	b = append(put64(b, uint64(m.Candidates)), m.Verify, m.Seal)
	return append(put64(b, uint64(m.Resume)), m.Basis[:]...)
}

// Decode reads the encoding in b.
func (m *Plan) Decode(b []byte) error {
	r := reader{b: b, message: "Plan"}
	m.Rung = r.between("rung", 1, 6)
	m.Reason = r.str16("reason", maxReason)
	m.Level = r.between("level", 0, 2)
	m.Digest = r.between("digest", 0, 2)
	m.From = r.between("from", 1, 3)
	m.Leaf = r.leaf("leaf", false)
	m.Candidates = r.size("candidates")
	m.Verify = r.between("verify", 0, 2)
	m.Seal = r.between("seal", 0, 2)
	m.Resume = r.size("resume")
	copy(m.Basis[:], r.bytes("basis", len(m.Basis)))
	return r.end()
}

// maxReason is the longest reason of a plan, in bytes.
const maxReason = 1024

// Agree answers a [Plan]: the target will do its part, and says how much it
// takes at once.
//
//	off size field
//	  0    4 window     bytes of data that may be under way, at least 2 MiB
type Agree struct{ Window uint32 }

// minAgreed is the smallest window of a target: the largest frame fits with room to spare.
const minAgreed = 2 << 20

// Append adds the encoding to b.
func (m Agree) Append(b []byte) []byte { return put32(b, m.Window) }

// Decode reads the encoding in b.
func (m *Agree) Decode(b []byte) error {
	r := reader{b: b, message: "Agree"}
	if m.Window = r.u32("window"); r.err == nil && m.Window < minAgreed {
		r.bad("window", "%d bytes, must be at least %d", m.Window, minAgreed)
	}
	return r.end()
}

// Pass begins another pass over what follows as Extents with purpose 3.
//
// To verify or to seal, the target reads it from the medium and sends its leaves
// as [Digests] again; the rest is known to be zero on both sides. A round is what
// was written to the source since the pass before: the target answers as it does
// to a Plan of level 2, and the digest is 0.
//
//	off size field
//	  0    1 purpose    1 verify, 2 seal, 3 round
//	  1    1 digest     0 keyed by the session, 1 SHA-256, 2 BLAKE3
//	  2    4 leaf       bytes; power of two, 4 KiB to 4 MiB
type Pass struct {
	Purpose uint8
	Digest  uint8
	Leaf    uint32 // bytes
}

// Append adds the encoding to b.
func (m Pass) Append(b []byte) []byte {
	return put32(append(b, m.Purpose, m.Digest), m.Leaf)
}

// Decode reads the encoding in b.
func (m *Pass) Decode(b []byte) error {
	r := reader{b: b, message: "Pass"}
	m.Purpose = r.between("purpose", 1, 3)
	m.Digest = r.between("digest", 0, 2)
	m.Leaf = r.leaf("leaf", false)
	return r.end()
}
