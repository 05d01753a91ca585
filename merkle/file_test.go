package merkle

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// ReadNodes returns what was asked for, checked, for any spans.
func TestReadNodesAgainstNaive(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 9001*4096 + 1, Leaf: 4096, Algorithm: BLAKE3}
	volume := testVolume(s, 1)
	f, want := buildFile(t, s, volume), newNaive(s, volume)
	tree, err := NewTree(s, want.levels[0])
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.IntRange(0, s.Levels()-1).Draw(t, "level")
		w := s.Width(level)
		var spans []Range
		var nodes []Hash
		for at := int64(0); at < w && len(spans) < 20; {
			first := at + rapid.Int64Range(0, w-at).Draw(t, "gap")
			end := min(w, first+rapid.Int64Range(1, 5000).Draw(t, "len"))
			if first < end {
				spans = append(spans, Range{first, end})
				nodes = append(nodes, want.levels[level][first:end]...)
			}
			at = end
		}
		for _, r := range []NodeReader{f, tree} {
			var got []Hash
			err := r.ReadNodes(context.Background(), level, spans, func(_ int64, n []Hash) error {
				got = append(got, n...)
				return nil
			})
			if err != nil || !slices.Equal(got, nodes) {
				t.Fatalf("%T, level %d, %v: %d nodes, want %d, %v", r, level, spans, len(got), len(nodes), err)
			}
		}
	})
	buf := make([]Hash, 1000)
	var got []Hash
	for {
		n, err := f.Leaves(context.Background(), int64(len(got)), buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		got = append(got, buf[:n]...)
	}
	if !slices.Equal(got, want.levels[0]) {
		t.Error("streamed leaves differ")
	}
}

func TestReadNodesRefuses(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 300 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	f := buildFile(t, s, testVolume(s, 1))
	tree, err := NewTree(s, newNaive(s, testVolume(s, 1)).levels[0])
	if err != nil {
		t.Fatal(err)
	}
	yield := func(int64, []Hash) error { return nil }
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	stop := errors.New("stop")
	for _, r := range []NodeReader{f, tree} {
		for _, spans := range [][]Range{{{0, 0}}, {{1, 0}}, {{-1, 1}}, {{0, 301}}, {{4, 5}, {3, 4}}, {{0, 2}, {1, 3}}} {
			if err := r.ReadNodes(context.Background(), 0, spans, yield); !errors.Is(err, ErrShape) {
				t.Errorf("%T %v: %v", r, spans, err)
			}
		}
		for _, level := range []int{-1, 4} {
			if err := r.ReadNodes(context.Background(), level, []Range{{0, 1}}, yield); !errors.Is(err, ErrShape) {
				t.Errorf("%T level %d: %v", r, level, err)
			}
		}
		if err := r.ReadNodes(ctx, 0, []Range{{0, 1}}, yield); !errors.Is(err, context.Canceled) {
			t.Errorf("%T cancelled: %v", r, err)
		}
		err := r.ReadNodes(context.Background(), 0, []Range{{0, 1}}, func(int64, []Hash) error { return stop })
		if !errors.Is(err, stop) {
			t.Errorf("%T: %v", r, err)
		}
	}
}

// Each byte of a tree file counts: whichever is changed, the tree is refused,
// on opening or by Verify, and the place is told.
func TestEveryFlipIsFound(t *testing.T) {
	t.Parallel()
	for _, s := range []Shape{
		{Size: 512, Leaf: 4096, Algorithm: BLAKE3},
		{Size: 40*4096 + 512, Leaf: 4096, Algorithm: SHA256},
	} {
		volume := testVolume(s, 1)
		clear(volume[min(16*4096, s.Size):min(33*4096, s.Size)]) // a zero subtree
		f := buildFile(t, s, volume)
		good, err := os.ReadFile(f.Path())
		if err != nil {
			t.Fatal(err)
		}
		for i := range good {
			good[i] ^= 0x40
			checkRefused(t, good, i)
			good[i] ^= 0x40
		}
		for i := 0; i < len(good); i += 61 {
			checkRefused(t, good[:i], i)
		}
		checkRefused(t, append(slices.Clone(good), 0), len(good))
	}
}

func checkRefused(t *testing.T, data []byte, at int) {
	t.Helper()
	const path = "bad"
	d := newCrashDisk(0) // files in memory: there are thousands
	d.names[path] = &inode{data: data}
	f, err := openFile(d, path, false)
	if err == nil {
		err = f.Verify(context.Background())
		_ = f.Close() // read only
	}
	var where *CorruptError
	switch {
	case errors.Is(err, ErrNotTree):
		if at >= 10 {
			t.Errorf("byte %d: %v", at, err)
		}
	case errors.Is(err, ErrVersion):
		if at != 8 && at != 9 {
			t.Errorf("byte %d: %v", at, err)
		}
	case !errors.As(err, &where) || !errors.Is(err, ErrCorrupt):
		t.Errorf("byte %d: %v", at, err)
	case where.Path != path || where.Offset < 0 || where.Offset > int64(at)+4096 || where.Offset < int64(at)-4096:
		t.Errorf("byte %d: wrong place: %v", at, err)
	}
}

