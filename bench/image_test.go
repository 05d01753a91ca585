package bench

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
)

// testSet makes a set of n leaves out of this package's sources and some zeroes, without a file system around them.
func testSet(t *testing.T, leaves int) *Set {
	t.Helper()
	dir := t.TempDir()
	var text []byte
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no sources to fill an image with: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	size := leaves * leaf
	content := make([]byte, 0, size)
	for round := byte(0); len(content) < size; round++ {
		content = append(content, bytes.ReplaceAll(text, []byte("a"), []byte{'0' + round%10})...)
		content = append(content, make([]byte, 3*piece)...)
	}
	s := &Set{Dir: dir, Source: filepath.Join(dir, "a.img"), Target: filepath.Join(dir, "b.img"), seed: 7,
		Info: ImageInfo{Size: int64(size)}, known: map[Divergence]*Divergent{}, log: t.Output()}
	if err := os.WriteFile(s.Source, content[:size], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// random returns n bytes that do not compress, the same every time.
func random(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(b)
	return b
}

// naiveDiffering is the plainest way to find what differs: the judge of the lists.
func naiveDiffering(t *testing.T, s *Set) []cbt.Extent {
	t.Helper()
	a, err := os.ReadFile(s.Source)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.Target)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != len(b) {
		t.Fatalf("sizes differ: %d and %d", len(a), len(b))
	}
	var out []cbt.Extent
	for i := 0; i < len(a); i += piece {
		if !bytes.Equal(a[i:i+piece], b[i:i+piece]) {
			out = append(out, cbt.Extent{Off: int64(i), End: int64(i + piece)})
		}
	}
	return cbt.Normalize(out)
}

func TestDivergeListsAreTrue(t *testing.T) {
	const leaves = 200
	s := testSet(t, leaves)
	for _, name := range []string{"0", "rand-0.1", "rand-1", "seq-1", "rand-10", "seq-50", "rand-50", "seq-100", "rand-100", "0"} {
		d, err := ParseDivergence(name)
		if err != nil {
			t.Fatal(err)
		}
		div, err := s.Diverge(t.Context(), d)
		if err != nil {
			t.Fatal(name, err)
		}
		truth := naiveDiffering(t, s)
		if !slices.Equal(truth, div.Pieces) {
			t.Errorf("%s: listed pieces are not what differs", name)
		}
		if got, err := differing(t.Context(), s.Source, s.Target); err != nil || !slices.Equal(got, truth) {
			t.Errorf("%s: differing is wrong: %v", name, err)
		}
		want := int64(float64(leaves)*d.Percent/100+0.5) * leaf
		if want == 0 && d.Percent > 0 {
			want = leaf
		}
		if got := cbt.Total(div.Leaves); got != want {
			t.Errorf("%s: %d bytes of leaves differ, want %d", name, got, want)
		}
		if !d.Runs && cbt.Total(div.Pieces) != want/leaf*piece {
			t.Errorf("%s: %d bytes of pieces differ, want one in each leaf", name, cbt.Total(div.Pieces))
		}
		for path, x := range map[string][]cbt.Extent{div.PieceList: div.Pieces, div.LeafList: div.Leaves} {
			if back, err := ReadList(path); err != nil || !slices.Equal(back, x) {
				t.Errorf("%s: %s does not hold the list: %v", name, path, err)
			}
		}
	}
}

func TestDivergeFollowsFromSeed(t *testing.T) {
	s := testSet(t, 64)
	d := Divergence{Percent: 25}
	first, err := s.choose(d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.choose(d)
	if err != nil {
		t.Fatal(err)
	}
	s.seed++
	other, err := s.choose(d)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(first.moves, again.moves) || slices.Equal(first.moves, other.moves) {
		t.Error("what differs follows from something else than the seed")
	}
}

func TestDivergeFromAnyState(t *testing.T) {
	s := testSet(t, 64)
	d := Divergence{Percent: 50}
	div, err := s.Diverge(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	// A run that broke off half way leaves anything behind; the set mends it.
	if err := os.WriteFile(s.Target, random(int(s.Info.Size)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := naiveDiffering(t, s); len(left) > 0 {
		t.Fatalf("after a repair %d bytes differ", cbt.Total(left))
	}
	if _, err := s.Diverge(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if got := naiveDiffering(t, s); !slices.Equal(got, div.Pieces) {
		t.Error("the second time something else differs")
	}
	// A target of another size is made anew.
	if err := os.Truncate(s.Target, leaf); err != nil {
		t.Fatal(err)
	}
	if err := s.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := naiveDiffering(t, s); len(left) > 0 {
		t.Errorf("after a repair %d bytes differ", cbt.Total(left))
	}
}

func TestParseDivergence(t *testing.T) {
	for _, name := range []string{"0", "rand-0.1", "rand-1", "seq-10", "seq-100"} {
		d, err := ParseDivergence(name)
		if err != nil || d.String() != name {
			t.Errorf("%s reads as %v, %v", name, d, err)
		}
	}
	for _, name := range []string{"", "1", "rand", "rand-", "rand-0", "rand--1", "seq-101", "all-1", "rand-NaN", "rand-1x"} {
		if d, err := ParseDivergence(name); err == nil {
			t.Errorf("%q reads as %v", name, d)
		}
	}
}

func TestReadListRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	for _, text := range []string{"x\n", "1\n", "-1 5\n", "5 0\n", "5 -1\n", "9223372036854775807 5\n", "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if x, err := ReadList(path); err == nil {
			t.Errorf("%q reads as %v", text, x)
		}
	}
}

// The whole way once, small: files into a file system, a dense copy, a target.
func TestOpenSet(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs the program mke2fs (e2fsprogs)")
	}
	o := ImageOptions{Dir: t.TempDir(), Size: 16 << 20, Roots: []string{filepath.Join(defaultRoots()[0], "src", "net")}, Log: t.Output()}
	s, err := OpenSet(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left := naiveDiffering(t, s); len(left) > 0 {
		t.Errorf("a new target differs in %d bytes", cbt.Total(left))
	}
	magic := make([]byte, 2) // of an ext4 file system
	f, err := os.Open(s.Source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(magic, 1024+56); err != nil || magic[0] != 0x53 || magic[1] != 0xef {
		t.Errorf("no ext4 superblock: %x, %v", magic, err)
	}
	if share := float64(s.Info.ZeroBytes) / float64(o.Size); share < 0.05 || share > 0.8 {
		t.Errorf("%.0f%% of the image are zero", 100*share)
	}
	left, err := filepath.Glob(filepath.Join(o.Dir, "stage-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	again, err := OpenSet(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Info.Built.Equal(s.Info.Built) {
		t.Error("the image was built again")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	o.Dir = t.TempDir()
	if _, err := OpenSet(cancelled, o); err == nil {
		t.Error("a build that was called off went through")
	}
}
