package cbt_test

import (
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
)

const benchSize = 1 << 40 // bytes: 1 TiB, 2^28 blocks

func benchMap(b *testing.B) *cbt.DirtyMap {
	m, err := cbt.NewDirtyMap(benchSize, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	return m
}

// BenchmarkMark marks 4 KiB blocks at random in 1 GiB: the pages exist.
func BenchmarkMark(b *testing.B) {
	m := benchMap(b)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		m.Mark(rng.Int64N(1<<30), 4096)
	}
}

// BenchmarkMarkHot marks one block that is dirty already.
func BenchmarkMarkHot(b *testing.B) {
	m := benchMap(b)
	for b.Loop() {
		m.Mark(4096, 4096)
	}
}

func BenchmarkMarkParallel(b *testing.B) {
	m := benchMap(b)
	var id atomic.Uint64
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(1, id.Add(1)))
		for pb.Next() {
			m.Mark(rng.Int64N(1<<30), 4096)
		}
	})
}

// BenchmarkMarkMiB marks runs of 1 MiB.
func BenchmarkMarkMiB(b *testing.B) {
	m := benchMap(b)
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		m.Mark(rng.Int64N(1<<30), 1<<20)
	}
}

// BenchmarkTakePutBack takes and puts back 1% of 1 TiB, scattered.
func BenchmarkTakePutBack(b *testing.B) {
	m := scattered(b)
	for b.Loop() {
		if err := m.PutBack(m.Take(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRuns goes through the runs of 1% of 1 TiB, scattered.
func BenchmarkRuns(b *testing.B) {
	m := scattered(b)
	n := 0
	for b.Loop() {
		n = 0
		for range m.Runs() {
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/run")
}

// BenchmarkMapWrite writes the map file of 1% of 1 TiB, scattered.
func BenchmarkMapWrite(b *testing.B) {
	m := scattered(b).Map()
	n := 0
	for range m.Runs() {
		n++
	}
	var bytes int64
	for b.Loop() {
		var err error
		if bytes, err = m.WriteTo(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(bytes)
	b.ReportMetric(float64(bytes)/float64(n), "bytes/run")
}

func scattered(b *testing.B) *cbt.DirtyMap {
	m := benchMap(b)
	rng := rand.New(rand.NewPCG(1, 1))
	for range benchSize / cbt.MinBlock / 100 {
		m.Mark(rng.Int64N(benchSize), 1)
	}
	return m
}

// BenchmarkWriteAt is what the tracker adds to a write.
func BenchmarkWriteAt(b *testing.B) {
	w, err := cbt.Wrap(nowhere{}, benchSize, cbt.WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4096)
	b.ReportAllocs()
	var off int64
	for b.Loop() {
		if _, err := w.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
		off = (off + 4096) % (1 << 30)
	}
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
