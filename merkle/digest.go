package merkle

import (
	"crypto/aes"
	"crypto/cipher"
	"hash"

	sha256 "github.com/minio/sha256-simd"
	"github.com/zeebo/blake3"
)

// The domains of BLAKE3: the key of each is BLAKE3's derive_key of the context
// with no key material. They are part of the format.
const (
	contextLeaf  = "failback 2026-11-23 merkle leaf v1"
	contextInner = "failback 2026-11-23 merkle node and root v1"
)

func newDigester(a Algorithm, key Key) digester {
	switch a {
	case SHA256:
		return &sha256Digester{h: sha256.New()}
	case GMAC:
		return &gmacDigester{blake3Digester: newBlake3Digester(), aead: newGMAC(key)}
	default:
		return newBlake3Digester()
	}
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

// blake3Digester separates leaves by key, so that their data stays aligned.
type blake3Digester struct {
	leaves, inners *blake3.Hasher
	out            [HashSize]byte
}

func newBlake3Digester() *blake3Digester {
	return &blake3Digester{leaves: newKeyed(contextLeaf), inners: newKeyed(contextInner)}
}

// newKeyed returns BLAKE3 keyed for one domain.
func newKeyed(context string) *blake3.Hasher {
	var key [32]byte
	blake3.DeriveKey(context, nil, key[:])
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("merkle: BLAKE3 refuses a key of 32 bytes: " + err.Error()) // no input reaches this
	}
	return h
}

func (d *blake3Digester) leaf(data []byte) Hash { return d.hash(d.leaves, data) }
func (d *blake3Digester) inner(msg []byte) Hash { return d.hash(d.inners, msg) }

func (d *blake3Digester) hash(h *blake3.Hasher, p []byte) Hash {
	h.Reset()
	_, _ = h.Write(p)
	return Hash(h.Sum(d.out[:0]))
}

// gmacDigester hashes leaves with GMAC and what is above with BLAKE3.
type gmacDigester struct {
	*blake3Digester
	aead  cipher.AEAD
	nonce [12]byte // stays zero: the key is of one session, the tag is compared, not published
}

func newGMAC(key Key) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("merkle: AES refuses a key of 32 bytes: " + err.Error()) // no input reaches this
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("merkle: GCM refuses AES: " + err.Error()) // no input reaches this
	}
	return aead
}

func (d *gmacDigester) leaf(data []byte) Hash {
	var h Hash
	copy(h[:], d.aead.Seal(d.out[:0], d.nonce[:], nil, data))
	return h
}
