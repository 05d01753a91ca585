package ebpf

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
)

// newPlanes is planes in memory of this process.
func newPlanes(size int64) *planes {
	n := wordsOf(uint64(size/sector), 3)
	return &planes{
		size: size, block: cbt.MinBlock,
		dirty: make([]uint64, n), discarded: make([]uint64, n), held: make([]uint64, n),
	}
}

func TestRunsOfWords(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		words := make([]uint64, 1+rng.IntN(4))
		for i := range words {
			switch rng.IntN(4) {
			case 0: // empty
			case 1:
				words[i] = ^uint64(0)
			case 2:
				words[i] = rng.Uint64()
			case 3:
				words[i] = rng.Uint64() & rng.Uint64() & rng.Uint64()
			}
		}
		bit := func(i int64) bool { return words[i/64]>>(i%64)&1 == 1 }
		var want, got [][2]int64
		for i := range int64(len(words)) * 64 {
			switch n := len(want); {
			case !bit(i):
			case n > 0 && want[n-1][1] == i:
				want[n-1][1]++
			default:
				want = append(want, [2]int64{i, i + 1})
			}
		}
		for first, end := range runsOf(len(words), func(i int) uint64 { return words[i] }) {
			got = append(got, [2]int64{first, end})
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%x: got %v, want %v", words, got, want)
		}
	}
}

// held is the shadow of what user space has: nothing less, and after a put back
// nothing more.
func TestHeldIsAShadow(t *testing.T) {
	const size = 300*cbt.MinBlock - sector
	p, rng := newPlanes(size), rand.New(rand.NewPCG(3, 4))
	m, err := cbt.NewDirtyMap(size, cbt.MinBlock)
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		off := rng.Int64N(size)
		p.mark(cbt.Extent{Off: off, End: min(size, off+1+rng.Int64N(20*cbt.MinBlock))})
		p.move(m)
		taken := m.Take()
		shadow(t, p, m, false)
		off = rng.Int64N(size)
		if err := m.PutBack(taken, []cbt.Extent{{Off: off, End: size}}); err != nil {
			t.Fatal(err)
		}
		p.hold(m.Runs())
		shadow(t, p, m, true)
	}
}

func shadow(t *testing.T, p *planes, m *cbt.DirtyMap, equal bool) {
	t.Helper()
	back, err := cbt.NewDirtyMap(p.size, p.block)
	if err != nil {
		t.Fatal(err)
	}
	p.heldTo(back)
	held, want := back.Map().Extents(), m.Map().Extents()
	if missing := cbt.Subtract(want, held); len(missing) > 0 {
		t.Fatalf("not held: %v", missing)
	}
	if more := cbt.Subtract(held, want); equal && len(more) > 0 {
		t.Fatalf("held and proven: %v", more)
	}
}

// A discard and then a write of one block, while bits are moved: the last word on
// the block is dirty, in whichever move each of the two is.
func TestDiscardThenWrite(t *testing.T) {
	const blocks = 1 << 21
	p := newPlanes(blocks * cbt.MinBlock)
	m, err := cbt.NewDirtyMap(p.size, p.block)
	if err != nil {
		t.Fatal(err)
	}
	last := map[int64]cbt.State{}
	take := func() {
		p.move(m)
		for r := range m.Take().Runs() {
			for b := r.Off / p.block; b*p.block < r.End; b++ {
				last[b] = r.State
			}
		}
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for b := range int64(2000) {
			b *= blocks / 2000
			atomic.OrUint64(&p.discarded[b/64], 1<<(b%64))
			atomic.OrUint64(&p.dirty[b/64], 1<<(b%64))
			runtime.Gosched()
		}
	}()
	for running := true; running; {
		select {
		case <-over:
			running = false
		default:
		}
		take()
	}
	take()
	for b, s := range last {
		if s != cbt.Dirty {
			t.Fatalf("the last word on block %d is %v", b, s)
		}
	}
	if len(last) != 2000 {
		t.Errorf("%d blocks reported, want 2000", len(last))
	}
}
