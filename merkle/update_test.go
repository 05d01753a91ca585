package merkle

import (
	"context"
	"errors"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// buildFile builds a tree file over a volume, open for updating.
func buildFile(t testing.TB, s Shape, volume []byte) *File {
	t.Helper()
	f, _, err := Build(context.Background(), sliceReader(volume), s, filepath.Join(t.TempDir(), "v.fbt"), Options{Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	return mustClose(t, f)
}

// Many updates in a row lead to what a build of the changed volume leads to.
func TestUpdateAgainstNaive(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{1, 16, 17, 300, 4097} {
		s := Shape{Size: (n-1)*4096 + 512, Leaf: 4096, Algorithm: BLAKE3}
		var d disk = newCrashDisk(1) // in memory: there are thousands of syncs
		if n == 300 {
			d = osDisk{}
		}
		path := filepath.Join(t.TempDir(), "v")
		f, _, err := Build(context.Background(), sliceReader(make([]byte, s.Size)), s, path, Options{disk: d})
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, f)
		leaves := newNaive(s, make([]byte, s.Size)).levels[0]
		h, epoch := mustHasher(t, s), Epoch(1)
		check := func(t *rapid.T) {
			epoch++
			change := rapid.MapOfN(rapid.Int64Range(0, n-1), rapid.Byte(), 0, 40).Draw(t, "change")
			set := map[int64]Hash{}
			for i, b := range change {
				set[i] = h.Zero(0, i)
				if b > 0 {
					e := s.LeafExtent(i)
					data := make([]byte, e.End-e.Off)
					data[0] = b
					set[i] = h.Leaf(data)
				}
				leaves[i] = set[i]
			}
			root, err := f.Update(context.Background(), epoch, ascending(set))
			if err != nil {
				t.Fatal(err)
			}
			tree, err := NewTree(s, slices.Clone(leaves))
			if err != nil {
				t.Fatal(err)
			}
			if root != tree.root || f.hdr.root != root || f.Epoch() != epoch {
				t.Fatalf("root %v, tree in memory %v, epoch %d", root, tree.root, f.Epoch())
			}
			if err := f.Verify(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		rapid.Check(t, check)
		if _, err := d.open(path+journalSuffix, os.O_RDONLY); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("journal stays: %v", err)
		}
		g, err := openFile(d, path, false)
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, g)
		if mustRoot(t, g) != mustRoot(t, f) || g.Epoch() != epoch {
			t.Errorf("opened again: epoch %d", g.Epoch())
		}
	}
}

// countingMedia counts what is read and written.
type countingMedia struct {
	media
	reads, readBytes, written int64
}

func (m *countingMedia) ReadAt(p []byte, off int64) (int, error) {
	m.reads++
	m.readBytes += int64(len(p))
	return m.media.ReadAt(p, off)
}

func (m *countingMedia) WriteAt(p []byte, off int64) (int, error) {
	m.written += int64(len(p))
	return m.media.WriteAt(p, off)
}

// An update costs k·log n, whatever the volume.
func TestUpdateCost(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 1 << 40, Leaf: 64 << 10, Algorithm: BLAKE3}
	b, err := Create(filepath.Join(t.TempDir(), "v"), s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetZero(Range{0, s.Leaves()}); err != nil {
		t.Fatal(err)
	}
	f, err := b.Seal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	for _, k := range []int64{1, 100} {
		set := map[int64]Hash{}
		for i := range k {
			set[i*(s.Leaves()/k)] = Hash{1, byte(k), byte(i)}
		}
		for range 2 { // over zeroes, then over what is there
			m := &countingMedia{media: f.st.m}
			for f.checkers.Get() != nil { // they would read past the count
			}
			f.st.m = m
			if _, err := f.Update(context.Background(), 2, ascending(set)); err != nil {
				t.Fatal(err)
			}
			f.st.m = m.media
			groups := k*int64(s.Levels()) + 2
			if m.reads > groups || m.readBytes > groups*FanOut*HashSize || m.written > groups*HashSize+2*hdrSector {
				t.Errorf("%d leaves of %d levels: %d reads, %d bytes, %d written", k, s.Levels(), m.reads, m.readBytes, m.written)
			}
			for i := range set {
				set[i] = Hash{2, byte(k), byte(i)}
			}
		}
	}
}

func TestUpdateRefuses(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 300 * 4096, Leaf: 4096, Algorithm: SHA256}
	volume := testVolume(s, 1)
	f := buildFile(t, s, volume)
	want := newNaive(s, volume)
	ctx, cancel := context.WithCancel(context.Background())
	pairs := func(index ...int64) iter.Seq2[int64, Hash] {
		return func(yield func(int64, Hash) bool) {
			for _, i := range index {
				if !yield(i, Hash{5}) {
					return
				}
			}
		}
	}
	for name, leaves := range map[string]iter.Seq2[int64, Hash]{
		"descending": pairs(5, 4),
		"twice":      pairs(5, 5),
		"negative":   pairs(-1),
		"outside":    pairs(1, 300),
		"no hash":    maps.All(map[int64]Hash{3: {}}),
		"cancelled": func(yield func(int64, Hash) bool) {
			cancel()
			yield(0, Hash{5})
		},
	} {
		c := context.Background()
		if name == "cancelled" {
			c = ctx
		}
		if _, err := f.Update(c, 2, leaves); err == nil {
			t.Errorf("%s: no error", name)
		}
		checkSame(t, f, want)
		if f.Epoch() != 1 {
			t.Errorf("%s: epoch %d", name, f.Epoch())
		}
	}
	reader, err := Open(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Update(context.Background(), 2, pairs(1)); !errors.Is(err, ErrReadOnly) {
		t.Errorf("update of a file open for reading: %v", err)
	}
	if _, err := f.Update(context.Background(), 2, pairs(1)); !errors.Is(err, ErrInUse) {
		t.Errorf("update of a file that is being read: %v", err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Update(context.Background(), 2, pairs(1)); err != nil {
		t.Errorf("update once the reader is gone: %v", err)
	}
}

// The update journal's bounds hold against bytes that no update made.
func TestJournalBounds(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 300 * 4096, Leaf: 4096, Algorithm: SHA256}
	lay := s.layout()
	node := []Hash{{1}}
	for name, rec := range map[string]struct {
		level int
		first int64
		nodes []Hash
		ok    bool
	}{
		"good":          {1, 18, node, true},
		"full group":    {0, 16, make([]Hash, 16), true},
		"level":         {4, 0, node, false},
		"first":         {1, 19, node, false},
		"negative":      {0, -1, node, false},
		"no nodes":      {0, 0, nil, false},
		"across groups": {0, 15, make([]Hash, 2), false},
		"across end":    {0, 299, make([]Hash, 2), false},
	} {
		d := newCrashDisk(1)
		j, err := newJournalWriter(d, "j")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(j.record(rec.level, rec.first, rec.nodes), j.end(journalEnd{old: Hash{1}, new: Hash{2}})); err != nil {
			t.Fatal(err)
		}
		applied := 0
		_, err = readJournal(d, "j", &lay, func(int, int64, []Hash) error { applied++; return nil })
		if (err == nil) != rec.ok || (applied > 0) != rec.ok || (err != nil && !errors.Is(err, ErrCorrupt)) {
			t.Errorf("%s: applied %d, %v", name, applied, err)
		}
	}
}
