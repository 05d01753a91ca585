package merkle

import (
	"fmt"
	"sync"
	"testing"

	simd "github.com/minio/sha256-simd"
	"golang.org/x/sys/cpu"
)

// BenchmarkServer feeds the sixteen lanes of one AVX-512 server. It hashes on one
// goroutine; the others only wait for it. The name of this file has it run after the
// other hashes: the server cannot be stopped, and polls and allocates for ever after.
func BenchmarkServer(b *testing.B) {
	for _, kib := range []int{4, 16, 64} {
		b.Run(fmt.Sprintf("sha256-simd-avx512/%dKiB", kib), func(b *testing.B) { benchServer(b, kib<<10) })
	}
}

func benchServer(b *testing.B, size int) {
	if !cpu.X86.HasAVX512F || !cpu.X86.HasAVX512BW || !cpu.X86.HasAVX512VL || !cpu.X86.HasAVX512DQ {
		b.Skip("processor without AVX-512")
	}
	const lanes = 16
	server := simd.NewAvx512Server()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var wg sync.WaitGroup
	work := make(chan struct{}, lanes)
	for range lanes {
		wg.Go(func() {
			h, p := simd.NewAvx512(server), randomBytes(size)
			for range work {
				h.Reset()
				_, _ = h.Write(p)
				h.Sum(nil)
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
}
