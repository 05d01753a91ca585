package failback

import (
	"fmt"
	"testing"
)

func TestAllZero(t *testing.T) {
	naive := func(p []byte) bool {
		for _, c := range p {
			if c != 0 {
				return false
			}
		}
		return true
	}
	for _, n := range []int{0, 1, 2, 7, 8, 9, 512, 4095, 4096, 4097, 8192, 12289, 64 << 10} {
		p := shifted(n, 3)
		if !allZero(p) {
			t.Errorf("%d zeroes are not zero", n)
		}
		for _, at := range []int{0, 1, n / 3, n / 2, 4095, 4096, n - 2, n - 1} {
			if at < 0 || at >= n {
				continue
			}
			p[at] = 1
			if allZero(p) != naive(p) {
				t.Errorf("%d bytes with a one at %d", n, at)
			}
			p[at] = 0
		}
	}
	if !allZero(zeroes()) || len(zeroes()) != zeroChunk || addr(zeroes())&4095 != 0 {
		t.Error("zeroes are not")
	}
}

func FuzzAllZero(f *testing.F) {
	f.Add([]byte{}, 0)
	f.Add([]byte{0, 0, 1}, 5000)
	f.Fuzz(func(t *testing.T, p []byte, pad int) {
		sum := 0
		for _, c := range p {
			sum += int(c)
		}
		p = append(make([]byte, max(0, pad)%20000), p...)
		if allZero(p) != (sum == 0) {
			t.Errorf("allZero of %d bytes with sum %d: %v", len(p), sum, allZero(p))
		}
	})
}

func BenchmarkAllZero(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20} {
		for _, zero := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dKiB,zero=%v", n>>10, zero), func(b *testing.B) {
				p := make([]byte, n)
				if !zero {
					p[n/4] = 1
				}
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					if allZero(p) != zero {
						b.Fatal("wrong")
					}
				}
			})
		}
	}
}
