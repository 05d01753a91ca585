package merkle

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/zeebo/blake3"
)

// The naive tree judges everything else. It is written from docs/format-tree.md
// and shares no code with the package but its types: whole volume in memory,
// every hash computed, nothing known to be zero.
type naive struct {
	shape  Shape
	levels [][]Hash
	root   Hash
}

func newNaive(s Shape, volume []byte) *naive {
	n := &naive{shape: s}
	var leaves []Hash
	for off := int64(0); off < s.Size; off += s.Leaf {
		leaves = append(leaves, naiveLeaf(s, volume[off:min(off+s.Leaf, s.Size)]))
	}
	n.levels = append(n.levels, leaves)
	for len(n.levels[len(n.levels)-1]) > 1 {
		below := n.levels[len(n.levels)-1]
		var above []Hash
		for i := 0; i < len(below); i += 16 {
			group := below[i:min(i+16, len(below))]
			msg := []byte{1, byte(len(n.levels)), byte(len(group))}
			for _, h := range group {
				msg = append(msg, h[:]...)
			}
			above = append(above, naiveInner(s, msg))
		}
		n.levels = append(n.levels, above)
	}
	msg := []byte{2, byte(s.Algorithm)}
	msg = binary.LittleEndian.AppendUint32(msg, uint32(s.Leaf))
	msg = binary.LittleEndian.AppendUint64(msg, uint64(s.Size))
	top := n.levels[len(n.levels)-1][0]
	n.root = naiveInner(s, append(msg, top[:]...))
	return n
}

func naiveLeaf(s Shape, data []byte) Hash {
	if s.Algorithm == SHA256 {
		return sha256.Sum256(append([]byte{0}, data...))
	}
	return naiveKeyed("failback 2026-11-23 merkle leaf v1", data)
}

func naiveInner(s Shape, msg []byte) Hash {
	if s.Algorithm == SHA256 {
		return sha256.Sum256(msg)
	}
	return naiveKeyed("failback 2026-11-23 merkle node and root v1", msg)
}

func naiveKeyed(context string, data []byte) Hash {
	var key [32]byte
	blake3.DeriveKey(context, nil, key[:])
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err)
	}
	_, _ = h.Write(data)
	return Hash(h.Sum(nil))
}

// diff returns the ranges of leaves that differ, by looking at all of them.
func (n *naive) diff(m *naive) []Range {
	var out []Range
	for i := range n.levels[0] {
		if n.levels[0][i] == m.levels[0][i] {
			continue
		}
		if k := len(out); k > 0 && out[k-1].End == int64(i) {
			out[k-1].End++
		} else {
			out = append(out, Range{int64(i), int64(i) + 1})
		}
	}
	return out
}

// testShapes are small volumes of awkward sizes: one sector, a leaf and a
// sector, full groups, one more, one less, several levels.
func testShapes() []Shape {
	var out []Shape
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		for _, size := range []int64{
			1, 512, 4095, 4096, 4096 + 512, 16 * 4096, 16*4096 + 512, 17 * 4096, 255 * 4096,
			256 * 4096, 256*4096 + 1, 300 * 4096, 4096 * 4096, 4097 * 4096,
		} {
			out = append(out, Shape{Size: size, Leaf: 4096, Algorithm: a})
		}
		out = append(out,
			Shape{Size: 64<<10 + 512, Leaf: 64 << 10, Algorithm: a},
			Shape{Size: 37 * 64 << 10, Leaf: 64 << 10, Algorithm: a},
			Shape{Size: 4<<20 + 512, Leaf: 4 << 20, Algorithm: a})
	}
	return out
}

// testVolume returns a volume with data, zero leaves and zero stretches.
func testVolume(s Shape, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	v := make([]byte, s.Size)
	for off := int64(0); off < s.Size; off += s.Leaf {
		run := int64(1)
		if rng.IntN(8) == 0 {
			run = rng.Int64N(40) + 1
		}
		if rng.IntN(3) > 0 {
			fill(rng, v[off:min(off+s.Leaf, s.Size)])
			continue
		}
		off += (run - 1) * s.Leaf
	}
	return v
}

// fill writes some bytes into each page: enough to make it differ, and cheap.
func fill(rng *rand.Rand, p []byte) {
	for i := 0; i < len(p); i += 4096 {
		p[i+rng.IntN(min(4096, len(p)-i))] = byte(rng.IntN(255) + 1)
	}
}

func mustHasher(t testing.TB, s Shape) *Hasher {
	t.Helper()
	h, err := NewHasher(s)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func mustRoot(t testing.TB, r NodeReader) Hash {
	t.Helper()
	root, err := r.Root(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// mustClose closes what a test opened, at its end.
func mustClose(t testing.TB, f *File) *File {
	t.Helper()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close %s: %v", f.Path(), err)
		}
	})
	return f
}
