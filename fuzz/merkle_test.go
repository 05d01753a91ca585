package fuzz_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/merkle"
)

var updateMerkle = flag.Bool("update.merkle", false, "write the seeds of FuzzTree, FuzzJournal, FuzzTreeDiff and FuzzProof anew")

// merkleSeeds gives f its committed seeds, which the go command reads by itself,
// and fails unless they are what the writer makes today.
func merkleSeeds(f *testing.F, made map[string][]any) {
	f.Helper()
	dir := filepath.Join("testdata", "fuzz", f.Name())
	if len(made) == 0 {
		f.Fatal("no seeds")
	}
	for name, args := range made {
		lines := []string{"go test fuzz v1"}
		for _, a := range args {
			switch v := a.(type) {
			case []byte:
				lines = append(lines, fmt.Sprintf("[]byte(%q)", v))
			case byte:
				lines = append(lines, fmt.Sprintf("byte(%q)", rune(v)))
			default:
				lines = append(lines, fmt.Sprintf("%T(%v)", v, v))
			}
		}
		want, path := strings.Join(lines, "\n")+"\n", filepath.Join(dir, "seed-"+name)
		if *updateMerkle {
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, []byte(want), 0o644)); err != nil {
				f.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			f.Fatalf("seed %s is not what the writer makes (%v): go test ./fuzz -run %s -update.merkle", path, err, f.Name())
		}
	}
}

// Places in a tree file's header that a fuzzed file is mended at.
const (
	treeState, treeRoot, treeNext, treeSum, treeTop = 10, 32, 64, 504, 4096
)

// memoryDir is a folder for the files of one run, in memory where there is such
// a file system: writing a tree syncs five times.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "failback-fuzz-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// leafHashes are n hashes of leaves; some are of zeroes.
func leafHashes(h *merkle.Hasher, n int64) []merkle.Hash {
	out := make([]merkle.Hash, n)
	for i := range out {
		if out[i] = h.Zero(0, int64(i)); i%40 < 20 {
			out[i] = h.Leaf([]byte{byte(i), byte(i >> 8)})
		}
	}
	return out
}

