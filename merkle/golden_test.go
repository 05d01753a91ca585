package merkle

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
)

var update = flag.Bool("update", false, "write the golden files anew")

// goldenVolume is 40 leaves of 4096 bytes and half a KiB. Byte o is o/4096·7 +
// o%251, modulo 256, but leaves 16 to 32 are zero: a whole group and a bit.
func goldenVolume() []byte {
	v := make([]byte, 40*4096+512)
	for o := range v {
		if leaf := o / 4096; leaf < 16 || leaf > 32 {
			v[o] = byte(leaf*7 + o%251)
		}
	}
	return v
}

func goldenShape(a Algorithm) Shape {
	return Shape{Size: 40*4096 + 512, Leaf: 4096, Algorithm: a}
}

// goldenRoots are the roots of goldenVolume. They were computed once by a program
// in another language, from docs/format-tree.md alone.
var goldenRoots = map[Algorithm]string{
	SHA256: "f6b26a85b7aee0a9bbf8720c64e6c2ca09bdae478be1d55beb207b13c156cf92",
	BLAKE3: "ada819f177cb01f68adcc69104f4f808ccea6a2818189ac673b7dcda8594c074",
}

// golden reads a file under testdata. With -update it first writes made, unless
// that is nil.
func golden(t *testing.T, name string, made []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update && made != nil {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, made, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; go test -update writes it", err)
	}
	return data
}

// makeGolden returns what the writers of this version write.
func makeGolden(t *testing.T, a Algorithm) (tree, updating, journal []byte) {
	t.Helper()
	d := newCrashDisk(1)
	o := Options{disk: d, Identity: "golden", Epoch: 41}
	f, _, err := Build(context.Background(), sliceReader(goldenVolume()), goldenShape(a), crashPath, o)
	if err != nil {
		t.Fatal(err)
	}
	tree = bytes.Clone(d.names[crashPath].data)
	for journal == nil { // lose power once the header says updating
		c := newCrashDisk(1)
		c.names[crashPath] = &inode{data: bytes.Clone(tree)}
		d.cutAt++
		c.cutAt = d.cutAt
		if g, err := openFile(c, crashPath, true); err == nil {
			_, err = g.Update(context.Background(), 42, ascending(goldenUpdate(f.st.hasher)))
			if err == nil {
				t.Fatal("no step leaves the tree updating")
			}
		}
		if updating = c.names[crashPath].data; updating[10] == byte(stateUpdating) {
			journal = c.names[crashPath+journalSuffix].data
		}
	}
	return tree, updating, journal
}

// goldenUpdate changes a leaf, fills a zero one and clears one.
func goldenUpdate(h *Hasher) map[int64]Hash {
	return map[int64]Hash{2: h.Leaf([]byte("two")), 20: h.Leaf([]byte("twenty")), 40: h.Zero(0, 40)}
}

// Version 1 is still written and read as it was: tree, journal and proofs.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, a := range []Algorithm{SHA256, BLAKE3} {
		s := goldenShape(a)
		want := newNaive(s, goldenVolume())
		if want.root.String() != goldenRoots[a] {
			t.Errorf("%v: naive root %v, recorded %s", a, want.root, goldenRoots[a])
		}
		tree, updating, journal := makeGolden(t, a)
		for name, made := range map[string][]byte{"tree": tree, "updating": updating, "journal": journal} {
			if !bytes.Equal(golden(t, "v1-"+a.String()+"."+name, made), made) {
				t.Errorf("%v: %s is written differently", a, name)
			}
		}
		f, err := Open(filepath.Join("testdata", "v1-"+a.String()+".tree"))
		if err != nil {
			t.Fatal(err)
		}
		checkSame(t, mustClose(t, f), want)
		if f.Identity() != "golden" || f.Epoch() != 41 {
			t.Errorf("header: %q, %d", f.Identity(), f.Epoch())
		}
		goldenProofs(t, f, want)
		finishGolden(t, a, want)
	}
}

func goldenProofs(t *testing.T, f *File, want *naive) {
	t.Helper()
	for name, r := range map[string]Range{"leaf": {5, 6}, "last": {40, 41}, "range": {14, 35}, "all": {0, 41}} {
		p, err := Prove(context.Background(), f, r)
		if err != nil {
			t.Fatal(err)
		}
		made, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		file := golden(t, "v1-"+want.shape.Algorithm.String()+"-"+name+".proof", made)
		if !bytes.Equal(file, made) {
			t.Errorf("proof %s is made differently", name)
		}
		var read Proof
		data := goldenVolume()[r.First*4096 : min(r.End*4096, want.shape.Size)]
		if err := errors.Join(read.UnmarshalBinary(file), read.CheckData(want.root, data)); err != nil {
			t.Errorf("proof %s: %v", name, err)
		}
	}
}