// A node that is read is checked although nobody asked for Verify, with its
// level and index.
func TestCorruptNodeHasPlace(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 300 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	volume := make([]byte, s.Size)
	fill(rand.New(rand.NewPCG(1, 1)), volume) // no zero leaf: what is below one is not even read
	f := buildFile(t, s, volume)
	lay := s.layout()
	for _, c := range []struct {
		level int
		index int64
		first int64 // of the group, or the node itself
	}{{0, 37, 32}, {1, 17, 16}, {0, 299, 288}} {
		off := lay.place(c.level, c.index)
		var b [1]byte
		if err := readFull(f.st.m, b[:], off); err != nil {
			t.Fatal(err)
		}
		flip := func() {
			b[0] ^= 1
			if _, err := f.st.m.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
		}
		flip()
		err := f.ReadNodes(context.Background(), c.level, []Range{{c.index, c.index + 1}}, func(int64, []Hash) error { return nil })
		var where *CorruptError
		if !errors.As(err, &where) || where.Level != c.level || where.Index != c.first || where.Offset != lay.place(c.level, c.first) {
			t.Errorf("level %d node %d: %v", c.level, c.index, err)
		}
		if _, err := f.Update(context.Background(), 2, ascending(map[int64]Hash{c.index: {1}})); c.level == 0 && !errors.Is(err, ErrCorrupt) {
			t.Errorf("update over a corrupt group: %v", err)
		}
		flip()
	}
	if err := f.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(dir); err == nil {
		t.Error("a folder was opened")
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fifo); err == nil { // and does not hang
		t.Error("a fifo was opened")
	}
	s := Shape{Size: 512, Leaf: 4096, Algorithm: BLAKE3}
	f := buildFile(t, s, make([]byte, 512))
	if err := os.Truncate(f.Path(), headerSize+16); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f.Path()); !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, ErrCorrupt) {
		t.Errorf("cut file: %v", err)
	}
}

func TestFileClosed(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 512, Leaf: 4096, Algorithm: BLAKE3}
	f, _, err := Build(context.Background(), sliceReader(make([]byte, 512)), s, filepath.Join(t.TempDir(), "v"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	_, errRoot := f.Root(ctx)
	_, errLeaves := f.Leaves(ctx, 0, make([]Hash, 1))
	_, errUpdate := f.Update(ctx, 1, ascending(nil))
	for i, err := range []error{errRoot, errLeaves, errUpdate, f.Verify(ctx), f.Close()} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("call %d on a closed file: %v", i, err)
		}
	}
}

// Readers and updates of one File go on at once.
func TestFileConcurrent(t *testing.T) {
	t.Parallel()
	s := Shape{Size: 5000 * 4096, Leaf: 4096, Algorithm: BLAKE3}
	f := buildFile(t, s, testVolume(s, 1))
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			buf := make([]Hash, 700)
			for i := range 30 {
				if _, err := f.Leaves(context.Background(), int64(w*1000+i*50), buf); err != nil {
					t.Error(err)
				}
				_, _ = f.Root(context.Background())
				_, _ = f.Epoch(), f.Identity()
			}
		})
	}
	for i := range 10 {
		if _, err := f.Update(context.Background(), Epoch(i), ascending(map[int64]Hash{int64(i): {byte(i), 1}, 4000: {byte(i), 2}})); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if err := f.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

// Where holes cannot be punched, zeroes are written, and nothing else is.
func TestZeroWithoutHoles(t *testing.T) {
	t.Parallel()
	m, err := osDisk{}.temp(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close() // it has no name
	f := m.(osFile)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 300<<10).Draw(t, "size")
		want := make([]byte, size)
		fill(rand.New(rand.NewPCG(uint64(size), 1)), want[:size/2]) // then a hole
		if _, err := f.WriteAt(want[:size/2], 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(size/2), f.Truncate(size)); err != nil {
			t.Fatal(err)
		}
		off := rapid.Int64Range(0, size).Draw(t, "off")
		n := rapid.Int64Range(0, size-off).Draw(t, "n")
		zero := rapid.SampledFrom([]func(off, n int64) error{f.writeZeros, f.zero}).Draw(t, "how")
		if n > 0 {
			if err := zero(off, n); err != nil {
				t.Fatal(err)
			}
		}
		clear(want[off : off+n])
		got := make([]byte, size)
		if err := readFull(f, got, 0); err != nil || !slices.Equal(got, want) {
			t.Fatalf("[%d,%d) of %d: %v", off, off+n, size, err)
		}
		if now, err := f.size(); err != nil || now != size {
			t.Fatalf("size %d, was %d: %v", now, size, err)
		}
	})
}
