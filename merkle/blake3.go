package merkle

import (
	"encoding/binary"
	"math/bits"

	"lukechampine.com/blake3"
	"lukechampine.com/blake3/guts"
)

// blake3Digester separates leaves by key, so that their data stays aligned.
//
// It drives the library's compression of 16 chunks at once by itself: the
// library's own hash splits a leaf over goroutines, of which a build has as
// many as it wants already.
type blake3Digester struct {
	leaves, inners [8]uint32
	scratch        [gutsBytes]byte // the end of a message, where less than gutsBytes is left
}

// gutsBytes is what the library compresses at once. It reads all of it.
const gutsBytes = guts.MaxSIMD * guts.ChunkSize

// domainKey returns the key of one domain, as the words that BLAKE3 starts from.
func domainKey(context string) (words [8]uint32) {
	var key [32]byte
	blake3.DeriveKey(key[:], context, nil)
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	return words
}

func (d *blake3Digester) leaf(data []byte) Hash { return d.hash(&d.leaves, data) }
func (d *blake3Digester) inner(msg []byte) Hash { return d.hash(&d.inners, msg) }

// hash is BLAKE3's keyed hash of p.
func (d *blake3Digester) hash(key *[8]uint32, p []byte) (h Hash) {
	root := d.subtree(key, p, 0)
	root.Flags |= guts.FlagRoot
	words := guts.CompressNode(root)
	for i := range len(h) / 4 {
		binary.LittleEndian.PutUint32(h[4*i:], words[i])
	}
	return h
}

// subtree returns the node over p, which begins at the given chunk of the
// message. The left child of a node has as many chunks as the largest power of
// two that leaves some for the right one (BLAKE3, section 2.1).
func (d *blake3Digester) subtree(key *[8]uint32, p []byte, chunk uint64) guts.Node {
	switch {
	case len(p) == gutsBytes:
		return guts.CompressBuffer((*[gutsBytes]byte)(p), len(p), key, chunk, guts.FlagKeyedHash)
	case len(p) <= guts.ChunkSize:
		return guts.CompressChunk(p, key, chunk, guts.FlagKeyedHash)
	case len(p) < gutsBytes:
		copy(d.scratch[:], p)
		return guts.CompressBuffer(&d.scratch, len(p), key, chunk, guts.FlagKeyedHash)
	}
	left := guts.ChunkSize << (bits.Len(uint((len(p)-1)/guts.ChunkSize)) - 1)
	return guts.ParentNode(
		guts.ChainingValue(d.subtree(key, p[:left], chunk)),
		guts.ChainingValue(d.subtree(key, p[left:], chunk+uint64(left/guts.ChunkSize))),
		key, guts.FlagKeyedHash)
}
