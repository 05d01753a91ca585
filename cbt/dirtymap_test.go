package cbt_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
	"pgregory.net/rapid"
)

func TestBlockSize(t *testing.T) {
	const TiB = 1 << 40
	for size, want := range map[int64]int64{
		1: 4 << 10, 2 * TiB: 4 << 10, 2*TiB + 1: 8 << 10, 4 * TiB: 8 << 10,
		16 * TiB: 32 << 10, 512 * TiB: 1 << 20, math.MaxInt64: 1 << 20,
	} {
		if got := cbt.BlockSize(size); got != want {
			t.Errorf("BlockSize(%d) = %d, want %d", size, got, want)
		}
	}
}

func TestNewDirtyMapRefuses(t *testing.T) {
	for _, c := range []struct{ size, block int64 }{
		{0, 4096}, {-1, 4096}, {1 << 20, 2048}, {1 << 20, 2 << 20}, {1 << 20, 12288}, {1 << 20, -4096},
		{2<<40 + 1, 4096}, {512<<40 + 1, 0}, {math.MaxInt64, 1 << 20}, {math.MaxInt64, 0},
	} {
		if m, err := cbt.NewDirtyMap(c.size, c.block); err == nil {
			t.Errorf("size %d, block %d: got a map of blocks of %d", c.size, c.block, m.Block())
		}
	}
}

// modelBlocks is a page and a bit, and ends in a short block.
const (
	modelBlocks = 32768 + 70
	modelSize   = modelBlocks*cbt.MinBlock - 1000
)

// model is the naive dirty map: a state for each block.
type model struct {
	live []cbt.State
	out  []modelTake
}

type modelTake struct {
	taken  *cbt.Taken
	states []cbt.State
	stale  bool // there was a later take
}

func (m *model) raise(block int64, s cbt.State) {
	if m.live[block] != cbt.Dirty && s != cbt.Clean {
		m.live[block] = s
	}
}

// add marks or discards e, block by block.
func (m *model) add(e cbt.Extent, s cbt.State) {
	for b := max(0, e.Off/cbt.MinBlock-1); b < min(modelBlocks, e.End/cbt.MinBlock+1); b++ {
		block := cbt.Extent{Off: b * cbt.MinBlock, End: min((b+1)*cbt.MinBlock, modelSize)}
		switch {
		case !block.Overlaps(e):
		case s == cbt.Discarded && e.Off <= block.Off && block.End <= e.End:
			m.raise(b, cbt.Discarded)
		default:
			m.raise(b, cbt.Dirty)
		}
	}
}

// unproven returns the runs of what is live or out.
func (m *model) unproven() []cbt.Run {
	all := model{live: slices.Clone(m.live)}
	for _, o := range m.out {
		all.join(o, nil)
	}
	return runsOf(all.live)
}

// join puts a take back but for what is proven.
func (m *model) join(o modelTake, proven []cbt.Extent) {
	for b, s := range o.states {
		e := []cbt.Extent{{Off: int64(b) * cbt.MinBlock, End: min(int64(b+1)*cbt.MinBlock, modelSize)}}
		if s == cbt.Clean || proven != nil && len(cbt.Subtract(e, proven)) == 0 {
			continue
		}
		if o.stale {
			s = cbt.Dirty
		}
		m.raise(int64(b), s)
	}
}

func runsOf(states []cbt.State) []cbt.Run {
	var out []cbt.Run
	for b, s := range states {
		off, end := int64(b)*cbt.MinBlock, min(int64(b+1)*cbt.MinBlock, modelSize)
		switch n := len(out); {
		case s == cbt.Clean:
		case n > 0 && out[n-1].End == off && out[n-1].State == s:
			out[n-1].End = end
		default:
			out = append(out, cbt.Run{Extent: cbt.Extent{Off: off, End: end}, State: s})
		}
	}
	return out
}

// drawExtent draws extents around the edges of words, pages and the volume.
func drawExtent(t *rapid.T) cbt.Extent {
	edge := func(name string) int64 {
		at := rapid.SampledFrom([]int64{0, 64, 32768, modelBlocks - 1, modelBlocks}).Draw(t, name)
		byBlocks := rapid.Int64Range(-3, 66).Draw(t, name+" blocks")
		return (at+byBlocks)*cbt.MinBlock + rapid.SampledFrom([]int64{-1, 0, 0, 1}).Draw(t, name+" bytes")
	}
	a, b := edge("a"), edge("b")
	return cbt.Extent{Off: min(a, b), End: max(a, b)}
}

func TestDirtyMapAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fast, err := cbt.NewDirtyMap(modelSize, cbt.MinBlock)
		if err != nil {
			t.Fatal(err)
		}
		naive := model{live: make([]cbt.State, modelBlocks)}
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(t *rapid.T) {
				e := drawExtent(t)
				fast.Mark(e.Off, e.Len())
				naive.add(e, cbt.Dirty)
			},
			"discard": func(t *rapid.T) {
				e := drawExtent(t)
				fast.Discard(e.Off, e.Len())
				naive.add(e, cbt.Discarded)
			},
			"take": func(t *rapid.T) {
				for i := range naive.out {
					naive.out[i].stale = true
				}
				o := modelTake{taken: fast.Take(), states: naive.live}
				naive.live = make([]cbt.State, modelBlocks)
				naive.out = append(naive.out, o)
				if got, want := slices.Collect(o.taken.Runs()), runsOf(o.states); !slices.Equal(got, want) {
					t.Fatalf("took %v, want %v", got, want)
				}
				compareBytes(t, o.taken.Bytes, runsOf(o.states))
			},
			"put back": func(t *rapid.T) {
				if len(naive.out) == 0 {
					t.Skip("nothing is out")
				}
				i := rapid.IntRange(0, len(naive.out)-1).Draw(t, "which")
				proven := []cbt.Extent{drawExtent(t), drawExtent(t)}
				if err := fast.PutBack(naive.out[i].taken, proven); err != nil {
					t.Fatal(err)
				}
				naive.join(naive.out[i], cbt.Normalize(proven))
				naive.out = slices.Delete(naive.out, i, i+1)
			},
			"compare": func(t *rapid.T) { compareMaps(t, fast, &naive) },
		})
		compareMaps(t, fast, &naive)
	})
}

func compareMaps(t *rapid.T, fast *cbt.DirtyMap, naive *model) {
	t.Helper()
	want := naive.unproven()
	if got := slices.Collect(fast.Runs()); !slices.Equal(got, want) {
		t.Fatalf("runs %v, want %v", got, want)
	}
	m := fast.Map()
	if got := slices.Collect(m.Runs()); !slices.Equal(got, want) {
		t.Fatalf("map %v, want %v", got, want)
	}
	compareBytes(t, m.Bytes, want)
	compareBytes(t, fast.Bytes, runsOf(naive.live))
	b := rapid.Int64Range(0, modelBlocks-1).Draw(t, "block")
	if got := fast.State(b * cbt.MinBlock); got != naive.live[b] {
		t.Fatalf("state of block %d is %v, want %v", b, got, naive.live[b])
	}
}

func compareBytes(t *rapid.T, fast func() (dirty, discarded int64), runs []cbt.Run) {
	t.Helper()
	var want [3]int64
	for _, r := range runs {
		want[r.State] += r.Len()
	}
	if dirty, discarded := fast(); dirty != want[cbt.Dirty] || discarded != want[cbt.Discarded] {
		t.Fatalf("%d dirty and %d discarded bytes, want %d and %d", dirty, discarded, want[cbt.Dirty], want[cbt.Discarded])
	}
}

// TestConcurrentMarks marks from several goroutines while another takes: each
// marked block must be taken, and nothing else (L1).
func TestConcurrentMarks(t *testing.T) {
	const blocks = 3 * 32768
	m, err := cbt.NewDirtyMap(blocks*cbt.MinBlock, cbt.MinBlock)
	if err != nil {
		t.Fatal(err)
	}
	var marked [blocks]atomic.Bool
	var group sync.WaitGroup
	for id := range uint64(4) {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(1, id))
			for range 20_000 {
				// Few pages, few words: they collide, with each other and with takes.
				b := rng.Int64N(3)*32768 + rng.Int64N(300)
				marked[b].Store(true)
				m.Mark(b*cbt.MinBlock, 1)
			}
		})
	}
	stop := make(chan struct{})
	go func() { group.Wait(); close(stop) }()

	taken := make([]bool, blocks)
	take := func() {
		t := m.Take()
		defer m.PutBack(t, []cbt.Extent{{Off: 0, End: m.Size()}}) // t is out
		for r := range t.Runs() {
			for b := r.Off / cbt.MinBlock; b < r.End/cbt.MinBlock; b++ {
				taken[b] = true
			}
		}
	}
	for running := true; running; {
		select {
		case <-stop:
			running = false
		default:
		}
		take()
	}
	for b := range taken {
		if taken[b] != marked[b].Load() {
			t.Fatalf("block %d: marked %v, taken %v", b, marked[b].Load(), taken[b])
		}
	}
}

