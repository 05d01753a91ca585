package merkle

import "encoding/binary"

// Domain tags: no leaf can pass for a node, no node for a root.
const (
	tagLeaf byte = 0
	tagNode byte = 1
	tagRoot byte = 2
)

// rootFacts is the bytes hashed before the top node: tag, algorithm, leaf size
// (4, little endian), volume size (8, little endian).
const rootFacts = 1 + 1 + 4 + 8

// Hasher makes the hashes of one tree. It belongs to one goroutine; [Hasher.Clone]
// makes another for the next.
//
// What each hash covers, H being SHA-256 of the concatenation, or BLAKE3 keyed
// with the domain's key (then the tag byte is left out for leaves):
//
//	leaf       H(0, data)
//	node       H(1, level, number of children, children)
//	root       H(2, algorithm, leaf size, volume size, top node)
//
// level and number are one byte each.
type Hasher struct {
	shape Shape
	sum   digester
	zeros *zeros
	buf   [3 + FanOut*HashSize]byte
}

// digester is one algorithm. Its methods may be called by one goroutine.
type digester interface {
	// leaf returns the hash of a leaf's data.
	leaf(data []byte) Hash
	// inner returns the hash of a message that begins with tagNode or tagRoot.
	inner(msg []byte) Hash
}

// NewHasher returns a Hasher for trees of shape s. It costs two leaf hashes and
// two node hashes a level, for the zero subtrees; a Clone costs none.
func NewHasher(s Shape) (*Hasher, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return newHasher(s), nil
}

func newHasher(s Shape) *Hasher {
	h := newNodeHasher(s)
	h.zeros = h.newZeros()
	return h
}

// newNodeHasher returns a Hasher for nodes and root only, which costs nothing
// to make. It knows no zero subtrees and must not be asked for them.
func newNodeHasher(s Shape) *Hasher {
	return &Hasher{shape: s, sum: newDigester(s.Algorithm)}
}

// Clone returns a Hasher of the same tree for another goroutine. It may be
// called while h is in use.
func (h *Hasher) Clone() *Hasher {
	return &Hasher{shape: h.shape, sum: newDigester(h.shape.Algorithm), zeros: h.zeros}
}

// Shape returns the shape that h was made for.
func (h *Hasher) Shape() Shape { return h.shape }

// Leaf returns the hash of a leaf, or of any piece of up to a leaf's size.
// Data that is all zero and as long as a leaf of this tree is not hashed: the
// scan for it ends at the first byte that is not zero.
func (h *Hasher) Leaf(data []byte) Hash {
	if z, ok := h.zeros.leafOf(len(data)); ok && IsZero(data) {
		return z
	}
	return h.sum.leaf(data)
}

// Node returns the hash of a node of a level, 1 or higher, over its existing
// children, 1 to FanOut of them. It is one hash of 35 to 515 bytes. Of more
// children it makes a hash that no node has.
func (h *Hasher) Node(level int, children []Hash) Hash {
	h.buf[0], h.buf[1], h.buf[2] = tagNode, byte(level), byte(min(len(children), FanOut+1))
	n := copy(h.buf[3:], hashBytes(children))
	return h.sum.inner(h.buf[:3+n])
}

// Root returns the root of the tree whose top node is top.
func (h *Hasher) Root(top Hash) Hash {
	msg := h.buf[:rootFacts+HashSize]
	msg[0], msg[1] = tagRoot, byte(h.shape.Algorithm)
	binary.LittleEndian.PutUint32(msg[2:], uint32(h.shape.Leaf))
	binary.LittleEndian.PutUint64(msg[6:], uint64(h.shape.Size))
	copy(msg[rootFacts:], top[:])
	return h.sum.inner(msg)
}

// Zero returns the hash of a node if all bytes below it are zero. It hashes
// nothing. The node must be one of the tree's: index in [0, Width(level)).
func (h *Hasher) Zero(level int, index int64) Hash {
	return h.zeros.at(level, index)
}
