package merkle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// sliceReader reads a volume in memory.
func sliceReader(v []byte) io.ReaderAt { return bytes.NewReader(v) }

func TestBuildAgainstNaive(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for i, s := range testShapes() {
		volume := testVolume(s, uint64(i))
		want := newNaive(s, volume)
		path := filepath.Join(t.TempDir(), "v.fbt")
		var progress atomic.Int64
		f, stats, err := Build(ctx, sliceReader(volume), s, path, Options{
			Identity: "vg0/home", Epoch: 7, Workers: 3, Progress: func(n int64) { progress.Add(n) },
		})
		if err != nil {
			t.Fatalf("%+v: %v", s, err)
		}
		checkSame(t, f, want)
		if stats.ReadBytes != s.Size || stats.Resumed != 0 || stats.Zero != 0 || progress.Load() != s.Size {
			t.Errorf("%+v: %+v, progress %d", s, stats, progress.Load())
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if f, err = Open(path); err != nil {
			t.Fatal(err)
		}
		checkSame(t, mustClose(t, f), want)
		if f.Identity() != "vg0/home" || f.Epoch() != 7 || f.Shape() != s || f.Path() != path {
			t.Errorf("header: %q, epoch %d, %+v, %s", f.Identity(), f.Epoch(), f.Shape(), f.Path())
		}
		if st, err := os.Stat(path); err != nil || st.Size() != s.FileSize() {
			t.Errorf("%+v: %v, %v", s, st, err)
		}
		if _, err := os.Stat(path + partSuffix); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("unfinished file stays: %v", err)
		}
	}
}

// checkSame reads every node of a tree and compares it with the naive one's.
func checkSame(t testing.TB, r NodeReader, want *naive) {
	t.Helper()
	ctx := context.Background()
	if root := mustRoot(t, r); root != want.root {
		t.Fatalf("%+v: root %v, naive %v", want.shape, root, want.root)
	}
	for level, nodes := range want.levels {
		next := int64(0)
		err := r.ReadNodes(ctx, level, []Range{{0, int64(len(nodes))}}, func(first int64, got []Hash) error {
			if first != next || !slices.Equal(got, nodes[first:first+int64(len(got))]) {
				t.Fatalf("%+v: level %d from %d on differs", want.shape, level, first)
			}
			next += int64(len(got))
			return nil
		})
		if err != nil || next != int64(len(nodes)) {
			t.Fatalf("%+v: level %d: %d nodes of %d, %v", want.shape, level, next, len(nodes), err)
		}
	}
	if f, ok := r.(*File); ok {
		if err := f.Verify(ctx); err != nil {
			t.Fatalf("%+v: %v", want.shape, err)
		}
	}
}

// What is not allocated is not read, and the result is the same.
func TestBuildAllocated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		s := Shape{Size: rapid.Int64Range(1, 1000*4096).Draw(t, "size"), Leaf: 4096, Algorithm: BLAKE3}
		v := make([]byte, s.Size)
		var allocated []Extent
		readable := int64(0)
		for off := int64(0); off < s.Size; {
			off += rapid.Int64Range(0, s.Size/3+1).Draw(t, "gap")
			end := min(off+rapid.Int64Range(1, 40000).Draw(t, "len"), s.Size)
			if off >= end {
				break
			}
			fill(rand.New(rand.NewPCG(uint64(off), 1)), v[off:end])
			allocated = append(allocated, Extent{off, end})
			readable += (end-1)/4096*4096 - off/4096*4096 + 4096
			off = end
		}
		f, stats, err := Build(context.Background(), sliceReader(v), s, filepath.Join(dir, "v"), Options{
			Sparse: true, Allocated: allocated, Workers: 1, ReadSize: 8 << 10,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close() // read only
		if root, want := f.hdr.root, newNaive(s, v).root; root != want {
			t.Fatalf("root %v, naive %v", root, want)
		}
		if stats.ReadBytes > readable {
			t.Errorf("read %d bytes of %d allocated", stats.ReadBytes, readable)
		}
		if err := f.Verify(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A sparse volume of 16 TiB takes no time and next to no space.
func TestBuildSparse16TiB(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 16 << 40, Leaf: 64 << 10, Algorithm: BLAKE3}
	data := make([]byte, 4<<20)
	fill(rand.New(rand.NewPCG(1, 1)), data)
	at := int64(11<<40 + 65536)
	path := filepath.Join(t.TempDir(), "v")
	f, stats, err := Build(context.Background(), offsetReader{data, at}, s, path, Options{
		Sparse: true, Allocated: []Extent{{at, at + int64(len(data))}},
	})
	if err != nil {
		if errors.Is(err, syscall.EFBIG) || errors.Is(err, syscall.EINVAL) {
			t.Skip("file system takes no sparse file of 9 GiB: ", err)
		}
		t.Fatal(err)
	}
	mustClose(t, f)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if onDisk := st.Sys().(*syscall.Stat_t).Blocks * 512; onDisk > 4<<20 {
		t.Errorf("tree file takes %d bytes on disk", onDisk)
	}
	if stats.ReadBytes != int64(len(data)) || stats.Zero != s.Leaves()-64 {
		t.Errorf("%+v", stats)
	}
	empty, _, err := Build(context.Background(), offsetReader{}, s, path+"0", Options{Sparse: true})
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, empty)
	ranges, diff, err := Diff(context.Background(), f, empty)
	if first := at / s.Leaf; err != nil || len(ranges) != 1 || ranges[0] != (Range{first, first + 64}) {
		t.Errorf("diff %v, %v", ranges, err)
	}
	if diff.Batches > MaxBatches || diff.Nodes > 30000 {
		t.Errorf("%+v", diff)
	}
	h := mustHasher(t, s)
	if root := mustRoot(t, empty); root != h.Root(h.Zero(7, 0)) {
		t.Errorf("root of an empty volume %v", root)
	}
}

// offsetReader has data at an offset and refuses to be read elsewhere.
type offsetReader struct {
	data []byte
	off  int64
}

func (r offsetReader) ReadAt(p []byte, off int64) (int, error) {
	if off < r.off || off+int64(len(p)) > r.off+int64(len(r.data)) {
		return 0, errors.New("read outside of what is allocated")
	}
	return copy(p, r.data[off-r.off:]), nil
}

// failingReader fails at one offset, or cancels there.
type failingReader struct {
	r    io.ReaderAt
	at   int64
	fail func() error
}

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off <= r.at && r.at < off+int64(len(p)) {
		if err := r.fail(); err != nil {
			return 0, err
		}
	}
	return r.r.ReadAt(p, off)
}