// TestMarkNeverFallsBetweenTakes marks a page and takes at once, over and
// over: every block must be in that take or in the one after. A page takes
// long to mark, so that a take often falls into it.
func TestMarkNeverFallsBetweenTakes(t *testing.T) {
	const size = 32768 * cbt.MinBlock
	m, err := cbt.NewDirtyMap(size, cbt.MinBlock)
	if err != nil {
		t.Fatal(err)
	}
	all := []cbt.Extent{{Off: 0, End: size}}
	split := 0
	for round := range 3_000 {
		var group sync.WaitGroup
		started := make(chan struct{})
		group.Go(func() { close(started); m.Mark(0, size) })
		<-started
		first := m.Take()
		group.Wait()
		second := m.Take()
		a, b := first.Extents(), second.Extents()
		if missing := cbt.Subtract(all, cbt.Union(a, b)); len(missing) > 0 {
			t.Fatalf("round %d: %v is in no take", round, missing)
		}
		if len(a) > 0 && len(b) > 0 {
			split++
		}
		if err := errors.Join(m.PutBack(first, all), m.PutBack(second, all)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d takes fell into a mark", split)
}

func TestOutOfTheVolume(t *testing.T) {
	const size = 10*cbt.MinBlock + 1
	for _, c := range []struct {
		off, n int64
		want   cbt.Extent
	}{
		{math.MinInt64, math.MaxInt64, cbt.Extent{}},
		{-1, math.MaxInt64, cbt.Extent{Off: 0, End: size}},
		{math.MaxInt64, math.MaxInt64, cbt.Extent{}},
		{size - 1, math.MaxInt64, cbt.Extent{Off: 10 * cbt.MinBlock, End: size}},
		{-cbt.MinBlock, cbt.MinBlock, cbt.Extent{}},
		{-1, 2, cbt.Extent{Off: 0, End: cbt.MinBlock}},
		{size, 1, cbt.Extent{}}, {0, 0, cbt.Extent{}}, {0, math.MinInt64, cbt.Extent{}},
	} {
		for _, s := range []cbt.State{cbt.Dirty, cbt.Discarded} {
			m, err := cbt.NewDirtyMap(size, cbt.MinBlock)
			if err != nil {
				t.Fatal(err)
			}
			if s == cbt.Dirty {
				m.Mark(c.off, c.n)
			} else {
				m.Discard(c.off, c.n)
			}
			taken := m.Take()
			if got := cbt.Normalize([]cbt.Extent{c.want}); !slices.Equal(taken.Extents(), got) {
				t.Errorf("%v of %d bytes at %d: took %v, want %v", s, c.n, c.off, taken.Extents(), got)
			}
			// Proven is as open to nonsense.
			if err := m.PutBack(taken, []cbt.Extent{{Off: c.off, End: c.n}, {Off: math.MinInt64, End: math.MaxInt64}}); err != nil {
				t.Error(err)
			}
			if dirty, discarded := m.Bytes(); dirty+discarded != 0 {
				t.Errorf("%d dirty and %d discarded bytes came back", dirty, discarded)
			}
		}
	}
	m, err := cbt.NewDirtyMap(size, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Mark(0, size)
	if m.State(-1) != cbt.Clean || m.State(size) != cbt.Clean || m.State(size-1) != cbt.Dirty {
		t.Errorf("states %v, %v, %v at -1, %d, %d", m.State(-1), m.State(size), m.State(size-1), size, size-1)
	}
}

func TestStateString(t *testing.T) {
	for s, want := range map[cbt.State]string{cbt.Clean: "clean", cbt.Dirty: "dirty", cbt.Discarded: "discarded", 9: "state(9)"} {
		if s.String() != want {
			t.Errorf("State(%d).String() = %q, want %q", uint8(s), s.String(), want)
		}
	}
	r := cbt.Run{Extent: cbt.Extent{Off: 0, End: 4096}, State: cbt.Discarded}
	if got, want := r.String(), "[0x0,0x1000) discarded"; got != want {
		t.Errorf("Run.String() = %q, want %q", got, want)
	}
}

// TestAddUnknownState: a state that this build does not know is a doubt (L1).
func TestAddUnknownState(t *testing.T) {
	m, err := cbt.NewDirtyMap(1<<20, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Add(cbt.Run{Extent: cbt.Extent{Off: 0, End: 1}, State: 7})
	m.Add(cbt.Run{Extent: cbt.Extent{Off: 9 * cbt.MinBlock, End: 10 * cbt.MinBlock}, State: cbt.Clean})
	if got, want := m.Take().Extents(), []cbt.Extent{{Off: 0, End: cbt.MinBlock}}; !slices.Equal(got, want) {
		t.Errorf("took %v, want %v", got, want)
	}
}
