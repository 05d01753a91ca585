package fuzz_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/failback/failback/cbt"
)

var updateMap = flag.Bool("update.map", false, "write the seeds of FuzzMap, FuzzMapText and FuzzExtents anew")

// mapSeeds are made by the real writer: one map of each kind.
func mapSeeds(t testing.TB) map[string][]byte {
	seeds := map[string][]byte{}
	add := func(name string, size, block int64, runs func(yield func(cbt.Run) bool)) {
		m, err := cbt.NewMap(size, block, runs)
		if err != nil {
			t.Fatal(err)
		}
		m.Identity, m.Epoch = name, cbt.Epoch(len(name))
		var b bytes.Buffer
		if _, err := m.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		seeds[name] = b.Bytes()
	}
	one := func(off, end int64, s cbt.State) cbt.Run {
		return cbt.Run{Extent: cbt.Extent{Off: off, End: end}, State: s}
	}
	add("empty", 1<<20, 0, slices.Values([]cbt.Run(nil)))
	add("all", 1<<40, 0, slices.Values([]cbt.Run{one(0, 1<<40, cbt.Dirty)}))
	add("short-last-block", 10_000, 0, slices.Values([]cbt.Run{one(0, 1, cbt.Dirty), one(9_999, 10_000, cbt.Dirty)}))
	add("states", 1<<30, 64<<10, slices.Values([]cbt.Run{one(0, 1<<20, cbt.Discarded), one(1<<19, 1<<20, cbt.Dirty), one(1<<29, 1<<30, cbt.Discarded)}))
	add("largest", 512<<40, 0, slices.Values([]cbt.Run{one(0, 1, cbt.Dirty), one(512<<40-1, 512<<40, cbt.Dirty)}))
	add("two-chunks", 1<<34, 0, func(yield func(cbt.Run) bool) {
		// 65 clean blocks and 17 dirty ones, for the run is then "A " in the
		// file: a body of 64 KiB that is text makes a small seed.
		for i := range int64(33_000) {
			if !yield(one((82*i+65)*cbt.MinBlock, (82*i+82)*cbt.MinBlock, cbt.Dirty)) {
				return
			}
		}
	})
	return seeds
}

// textSeeds spell extents in both forms, as failback prints them.
func textSeeds() map[string][]byte {
	return map[string][]byte{
		"lines":    []byte("0x1000 8192\n65536 4096 discarded\n"),
		"comments": []byte("# offset length\r\n\n0 1 dirty # first\n"),
		"json":     []byte(`{"schema":1,"extents":[{"offset":0,"length":4096},{"offset":8192,"length":1,"state":"discarded"}]}`),
		"nested":   []byte("{\"a\":[[{}]],\n\"extents\":[\n]}"),
	}
}

// extentSeeds are pairs of bytes, offset and length, for two lists.
func extentSeeds() map[string][2][]byte {
	return map[string][2][]byte{
		"empty":    {{}, {}},
		"adjacent": {{0, 4, 4, 4}, {8, 1}},
		"nested":   {{0, 60}, {10, 5, 20, 5, 30, 5}},
		"disorder": {{40, 3, 1, 2, 39, 2}, {2, 0, 63, 9}},
	}
}

// TestMapSeeds wants the committed seeds to be what the writer makes today:
// stale seeds of a format that is gone find nothing.
func TestMapSeeds(t *testing.T) {
	files := map[string]string{}
	put := func(target, name string, values ...[]byte) {
		text := "go test fuzz v1\n"
		for _, v := range values {
			text += fmt.Sprintf("[]byte(%q)\n", v)
		}
		files[filepath.Join("testdata", "fuzz", target, name)] = text
	}
	for name, b := range mapSeeds(t) {
		put("FuzzMap", name, b)
	}
	for name, b := range textSeeds() {
		put("FuzzMapText", name, b)
	}
	for name, b := range extentSeeds() {
		put("FuzzExtents", name, b[0], b[1])
	}
	for path, want := range files {
		if *updateMap {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v: make the seeds with -update.map", err)
		} else if string(got) != want {
			t.Errorf("%s is not what the writer makes: make the seeds with -update.map", path)
		}
	}
}

// mendMap returns in with checksums that fit, so that what lies behind them is
// fuzzed, too.
func mendMap(in []byte) []byte {
	b := bytes.Clone(in)
	if len(b) < 64 {
		return b
	}
	end := min(64+int(binary.LittleEndian.Uint16(b[12:])), len(b))
	sum := xxhash.Sum64(slices.Concat(b[:56], b[64:end]))
	binary.LittleEndian.PutUint64(b[56:], sum)
	for rest := b[end:]; len(rest) >= 12; {
		n := 4 + int64(binary.LittleEndian.Uint32(rest))
		if n > int64(len(rest)-8) {
			break
		}
		sum = xxhash.Sum64(append(binary.LittleEndian.AppendUint64(nil, sum), rest[:n]...))
		binary.LittleEndian.PutUint64(rest[n:], sum)
		rest = rest[n+8:]
	}
	return b
}

// FuzzMap: what is accepted is what the writer makes, and memory follows the
// input, not what the input claims.
func FuzzMap(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		checkMap(t, in)
		checkMap(t, mendMap(in))
	})
}

