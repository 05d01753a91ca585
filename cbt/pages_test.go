package cbt

import (
	"iter"
	"slices"
	"testing"
)

// pagesOf returns how many pages of the planes exist.
func pagesOf(m *DirtyMap) int {
	n := 0
	for _, pl := range []plane{m.dirty, m.discarded} {
		for i := range pl {
			if pl[i].Load() != nil {
				n++
			}
		}
	}
	return n
}

// TestMemoryFollowsWhatIsDirty counts pages through the life of a map: none
// at first, one for a block, none after a take, and those that come back.
func TestMemoryFollowsWhatIsDirty(t *testing.T) {
	const size = 2 << 40 // the largest in blocks of 4 KiB
	m, err := NewDirtyMap(size, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := func(n int, when string) {
		t.Helper()
		if got := pagesOf(m); got != n {
			t.Errorf("%s: %d pages, want %d", when, got, n)
		}
	}
	const pageBytes = pageBlocks * MinBlock
	want(0, "new")
	m.Mark(0, 1)
	m.Mark(3*pageBytes-1, 2)
	m.Discard(9*pageBytes, MinBlock)
	want(4, "four pages touched")
	taken := m.Take()
	want(0, "taken")
	if err := m.PutBack(taken, []Extent{{0, pageBytes}}); err != nil {
		t.Fatal(err)
	}
	want(3, "put back but for the first")
	for off := int64(0); off < size; off += pageBytes {
		m.Mark(off, 1)
	}
	want(int(size/pageBytes)+1, "a block dirty in every page")
	if bytes := size / pageBytes * pageWords * 8; bytes != 64<<20 {
		t.Errorf("a plane takes %d bytes at most, the design says 64 MiB", bytes)
	}
}

// TestDiscardDuringTake stands in the middle of a take, where only its number
// shows: a discard that begins or ends there must count as dirty.
func TestDiscardDuringTake(t *testing.T) {
	for _, c := range []struct {
		name          string
		before, while bool // whether a take begins before, or while, the discard runs
	}{{"begins in a take", true, false}, {"ends in a take", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			m, err := NewDirtyMap(1<<20, 0)
			if err != nil {
				t.Fatal(err)
			}
			if c.before {
				m.takes.Add(1)
			}
			takes := m.begin(Discarded, 0, MinBlock)
			if c.while {
				m.takes.Add(1)
			}
			m.done(takes, Discarded, 0, MinBlock)
			if got := m.State(0); got != Dirty {
				t.Errorf("L1: state is %v", got)
			}
		})
	}
}

// TestWriteEndsBeforeTake: a write that ends while a take is under way has
// landed before that take returns. It needs no second mark.
func TestWriteEndsBeforeTake(t *testing.T) {
	for _, beginsWithin := range []bool{false, true} {
		m, err := NewDirtyMap(1<<20, 0)
		if err != nil {
			t.Fatal(err)
		}
		if beginsWithin {
			m.takes.Add(1)
		}
		takes := m.begin(Dirty, 0, 1)
		if !beginsWithin {
			m.takes.Add(1)
		}
		m.dirty.take() // the pages are read after the mark
		m.done(takes, Dirty, 0, 1)
		if got := m.State(0); got != Clean {
			t.Errorf("begins within the take %v: state is %v", beginsWithin, got)
		}
	}
}

func TestPackRunsCoarsens(t *testing.T) {
	runs := []blockRun{{0, 1, Discarded}, {1, 2, Dirty}, {4, 5, Discarded}, {6, 7, Discarded}, {100, 101, Dirty}}
	for limit, want := range map[int][]blockRun{
		9: runs,
		5: runs,
		4: {{0, 2, Dirty}, {4, 5, Discarded}, {6, 7, Discarded}, {100, 101, Dirty}},
		3: {{0, 2, Dirty}, {4, 7, Dirty}, {100, 101, Dirty}},
		2: {{0, 7, Dirty}, {100, 101, Dirty}},
		1: {{0, 101, Dirty}},
	} {
		packed := packRuns(limit, func() iter.Seq[blockRun] { return slices.Values(runs) })
		got := slices.Collect((&Map{runs: packed}).blockRuns())
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: got %v, want %v", limit, got, want)
		}
	}
	if got := packRuns(1, func() iter.Seq[blockRun] { return slices.Values([]blockRun(nil)) }); len(got) != 0 {
		t.Errorf("nothing packs to %v", got)
	}
}
