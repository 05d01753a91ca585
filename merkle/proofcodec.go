package merkle

import (
	"encoding/binary"
	"fmt"
)

// Proof, format version 1, little endian. Its length follows from the fields.
//
//	off size field
//	  0    8 magic     "FBPROOF\n"
//	  8    2 version   1
//	 10    1 algorithm 1 SHA-256, 2 BLAKE3
//	 11    1 reserved  zero
//	 12    4 leaf      bytes of a leaf
//	 16    8 size      bytes of the volume
//	 24    8 first     first leaf of the range
//	 32    8 end       end of the range
//	 40      siblings  32 bytes each
const (
	magicProof  = "FBPROOF\n"
	proofHeader = 40
)

// MarshalBinary returns the proof's bytes: 40 and 32 for each sibling, 8 KiB at
// most.
func (p *Proof) MarshalBinary() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("encode proof: %w", err)
	}
	if len(p.Siblings) != p.count() {
		return nil, fmt.Errorf("encode proof: %w: %d siblings, leaves %v take %d", ErrProof, len(p.Siblings), p.Range, p.count())
	}
	b := make([]byte, proofHeader, proofHeader+len(p.Siblings)*HashSize)
	copy(b, magicProof)
	binary.LittleEndian.PutUint16(b[8:], formatVersion)
	b[10] = byte(p.Shape.Algorithm)
	binary.LittleEndian.PutUint32(b[12:], uint32(p.Shape.Leaf))
	binary.LittleEndian.PutUint64(b[16:], uint64(p.Shape.Size))
	binary.LittleEndian.PutUint64(b[24:], uint64(p.Range.First))
	binary.LittleEndian.PutUint64(b[32:], uint64(p.Range.End))
	return append(b, hashBytes(p.Siblings)...), nil
}

// UnmarshalBinary reads what MarshalBinary writes, and nothing else. Errors are
// [ErrProof], and [ErrVersion] for a version to come.
func (p *Proof) UnmarshalBinary(b []byte) error {
	if len(b) < proofHeader || string(b[:8]) != magicProof {
		return fmt.Errorf("%w: not a proof", ErrProof)
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != formatVersion {
		return fmt.Errorf("%w: %w: version %d", ErrProof, ErrVersion, v)
	}
	q := Proof{
		Shape: Shape{
			Algorithm: Algorithm(b[10]),
			Leaf:      int64(binary.LittleEndian.Uint32(b[12:])),
			Size:      int64(binary.LittleEndian.Uint64(b[16:])),
		},
		Range: Range{
			First: int64(binary.LittleEndian.Uint64(b[24:])),
			End:   int64(binary.LittleEndian.Uint64(b[32:])),
		},
	}
	if err := q.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	if b[11] != 0 || len(b) != proofHeader+q.count()*HashSize { // before anyone allocates
		return fmt.Errorf("%w: %d bytes, leaves %v take %d", ErrProof, len(b), q.Range, proofHeader+q.count()*HashSize)
	}
	q.Siblings = make([]Hash, q.count())
	copy(hashBytes(q.Siblings), b[proofHeader:])
	*p = q
	return nil
}
