package floor

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
)

// pair makes two files of n leaves of which the pieces in x differ. Much of both compresses well.
func pair(t *testing.T, leaves int, x []cbt.Extent) (source, target string, content []byte) {
	t.Helper()
	dir := t.TempDir()
	content = make([]byte, leaves*64<<10)
	rng := rand.NewChaCha8([32]byte{1})
	for i := 0; i < len(content); i += 64 {
		rng.Read(content[i : i+8])
	}
	other := bytes.Clone(content)
	for _, e := range x {
		for i := e.Off; i < e.End; i++ {
			other[i] ^= 0xff
		}
	}
	source, target = filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(source, content, 0o644), os.WriteFile(target, other, 0o644)); err != nil {
		t.Fatal(err)
	}
	return source, target, content
}

// scattered returns one piece in every nth leaf.
func scattered(leaves, n int) []cbt.Extent {
	var out []cbt.Extent
	for i := 0; i < leaves; i += n {
		off := int64(i)<<16 + int64(i%16)<<12
		out = append(out, cbt.Extent{Off: off, End: off + sector})
	}
	return out
}

func TestFloorsBringTheTargetInLine(t *testing.T) {
	const leaves = 80
	all := []cbt.Extent{{Off: 0, End: leaves << 16}}
	for name, x := range map[string][]cbt.Extent{
		"nothing": {}, "scattered": scattered(leaves, 2), "a run": {{Off: 5 << 16, End: 40 << 16}}, "all": all,
	} {
		for _, way := range []struct {
			name string
			run  func(source, target string) (Result, error)
			want int64
		}{
			{"send", func(a, b string) (Result, error) {
				return Send(t.Context(), SendOptions{Source: a, Target: b, Extents: x})
			}, cbt.Total(x)},
			{"send s2", func(a, b string) (Result, error) {
				return Send(t.Context(), SendOptions{Source: a, Target: b, Extents: x, S2: true})
			}, cbt.Total(x)},
			{"send direct", func(a, b string) (Result, error) {
				return Send(t.Context(), SendOptions{Source: a, Target: b, Extents: x, Direct: true})
			}, cbt.Total(x)},
			{"copy", func(a, b string) (Result, error) { return Copy(t.Context(), a, b, x) }, cbt.Total(x)},
			{"copy all", func(a, b string) (Result, error) { return Copy(t.Context(), a, b, nil) }, cbt.Total(all)},
		} {
			source, target, content := pair(t, leaves, x)
			r, err := way.run(source, target)
			if err != nil {
				t.Fatalf("%s of %s: %v", way.name, name, err)
			}
			if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s of %s: the target is not the source: %v", way.name, name, err)
			}
			if r.Bytes != way.want {
				t.Errorf("%s of %s: says %d bytes, want %d", way.name, name, r.Bytes, way.want)
			}
			if way.name == "send s2" && r.WireBytes > way.want {
				t.Errorf("%s of %s: grew from %d to %d bytes", way.name, name, way.want, r.WireBytes)
			}
		}
	}
}

// Every way to hash the same gives the same: loops on all cores, and one after the other here.
func TestHashAgrees(t *testing.T) {
	source, target, data := pair(t, 40, nil)
	size := int64(len(data))
	key := [32]byte{1, 2, 3}
	sums := map[string]uint64{}
	for _, name := range Hashes() {
		o := HashOptions{Paths: []string{source}, Hash: name, Unit: 16 << 10, Key: key}
		f, err := Hash(t.Context(), o)
		if err != nil {
			t.Fatal(name, err)
		}
		if f.Bytes != size {
			t.Errorf("%s: read %d bytes of %d", name, f.Bytes, size)
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
		o.Paths = []string{source, target}
		if both, err := Hash(t.Context(), o); err != nil || both.Sum != 2*f.Sum || both.Bytes != 2*f.Bytes {
			t.Errorf("%s: two equal files give %+v, %v; one gives %+v", name, both, err, f)
		}
		o.Direct = true
		if both, err := Hash(t.Context(), o); err != nil || both.Sum != 2*f.Sum {
			t.Errorf("%s: past the cache %+v, %v; want twice %#x", name, both, err, f.Sum)
		}
	}
	if sums["sha256"] != sums["sha256-std"] {
		t.Error("two implementations of SHA-256 disagree")
	}
	if got, ok := sums["sha256-lanes"]; ok && got != sums["sha256"] {
		t.Error("the multi-lane server disagrees with one stream")
	}
}

func TestHashRefuses(t *testing.T) {
	for _, o := range []HashOptions{{Hash: "crc"}, {Hash: "gmac", Unit: 3000}, {Hash: "gmac", Unit: 1}, {Hash: "gmac", Paths: []string{"/nonexistent"}}} {
		if _, err := Hash(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestReadBack(t *testing.T) {
	source, _, data := pair(t, 40, nil)
	size := int64(len(data))
	x := []cbt.Extent{{Off: 1 << 12, End: 2 << 12}, {Off: 4 << 16, End: 40 << 16}}
	f, err := ReadBack(t.Context(), source, x)
	if err != nil {
		t.Fatal(err)
	}
	if f.Bytes != cbt.Total(x) {
		t.Errorf("read %d bytes, want %d", f.Bytes, cbt.Total(x))
	}
	beyond := []cbt.Extent{{Off: size, End: size + sector}}
	if _, err := ReadBack(t.Context(), source, beyond); err == nil {
		t.Error("reading behind the end went through")
	}
}

func TestSendFailsWhole(t *testing.T) {
	source, target, data := pair(t, 40, nil)
	size := int64(len(data))
	all := []cbt.Extent{{Off: 0, End: size}}
	gone := filepath.Join(t.TempDir(), "gone")
	for _, o := range []SendOptions{
		{Source: gone, Target: target, Extents: all},
		{Source: source, Target: gone, Extents: all},
		{Source: source, Target: "/dev/full", Extents: all},
		{Source: source, Target: target, Extents: []cbt.Extent{{Off: 0, End: 2 * size}}},
	} {
		if _, err := Send(t.Context(), o); err == nil {
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
	for _, n := range []int{1, 512, sector, chunk} {
		b := alignedBuffer(n)
		if len(b) != n || cap(b) != n {
			t.Errorf("len %d, cap %d, want %d", len(b), cap(b), n)
		}
	}
}
