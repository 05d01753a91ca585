package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

func zstdOf(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithSingleSegment(true)}, o...)...)
	check(t, err)
	return w.EncodeAll(b, nil)
}

func lz4Of(t testing.TB, b []byte) []byte {
	t.Helper()
	dst := make([]byte, lz4.CompressBlockBound(len(b)))
	n, err := lz4.CompressBlock(b, dst, nil)
	check(t, err)
	return dst[:n]
}

func TestDecodeWrongBodies(t *testing.T) {
	const n = 100000
	good, bomb := text(n), make([]byte, 64<<20)
	z, l := zstdOf(t, good), lz4Of(t, good)
	skippable := append(binary.LittleEndian.AppendUint32(nil, 0x184d2a50), 4, 0, 0, 0, 1, 2, 3, 4)
	empty := zstdOf(t, nil, zstd.WithZeroFrames(true))
	unsized := zstdOf(t, good[:200], zstd.WithSingleSegment(false))
	tests := []struct {
		name  string
		codec Codec
		raw   int
		body  []byte
	}{
		{"zstd, raw one too few", Zstd, n - 1, z},
		{"zstd, raw one too many", Zstd, n + 1, z},
		{"zstd, cut", Zstd, n, z[:len(z)-1]},
		{"zstd, a byte too many", Zstd, n, append(slices.Clone(z), 0)},
		{"zstd, garbage after it", Zstd, n, append(slices.Clone(z), "garbage"...)},
		{"zstd, a skippable frame after it", Zstd, n, append(slices.Clone(z), skippable...)},
		{"zstd, a skippable frame before it", Zstd, n, append(slices.Clone(skippable), z...)},
		{"zstd, an empty frame after it", Zstd, n, append(slices.Clone(z), empty...)},
		{"zstd, twice", Zstd, n, append(slices.Clone(z), z...)},
		{"zstd, size not stated", Zstd, 200, unsized},
		{"zstd, bomb that says so", Zstd, n, zstdOf(t, bomb)},
		{"zstd, bomb that lies", Zstd, n, lie(zstdOf(t, bomb[:1<<20]), n)},
		{"zstd, dictionary", Zstd, n, zstdOf(t, good, zstd.WithEncoderDictRaw(7, text(1000)))},
		{"zstd, nothing", Zstd, n, nil},
		{"zstd, not", Zstd, n, good[:1000]},
		{"lz4, raw one too few", LZ4, n - 1, l},
		{"lz4, raw one too many", LZ4, n + 1, l},
		{"lz4, cut", LZ4, n, l[:len(l)-1]},
		{"lz4, a byte too many", LZ4, n, append(slices.Clone(l), 0)},
		{"lz4, bomb", LZ4, n, lz4Of(t, bomb[:2<<20])},
		{"lz4, nothing", LZ4, n, nil},
		{"none, raw is not the length", None, 99, good[:100]},
		{"unknown codec", 9, n, z},
	}
	dst := make([]byte, 0, MaxRaw)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &Frame{Codec: tt.codec, Raw: tt.raw, Body: tt.body}
			Decode(f, dst) // the decoder's own buffers are there now
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(f, dst)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%v", err)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > 64<<10 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
	for _, codec := range []Codec{LZ4, Zstd} {
		f := &Frame{Codec: codec, Raw: MaxRaw + 1, Body: z}
		if _, err := Decode(f, dst); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v, raw past the cap: %v", codec, err)
		}
		f.Raw = n
		if _, err := Decode(f, make([]byte, n-1)); !errors.Is(err, io.ErrShortBuffer) {
			t.Errorf("%v, short buffer: %v", codec, err)
		}
	}
}

// lie changes the content size that a zstd frame states.
func lie(frame []byte, n int) []byte {
	var h zstd.Header
	if h.Decode(frame) != nil || h.HeaderSize != 9 {
		panic("another header than expected")
	}
	binary.LittleEndian.PutUint32(frame[5:], uint32(n))
	return frame
}

// TestDecodeWithin: never is a byte written past f.Raw.
func TestDecodeWithin(t *testing.T) {
	mem := bytes.Repeat([]byte{0xee}, 4096)
	for _, codec := range []Codec{LZ4, Zstd} {
		body := zstdOf(t, make([]byte, 2048))
		if codec == LZ4 {
			body = lz4Of(t, make([]byte, 2048))
		}
		for _, raw := range []int{2048, 2047, 1024, 100} {
			Decode(&Frame{Codec: codec, Raw: raw, Body: body}, mem)
			if i := bytes.IndexFunc(mem[raw:], func(r rune) bool { return r == 0 }); i >= 0 {
				t.Errorf("%v: byte %d written of %d", codec, raw+i, raw)
			}
			for i := range mem {
				mem[i] = 0xee
			}
		}
	}
}

func TestEncoderLimits(t *testing.T) {
	e := NewEncoder(nil)
	e.Reset(13)
	if _, err := e.Finish(make([]byte, MaxHead+1), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("head: %v", err)
	}
	if _, err := e.Finish(nil, make([]byte, MaxRaw+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("body: %v", err)
	}
	for _, k := range []Kind{0, Ping, Pong} {
		e.Reset(k)
		if _, err := e.Finish(nil, nil); err == nil {
			t.Errorf("kind %d accepted", k)
		}
	}
	e.Reset(13)
	p, err := e.Finish(make([]byte, MaxHead), noise(MaxRaw)) // a body from elsewhere
	check(t, err)
	b := written(t, func(c *Conn) { check(t, c.SendFrame(p)) })
	if p.Raw() != MaxRaw || p.Stored() != MaxRaw || p.Codec() != None || len(b) != HeaderSize+MaxHead+MaxRaw {
		t.Errorf("%d bytes: raw %d, stored %d", len(b), p.Raw(), p.Stored())
	}
	f, err := reading(b).Read()
	check(t, err)
	if !bytes.Equal(f.Body, noise(MaxRaw)) {
		t.Error("came otherwise")
	}
	f.Release()
}

// TestIncompressible: what does not get smaller stays as it is.
func TestIncompressible(t *testing.T) {
	for _, codec := range []string{"lz4", "zstd-fast", "zstd", "auto"} {
		for _, n := range []int{1, 10, 4096, 1 << 20} {
			if p := packet(t, codec, 13, nil, noise(n)); p.Codec() != None || p.Stored() != n {
				t.Errorf("%s: %d bytes of noise stored as %d, %v", codec, n, p.Stored(), p.Codec())
			}
		}
	}
}

func TestCodecString(t *testing.T) {
	for c, want := range map[Codec]string{None: "none", LZ4: "lz4", Zstd: "zstd", 9: "codec 9"} {
		if c.String() != want {
			t.Errorf("%d: %s", c, c)
		}
	}
	if _, err := NewChooser("gzip", 1); err == nil {
		t.Error("gzip accepted")
	}
}