// finishGolden lets OpenUpdate finish the update of the files.
func finishGolden(t *testing.T, a Algorithm, want *naive) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "t")
	for suffix, name := range map[string]string{"": ".updating", journalSuffix: ".journal"} {
		data := golden(t, "v1-"+a.String()+name, nil)
		if err := os.WriteFile(path+suffix, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(path); !errors.Is(err, ErrUpdating) {
		t.Errorf("open of a tree in an update: %v", err)
	}
	f, err := OpenUpdate(path)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	leaves := slices.Clone(want.levels[0])
	for i, h := range goldenUpdate(f.st.hasher) {
		leaves[i] = h
	}
	if err := f.Verify(context.Background()); err != nil || mustRoot(t, f) != treeOf(t, want.shape, leaves).root || f.Epoch() != 42 {
		t.Errorf("%v: update finished to root %v, epoch %d, %v", a, mustRoot(t, f), f.Epoch(), err)
	}
	if _, err := os.Stat(path + journalSuffix); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("journal stays: %v", err)
	}
}

// wrongTree is one way to spoil a tree file, and what is said of it.
type wrongTree struct {
	want  error
	spoil func(b []byte, l layout) []byte
	open  bool // it opens, and Verify finds it
}

// sum puts the right checksum on a header that was changed.
func sum(b []byte) []byte {
	binary.LittleEndian.PutUint64(b[hdrSum:], xxhash.Sum64(b[:hdrSum]))
	return b
}

func node(b []byte, l layout, level int, i int64) []byte {
	return b[l.place(level, i):][:HashSize]
}

var wrongTrees = map[string]wrongTree{
	"magic":          {want: ErrNotTree, spoil: func(b []byte, _ layout) []byte { b[0] = 'f'; return sum(b) }},
	"empty":          {want: ErrNotTree, spoil: func([]byte, layout) []byte { return []byte{} }},
	"version":        {want: ErrVersion, spoil: func(b []byte, _ layout) []byte { b[8] = 2; return sum(b) }},
	"checksum":       {want: errChecksum, spoil: func(b []byte, _ layout) []byte { b[24]++; return b }},
	"state":          {want: errHeaderField, spoil: func(b []byte, _ layout) []byte { b[10] = 4; return sum(b) }},
	"building":       {want: ErrBuilding, spoil: func(b []byte, _ layout) []byte { b[10] = 1; clear(b[32:64]); return sum(b) }},
	"updating":       {want: ErrUpdating, spoil: func(b []byte, _ layout) []byte { b[10], b[64] = 3, 1; return sum(b) }},
	"no-root":        {want: errHeaderField, spoil: func(b []byte, _ layout) []byte { clear(b[32:64]); return sum(b) }},
	"next-root":      {want: errHeaderField, spoil: func(b []byte, _ layout) []byte { b[64] = 1; return sum(b) }},
	"algorithm":      {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[11] = 9; return sum(b) }},
	"algorithm-3":    {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[11] = 3; return sum(b) }},
	"leaf-odd":       {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[12] = 1; return sum(b) }},
	"leaf-huge":      {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[15] = 0x80; return sum(b) }},
	"size-zero":      {want: ErrShape, spoil: func(b []byte, _ layout) []byte { clear(b[16:24]); return sum(b) }},
	"size-huge":      {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[22] = 0x7f; return sum(b) }},
	"size-negative":  {want: ErrShape, spoil: func(b []byte, _ layout) []byte { b[23] = 0xff; return sum(b) }},
	"size-larger":    {want: io.ErrUnexpectedEOF, spoil: func(b []byte, _ layout) []byte { b[21] = 1; return sum(b) }},
	"size-other":     {want: errTop, spoil: func(b []byte, _ layout) []byte { b[16]++; return sum(b) }},
	"identity":       {want: errHeaderField, spoil: func(b []byte, _ layout) []byte { b[hdrIdentity+40] = 1; return sum(b) }},
	"header-padding": {want: errPadding, spoil: func(b []byte, _ layout) []byte { b[600] = 1; return b }},
	"header-cut":     {want: io.ErrUnexpectedEOF, spoil: func(b []byte, _ layout) []byte { return b[:700] }},
	"leaves-cut":     {want: io.ErrUnexpectedEOF, spoil: func(b []byte, _ layout) []byte { return b[:len(b)-1] }},
	"trailing":       {want: errTrailing, spoil: func(b []byte, _ layout) []byte { return append(b, 0) }},
	"root":           {want: errTop, spoil: func(b []byte, _ layout) []byte { b[32]++; return sum(b) }},
	"top":            {want: errTop, spoil: func(b []byte, l layout) []byte { node(b, l, 2, 0)[3]++; return b }},
	"top-zero":       {want: errTop, spoil: func(b []byte, l layout) []byte { clear(node(b, l, 2, 0)); return b }},
	"level-1":        {want: errParent, open: true, spoil: func(b []byte, l layout) []byte { node(b, l, 1, 2)[0]++; return b }},
	"leaf":           {want: errParent, open: true, spoil: func(b []byte, l layout) []byte { node(b, l, 0, 40)[31]++; return b }},
	"leaves-lost":    {want: errParent, open: true, spoil: func(b []byte, l layout) []byte { clear(b[l.off[0] : l.off[0]+512]); return b }},
	"leaves-swapped": {want: errParent, open: true, spoil: func(b []byte, l layout) []byte {
		x := bytes.Clone(node(b, l, 0, 3))
		copy(node(b, l, 0, 3), node(b, l, 0, 4))
		copy(node(b, l, 0, 4), x)
		return b
	}},
	"zero-written": {want: errNotCanonical, open: true, spoil: func(b []byte, l layout) []byte {
		h := newHasher(goldenShape(BLAKE3))
		z := h.Zero(0, 32)
		copy(node(b, l, 0, 32), z[:])
		return b
	}},
	"below-zero": {want: errZeroParent, open: true, spoil: func(b []byte, l layout) []byte { node(b, l, 0, 20)[0] = 1; return b }},
	"gap":        {want: errPadding, spoil: func(b []byte, l layout) []byte { b[l.off[0]-1] = 1; return b }},
}