// writeTree writes the tree of some leaves to a file in a folder of the test.
func writeTree(t testing.TB, path string, s merkle.Shape, o merkle.Options, leaves []merkle.Hash) *merkle.File {
	t.Helper()
	b, err := merkle.Create(path, s, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetLeaves(0, leaves); err != nil {
		t.Fatal(err)
	}
	f, err := b.Seal(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// mendTree gives a file the checksum of its header, and with root also the root
// that its top node has.
func mendTree(in []byte, root bool) []byte {
	if len(in) < treeTop+merkle.HashSize {
		return in
	}
	in = bytes.Clone(in)
	s := merkle.Shape{
		Algorithm: merkle.Algorithm(in[11]),
		Leaf:      int64(binary.LittleEndian.Uint32(in[12:])),
		Size:      int64(binary.LittleEndian.Uint64(in[16:])),
	}
	if h, err := merkle.NewHasher(s); err == nil && root {
		sum := h.Root(merkle.Hash(in[treeTop:]))
		if top := merkle.Hash(in[treeTop:]); top == (merkle.Hash{}) {
			sum = h.Root(h.Zero(s.Levels()-1, 0))
		}
		copy(in[treeRoot:], sum[:])
	}
	binary.LittleEndian.PutUint64(in[treeSum:], xxhash.Sum64(in[:treeSum]))
	return in
}

// FuzzTree opens any bytes as a tree file and reads all of it. It never panics,
// allocates little more than the file is large, and what it accepts is, byte for
// byte, what the writer makes of the leaves that were read. mend 1 puts the
// right checksum on the header, 2 the root of the top node too.
func FuzzTree(f *testing.F) {
	made := map[string][]any{}
	for name, c := range map[string]struct {
		mend byte
		s    merkle.Shape
	}{
		"sector":     {2, merkle.Shape{Size: 512, Leaf: 4096, Algorithm: merkle.BLAKE3}},
		"two-levels": {0, merkle.Shape{Size: 16 * 65536, Leaf: 65536, Algorithm: merkle.SHA256}},
		"odd":        {1, merkle.Shape{Size: 300*4096 + 512, Leaf: 4096, Algorithm: merkle.BLAKE3}},
		"large-leaf": {1, merkle.Shape{Size: 5 << 22, Leaf: 4 << 20, Algorithm: merkle.BLAKE3}},
	} {
		s := c.s
		h, err := merkle.NewHasher(s)
		if err != nil {
			f.Fatal(err)
		}
		path := filepath.Join(f.TempDir(), "t")
		o := merkle.Options{Identity: name, Epoch: 3}
		if err := writeTree(f, path, s, o, leafHashes(h, s.Leaves())).Close(); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		made[name] = []any{c.mend, b}
	}
	merkleSeeds(f, made)
	f.Fuzz(func(t *testing.T, mend byte, in []byte) {
		if mend > 0 {
			in = mendTree(in, mend > 1)
		}
		path := filepath.Join(memoryDir(t), "t")
		if err := os.WriteFile(path, in, 0o600); err != nil {
			t.Fatal(err)
		}
		const most = 2 << 20 // hashers, a stretch of each level
		if n := allocated(func() { readTree(t, path, in) }); n > most+64*uint64(len(in)) {
			t.Errorf("allocated %d bytes for %d", n, len(in))
		}
	})
}

// readTree reads a file as a tree and, if it is one, writes it again.
func readTree(t *testing.T, path string, in []byte) {
	f, err := merkle.Open(path)
	if err != nil {
		checkRefusal(t, err)
		return
	}
	defer f.Close()                                   // read only
	leaves := make([]merkle.Hash, f.Shape().Leaves()) // the file is as long as they are
	if _, err := f.Leaves(t.Context(), 0, leaves); err != nil {
		checkRefusal(t, err)
	}
	if err := f.Verify(t.Context()); err != nil {
		checkRefusal(t, err)
		return
	}
	o := merkle.Options{Identity: f.Identity(), Epoch: f.Epoch(), Workers: 1}
	if err := writeTree(t, path+"2", f.Shape(), o, leaves).Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := os.ReadFile(path + "2"); err != nil || !bytes.Equal(out, in) {
		t.Errorf("accepted a file that the writer never makes: %v", err)
	}
}

// checkRefusal wants an error that says what is wrong, and where if it is corruption.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	var where *merkle.CorruptError
	switch {
	case errors.Is(err, merkle.ErrCorrupt):
		if !errors.As(err, &where) || where.Offset < 0 {
			t.Errorf("corrupt without a place: %v", err)
		}
	case errors.Is(err, merkle.ErrNotTree), errors.Is(err, merkle.ErrVersion),
		errors.Is(err, merkle.ErrBuilding), errors.Is(err, merkle.ErrUpdating):
	default:
		t.Errorf("refused without a reason: %v", err)
	}
}

// FuzzJournal finishes an update from any bytes as its journal. It never panics,
// and a tree that it makes whole has the root that the header promised; if the
// journal is another than the writer's, its nodes do not pass as verified.
func FuzzJournal(f *testing.F) {
	golden := func(kind string) []byte {
		b, err := os.ReadFile("../merkle/testdata/v1-blake3." + kind)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	tree, journal := golden("updating"), golden("journal")
	if tree[treeState] != 3 {
		f.Fatal("golden tree is not in an update")
	}
	next := merkle.Hash(tree[treeNext:])
	merkleSeeds(f, map[string][]any{
		"whole":  {false, journal},
		"mended": {true, journal},
		"cut":    {true, journal[:len(journal)-96]},
	})
	f.Fuzz(func(t *testing.T, mend bool, in []byte) {
		if mend && len(in) >= 8 {
			in = bytes.Clone(in)
			binary.LittleEndian.PutUint64(in[len(in)-8:], xxhash.Sum64(in[:len(in)-8]))
		}
		path := filepath.Join(memoryDir(t), "t")
		if err := errors.Join(os.WriteFile(path, tree, 0o600), os.WriteFile(path+".journal", in, 0o600)); err != nil {
			t.Fatal(err)
		}
		var file *merkle.File
		var err error
		if n := allocated(func() { file, err = merkle.OpenUpdate(path) }); n > 1<<20+4*uint64(len(in)) {
			t.Errorf("allocated %d bytes for %d", n, len(in))
		}
		if err != nil {
			checkRefusal(t, err)
			return
		}
		defer file.Close() // nothing was changed through it
		if root, err := file.Root(t.Context()); err != nil || root != next {
			t.Errorf("root %v, the header promised %v: %v", root, next, err)
		}
		if err := file.Verify(t.Context()); err != nil && bytes.Equal(in, journal) {
			t.Errorf("the true journal: %v", err)
		}
	})
}

// listReader answers from all nodes of a tree, in stretches of a length of its
// own, and wrongly if told to.
type listReader struct {
	*merkle.Tree
	stretch int
	calls   int
	wrong   byte // 0 true answers; else how they are wrong
}

func (r *listReader) ReadNodes(ctx context.Context, level int, spans []merkle.Range, yield func(int64, []merkle.Hash) error) error {
	r.calls++
	return r.Tree.ReadNodes(ctx, level, spans, func(first int64, nodes []merkle.Hash) error {
		nodes = slices.Clone(nodes)
		switch r.wrong % 8 {
		case 1:
			first++
		case 2:
			nodes = nodes[1:]
		case 3:
			nodes = append(nodes, merkle.Hash{})
		case 4:
			nodes = nil
		case 5:
			nodes[int(r.wrong)%len(nodes)][0] ^= 1
		case 6:
			first = -first
		case 7:
			clear(nodes)
		}
		for len(nodes) > 0 {
			n := min(len(nodes), r.stretch)
			if err := yield(first, nodes[:n]); err != nil {
				return err
			}
			first, nodes = first+int64(n), nodes[n:]
		}
		return nil
	})
}

// FuzzTreeDiff compares two trees that differ in the leaves that where names, two
// bytes each, and holds the result against a look at every leaf. A reader that
// answers wrongly leads to an error or a result, never to a panic or a hang.
func FuzzTreeDiff(f *testing.F) {
	merkleSeeds(f, map[string][]any{
		"equal": {uint16(300), uint16(7), byte(0), []byte{}},
		"one":   {uint16(4097), uint16(1000), byte(0), []byte{16, 1}},
		"runs":  {uint16(65535), uint16(4096), byte(0), []byte("\x00\x01\x00\x02\x00\x03\x80\x00\xff\xfe\x01\x01")},
		"wrong": {uint16(5000), uint16(64), byte(2), []byte{3, 4, 5, 6}},
	})
	f.Fuzz(func(t *testing.T, count, stretch uint16, wrong byte, where []byte) {
		s := merkle.Shape{Size: max(int64(count), 1) * 4096, Leaf: 4096, Algorithm: merkle.BLAKE3}
		x := make([]merkle.Hash, s.Leaves())
		for i := range x {
			x[i] = merkle.Hash{1, byte(i), byte(i >> 8)}
		}
		y, differ := slices.Clone(x), map[int64]bool{}
		for ; len(where) >= 2; where = where[2:] {
			i := int64(binary.BigEndian.Uint16(where)) % s.Leaves()
			y[i][31], differ[i] = 9, true
		}
		a, b := newListReader(t, s, x, stretch), newListReader(t, s, y, 77)
		b.wrong = wrong
		ranges, stats, err := merkle.Diff(t.Context(), a, b)
		if a.calls > merkle.MaxBatches || b.calls > merkle.MaxBatches {
			t.Errorf("%d and %d requests", a.calls, b.calls)
		}
		if wrong%8 != 0 {
			return
		}
		want := []merkle.Range{}
		for _, i := range slices.Sorted(maps.Keys(differ)) {
			if n := len(want); n > 0 && want[n-1].End == i {
				want[n-1].End++
			} else {
				want = append(want, merkle.Range{First: i, End: i + 1})
			}
		}
		if err != nil || !slices.Equal(ranges, want) || stats.Leaves != int64(len(differ)) {
			t.Errorf("%v, naive %v: %v", ranges, want, err)
		}
	})
}

func newListReader(t testing.TB, s merkle.Shape, leaves []merkle.Hash, stretch uint16) *listReader {
	t.Helper()
	tree, err := merkle.NewTree(s, leaves)
	if err != nil {
		t.Fatal(err)
	}
	return &listReader{Tree: tree, stretch: max(1, int(stretch))}
}

// FuzzProof holds any bytes as a proof against a tree. They are accepted if and
// only if they are, byte for byte, the proof that is made for their range.
func FuzzProof(f *testing.F) {
	s := merkle.Shape{Size: 999*4096 + 512, Leaf: 4096, Algorithm: merkle.SHA256}
	h, err := merkle.NewHasher(s)
	if err != nil {
		f.Fatal(err)
	}
	leaves := leafHashes(h, s.Leaves())
	tree, err := merkle.NewTree(s, leaves)
	if err != nil {
		f.Fatal(err)
	}
	root, err := tree.Root(context.Background())
	if err != nil {
		f.Fatal(err)
	}
	prove := func(t testing.TB, r merkle.Range) []byte {
		p, err := merkle.Prove(context.Background(), tree, r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	merkleSeeds(f, map[string][]any{
		"leaf":  {uint16(0), prove(f, merkle.Range{First: 777, End: 778})},
		"last":  {uint16(0), prove(f, merkle.Range{First: 999, End: 1000})},
		"range": {uint16(0), prove(f, merkle.Range{First: 250, End: 530})},
		"all":   {uint16(0), prove(f, merkle.Range{First: 0, End: 1000})},
		"bit":   {uint16(400), prove(f, merkle.Range{First: 250, End: 530})},
	})
	f.Fuzz(func(t *testing.T, flip uint16, in []byte) {
		if at := int(flip / 8); flip > 0 && at < len(in) {
			in = bytes.Clone(in)
			in[at] ^= 1 << (flip % 8)
		}
		var p merkle.Proof
		var err error
		if n := allocated(func() { err = p.UnmarshalBinary(in) }); n > 64<<10 {
			t.Errorf("allocated %d bytes for %d", n, len(in))
		}
		if err != nil {
			if !errors.Is(err, merkle.ErrProof) {
				t.Errorf("refused without a reason: %v", err)
			}
			return
		}
		if out, err := p.MarshalBinary(); err != nil || !bytes.Equal(out, in) {
			t.Errorf("decoded and encoded to other bytes: %v", err)
		}
		if p.Range.End > s.Leaves() {
			return // a proof about another volume: there are no leaves to hold it against
		}
		err = p.Check(root, leaves[p.Range.First:p.Range.End])
		if good := bytes.Equal(in, prove(t, p.Range)); good != (err == nil) {
			t.Errorf("true proof: %v; check: %v", good, err)
		}
	})
}
