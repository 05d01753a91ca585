package failback

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// A tag is the session digest of a piece, or of a leaf over the tags of its
// pieces. The zero tag stands for all-zero content.
type tag [16]byte

// tagger makes session digests: GMAC (AES-128-GCM over additional data only)
// under a key that both ends draw after the data lies, thrown away with the
// session.
//
// GMAC is a universal hash: whatever the two contents are, two different ones
// of at most 4 KiB get the same tag with probability at most 257/2^128 over the
// choice of the key, so a volume of 2^32 pieces is misjudged with probability
// below 2^-87. The bound needs contents that were fixed before the key was
// drawn, which is why such tags are never kept.
//
// A tagger serves one goroutine.
type tagger struct {
	aead  cipher.AEAD
	nonce [12]byte // offset, level
	out   [32]byte
	flat  []byte // scratch: tags of a leaf's pieces, concatenated
}

// sessionKey derives the key from what each end drew at random.
func sessionKey(session, sourceShare, targetShare [16]byte) [16]byte {
	h := sha256.New()
	h.Write([]byte("failback session key 1\x00"))
	h.Write(session[:])
	h.Write(sourceShare[:])
	h.Write(targetShare[:])
	return [16]byte(h.Sum(nil)[:16])
}

func newTagger(key [16]byte) (*tagger, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("make session hash: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make session hash: %w", err)
	}
	return &tagger{aead: aead}, nil
}

// piece returns the tag of the piece at off. Cost: one pass over b.
func (t *tagger) piece(off int64, b []byte) tag {
	if allZero(b) {
		return tag{}
	}
	return t.sum(uint64(off), 0, b)
}

// leaf returns the tag of the leaf at off from those of its pieces.
func (t *tagger) leaf(off int64, pieces []tag) tag {
	t.flat = t.flat[:0]
	zero := true
	for _, p := range pieces {
		zero = zero && p == tag{}
		t.flat = append(t.flat, p[:]...)
	}
	if zero {
		return tag{}
	}
	return t.sum(uint64(off), 1, t.flat)
}

func (t *tagger) sum(off uint64, level uint32, b []byte) tag {
	binary.LittleEndian.PutUint64(t.nonce[:], off)
	binary.LittleEndian.PutUint32(t.nonce[8:], level)
	return tag(t.aead.Seal(t.out[:0], t.nonce[:], nil, b))
}
