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

// tagger makes session digests under a key that both ends draw after the data
// lies, thrown away with the session: NH over the content, 32 bytes, then GMAC
// (AES-128-GCM over additional data only) over those, bound to their place.
//
// Both are universal hashes: whatever the two contents of a piece are, two
// different ones get the same tag with probability at most 2^-128 + 3/2^128 over
// the choice of the key, so a volume of 2^32 pieces is misjudged with
// probability below 2^-94. The bound needs contents that were fixed before the
// key was drawn, which is why such tags are never kept.
//
// A tagger serves one goroutine.
type tagger struct {
	aead  cipher.AEAD
	nh    [nhKeyBytes]byte
	sums  [nhSums]uint64
	nonce [12]byte // offset, level
	out   [32]byte
	flat  []byte // scratch: what the tag is made of
}

// sessionKey derives the key from what each end drew at random.
func sessionKey(session, sourceShare, targetShare [16]byte) [32]byte {
	h := sha256.New()
	h.Write([]byte("failback session key 1\x00"))
	h.Write(session[:])
	h.Write(sourceShare[:])
	h.Write(targetShare[:])
	return [32]byte(h.Sum(nil))
}

// newTagger: the first half of the key is GMAC's, the second makes NH's key, as
// AES-128-CTR from a zero counter.
func newTagger(key [32]byte) (*tagger, error) {
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		return nil, fmt.Errorf("make session hash: %w", err)
	}
	t := &tagger{}
	if t.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("make session hash: %w", err)
	}
	if block, err = aes.NewCipher(key[16:]); err != nil {
		return nil, fmt.Errorf("make session hash: %w", err)
	}
	cipher.NewCTR(block, make([]byte, aes.BlockSize)).XORKeyStream(t.nh[:], t.nh[:])
	return t, nil
}

// piece returns the tag of the piece at off, at most pieceSize bytes. Cost: one
// pass over b.
func (t *tagger) piece(off int64, b []byte) tag {
	if allZero(b) {
		return tag{}
	}
	if len(b)%nhBlock != 0 {
		b = append(append(t.flat[:0], b...), make([]byte, nhBlock-len(b)%nhBlock)...)
	}
	nh(&t.sums, b, &t.nh)
	t.flat = t.flat[:0]
	for _, s := range t.sums {
		t.flat = binary.LittleEndian.AppendUint64(t.flat, s)
	}
	return t.sum(uint64(off), 0, t.flat)
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
