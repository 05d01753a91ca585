package merkle

import "unsafe"

// zeros holds the hashes of all-zero subtrees. At each level all of them are
// alike but the last, which may have fewer children or a short leaf.
type zeros struct {
	shape Shape
	full  []Hash // by level: any node but the last
	last  []Hash // by level: the last node
	width []int64
}

// zeroLeaf is a leaf of zeroes, of any size. Nobody writes to it, so it takes
// addresses but no memory.
var zeroLeaf [MaxLeaf]byte

func (h *Hasher) newZeros() *zeros {
	s := h.shape
	z := &zeros{shape: s}
	end := s.LeafExtent(s.Leaves() - 1)
	full, last := h.sum.leaf(zeroLeaf[:s.Leaf]), h.sum.leaf(zeroLeaf[:end.End-end.Off])
	for level, w := 0, s.Leaves(); ; level, w = level+1, parents(w) {
		z.full, z.last, z.width = append(z.full, full), append(z.last, last), append(z.width, w)
		if w == 1 {
			return z
		}
		var group [FanOut]Hash
		for i := range group {
			group[i] = full
		}
		full = h.Node(level+1, group[:])
		tail := (w-1)%FanOut + 1
		group[tail-1] = last
		last = h.Node(level+1, group[:tail])
	}
}

// at returns the hash of an all-zero subtree.
func (z *zeros) at(level int, index int64) Hash { return *z.ref(level, index) }

func (z *zeros) ref(level int, index int64) *Hash {
	if index == z.width[level]-1 {
		return &z.last[level]
	}
	return &z.full[level]
}

// leafOf returns the hash of n zero bytes if some leaf has that length.
func (z *zeros) leafOf(n int) (Hash, bool) {
	if int64(n) == z.shape.Leaf {
		return z.full[0], true
	}
	if tail := z.shape.Size % z.shape.Leaf; tail != 0 && int64(n) == tail {
		return z.last[0], true
	}
	return Hash{}, false
}

// IsZero reports whether all bytes of p are zero. It reads at the speed of
// memory and stops within 64 bytes of the first that is not.
func IsZero(p []byte) bool {
	if len(p) >= 64 {
		n := len(p) / 64
		blocks := unsafe.Slice((*[8]uint64)(unsafe.Pointer(unsafe.SliceData(p))), n)
		for i := range blocks {
			b := &blocks[i]
			if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
				return false
			}
		}
		p = p[n*64:]
	}
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
