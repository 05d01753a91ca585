package merkle

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestBuilderRandomOrder(t *testing.T) {
	t.Parallel()
	s := Shape{Size: (2*chunkLeaves + 77) * 4096, Leaf: 4096, Algorithm: SHA256}
	volume := testVolume(s, 9)
	want := newNaive(s, volume)
	b, err := Create(filepath.Join(t.TempDir(), "v"), s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	order := rand.New(rand.NewPCG(5, 5)).Perm(int(s.Leaves()))
	var wg sync.WaitGroup
	for w := range 4 {
		h := b.Hasher()
		wg.Go(func() {
			for _, i := range order[w*len(order)/4 : (w+1)*len(order)/4] {
				e := s.LeafExtent(int64(i))
				if err := b.SetLeaf(int64(i), h.Leaf(volume[e.Off:e.End])); err != nil {
					t.Error(err)
				}
				if i%1000 == 0 {
					if err := b.Checkpoint(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	f, err := b.Seal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, mustClose(t, f), want)
	if err := errors.Join(b.Close(), b.Discard()); err != nil {
		t.Error(err)
	}
	if err := b.SetLeaf(0, want.levels[0][0]); !errors.Is(err, errSealed) {
		t.Errorf("set after seal: %v", err)
	}
	if _, err := b.Seal(context.Background()); !errors.Is(err, errSealed) {
		t.Errorf("seal after seal: %v", err)
	}
}

// Any sequence of sets is what the last of each leaf says.
func TestBuilderModel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 9000).Draw(t, "leaves")
		s := Shape{Size: n * 4096, Leaf: 4096, Algorithm: BLAKE3}
		b, err := Create(filepath.Join(dir, "v"), s, Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Discard() // nothing if sealed
		h := b.Hasher()
		model := make([]Hash, n)
		for range rapid.IntRange(0, 30).Draw(t, "sets") {
			first := rapid.Int64Range(0, n-1).Draw(t, "first")
			r := Range{first, min(n, first+rapid.Int64Range(1, 6000).Draw(t, "count"))}
			how := rapid.IntRange(0, 2).Draw(t, "how")
			for i := r.First; i < r.End; i++ {
				if model[i] = h.Zero(0, i); how == 0 {
					model[i] = Hash{1, byte(i), byte(i >> 8)}
				}
			}
			if how == 2 {
				err = b.SetZero(r)
			} else {
				err = b.SetLeaves(first, model[r.First:r.End])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var missing []Range
		for i := range n {
			if model[i] != (Hash{}) {
				continue
			}
			if k := len(missing); k > 0 && missing[k-1].End == i {
				missing[k-1].End++
			} else {
				missing = append(missing, Range{i, i + 1})
			}
		}
		if got := slices.Collect(b.Missing()); !slices.Equal(got, missing) {
			t.Fatalf("missing %v, want %v", got, missing)
		}
		if len(missing) > 0 {
			if _, err := b.Seal(context.Background()); !errors.Is(err, errUnset) {
				t.Fatalf("sealed with leaves missing: %v", err)
			}
		}
		for _, r := range missing {
			if err := b.SetZero(r); err != nil {
				t.Fatal(err)
			}
			for i := r.First; i < r.End; i++ {
				model[i] = h.Zero(0, i)
			}
		}
		f, err := b.Seal(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // read only
		tree, err := NewTree(s, model)
		if err != nil {
			t.Fatal(err)
		}
		if f.hdr.root != tree.root {
			t.Fatalf("root %v, tree in memory %v", f.hdr.root, tree.root)
		}
		if err := f.Verify(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 1 << 20, Leaf: 4096, Algorithm: BLAKE3}
	path := filepath.Join(t.TempDir(), "v")
	for name, c := range map[string]struct {
		s Shape
		o Options
	}{
		"shape":           {Shape{}, Options{}},
		"long identity":   {s, Options{Identity: string(make([]byte, 256))}},
		"resume nothing":  {s, Options{Temporary: true, Resume: true}},
		"not sparse":      {s, Options{Allocated: []Extent{}}},
		"extent order":    {s, Options{Sparse: true, Allocated: []Extent{{8192, 9000}, {0, 1}}}},
		"extent empty":    {s, Options{Sparse: true, Allocated: []Extent{{1, 1}}}},
		"extent outside":  {s, Options{Sparse: true, Allocated: []Extent{{0, 1<<20 + 1}}}},
		"extent negative": {s, Options{Sparse: true, Allocated: []Extent{{-1, 1}}}},
	} {
		if b, err := Create(path, c.s, c.o); err == nil {
			t.Errorf("%s: no error", name)
			_ = b.Discard()
		}
	}
	b, err := Create(path, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, s, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("second builder of one file: %v", err)
	}
	if err := b.SetLeaf(256, Hash{1}); !errors.Is(err, ErrShape) {
		t.Errorf("leaf outside: %v", err)
	}
	if err := b.SetLeaves(-1, []Hash{{1}}); !errors.Is(err, ErrShape) {
		t.Errorf("leaf outside: %v", err)
	}
	if err := b.SetLeaf(0, Hash{}); err == nil {
		t.Error("the zero value was taken for a hash")
	}
	if err := errors.Join(b.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if err := b.SetLeaf(0, Hash{1}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("set after close: %v", err)
	}
	if err := b.Checkpoint(context.Background()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("checkpoint after close: %v", err)
	}
	if err := b.Discard(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + partSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("discarded file stays: %v", err)
	}
}

// A leaf that is set again after a checkpoint is in the next one.
func TestCheckpointAgain(t *testing.T) {
	t.Parallel()
	s := Shape{Size: (chunkLeaves + 3) * 4096, Leaf: 4096, Algorithm: BLAKE3}
	path := filepath.Join(t.TempDir(), "v")
	b, err := Create(path, s, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []func() error{
		func() error { return b.SetZero(Range{0, chunkLeaves + 2}) },
		func() error { return b.SetLeaf(7, Hash{1}) },
	} {
		if err := errors.Join(set(), b.Checkpoint(context.Background())); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err = Create(path, s, Options{Resume: true}); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(b.Missing()); len(got) != 1 || got[0] != (Range{chunkLeaves, chunkLeaves + 3}) {
		t.Errorf("missing %v", got)
	}
	if err := b.SetZero(Range{chunkLeaves, chunkLeaves + 3}); err != nil {
		t.Fatal(err)
	}
	f, err := b.Seal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]Hash, 9)
	if _, err := mustClose(t, f).Leaves(context.Background(), 0, buf); err != nil || buf[7] != (Hash{1}) || buf[6] != f.st.hasher.Zero(0, 6) {
		t.Errorf("leaves %v, %v", buf, err)
	}
}
