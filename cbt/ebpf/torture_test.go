package ebpf

import (
	"bytes"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/failback/failback/cbt"
)

const (
	tortureSize    = 64 << 20 // bytes
	tortureWriters = 4
	tortureRounds  = 100
)

// A session in small, on real devices at full speed: it copies what is taken
// while the device is written, proves some of it, and has the same bytes in the
// end.
func TestTorture(t *testing.T) {
	t.Parallel()
	needKernel(t)
	t.Run("loop", func(t *testing.T) {
		t.Parallel()
		torture(t, newLoop(t, makeFile(t, scratch(t)+"/disk", tortureSize), 0))
	})
	t.Run("zram", func(t *testing.T) { t.Parallel(); torture(t, newZram(t, tortureSize)) })
}

func torture(t *testing.T, path string) {
	tr := sealed(t, path, Options{}, 2)
	r := &replica{t: t, tr: tr, dev: openFile(t, path, os.O_RDWR|unixDirect), data: aligned(tortureSize), rng: rand.New(rand.NewPCG(1, 9))}
	if _, err := r.dev.ReadAt(r.data, 0); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	var writers sync.WaitGroup
	for id := range uint64(tortureWriters) {
		writers.Go(func() { r.write(rand.New(rand.NewPCG(id, 3)), over) })
	}
	for range tortureRounds {
		r.round(false)
	}
	close(over)
	writers.Wait()
	r.round(true)
	now := aligned(tortureSize)
	if _, err := r.dev.ReadAt(now, 0); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < tortureSize; off += int(cbt.MinBlock) {
		if !bytes.Equal(now[off:off+int(cbt.MinBlock)], r.data[off:off+int(cbt.MinBlock)]) {
			t.Fatalf("the copy differs at %#x", off)
		}
	}
	s := mustStatus(t, tr)
	t.Logf("%d rounds of %d MiB each beside %d writes, %d strangers", tortureRounds, r.copied/tortureRounds>>20, s.Writes, tr.rec.get(offStrangers))
}

type replica struct {
	t      *testing.T
	tr     *Tracker
	dev    *os.File
	data   []byte
	rng    *rand.Rand
	copied int64
}

// round copies what is taken. All but the last leave some out.
func (r *replica) round(last bool) {
	r.t.Helper()
	taken := mustTake(r.t, r.tr, 2)
	var proven []cbt.Extent
	for run := range taken.Runs() {
		if !last && r.rng.IntN(8) == 0 {
			continue
		}
		if _, err := r.dev.ReadAt(r.data[run.Off:run.End], run.Off); err != nil {
			r.t.Fatal(err)
		}
		r.copied += run.Len()
		proven = append(proven, run.Extent)
	}
	mustPutBack(r.t, r.tr, taken, proven...)
}

// write writes and discards until all is over.
func (r *replica) write(rng *rand.Rand, over <-chan struct{}) {
	p := aligned(64 << 10)
	for {
		select {
		case <-over:
			return
		default:
		}
		n := int64(4096 * (1 + rng.IntN(16)))
		off := rng.Int64N((tortureSize-n)>>12) << 12
		var err error
		if rng.IntN(50) == 0 {
			err = discardRange(r.dev, off, n)
		} else {
			for i := 0; i < int(n); i += 512 {
				p[i] = byte(rng.Uint32())
			}
			_, err = r.dev.WriteAt(p[:n], off)
		}
		if err != nil {
			r.t.Error(err)
			return
		}
	}
}
