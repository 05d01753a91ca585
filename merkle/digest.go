package merkle

import (
	"hash"

	sha256 "github.com/minio/sha256-simd"
)

// The domains of BLAKE3: the key of each is BLAKE3's derive_key of the context
// with no key material. They are part of the format.
const (
	contextLeaf  = "failback 2026-11-23 merkle leaf v1"
	contextInner = "failback 2026-11-23 merkle node and root v1"
)

func newDigester(a Algorithm) digester {
	if a == SHA256 {
		return &sha256Digester{h: sha256.New()}
	}
	return &blake3Digester{leaves: domainKey(contextLeaf), inners: domainKey(contextInner)}
}

// sha256Digester puts the tag in front, as RFC 6962 does.
type sha256Digester struct {
	h   hash.Hash
	out [HashSize]byte
}

func (d *sha256Digester) leaf(data []byte) Hash {
	d.h.Reset()
	d.out[0] = tagLeaf
	_, _ = d.h.Write(d.out[:1]) // hash.Hash never returns an error
	_, _ = d.h.Write(data)
	return Hash(d.h.Sum(d.out[:0]))
}

func (d *sha256Digester) inner(msg []byte) Hash {
	d.h.Reset()
	_, _ = d.h.Write(msg)
	return Hash(d.h.Sum(d.out[:0]))
}
