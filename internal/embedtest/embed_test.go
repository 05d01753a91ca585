// Package embedtest stands for a product that embeds the library: it lies in
// another module, sees only what is exported, and watches what it links.
package embedtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

const module = "github.com/failback/failback"

// memory is a product's own volume.
type memory []byte

// WriteAt writes p at off; a write that does not fit is cut short.
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// A storage product wraps its write path, saves what was written as a file that
// the command can read, and takes it for a session of its own.
func TestTrackWrites(t *testing.T) {
	const size = 1 << 20
	volume := memory(make([]byte, size))
	w, err := cbt.Wrap(volume, size, cbt.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Seal(7); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{5000, 100 << 10} {
		if _, err := w.WriteAt([]byte("written"), off); err != nil {
			t.Fatal(err)
		}
	}
	want := []cbt.Extent{{Off: 4 << 10, End: 8 << 10}, {Off: 100 << 10, End: 104 << 10}}

	m, err := w.Map()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "written.fbm")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := cbt.LoadMap(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := back.Extents(); !slices.Equal(got, want) || back.Epoch != 7 {
		t.Errorf("the file says %v since epoch %d, want %v since 7", got, back.Epoch, want)
	}

	taken, err := w.Take(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	if got := taken.Extents(); !slices.Equal(got, want) {
		t.Errorf("taken %v, want %v", got, want)
	}
	if err := w.PutBack(taken, want[:1]); err != nil { // only the first is proven to be there
		t.Fatal(err)
	}
	if taken, err = w.Take(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if got := taken.Extents(); !slices.Equal(got, want[1:]) {
		t.Errorf("taken again %v, want %v", got, want[1:])
	}
}

// A product that hashes its volumes itself finds what differs between two.
func TestCompareTrees(t *testing.T) {
	shape := merkle.Shape{Size: 10<<20 + 512, Leaf: 64 << 10, Algorithm: merkle.BLAKE3}
	volume := make([]byte, shape.Size)
	before := tree(t, shape, volume)
	volume[3*shape.Leaf+17] ^= 1
	volume[shape.Size-1] ^= 1
	differ, _, err := merkle.Diff(t.Context(), before, tree(t, shape, volume))
	if err != nil {
		t.Fatal(err)
	}
	var got []merkle.Extent
	for _, r := range differ {
		for i := r.First; i < r.End; i++ {
			got = append(got, shape.LeafExtent(i))
		}
	}
	want := []merkle.Extent{{Off: 3 * shape.Leaf, End: 4 * shape.Leaf}, {Off: 160 * shape.Leaf, End: shape.Size}}
	if !slices.Equal(got, want) {
		t.Errorf("differ in %v, want %v", got, want)
	}
}

func tree(t *testing.T, shape merkle.Shape, volume []byte) *merkle.Tree {
	t.Helper()
	h, err := merkle.NewHasher(shape)
	if err != nil {
		t.Fatal(err)
	}
	leaves := make([]merkle.Hash, shape.Leaves())
	for i := range leaves {
		at := shape.LeafExtent(int64(i))
		leaves[i] = h.Leaf(volume[at.Off:at.End])
	}
	made, err := merkle.NewTree(shape, leaves)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// What an embedder takes must not bring what only the command or a server needs.
func TestLinksLittle(t *testing.T) {
	heavy := []string{
		"github.com/spf13/cobra", "github.com/cilium/ebpf", "net/http", "google.golang.org/grpc",
		"go.etcd.io", "github.com/prometheus", module + "/internal", module + "/cmd",
	}
	for _, pkg := range []string{"", "/cbt", "/cbt/cbttest", "/merkle", "/transport", "/transport/message", "/transport/dial"} {
		cmd := exec.Command("go", "list", "-deps", module+pkg)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", module+pkg, err)
		}
		deps := strings.Fields(string(out))
		if len(deps) == 0 {
			t.Errorf("go list -deps %s lists nothing", module+pkg)
		}
		for _, dep := range deps {
			switch dep {
			case module + "/internal/journal": // the target's resume journal: a leaf of the standard library and checksums
				continue
			case module + "/internal/sysfs": // what a volume lies on: a leaf of the standard library and x/sys
				continue
			}
			for _, h := range heavy {
				if dep == h || strings.HasPrefix(dep, h+"/") {
					t.Errorf("whoever embeds %s links %s", module+pkg, dep)
				}
			}
		}
	}
}
