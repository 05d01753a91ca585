package message

// Task tells a served source what to do.
//
//	off size field
//	  0    1 mode       1 sync, 2 compare, 3 digest
//	  1      codec      str8: none, lz4, zstd, zstd-fast or auto
//	  +    8 limit      bytes/s, 0 none; at most 2^62
//	  +    1 streams    connections, 0 to 64; 0 is one
//	  +    4 window     bytes of data not yet consumed; 0 the source's default
//	  +    4 leaf       bytes; power of two, 4 KiB to 4 MiB; 0 the source's default
//	  +    1 verify     0 none, 1 what was written, 2 the whole volume
//	  +    1 seal       0 none, 1 SHA-256, 2 BLAKE3
//	  +    1 rung       0 highest that holds, 1 to 6 this one
//	  +    4 flags      bit 0 target may be larger, bit 1 dry run, bit 2 dirty
//	                    map follows as Extents, bit 3 trust kept trees, bit 4 medium as in Start,
//	                    bit 5 stage as in Start
//	  +    1 resume     as in Start
//	  +    1 undo       as in Start
//	  +    4 checkpoint a barrier at least so often, milliseconds; 0 the source's default
type Task struct {
	Mode        uint8 // 1 sync, 2 compare, 3 digest
	Codec       string
	Limit       int64 // bytes/s, 0 none
	Streams     uint8
	Window      uint32 // bytes
	Leaf        uint32 // bytes
	Verify      uint8  // 0 none, 1 changed, 2 full
	Seal        uint8  // 0 none, 1 SHA-256, 2 BLAKE3
	Rung        uint8  // 0 auto, else forced; see Plan
	AllowLarger bool
	DryRun      bool
	Dirty       bool // Extents with purpose 1 follow
	TrustTrees  bool
	Medium      bool
	Stage       bool
	Resume      uint8  // 0 begin anew, 1 must, 2 if possible
	Undo        uint8  // 0 no, 1 must, 2 as far as possible
	Checkpoint  uint32 // milliseconds
}

// Append adds the encoding to b.
func (m Task) Append(b []byte) []byte {
	b = putStr8(append(b, m.Mode), m.Codec)
	b = append(put64(b, uint64(m.Limit)), m.Streams)
	b = put32(put32(b, m.Window), m.Leaf)
	b = append(b, m.Verify, m.Seal, m.Rung)
	b = put32(b, flagBits(m.AllowLarger, m.DryRun, m.Dirty, m.TrustTrees, m.Medium, m.Stage))
	return put32(append(b, m.Resume, m.Undo), m.Checkpoint)
}

// Decode reads the encoding in b.
func (m *Task) Decode(b []byte) error {
	r := reader{b: b, message: "Task"}
	m.Mode = r.between("mode", 1, 3)
	m.Codec = r.str8("codec")
	switch m.Codec {
	case "none", "lz4", "zstd", "zstd-fast", "auto":
	default:
		r.bad("codec", "unknown: %q", m.Codec)
	}
	m.Limit = r.size("limit")
	m.Streams = r.between("streams", 0, maxStreams)
	m.Window = r.u32("window")
	m.Leaf = r.leaf("leaf", true)
	m.Verify = r.between("verify", 0, 2)
	m.Seal = r.between("seal", 0, 2)
	m.Rung = r.between("rung", 0, 6)
	flags := r.flags("flags", 63)
	m.AllowLarger, m.DryRun = flags&1 != 0, flags&2 != 0
	m.Dirty, m.TrustTrees, m.Medium, m.Stage = flags&4 != 0, flags&8 != 0, flags&16 != 0, flags&32 != 0
	m.Resume, m.Undo = r.between("resume", 0, 2), r.between("undo", 0, 2)
	m.Checkpoint = r.u32("checkpoint")
	return r.end()
}

// maxStreams is the most connections of one session.
const maxStreams = 64

// Start is the first word of the source to the target.
//
//	off size field
//	  0   16 session
//	 16    1 mode       1 sync, 2 compare, 3 digest
//	 17   16 share      random; half of the key of the session's digests
//	 33      volume     VolumeInfo of the source
//	  +    4 flags      bit 0 target may be larger, bit 1 send allocated extents, bit 2 dry run,
//	                    bit 3 the target compares what lies on its medium, past every cache,
//	                    bit 4 the target gathers what is written beside its volume, and applies it when it is whole
//	  +    1 streams    connections the source will use, 0 to 64; 0 is one
//	  +    1 resume     an interrupted session: 0 begin anew, 1 go on with it, 2 if that is possible
//	  +    1 undo       save what is overwritten: 0 as the target likes, 1 all of it, 2 as far as possible
//	  +      stamp      str8: changes when the source's volume is written; empty if nothing tells
//	  +   16 after      the session since which the source knows what it was written; zeroes for none
//	  +      left       str8: the target's stamp when that one ended, see Sealed; empty if not known
type Start struct {
	Session     [16]byte
	Mode        uint8 // 1 sync, 2 compare, 3 digest
	Share       [16]byte
	Volume      VolumeInfo
	AllowLarger bool
	Allocated   bool // the target is to send its allocated extents
	DryRun      bool
	Medium      bool // the target compares what lies on its medium
	Stage       bool // the target stages what is written
	Streams     uint8
	Resume      uint8  // 0 begin anew, 1 must, 2 if possible
	Undo        uint8  // 0 no, 1 must, 2 as far as possible
	Stamp       string // changes when the source is written
	After       [16]byte
	Left        string
}

