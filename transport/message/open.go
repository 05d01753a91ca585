package message

import "math/bits"

// Version is the one version of the messages that this package speaks.
const Version = 1

// Open is the first frame of every connection: the initiator says who it is,
// which volume it wants and which part the server is to play.
//
//	off size field
//	  0    8 magic      "failback"
//	  8    2 minVersion lowest version the initiator speaks, at least 1
//	 10    2 maxVersion highest, not below minVersion
//	 12    8 features   bits both sides may use; none is defined yet
//	 20   16 session    the same for every connection of one session
//	 36    1 role       1 source, 2 target, 3 join a session as one more stream
//	 37    1 stream     0 for roles 1 and 2; 1 to 255 for role 3
//	 38    1 write      1 if the volume is to be written, else 0
//	 39      volume     str16, 1 to 4096 bytes: a name the server knows
type Open struct {
	MinVersion, MaxVersion uint16
	Features               uint64
	Session                [16]byte
	Role                   uint8 // 1 source, 2 target, 3 join
	Stream                 uint8 // number of the joining stream, else 0
	Write                  bool
	Volume                 string
}

// Append adds the encoding to b.
func (m Open) Append(b []byte) []byte {
	b = append(b, openMagic...)
	b = put16(put16(b, m.MinVersion), m.MaxVersion)
	b = put64(b, m.Features)
	b = append(b, m.Session[:]...)
	b = putBool(append(b, m.Role, m.Stream), m.Write)
	return putStr16(b, m.Volume, maxVolume)
}

// Decode reads the encoding in b.
func (m *Open) Decode(b []byte) error {
	r := reader{b: b, message: "Open"}
	if magic := r.bytes("magic", len(openMagic)); r.err == nil && string(magic) != openMagic {
		r.bad("magic", "%q, must be %q", magic, openMagic)
	}
	m.MinVersion, m.MaxVersion = r.u16("minVersion"), r.u16("maxVersion")
	if r.err == nil && (m.MinVersion == 0 || m.MinVersion > m.MaxVersion) {
		r.bad("minVersion", "versions %d to %d", m.MinVersion, m.MaxVersion)
	}
	m.Features = r.u64("features")
	copy(m.Session[:], r.bytes("session", len(m.Session)))
	m.Role = r.between("role", 1, 3)
	m.Stream = r.u8("stream")
	if r.err == nil && (m.Role == 3) != (m.Stream != 0) {
		r.bad("stream", "stream %d with role %d", m.Stream, m.Role)
	}
	m.Write = r.bool("write")
	m.Volume = r.str16("volume", maxVolume)
	if r.err == nil && m.Volume == "" {
		r.bad("volume", "empty")
	}
	return r.end()
}

const openMagic = "failback"

// maxVolume is the longest name of a volume, in bytes: a path.
const maxVolume = 4096

// Opened answers an [Open]: the version and the features of both, and the volume.
//
//	off size field
//	  0    2 version
//	  2    8 features
//	 10      volume     VolumeInfo
type Opened struct {
	Version  uint16
	Features uint64
	Volume   VolumeInfo
}

// Append adds the encoding to b.
func (m Opened) Append(b []byte) []byte {
	return m.Volume.append(put64(put16(b, m.Version), m.Features))
}

// Decode reads the encoding in b.
func (m *Opened) Decode(b []byte) error {
	r := reader{b: b, message: "Opened"}
	if m.Version = r.u16("version"); r.err == nil && m.Version == 0 {
		r.bad("version", "0")
	}
	m.Features = r.u64("features")
	m.Volume.decode(&r)
	return r.end()
}

// VolumeInfo says what a volume is. It is a part of [Opened], [Start] and [Info].
//
//	off size field
//	  0    8 size       bytes; positive, a multiple of 512, at most 2^62
//	  8    4 align      bytes; power of two, 512 to 65536
//	 12    4 flags      bit 0 read-only, bit 1 knows what is allocated, bit 2 kept tree,
//	                    bit 3 dirty map kept
//	 16      identity   str8
//	         name       str8
//	         tree       TreeInfo, if flag bit 2 is set
type VolumeInfo struct {
	Size     int64  // bytes
	Align    uint32 // bytes; reads and writes are multiples of it
	ReadOnly bool
	Sparse   bool // the volume can say which ranges are allocated
	Mapped   bool // a dirty map is kept beside the volume; its extents follow
	Identity string
	Name     string
	Tree     *TreeInfo // a tree is kept beside the volume; nil if none
}

func (v *VolumeInfo) append(b []byte) []byte {
	b = put32(put64(b, uint64(v.Size)), v.Align)
	b = put32(b, flagBits(v.ReadOnly, v.Sparse, v.Tree != nil, v.Mapped))
	b = putStr8(putStr8(b, v.Identity), v.Name)
	if t := v.Tree; t != nil {
		b = put64(put32(append(b, t.Algorithm), t.Leaf), t.Epoch)
		b = append(b, t.Root[:]...)
	}
	return b
}

func (v *VolumeInfo) decode(r *reader) {
	v.Size = r.size("size")
	if r.err == nil && (v.Size == 0 || v.Size%512 != 0) {
		r.bad("size", "%d bytes, must be a positive multiple of 512", v.Size)
	}
	v.Align = r.u32("align")
	if r.err == nil && (v.Align < 512 || v.Align > 64<<10 || bits.OnesCount32(v.Align) != 1) {
		r.bad("align", "%d bytes, must be a power of two, 512 to 65536", v.Align)
	}
	flags := r.flags("flags", 15)
	v.ReadOnly, v.Sparse, v.Mapped = flags&1 != 0, flags&2 != 0, flags&8 != 0
	v.Identity, v.Name = r.str8("identity"), r.str8("name")
	v.Tree = nil
	if flags&4 != 0 && r.err == nil {
		t := &TreeInfo{Algorithm: r.between("tree algorithm", 1, 2), Leaf: r.leaf("tree leaf", false), Epoch: r.u64("tree epoch")}
		copy(t.Root[:], r.bytes("tree root", hashLen))
		v.Tree = t
	}
}

// TreeInfo says which Merkle tree is kept beside a volume.
//
//	off size field
//	  0    1 algorithm  1 SHA-256, 2 BLAKE3
//	  1    4 leaf       bytes; power of two, 4 KiB to 4 MiB
//	  5    8 epoch
//	 13   32 root
type TreeInfo struct {
	Algorithm uint8  // 1 SHA-256, 2 BLAKE3
	Leaf      uint32 // bytes
	Epoch     uint64
	Root      [32]byte
}