func checkMap(t *testing.T, in []byte) {
	t.Helper()
	var m *cbt.Map
	var err error
	bound := uint64(192<<10 + 64*len(in)) // the buffers, and runs that are there
	if got := allocated(func() { m, err = cbt.ReadMap(bytes.NewReader(in)) }); got > bound {
		t.Errorf("%d bytes allocated for %d", got, len(in))
	}
	if err != nil {
		var at *cbt.MapError
		if m != nil || !errors.As(err, &at) || at.Off < 0 || at.Off > int64(len(in)) {
			t.Errorf("the error %v has no place in %d bytes, or comes with a map", err, len(in))
		}
		return
	}
	var out bytes.Buffer
	if _, err := m.WriteTo(&out); err != nil {
		t.Fatalf("write what was read: %v", err)
	}
	if !bytes.Equal(out.Bytes(), in) {
		t.Errorf("accepted bytes the writer never makes:\n%x\nit makes\n%x", in, out.Bytes())
	}
	checkMapRuns(t, m)
}

// checkMapRuns wants the runs of m to be what a list of runs must be.
func checkMapRuns(t *testing.T, m *cbt.Map) {
	var last cbt.Run
	for r := range m.Runs() {
		switch {
		case r.Empty() || r.Off < last.End || r.End > m.VolumeSize,
			r.State != cbt.Dirty && r.State != cbt.Discarded,
			r.Off == last.End && r.State == last.State:
			t.Fatalf("%v after %v in a volume of %d bytes", r, last, m.VolumeSize)
		}
		last = r
	}
}

// FuzzMapText: text that is accepted spells the same runs when they are
// written out and read once more, and stays in the volume.
func FuzzMapText(f *testing.F) {
	const size = 1 << 20
	f.Fuzz(func(t *testing.T, in []byte) {
		runs, err := parseMapText(bytes.NewReader(in), size)
		if err != nil {
			return
		}
		var lines, object strings.Builder
		object.WriteString(`{"extents":[`)
		for i, r := range runs {
			if r.Empty() || r.Off < 0 || r.End > size {
				t.Fatalf("%v in a volume of %d bytes", r, size)
			}
			fmt.Fprintf(&lines, "%#x %d %v\n", r.Off, r.Len(), r.State)
			if i > 0 {
				object.WriteString(",")
			}
			fmt.Fprintf(&object, `{"offset":%d,"length":%d,"state":%q}`, r.Off, r.Len(), r.State)
		}
		object.WriteString("]}")
		for _, text := range []string{lines.String(), object.String()} {
			if again, err := parseMapText(strings.NewReader(text), size); err != nil || !slices.Equal(again, runs) {
				t.Errorf("%q spells %v, written out as %q it is %v, %v", in, runs, text, again, err)
			}
		}
	})
}

func parseMapText(r io.Reader, size int64) ([]cbt.Run, error) {
	var out []cbt.Run
	for run, err := range cbt.ParseRuns(r, size) {
		if err != nil {
			return nil, err
		}
		out = append(out, run)
	}
	return out, nil
}

// FuzzExtents: the algebra of lists against that of 512 booleans.
func FuzzExtents(f *testing.F) {
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x, y := byteExtents(a), byteExtents(b)
		nx, ny := offsetsOf(x), offsetsOf(y)
		x, y = cbt.Normalize(x), cbt.Normalize(y)
		want := func(op string, got []cbt.Extent, member func(i int) bool) {
			t.Helper()
			var set offsetSet
			for i := range set {
				set[i] = member(i)
			}
			if !slices.Equal(got, set.extents()) {
				t.Errorf("%s of %v and %v is %v, want %v", op, x, y, got, set.extents())
			}
		}
		want("Normalize", x, func(i int) bool { return nx[i] })
		want("Union", cbt.Union(x, y), func(i int) bool { return nx[i] || ny[i] })
		want("Intersect", cbt.Intersect(x, y), func(i int) bool { return nx[i] && ny[i] })
		want("Subtract", cbt.Subtract(x, y), func(i int) bool { return nx[i] && !ny[i] })
		unit, size := int64(1+len(a)%9), int64(300-len(b)%200)
		want("Align", cbt.Align(x, unit, size), func(i int) bool {
			first := int64(i) - int64(i)%unit
			return int64(i) < size && slices.Contains(nx[first:min(first+unit, size)], true)
		})
		coarse := cbt.Coarsen(x, 1+len(b)%5)
		if len(coarse) > 1+len(b)%5 || len(cbt.Subtract(x, coarse)) > 0 {
			t.Errorf("L1: Coarsen(%v, %d) is %v", x, 1+len(b)%5, coarse)
		}
	})
}

// byteExtents reads offsets and lengths, a byte each.
func byteExtents(b []byte) []cbt.Extent {
	var out []cbt.Extent
	for ; len(b) >= 2; b = b[2:] {
		out = append(out, cbt.Extent{Off: int64(b[0]), End: int64(b[0]) + int64(b[1])})
	}
	return out
}

// offsetSet is a set of the offsets 0 to 511, where every byteExtents lies.
type offsetSet [512]bool

func offsetsOf(x []cbt.Extent) offsetSet {
	var s offsetSet
	for _, e := range x {
		for off := e.Off; off < e.End; off++ {
			s[off] = true
		}
	}
	return s
}

func (s *offsetSet) extents() []cbt.Extent {
	var out []cbt.Extent
	for i, member := range s {
		off := int64(i)
		switch n := len(out); {
		case !member:
		case n > 0 && out[n-1].End == off:
			out[n-1].End++
		default:
			out = append(out, cbt.Extent{Off: off, End: off + 1})
		}
	}
	return out
}