// Append adds the encoding to b.
func (m Start) Append(b []byte) []byte {
	b = append(append(b, m.Session[:]...), m.Mode)
	b = m.Volume.append(append(b, m.Share[:]...))
	b = put32(b, flagBits(m.AllowLarger, m.Allocated, m.DryRun, m.Medium, m.Stage))
	b = putStr8(append(b, m.Streams, m.Resume, m.Undo), m.Stamp)
	return putStr8(append(b, m.After[:]...), m.Left)
}

// Decode reads the encoding in b.
func (m *Start) Decode(b []byte) error {
	r := reader{b: b, message: "Start"}
	copy(m.Session[:], r.bytes("session", len(m.Session)))
	m.Mode = r.between("mode", 1, 3)
	copy(m.Share[:], r.bytes("share", len(m.Share)))
	m.Volume.decode(&r)
	flags := r.flags("flags", 31)
	m.AllowLarger, m.Allocated, m.DryRun = flags&1 != 0, flags&2 != 0, flags&4 != 0
	m.Medium, m.Stage = flags&8 != 0, flags&16 != 0
	m.Streams = r.between("streams", 0, maxStreams)
	m.Resume, m.Undo = r.between("resume", 0, 2), r.between("undo", 0, 2)
	m.Stamp = r.str8("stamp")
	copy(m.After[:], r.bytes("after", len(m.After)))
	m.Left = r.str8("left")
	return r.end()
}

// Info answers a [Start].
//
//	off size field
//	  0   16 share      random; the other half of the key
//	 16    1 flags      bit 0 an interrupted session can be gone on with, bit 1 with bit 0:
//	                    nothing says whether the target was written since, bit 2 it was
//	                    written since its tree was made, which may not be read in its place,
//	                    bit 3 nothing vouches for what it holds: all of it is to be compared,
//	                    bit 4 nobody has written it since the session that Start says it is after,
//	                    bit 5 what comes is staged: until Sealed the volume is as it was
//	 17      volume     VolumeInfo of the target
//	         journal    with flag bit 0: done u64 (bytes; below it both sides were found equal
//	                    and that is durable, at most 2^62), basis 32 bytes (that session's, see
//	                    Plan), stamp str8 (that session's, see Start)
type Info struct {
	Share     [16]byte
	Volume    VolumeInfo
	Journal   bool     // Done, Basis and Stamp are set
	Unwatched bool     // with Journal: somebody may have written the target since
	Spent     bool     // the target's tree may not be read in place of it
	Doubt     bool     // the whole of the target is to be compared
	Kept      bool     // it is as the session Start.After left it
	Staged    bool     // what comes is staged
	Done      int64    // bytes
	Basis     [32]byte // of the interrupted session
	Stamp     string   // of the source then
}

// Append adds the encoding to b.
func (m Info) Append(b []byte) []byte {
	flags := byte(0)
	for i, set := range []bool{m.Journal, m.Unwatched, m.Spent, m.Doubt, m.Kept, m.Staged} {
		if set {
			flags |= 1 << i
		}
	}
	b = m.Volume.append(append(append(b, m.Share[:]...), flags))
	if !m.Journal {
		return b
	}
	return putStr8(append(put64(b, uint64(m.Done)), m.Basis[:]...), m.Stamp)
}

// Decode reads the encoding in b.
func (m *Info) Decode(b []byte) error {
	r := reader{b: b, message: "Info"}
	copy(m.Share[:], r.bytes("share", len(m.Share)))
	flags := r.between("flags", 0, 63)
	m.Journal, m.Unwatched, m.Spent = flags&1 != 0, flags&2 != 0, flags&4 != 0
	m.Doubt, m.Kept, m.Staged = flags&8 != 0, flags&16 != 0, flags&32 != 0
	if m.Unwatched && !m.Journal {
		r.bad("flags", "bit 1 without bit 0")
	}
	m.Volume.decode(&r)
	m.Done, m.Basis, m.Stamp = 0, [32]byte{}, ""
	if m.Journal {
		m.Done = r.size("done")
		copy(m.Basis[:], r.bytes("basis", len(m.Basis)))
		m.Stamp = r.str8("stamp")
	}
	return r.end()
}
