package bench

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
)

func TestFloorsBringTheTargetInLine(t *testing.T) {
	s := testSet(t, 80)
	for _, name := range []string{"0", "rand-1", "seq-10", "rand-50", "seq-100"} {
		d, err := ParseDivergence(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range []struct {
			name string
			run  func(div *Divergent) (Floor, error)
			all  bool // copies more than what differs
		}{
			{"send", func(div *Divergent) (Floor, error) {
				return FloorSend(t.Context(), SendOptions{Source: s.Source, Target: s.Target, Extents: div.Pieces})
			}, false},
			{"send s2", func(div *Divergent) (Floor, error) {
				return FloorSend(t.Context(), SendOptions{Source: s.Source, Target: s.Target, Extents: div.Pieces, S2: true})
			}, false},
			{"copy", func(div *Divergent) (Floor, error) {
				return FloorCopy(t.Context(), s.Source, s.Target, append([]cbt.Extent{}, div.Pieces...))
			}, false},
			{"copy all", func(*Divergent) (Floor, error) { return FloorCopy(t.Context(), s.Source, s.Target, nil) }, true},
		} {
			div, err := s.Diverge(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			f, err := way.run(div)
			if err != nil {
				t.Fatalf("%s at %s: %v", way.name, name, err)
			}
			if left := naiveDiffering(t, s); len(left) > 0 {
				t.Errorf("%s at %s: %d bytes still differ", way.name, name, cbt.Total(left))
			}
			s.Converged()
			want := cbt.Total(div.Pieces)
			if way.all {
				want = s.Info.Size
			}
			if f.Bytes != want {
				t.Errorf("%s at %s: says %d bytes, want %d", way.name, name, f.Bytes, want)
			}
			if way.name == "send s2" && want > 1<<20 && f.WireBytes > want {
				t.Errorf("%s at %s: text grew from %d to %d bytes", way.name, name, want, f.WireBytes)
			}
		}
	}
}

// Every way to hash the same gives the same: loops on all cores, and one after the other here.
func TestFloorHashAgrees(t *testing.T) {
	s := testSet(t, 40)
	data, err := os.ReadFile(s.Source)
	if err != nil {
		t.Fatal(err)
	}
	key := [32]byte{1, 2, 3}
	sums := map[string]uint64{}
	for _, name := range Hashes() {
		o := HashOptions{Paths: []string{s.Source}, Hash: name, Unit: 16 << 10, Key: key}
		f, err := FloorHash(t.Context(), o)
		if errors.Is(err, errNoAVX512) {
			t.Logf("left out: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(name, err)
		}
		if f.Bytes != s.Info.Size {
			t.Errorf("%s: read %d bytes of %d", name, f.Bytes, s.Info.Size)
		}
		sums[name] = f.Sum
		one := name
		if name == "sha256-lanes" {
			one = "sha256"
		}
		d, err := newDigester(one, key)
		if err != nil {
			t.Fatal(err)
		}
		var want uint64
		for off := 0; off < len(data); off += o.Unit {
			want += d(int64(off), data[off:off+o.Unit]) * uint64(2*(off/o.Unit)+1)
		}
		if f.Sum != want {
			t.Errorf("%s: sum %#x, want %#x", name, f.Sum, want)
		}
		o.Paths = []string{s.Source, s.Target}
		if both, err := FloorHash(t.Context(), o); err != nil || both.Sum != 2*f.Sum || both.Bytes != 2*f.Bytes {
			t.Errorf("%s: two equal files give %+v, %v; one gives %+v", name, both, err, f)
		}
		o.Direct = true
		if both, err := FloorHash(t.Context(), o); err != nil || both.Sum != 2*f.Sum {
			t.Errorf("%s: past the cache %+v, %v; want twice %#x", name, both, err, f.Sum)
		}
	}
	if sums["sha256"] != sums["sha256-std"] {
		t.Error("two implementations of SHA-256 disagree")
	}
	if lanes, ok := sums["sha256-lanes"]; ok && lanes != sums["sha256"] {
		t.Error("the multi-lane server disagrees with one stream")
	}
}

func TestFloorHashRefuses(t *testing.T) {
	for _, o := range []HashOptions{{Hash: "crc"}, {Hash: "gmac", Unit: 3000}, {Hash: "gmac", Unit: 1}, {Hash: "gmac", Paths: []string{"/nonexistent"}}} {
		if _, err := FloorHash(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestFloorReadBack(t *testing.T) {
	s := testSet(t, 40)
	x := []cbt.Extent{{Off: Piece, End: 2 * Piece}, {Off: 4 * Leaf, End: 40 * Leaf}}
	f, err := FloorReadBack(t.Context(), s.Source, x)
	if err != nil {
		t.Fatal(err)
	}
	if f.Bytes != cbt.Total(x) {
		t.Errorf("read %d bytes, want %d", f.Bytes, cbt.Total(x))
	}
	beyond := []cbt.Extent{{Off: s.Info.Size, End: s.Info.Size + Piece}}
	if _, err := FloorReadBack(t.Context(), s.Source, beyond); err == nil {
		t.Error("reading behind the end went through")
	}
}

func TestFloorSendFailsWhole(t *testing.T) {
	s := testSet(t, 40)
	all := []cbt.Extent{{Off: 0, End: s.Info.Size}}
	gone := filepath.Join(s.Dir, "gone")
	for _, o := range []SendOptions{
		{Source: gone, Target: s.Target, Extents: all},
		{Source: s.Source, Target: gone, Extents: all},
		{Source: s.Source, Target: "/dev/full", Extents: all},
		{Source: s.Source, Target: s.Target, Extents: []cbt.Extent{{Off: 0, End: 2 * s.Info.Size}}},
	} {
		if _, err := FloorSend(t.Context(), o); err == nil {
			t.Errorf("sending %s to %s went through", o.Source, o.Target)
		}
	}
}

func TestSplitAndBatches(t *testing.T) {
	x := []cbt.Extent{{Off: 0, End: 5}, {Off: 10, End: 3*chunk + 7}, {Off: 4 * chunk, End: 4*chunk + 1}}
	var again []cbt.Extent
	for _, b := range batches(x) {
		n := 0
		for _, e := range b.x {
			n += int(e.Len())
			again = append(again, e)
		}
		if n != b.n || n > chunk || n == 0 {
			t.Errorf("a batch says %d bytes and has %d", b.n, n)
		}
	}
	if got := cbt.Normalize(again); !slices.Equal(got, x) {
		t.Errorf("batches hold %v, want %v", got, x)
	}
}

func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{1, 512, Piece, chunk} {
		b := alignedBuffer(n)
		if len(b) != n || cap(b) != n {
			t.Errorf("len %d, cap %d, want %d", len(b), cap(b), n)
		}
	}
}

func TestChillAndWarm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	want := bytes.Repeat([]byte("content "), 1<<17)
	if err := os.WriteFile(path, want, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Warm(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if in, err := Resident(path); err != nil || in < int64(len(want)) {
		t.Fatalf("warm: %d of %d bytes in the cache, %v", in, len(want), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byMincore, err := resident(f)
	if err != nil || byMincore < int64(len(want)) {
		t.Errorf("mincore sees %d of %d bytes, %v", byMincore, len(want), err)
	}
	if err := Chill(path); err != nil {
		t.Skipf("the page cache cannot be dropped on this file system: %v", err)
	}
	if byMincore, err = resident(f); err != nil || byMincore > 0 {
		t.Errorf("cold: mincore sees %d bytes, %v", byMincore, err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("dropping the cache changed the file: %v", err)
	}
}