func TestBuildResumes(t *testing.T) {
	t.Parallel()
	s := Shape{Size: (2*chunkLeaves+1100)*4096 + 512, Leaf: 4096, Algorithm: BLAKE3}
	volume := testVolume(s, 3)
	clear(volume[2*chunkLeaves*4096:][:1<<20]) // where the litter lies: nothing is written for a piece of zeroes
	want := newNaive(s, volume)
	bad := errors.New("medium error")
	for name, o := range map[string]struct {
		epoch   Epoch
		damage  func(b []byte, l layout)
		resumed int64
	}{
		"as it was":        {0, func([]byte, layout) {}, 2 * chunkLeaves},
		"other epoch":      {1, func([]byte, layout) {}, 0},
		"header torn":      {0, func(b []byte, l layout) { clear(b[100:512]) }, 0},
		"not a tree":       {0, func(b []byte, l layout) { b[0] = 0 }, 0},
		"leaf flipped":     {0, func(b []byte, l layout) { b[l.place(0, 5000)] ^= 1 }, chunkLeaves},
		"entry flipped":    {0, func(b []byte, l layout) { b[l.progressOff()] ^= 1 }, chunkLeaves},
		"no progress":      {0, func(b []byte, l layout) { clear(b[l.progressOff():]) }, 0},
		"litter above":     {0, func(b []byte, l layout) { fill(rand.New(rand.NewPCG(1, 1)), b[4096:l.off[0]]) }, 2 * chunkLeaves},
		"litter in leaves": {0, func(b []byte, l layout) { b[l.place(0, 2*chunkLeaves+9)] = 9 }, 2 * chunkLeaves},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "v")
			r := failingReader{sliceReader(volume), 2*chunkLeaves*4096 + 4<<20, func() error { return bad }}
			_, _, err := Build(context.Background(), r, s, path, Options{Workers: 1})
			if !errors.Is(err, bad) {
				t.Fatalf("build went on over a medium error: %v", err)
			}
			if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("unfinished tree under its final name: %v", err)
			}
			if _, err := Open(path + partSuffix); !errors.Is(err, ErrBuilding) {
				t.Fatalf("unfinished tree: %v", err)
			}
			part, err := os.ReadFile(path + partSuffix)
			if err != nil {
				t.Fatal(err)
			}
			o.damage(part, s.layout())
			if err := os.WriteFile(path+partSuffix, part, 0o600); err != nil {
				t.Fatal(err)
			}
			f, stats, err := Build(context.Background(), sliceReader(volume), s, path, Options{Resume: true, Epoch: o.epoch})
			if err != nil {
				t.Fatal(err)
			}
			checkSame(t, mustClose(t, f), want)
			if stats.Resumed != o.resumed || stats.ReadBytes != s.Size-o.resumed*4096 {
				t.Errorf("%+v, want %d leaves resumed", stats, o.resumed)
			}
		})
	}
}

func TestBuildCancelled(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 2 * chunkLeaves * 4096, Leaf: 4096, Algorithm: SHA256}
	volume := testVolume(s, 3)
	path := filepath.Join(t.TempDir(), "v")
	ctx, cancel := context.WithCancel(context.Background())
	r := failingReader{sliceReader(volume), chunkLeaves*4096 + 8<<20, func() error { cancel(); return nil }}
	if _, _, err := Build(ctx, r, s, path, Options{Workers: 1}); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled build: %v", err)
	}
	f, stats, err := Build(context.Background(), sliceReader(volume), s, path, Options{Resume: true})
	if err != nil || stats.Resumed != chunkLeaves {
		t.Fatalf("%+v, %v", stats, err)
	}
	checkSame(t, mustClose(t, f), newNaive(s, volume))
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		s := Shape{Size: 5000*4096 + 512, Leaf: 4096, Algorithm: a}
		volume := testVolume(s, 4)
		dir := t.TempDir()
		f, _, err := Build(context.Background(), sliceReader(volume), s, dir, Options{Temporary: true})
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, mustClose(t, f), newNaive(s, volume))
		names, err := os.ReadDir(dir)
		if err != nil || len(names) > 0 || f.Path() != "" {
			t.Errorf("%v tree left %v, %v, path %q", a, names, err, f.Path())
		}
		if _, err := f.Update(context.Background(), 1, ascending(nil)); err == nil {
			t.Error("a temporary tree was updated")
		}
	}
}
