package merkle

import (
	"encoding/hex"
	"fmt"
	"unsafe"
)

// HashSize is the bytes of a node, for every algorithm.
const HashSize = 32

// Hash is a node: the hash of a leaf or of a group of children, or the root.
// Its zero value is not a hash that occurs; on disk it stands for an all-zero
// subtree.
type Hash [HashSize]byte

// String returns 64 hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText returns 64 hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads what MarshalText writes.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != 2*HashSize {
		return fmt.Errorf("hash of %d characters, must be %d hexadecimal digits", len(text), 2*HashSize)
	}
	var v Hash
	if _, err := hex.Decode(v[:], text); err != nil {
		return fmt.Errorf("read hash: %w", err)
	}
	*h = v
	return nil
}

// ParseHash reads 64 hexadecimal digits.
func ParseHash(s string) (Hash, error) {
	var h Hash
	err := h.UnmarshalText([]byte(s))
	return h, err
}

// hashBytes returns the bytes of h without a copy.
func hashBytes(h []Hash) []byte {
	if len(h) == 0 {
		return nil
	}
	return unsafe.Slice(&h[0][0], len(h)*HashSize)
}
