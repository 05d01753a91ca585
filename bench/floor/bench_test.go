package floor

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	simd "github.com/minio/sha256-simd"
)

// What each hash costs on one core at the sizes in question: the figures behind the choice of hashes.
func BenchmarkHash(b *testing.B) {
	data := random(64 << 10)
	for _, name := range Hashes() {
		if name == "none" || name == "sha256-lanes" {
			continue
		}
		for _, size := range []int{4 << 10, 16 << 10, 64 << 10} {
			b.Run(fmt.Sprintf("%s/%dK", name, size>>10), func(b *testing.B) {
				d, err := newDigester(name, [32]byte{})
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					d(int64(i), data[:size])
				}
			})
		}
	}
}

// The one-shot functions do not go through an interface.
func BenchmarkSum256(b *testing.B) {
	data := random(64 << 10)
	for name, f := range map[string]func([]byte) [32]byte{"std": sha256.Sum256, "simd": simd.Sum256} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				f(data)
			}
		})
	}
}

// The multi-lane server with all its lanes in use, on as many cores as it takes.
func BenchmarkLanes(b *testing.B) {
	if !hasLanes() {
		b.Skip("needs a processor with AVX-512")
	}
	all := laneDigesters()
	data := random(64 << 10)
	b.SetBytes(int64(len(all) * len(data)))
	for b.Loop() {
		var wg sync.WaitGroup
		for _, d := range all {
			wg.Go(func() { d(0, data) })
		}
		wg.Wait()
	}
}

// random returns n bytes that do not compress, the same every time.
func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(b)
	return b
}