// Trees that are wrong, each in one way, are refused for that.
func TestWrongTrees(t *testing.T) {
	t.Parallel()
	for name, w := range wrongTrees {
		made, _, _ := makeGolden(t, BLAKE3)
		made = w.spoil(made, goldenShape(BLAKE3).layout())
		if !bytes.Equal(golden(t, "wrong/"+name+".tree", made), made) {
			t.Errorf("%s: file is not what the table makes", name)
		}
		f, err := Open(filepath.Join("testdata", "wrong", name+".tree"))
		if (err == nil) != w.open {
			t.Errorf("%s: open: %v", name, err)
		}
		if err == nil {
			err = f.Verify(context.Background())
			_ = f.Close() // read only
		}
		if !errors.Is(err, w.want) {
			t.Errorf("%s: %v, want %v", name, err, w.want)
		}
		var where *CorruptError
		if errors.Is(err, ErrCorrupt) != errors.As(err, &where) {
			t.Errorf("%s: corrupt without its place: %v", name, err)
		}
	}
	listed(t, "wrong/*.tree", len(wrongTrees))
}

// listed fails if testdata has other files than the tests read.
func listed(t *testing.T, glob string, n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", glob))
	if err != nil || len(files) != n {
		t.Errorf("%d files %s, the test reads %d: %v", len(files), glob, n, err)
	}
}

// wrongProofs spoil the proof of leaves 14 to 34 of the golden BLAKE3 tree.
var wrongProofs = map[string]func(b []byte) []byte{
	"empty":            func([]byte) []byte { return []byte{} },
	"magic":            func(b []byte) []byte { b[0]++; return b },
	"version":          func(b []byte) []byte { b[8]++; return b },
	"algorithm":        func(b []byte) []byte { b[10] = byte(SHA256); return b },
	"algorithm-3":      func(b []byte) []byte { b[10] = 3; return b },
	"reserved":         func(b []byte) []byte { b[11] = 1; return b },
	"leaf-size":        func(b []byte) []byte { b[13] = 0x20; return b },
	"volume-size":      func(b []byte) []byte { b[16]++; return b },
	"volume-huge":      func(b []byte) []byte { b[21] = 1; return b },
	"range-shifted":    func(b []byte) []byte { b[24]++; b[32]++; return b },
	"range-empty":      func(b []byte) []byte { b[24] = b[32]; return b },
	"range-outside":    func(b []byte) []byte { b[32] = 42; return b },
	"range-negative":   func(b []byte) []byte { b[31] = 0x80; return b },
	"range-whole":      func(b []byte) []byte { b[24], b[32] = 0, 41; return b[:40] },
	"sibling":          func(b []byte) []byte { b[40]++; return b },
	"sibling-last":     func(b []byte) []byte { b[len(b)-1]++; return b },
	"sibling-missing":  func(b []byte) []byte { return b[:len(b)-32] },
	"sibling-too-many": func(b []byte) []byte { return append(b, b[len(b)-32:]...) },
	"siblings-swapped": func(b []byte) []byte {
		return slices.Concat(b[:40], b[72:104], b[40:72], b[104:])
	},
	"cut":      func(b []byte) []byte { return b[:len(b)-1] },
	"trailing": func(b []byte) []byte { return append(b, 0) },
	"of-other": nil, // a true proof, of the SHA-256 tree
}

// Proofs that are wrong are refused, by the decoder or by the check.
func TestWrongProofs(t *testing.T) {
	t.Parallel()
	data := goldenVolume()[14*4096 : 35*4096]
	root, err := ParseHash(goldenRoots[BLAKE3])
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range wrongProofs {
		var made []byte
		if spoil == nil {
			made = golden(t, "v1-sha256-range.proof", nil)
		} else {
			made = spoil(golden(t, "v1-blake3-range.proof", nil))
		}
		file := golden(t, "wrong/"+name+".proof", made)
		if !bytes.Equal(file, made) {
			t.Errorf("%s: file is not what the table makes", name)
		}
		var p Proof
		err := p.UnmarshalBinary(file)
		if err == nil {
			err = p.CheckData(root, data)
		}
		if !errors.Is(err, ErrProof) || strings.Contains(err.Error(), "runtime error") {
			t.Errorf("%s: %v", name, err)
		}
	}
	listed(t, "wrong/*.proof", len(wrongProofs))
}
