package merkle

import (
	"context"
	"maps"
	"path/filepath"
	"testing"
)

// repeatReader is a volume of any size of the same random 4 MiB, so that a
// benchmark measures hashing and not a disk.
type repeatReader struct{ data []byte }

func (r repeatReader) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		n += copy(p[n:], r.data[(off+int64(n))%int64(len(r.data)):])
	}
	return len(p), nil
}

func BenchmarkBuild(b *testing.B) {
	r := repeatReader{randomBytes(4 << 20)}
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		b.Run(a.String(), func(b *testing.B) {
			s := Shape{Size: 1 << 30, Leaf: DefaultLeaf, Algorithm: a}
			path := filepath.Join(b.TempDir(), "v")
			b.SetBytes(s.Size)
			b.ReportAllocs()
			for b.Loop() {
				f, _, err := Build(context.Background(), r, s, path, Options{})
				if err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchTree builds a tree over leaves of a TiB that are not zero here and there.
func benchTree(b *testing.B, set map[int64]Hash) *File {
	b.Helper()
	s := Shape{Size: 1 << 40, Leaf: DefaultLeaf, Algorithm: BLAKE3}
	t, err := Create(filepath.Join(b.TempDir(), "v"), s, Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := t.SetZero(Range{0, s.Leaves()}); err != nil {
		b.Fatal(err)
	}
	for i, h := range set {
		if err := t.SetLeaf(i, h); err != nil {
			b.Fatal(err)
		}
	}
	f, err := t.Seal(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return mustClose(b, f)
}

func scattered(k, n int64, tag byte) map[int64]Hash {
	set := map[int64]Hash{}
	for i := range k {
		set[i*(n/k)] = Hash{tag, byte(i), byte(i >> 8)}
	}
	return set
}

func BenchmarkUpdate(b *testing.B) {
	for name, k := range map[string]int64{"1": 1, "1000": 1000} {
		b.Run(name, func(b *testing.B) {
			f := benchTree(b, nil)
			sets := []map[int64]Hash{scattered(k, f.Shape().Leaves(), 1), scattered(k, f.Shape().Leaves(), 2)}
			b.ReportAllocs()
			b.ReportMetric(float64(int64(f.Shape().Levels())*k*FanOut), "nodes/op")
			for i := 0; b.Loop(); i++ {
				if _, err := f.Update(context.Background(), Epoch(i), ascending(sets[i%2])); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDiff(b *testing.B) {
	for name, k := range map[string]int64{"1": 1, "1000": 1000, "100000": 100000} {
		b.Run(name, func(b *testing.B) {
			set := scattered(k, 1<<24, 1)
			other := maps.Clone(set)
			for i := range set {
				other[i] = Hash{2, 2}
			}
			x, y := benchTree(b, set), benchTree(b, other)
			b.ReportAllocs()
			var stats DiffStats
			for b.Loop() {
				var err error
				if _, stats, err = Diff(context.Background(), x, y); err != nil || stats.Leaves != k {
					b.Fatal(stats, err)
				}
			}
			b.ReportMetric(float64(stats.Nodes), "nodes/op")
			b.ReportMetric(float64(stats.Batches), "requests/op")
		})
	}
}

// Streaming the leaf level with every group checked.
func BenchmarkLeaves(b *testing.B) {
	s := Shape{Size: 16 << 30, Leaf: DefaultLeaf, Algorithm: BLAKE3}
	leaves := make([]Hash, s.Leaves())
	for i := range leaves {
		leaves[i] = Hash{1, byte(i), byte(i >> 8), byte(i >> 16)}
	}
	t, err := Create(filepath.Join(b.TempDir(), "v"), s, Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := t.SetLeaves(0, leaves); err != nil {
		b.Fatal(err)
	}
	f, err := t.Seal(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	mustClose(b, f)
	buf := make([]Hash, 4096)
	b.SetBytes(s.Leaves() * HashSize)
	b.ReportMetric(float64(s.Leaves()), "nodes/op")
	b.ReportAllocs()
	for b.Loop() {
		for at := int64(0); ; {
			n, err := f.Leaves(context.Background(), at, buf)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
			at += int64(n)
		}
	}
}

func BenchmarkProve(b *testing.B) {
	f := benchTree(b, scattered(1000, 1<<24, 1))
	b.ReportAllocs()
	root := mustRoot(b, f)
	for b.Loop() {
		p, err := Prove(context.Background(), f, Range{16777, 16778})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Check(root, []Hash{p.leafOf(b, f)}); err != nil {
			b.Fatal(err)
		}
	}
}

// leafOf reads the one leaf that p is of.
func (p *Proof) leafOf(b *testing.B, f *File) Hash {
	var buf [1]Hash
	if _, err := f.Leaves(context.Background(), p.Range.First, buf[:]); err != nil {
		b.Fatal(err)
	}
	return buf[0]
}
