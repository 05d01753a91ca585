package cbt_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cespare/xxhash/v2"
	"github.com/failback/failback/cbt"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

// mapOf returns a map of runs given as first block, end block, state.
func mapOf(t testing.TB, size int64, runs ...[3]int64) *cbt.Map {
	t.Helper()
	m, err := cbt.NewMap(size, cbt.MinBlock, func(yield func(cbt.Run) bool) {
		for _, r := range runs {
			e := cbt.Extent{Off: r[0] * cbt.MinBlock, End: min(r[1]*cbt.MinBlock, size)}
			if !yield(cbt.Run{Extent: e, State: cbt.State(r[2])}) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func encode(t testing.TB, m *cbt.Map) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := m.WriteTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("WriteTo returned %d of %d bytes", n, b.Len())
	}
	return b.Bytes()
}

// sameMap compares header and runs.
func sameMap(a, b *cbt.Map) bool {
	return a.VolumeSize == b.VolumeSize && a.BlockSize == b.BlockSize && a.Identity == b.Identity &&
		a.Epoch == b.Epoch && slices.Equal(slices.Collect(a.Runs()), slices.Collect(b.Runs()))
}

// goldenMap is what testdata/map-v1.fbm holds, for ever.
func goldenMap(t testing.TB) *cbt.Map {
	m := mapOf(t, 1000*cbt.MinBlock-512,
		[3]int64{0, 1, 1}, [3]int64{1, 3, 2}, [3]int64{3, 4, 1}, [3]int64{200, 500, 1}, [3]int64{999, 1000, 2})
	m.Identity, m.Epoch = "vg0/data \u2014 golden", 0x0102030405060708
	return m
}

func TestGoldenMap(t *testing.T) {
	path := filepath.Join("testdata", "map-v1.fbm")
	if *update {
		if err := os.WriteFile(path, encode(t, goldenMap(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := encode(t, goldenMap(t)); !bytes.Equal(got, want) {
		t.Errorf("the writer makes\n%x\nand the golden file is\n%x", got, want)
	}
	m, err := cbt.LoadMap(path)
	if err != nil {
		t.Fatal(err)
	}
	if !sameMap(m, goldenMap(t)) {
		t.Errorf("the golden file reads as %+v", slices.Collect(m.Runs()))
	}
}

// largeMap has several chunks: more runs than fit in one.
func largeMap(t testing.TB) *cbt.Map {
	m, err := cbt.NewMap(1<<32, 0, func(yield func(cbt.Run) bool) {
		for i := int64(0); i < 1<<32/cbt.MinBlock-2; i += 7 + i%3 {
			r := cbt.Run{Extent: cbt.Extent{Off: i * cbt.MinBlock, End: (i + 1 + i%2) * cbt.MinBlock}, State: cbt.State(1 + i%2)}
			if !yield(r) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Identity, m.Epoch = "large", 9
	return m
}

func TestMapRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := cbt.MinBlock << rapid.IntRange(0, 8).Draw(t, "block")
		size := rapid.Int64Range(1, 600*block).Draw(t, "size")
		runs := rapid.SliceOf(rapid.Custom(func(t *rapid.T) cbt.Run {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			end := rapid.Int64Range(off+1, size).Draw(t, "end")
			return cbt.Run{Extent: cbt.Extent{Off: off, End: end}, State: cbt.State(rapid.IntRange(1, 2).Draw(t, "state"))}
		})).Draw(t, "runs")
		m, err := cbt.NewMap(size, block, slices.Values(runs))
		if err != nil {
			t.Fatal(err)
		}
		m.Identity = rapid.StringN(0, 50, cbt.MaxIdentity).Draw(t, "identity")
		m.Epoch = cbt.Epoch(rapid.Uint64().Draw(t, "epoch"))
		var b bytes.Buffer
		if _, err := m.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		got, err := cbt.ReadMap(iotest.OneByteReader(&b))
		if err != nil {
			t.Fatal(err)
		}
		if !sameMap(got, m) {
			t.Fatalf("wrote %v, read %v", slices.Collect(m.Runs()), slices.Collect(got.Runs()))
		}
		var extents []cbt.Extent
		for _, r := range runs {
			extents = append(extents, r.Extent)
		}
		if want := cbt.Align(cbt.Normalize(extents), block, size); !slices.Equal(got.Extents(), want) {
			t.Fatalf("extents %v, want %v", got.Extents(), want)
		}
	})
}

func TestLargeMapRoundTrip(t *testing.T) {
	m := largeMap(t)
	b := encode(t, m)
	if len(b) < 3<<16 {
		t.Fatalf("%d bytes are too few for three chunks", len(b))
	}
	got, err := cbt.ReadMap(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if !sameMap(got, m) {
		t.Error("read another map than was written")
	}
}

// wantMapError wants err to be of the given kind and to have a place in the
// first n bytes, or just behind them.
func wantMapError(err, kind error, n int) error {
	var at *cbt.MapError
	switch {
	case !errors.Is(err, kind):
		return fmt.Errorf("got %v, want %v", err, kind)
	case !errors.As(err, &at):
		return fmt.Errorf("%v has no place", err)
	case at.Off < 0 || at.Off > int64(n):
		return fmt.Errorf("%v: the place is not in the file of %d bytes", err, n)
	}
	return nil
}

// TestEveryCutIsAnError cuts a file at each byte: never a smaller map.
func TestEveryCutIsAnError(t *testing.T) {
	b := encode(t, goldenMap(t))
	for n := range b {
		_, err := cbt.ReadMap(bytes.NewReader(b[:n]))
		if werr := errors.Join(wantMapError(err, cbt.ErrCorrupt, n), wantMapError(err, io.ErrUnexpectedEOF, n)); werr != nil {
			t.Errorf("cut to %d of %d bytes: %v", n, len(b), werr)
		}
	}
	large := encode(t, largeMap(t))
	for n := len(b); n < len(large); n += 4099 {
		if _, err := cbt.ReadMap(bytes.NewReader(large[:n])); wantMapError(err, cbt.ErrCorrupt, n) != nil {
			t.Errorf("large map cut to %d: %v", n, err)
		}
	}
}

func TestEveryFlipIsAnError(t *testing.T) {
	b := encode(t, goldenMap(t))
	for i := range b {
		kind := cbt.ErrCorrupt
		switch {
		case i < 8:
			kind = cbt.ErrNotMap
		case i < 12:
			kind = cbt.ErrVersion
		}
		for bit := range 8 {
			b[i] ^= 1 << bit
			if _, err := cbt.ReadMap(bytes.NewReader(b)); wantMapError(err, kind, len(b)) != nil {
				t.Errorf("byte %#x, bit %d flipped: %v", i, bit, wantMapError(err, kind, len(b)))
			}
			b[i] ^= 1 << bit
		}
	}
}

// TestTornFiles puts pieces of valid files together: each piece is right.
func TestTornFiles(t *testing.T) {
	large := encode(t, largeMap(t))
	header := 64 + len("large")
	var chunks [][]byte
	for rest := large[header:]; len(rest) > 0; {
		n := 4 + int(binary.LittleEndian.Uint32(rest)) + 8
		chunks, rest = append(chunks, rest[:n]), rest[n:]
	}
	for name, torn := range map[string][]byte{
		"chunks swapped":     slices.Concat(large[:header], chunks[1], chunks[0], slices.Concat(chunks[2:]...)),
		"chunk missing":      slices.Concat(large[:header], chunks[0], slices.Concat(chunks[2:]...)),
		"chunk twice":        slices.Concat(large[:header], chunks[0], chunks[0], slices.Concat(chunks[1:]...)),
		"last chunk missing": slices.Concat(large[:header], slices.Concat(chunks[:len(chunks)-1]...)),
		"byte behind":        slices.Concat(large, []byte{0}),
		"file behind":        slices.Concat(large, large),
		"another header":     slices.Concat(encode(t, goldenMap(t))[:64+len(goldenMap(t).Identity)], large[header:]),
		"zeroes at the end":  slices.Concat(large[:len(large)-4096], make([]byte, 4096)),
	} {
		if _, err := cbt.ReadMap(bytes.NewReader(torn)); wantMapError(err, cbt.ErrCorrupt, len(torn)) != nil {
			t.Errorf("%s: %v", name, wantMapError(err, cbt.ErrCorrupt, len(torn)))
		}
	}
	for name, other := range map[string]string{"text": "0 4096\n", "other magic": strings.Repeat("x", 200), "png": "\x89PNG\r\n\x1a\n"} {
		if _, err := cbt.ReadMap(strings.NewReader(other)); wantMapError(err, cbt.ErrNotMap, 0) != nil {
			t.Errorf("%s: %v", name, wantMapError(err, cbt.ErrNotMap, 0))
		}
	}
}

// forge writes map files from docs/format-map.md alone, right or wrong.
type forge struct {
	version, runs, block uint32
	volume               int64
	identity             string
	reserved             byte
	bodies               []string
}

func (f forge) bytes() []byte {
	b := append([]byte{0x89}, "FBM\r\n\x1a\n"...)
	b = binary.LittleEndian.AppendUint32(b, f.version)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(f.identity)))
	b = append(b, f.reserved, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(f.volume))
	b = binary.LittleEndian.AppendUint32(b, f.block)
	b = binary.LittleEndian.AppendUint32(b, f.runs)
	b = binary.LittleEndian.AppendUint64(b, 77)
	b = append(b, make([]byte, 16)...)
	sum := xxhash.Sum64(append(slices.Clone(b), f.identity...))
	b = binary.LittleEndian.AppendUint64(b, sum)
	b = append(b, f.identity...)
	for _, body := range f.bodies {
		chained := binary.LittleEndian.AppendUint64(nil, sum)
		chunk := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
		sum = xxhash.Sum64(append(chained, chunk...))
		b = binary.LittleEndian.AppendUint64(append(b, chunk...), sum)
	}
	return b
}

// TestHostileMaps: the checksums are right and the content is not.
func TestHostileMaps(t *testing.T) {
	good := forge{version: 1, runs: 2, block: 4096, volume: 100 * 4096, bodies: []string{"\x05\x00\x01\x03"}}
	full := strings.Repeat("\x01\x00", 32768) // a body of 65536 bytes, 32768 runs
	if m, err := cbt.ReadMap(bytes.NewReader(good.bytes())); err != nil || m.Epoch != 77 ||
		!slices.Equal(slices.Collect(m.Runs()), append(block(5, cbt.Dirty), cbt.Run{Extent: cbt.Extent{Off: 7 * 4096, End: 9 * 4096}, State: cbt.Discarded})) {
		t.Fatalf("the forged map is good, yet %v", err)
	}
	for _, c := range []struct {
		name, message string
		change        func(*forge)
		off           int64
		kind          error
	}{
		{"version 0", "version 0", func(f *forge) { f.version = 0 }, 8, cbt.ErrVersion},
		{"version 2", "reads 1", func(f *forge) { f.version = 2 }, 8, cbt.ErrVersion},
		{"long identity", "256 bytes", func(f *forge) { f.identity = strings.Repeat("x", 256) }, 12, cbt.ErrCorrupt},
		{"reserved", "reserved", func(f *forge) { f.reserved = 1 }, 14, cbt.ErrCorrupt},
		{"no volume", "0 bytes", func(f *forge) { f.volume = 0 }, 16, cbt.ErrCorrupt},
		{"negative volume", "-1 bytes", func(f *forge) { f.volume = -1 }, 16, cbt.ErrCorrupt},
		{"huge volume", "limit 536870912", func(f *forge) { f.volume = 1<<63 - 1 }, 16, cbt.ErrCorrupt},
		{"odd block", "power of two", func(f *forge) { f.block = 4097 }, 16, cbt.ErrCorrupt},
		{"no block", "power of two", func(f *forge) { f.block = 0 }, 16, cbt.ErrCorrupt},
		{"too many runs", "limit 8388608", func(f *forge) { f.runs = 8<<20 + 1 }, 28, cbt.ErrCorrupt},
		{"more runs than there are", "file ends", func(f *forge) { f.runs = 8 << 20 }, 64 + 16, cbt.ErrCorrupt},
		{"fewer runs than there are", "more than the 1 runs", func(f *forge) { f.runs = 1 }, 64 + 4 + 2, cbt.ErrCorrupt},
		{"no runs, a chunk", "after the last run", func(f *forge) { f.runs = 0 }, 64, cbt.ErrCorrupt},
		{"empty chunk", "chunk of 0", func(f *forge) { f.bodies = []string{""} }, 64, cbt.ErrCorrupt},
		{"long chunk", "chunk of 65538", func(f *forge) { f.runs, f.volume, f.bodies = 1<<20, 1<<40, []string{full + "\x01\x00"} }, 64, cbt.ErrCorrupt},
		{"run split", "varint", func(f *forge) { f.bodies = []string{"\x05\x00\x01", "\x03"} }, 64 + 4 + 2, cbt.ErrCorrupt},
		{"early chunk", "fits the chunk before", func(f *forge) { f.bodies = []string{"\x05\x00", "\x01\x03"} }, 64 + 4 + 2 + 8 + 4, cbt.ErrCorrupt},
		{"long zero", "shortest", func(f *forge) { f.bodies = []string{"\x85\x00\x00\x01\x03"} }, 64 + 4, cbt.ErrCorrupt},
		{"long length", "shortest", func(f *forge) { f.bodies = []string{"\x05\x80\x00\x01\x03"} }, 64 + 4, cbt.ErrCorrupt},
		{"varint without end", "too long", func(f *forge) { f.bodies = []string{strings.Repeat("\xff", 30)} }, 64 + 4, cbt.ErrCorrupt},
		{"past the end", "past block 100", func(f *forge) { f.bodies = []string{"\x05\x00\x5d\x03"} }, 64 + 4 + 2, cbt.ErrCorrupt},
		{"begins at the end", "past block 100", func(f *forge) { f.bodies = []string{"\x05\x00\x5e\x00"} }, 64 + 4 + 2, cbt.ErrCorrupt},
		{"gap overflows", "past block", func(f *forge) { f.bodies = []string{"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"} }, 64 + 4, cbt.ErrCorrupt},
		{"length overflows", "past block", func(f *forge) { f.bodies = []string{"\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} }, 64 + 4, cbt.ErrCorrupt},
		{"two runs that are one", "adjoins", func(f *forge) { f.bodies = []string{"\x05\x00\x00\x02"} }, 64 + 4 + 2, cbt.ErrCorrupt},
	} {
		f := good
		c.change(&f)
		b := f.bytes()
		_, err := cbt.ReadMap(bytes.NewReader(b))
		var at *cbt.MapError
		if werr := wantMapError(err, c.kind, len(b)); werr != nil {
			t.Errorf("%s: %v", c.name, werr)
		} else if errors.As(err, &at); at.Off != c.off || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: got %v at %#x, want %q at %#x", c.name, err, at.Off, c.message, c.off)
		}
	}
	// Chunk ends where it must: the same runs in full chunks are accepted.
	full2 := forge{version: 1, runs: 32769, block: 4096, volume: 1 << 40, bodies: []string{full, "\x01\x00"}}
	if _, err := cbt.ReadMap(bytes.NewReader(full2.bytes())); err != nil {
		t.Errorf("two chunks, the first full: %v", err)
	}
}

// TestClaimsAllocateNothing: a header may claim 64 MiB of runs, and memory
// follows what is there.
func TestClaimsAllocateNothing(t *testing.T) {
	b := forge{version: 1, runs: 8 << 20, block: 1 << 20, volume: 512 << 40}.bytes()
	var before, after runtime.MemStats
	const times = 100
	runtime.ReadMemStats(&before)
	for range times {
		if _, err := cbt.ReadMap(bytes.NewReader(b)); !errors.Is(err, cbt.ErrCorrupt) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := (after.TotalAlloc - before.TotalAlloc) / times; got > 16<<10 {
		t.Errorf("%d bytes allocated for a file of %d", got, len(b))
	}
}

// TestReaderErrors: what the reader says is passed on, and is no corruption.
func TestReaderErrors(t *testing.T) {
	broken := errors.New("input/output error")
	b := encode(t, goldenMap(t))
	for n := range len(b) + 1 {
		_, err := cbt.ReadMap(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken)))
		if werr := wantMapError(err, broken, n); werr != nil || errors.Is(err, cbt.ErrCorrupt) {
			t.Errorf("after %d bytes: %v, %v", n, err, werr)
		}
	}
}

func TestWriteToRefusesAndFails(t *testing.T) {
	for want, change := range map[string]func(*cbt.Map){
		"power of two":    func(m *cbt.Map) { m.BlockSize = 1000 },
		"at least 1":      func(m *cbt.Map) { m.VolumeSize = 0 },
		"identity of 256": func(m *cbt.Map) { m.Identity = strings.Repeat("x", 256) },
		"end at block":    func(m *cbt.Map) { m.VolumeSize = 4096 },
	} {
		m := goldenMap(t)
		change(m)
		if n, err := m.WriteTo(io.Discard); err == nil || n != 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes, %v, want %q", n, err, want)
		}
	}
	full := errors.New("no space left")
	for room := range 64 {
		n, err := goldenMap(t).WriteTo(&shortWriter{room, full})
		if !errors.Is(err, full) || n != int64(room) {
			t.Errorf("room for %d bytes: wrote %d, %v", room, n, err)
		}
	}
}

// shortWriter has room for so many bytes.
type shortWriter struct {
	room int
	err  error
}

func (w *shortWriter) Write(p []byte) (int, error) {
	n := min(len(p), w.room)
	w.room -= n
	if n < len(p) {
		return n, w.err
	}
	return n, nil
}

func TestNewMapRefuses(t *testing.T) {
	for _, e := range []cbt.Extent{{Off: -1, End: 1}, {Off: 0, End: 4097}} {
		_, err := cbt.NewMap(4096, 0, slices.Values([]cbt.Run{{Extent: e, State: cbt.Dirty}}))
		if err == nil || !strings.Contains(err.Error(), "out of the volume") {
			t.Errorf("%v: %v", e, err)
		}
	}
	if _, err := cbt.NewMap(0, 0, slices.Values([]cbt.Run(nil))); err == nil {
		t.Error("a volume of no bytes has a map")
	}
}
