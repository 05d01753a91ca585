package merkle

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"hash"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"
	simd "github.com/minio/sha256-simd"
	"github.com/zeebo/blake3"
)

// What each hash does on one core, for docs/decisions/0002-hashes.md:
//
//	go test -run '^$' -bench 'Hash|Leaf$|Node|IsZero|Server' -cpu 1 ./merkle
func BenchmarkHash(b *testing.B) {
	var out [64]byte
	oneStream := func(h hash.Hash) func([]byte) {
		return func(p []byte) {
			h.Reset()
			_, _ = h.Write(p)
			h.Sum(out[:0])
		}
	}
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	gmac, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, gmac.NonceSize())
	keyed, err := blake3.NewKeyed(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	lanes := newDigester(BLAKE3)
	for _, h := range []struct {
		name string
		sum  func(p []byte)
	}{
		{"sha256-std", oneStream(sha256.New())},
		{"sha256-simd", oneStream(simd.New())},
		{"blake3-zeebo", oneStream(keyed)},
		{"blake3-lanes", func(p []byte) { lanes.leaf(p) }},
		{"gmac", func(p []byte) { gmac.Seal(out[:0], nonce, nil, p) }},
		{"xxhash64", func(p []byte) { _ = xxhash.Sum64(p) }},
	} {
		for _, kib := range []int{4, 16, 64} {
			b.Run(fmt.Sprintf("%s/%dKiB", h.name, kib), func(b *testing.B) {
				p := randomBytes(kib << 10)
				b.SetBytes(int64(len(p)))
				b.ReportAllocs()
				for b.Loop() {
					h.sum(p)
				}
			})
		}
	}
}

func randomBytes(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// Hasher.Leaf against the hash alone: the difference is what the tree costs.
func BenchmarkLeaf(b *testing.B) {
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		for _, kib := range []int64{4, 16, 64} {
			s := Shape{Size: 1 << 30, Leaf: kib << 10, Algorithm: a}
			h := newHasher(s)
			late := make([]byte, s.Leaf) // the scan for zeroes goes to the end
			late[len(late)-1] = 1
			for _, c := range []struct {
				name string
				data []byte
			}{{"data", randomBytes(int(s.Leaf))}, {"zero-but-last", late}, {"zero", make([]byte, s.Leaf)}} {
				b.Run(fmt.Sprintf("%v/%dKiB/%s", a, kib, c.name), func(b *testing.B) {
					b.SetBytes(s.Leaf)
					b.ReportAllocs()
					for b.Loop() {
						h.Leaf(c.data)
					}
				})
			}
		}
	}
}

func BenchmarkNode(b *testing.B) {
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		b.Run(a.String(), func(b *testing.B) {
			h := newHasher(Shape{Size: 1 << 30, Leaf: DefaultLeaf, Algorithm: a})
			group := make([]Hash, FanOut)
			b.SetBytes(FanOut * HashSize)
			b.ReportAllocs()
			for b.Loop() {
				group[0] = h.Node(1, group)
			}
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 64 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if !IsZero(p) {
					b.Fatal("not zero")
				}
			}
		})
	}
}
