package merkle

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

// Header of a tree file, format version 1, little endian. All that is written
// lies in the first 512 bytes: one sector, which a disk writes whole or not at
// all. Numbers are on disk: append only.
//
//	off size field
//	  0    8 magic      "FBTREE\r\n"
//	  8    2 version    1
//	 10    1 state      1 building, 2 complete, 3 updating
//	 11    1 algorithm  1 SHA-256, 2 BLAKE3
//	 12    4 leaf       bytes of a leaf
//	 16    8 size       bytes of the volume
//	 24    8 epoch      the volume's epoch that the tree describes
//	 32   32 root       zero while building
//	 64   32 next       root the update leads to; zero unless updating
//	 96    1 idlen      bytes of identity
//	 97  255 identity   of the volume; the rest is zero
//	352  152 reserved   zero
//	504    8 sum        xxhash64 of bytes 0 to 503
//	512 3584 reserved   zero
//
// A reader looks at magic, then version, then sum, then the fields.
const (
	magicTree     = "FBTREE\r\n"
	formatVersion = 1

	hdrSector   = 512
	hdrSum      = 504
	hdrIdentity = 97
	maxIdentity = 255
)

// state says how far a tree file is.
type state uint8

// The states of a tree file. The numbers are on disk.
const (
	stateBuilding state = 1 // nodes may be missing
	stateComplete state = 2
	stateUpdating state = 3 // nodes may be of root or of next
)

// Epoch numbers the states of a volume that a tree can describe. This package
// keeps it and never reads a meaning into it.
type Epoch uint64

type header struct {
	state    state
	shape    Shape
	epoch    Epoch
	root     Hash
	next     Hash
	identity string
}

func (h *header) encode() []byte {
	b := make([]byte, hdrSector)
	copy(b, magicTree)
	binary.LittleEndian.PutUint16(b[8:], formatVersion)
	b[10] = byte(h.state)
	b[11] = byte(h.shape.Algorithm)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.shape.Leaf))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.shape.Size))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.epoch))
	copy(b[32:], h.root[:])
	copy(b[64:], h.next[:])
	b[96] = byte(len(h.identity))
	copy(b[hdrIdentity:], h.identity)
	binary.LittleEndian.PutUint64(b[hdrSum:], xxhash.Sum64(b[:hdrSum]))
	return b
}

// readHeader reads and checks the header of the file at path. It allocates 4 KiB.
func readHeader(path string, r io.ReaderAt) (header, error) {
	b := make([]byte, headerSize)
	n, err := r.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return header{}, fmt.Errorf("read tree file %s: %w", path, err)
	}
	bad := func(off int64, err error) (header, error) {
		return header{}, &CorruptError{Path: path, Offset: off, Level: -1, Err: err}
	}
	switch {
	case n < 10 || string(b[:8]) != magicTree:
		return header{}, fmt.Errorf("%w: %s", ErrNotTree, path)
	case binary.LittleEndian.Uint16(b[8:]) != formatVersion:
		return header{}, fmt.Errorf("%w: %s has version %d, this reads version %d",
			ErrVersion, path, binary.LittleEndian.Uint16(b[8:]), formatVersion)
	case n < headerSize:
		return bad(int64(n), io.ErrUnexpectedEOF)
	case xxhash.Sum64(b[:hdrSum]) != binary.LittleEndian.Uint64(b[hdrSum:]):
		return bad(hdrSum, errChecksum)
	case !IsZero(b[hdrSector:]):
		return bad(hdrSector, errPadding)
	}
	h, off := decodeHeader(b)
	if off >= 0 {
		return bad(off, errHeaderField)
	}
	if err := h.shape.Validate(); err != nil {
		return bad(11, err)
	}
	return h, nil
}

// decodeHeader returns the fields, and the offset of one that is out of bounds
// or -1. The shape is the caller's to validate.
func decodeHeader(b []byte) (header, int64) {
	h := header{
		state: state(b[10]),
		shape: Shape{
			Algorithm: Algorithm(b[11]),
			Leaf:      int64(binary.LittleEndian.Uint32(b[12:])),
			Size:      int64(binary.LittleEndian.Uint64(b[16:])),
		},
		epoch: Epoch(binary.LittleEndian.Uint64(b[24:])),
		root:  Hash(b[32:64]),
		next:  Hash(b[64:96]),
	}
	idEnd := hdrIdentity + int(b[96])
	h.identity = string(b[hdrIdentity:idEnd])
	switch {
	case h.state < stateBuilding || h.state > stateUpdating:
		return h, 10
	case (h.root == Hash{}) != (h.state == stateBuilding):
		return h, 32
	case (h.next == Hash{}) != (h.state != stateUpdating):
		return h, 64
	case !IsZero(b[idEnd:hdrSum]):
		return h, int64(idEnd)
	}
	return h, -1
}
