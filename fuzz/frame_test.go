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
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/failback/failback/transport"
)

var updateStream = flag.Bool("update.stream", false, "write the seeds of FuzzFrame, FuzzDecompress and FuzzMessage anew")

// stream is a connection of which only one direction is used.
type stream struct {
	io.Reader
	io.Writer
}

func (stream) Close() error { return nil }

// streamSeeds gives f its committed seeds, which the go command reads by
// itself, and fails if there are none. With -update.stream it first writes those
// that made gives, one file each, a line for each argument of the target.
func streamSeeds(f *testing.F, made map[string][]any) {
	f.Helper()
	dir := filepath.Join("testdata", "fuzz", f.Name())
	if *updateStream {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			f.Fatal(err)
		}
		for name, args := range made {
			lines := []string{"go test fuzz v1"}
			for _, a := range args {
				switch v := a.(type) {
				case []byte:
					lines = append(lines, fmt.Sprintf("[]byte(%+q)", v))
				case byte:
					lines = append(lines, fmt.Sprintf("byte(%+q)", rune(v)))
				default:
					lines = append(lines, fmt.Sprintf("%T(%v)", v, v))
				}
			}
			text := strings.Join(lines, "\n") + "\n"
			if err := os.WriteFile(filepath.Join(dir, "seed-"+name), []byte(text), 0o644); err != nil {
				f.Fatal(err)
			}
		}
	}
	got, err := filepath.Glob(filepath.Join(dir, "seed-*"))
	if err != nil || len(got) < len(made) {
		f.Fatalf("%d seeds in %s, want %d (write them: go test ./fuzz -update.stream): %v", len(got), dir, len(made), err)
	}
}

// sample is n bytes that compress.
func sample(n int) []byte {
	return bytes.Repeat([]byte("a block of the volume, as it was written; "), n/42+1)[:n]
}

// writtenFrames is what a connection writes for what send sends.
func writtenFrames(f *testing.F, send func(c *transport.Conn) error) []byte {
	var out bytes.Buffer
	if err := send(transport.New(stream{bytes.NewReader(nil), &out}, transport.Options{})); err != nil {
		f.Fatal(err)
	}
	return out.Bytes()
}

func sendData(codec string, head, body []byte) func(c *transport.Conn) error {
	return func(c *transport.Conn) error {
		ch, err := transport.NewChooser(codec, 1)
		if err != nil {
			return err
		}
		e := transport.NewEncoder(ch)
		e.Reset(13)
		p, err := e.Finish(head, body)
		if err != nil {
			return err
		}
		return c.SendFrame(p)
	}
}

// allocated returns how many bytes fn allocates.
func allocated(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// FuzzFrame reads any bytes as a stream of frames. It never panics, allocates
// no more than one frame beyond the input, and what it accepts is what the
// writer writes: the frames appended give the bytes read.
func FuzzFrame(f *testing.F) {
	control := func(c *transport.Conn) error {
		for i := range 3 {
			if err := c.Send(transport.Kind(i+4), sample(i*20)); err != nil {
				return err
			}
		}
		return nil
	}
	all := func(c *transport.Conn) error {
		return errors.Join(control(c), c.Send(transport.Ping, nil), sendData("lz4", sample(30), sample(600))(c),
			c.Send(transport.Pong, nil), sendData("zstd", sample(3), sample(400))(c), c.Send(26, nil))
	}
	streamSeeds(f, map[string][]any{
		"control": {false, writtenFrames(f, control)},
		"none":    {false, writtenFrames(f, sendData("none", sample(30), sample(100)))},
		"lz4":     {true, writtenFrames(f, sendData("lz4", sample(30), sample(600)))},
		"zstd":    {true, writtenFrames(f, sendData("zstd", sample(30), sample(600)))},
		"all":     {true, writtenFrames(f, all)},
		"cut":     {false, writtenFrames(f, all)[:300]},
	})
	f.Fuzz(func(t *testing.T, mended bool, in []byte) {
		if mended {
			in = mend(bytes.Clone(in))
		}
		const frame = 2 << 20 // the largest that is received, and some
		if n := allocated(func() { readFrames(t, in) }); n > 2*frame+64*uint64(len(in)) {
			t.Errorf("allocated %d bytes for %d", n, len(in))
		}
	})
}

// mend gives every frame its number and its checksum, so that the fuzzer gets
// past them.
func mend(b []byte) []byte {
	le := binary.LittleEndian
	for at, seq := 0, uint32(0); len(b)-at >= transport.HeaderSize; seq++ {
		h := b[at : at+transport.HeaderSize]
		at += transport.HeaderSize
		n := int(le.Uint32(h[4:]))
		if n > len(b)-at {
			break
		}
		le.PutUint32(h[12:], seq)
		le.PutUint64(h[16:], xxhash.Sum64(slices.Concat(h[:16], b[at:at+n])))
		at += n
	}
	return b
}

func readFrames(t *testing.T, in []byte) {
	c := transport.New(stream{bytes.NewReader(in), io.Discard}, transport.Options{})
	at := 0 // offset in the input of the next frame
	var back []byte
	for seq := uint32(0); ; seq++ {
		fr, err := c.Read()
		if err == nil || err == io.EOF {
			// Pings and pongs are accepted and not returned.
			for at < len(in) && in[at] >= byte(transport.Ping) && (err != nil || seq != fr.Seq) {
				at += transport.HeaderSize
				seq++
			}
		}
		if err != nil {
			checkEnd(t, err, at, len(in))
			return
		}
		back = fr.Append(back[:0])
		if fr.Seq != seq || len(back) > len(in)-at || !bytes.Equal(back, in[at:at+len(back)]) {
			t.Fatalf("frame %d at %#x: accepted bytes the writer never makes", fr.Seq, at)
		}
		at += len(back)
		fr.Release()
	}
}

func checkEnd(t *testing.T, err error, at, size int) {
	if err == io.EOF {
		if at != size {
			t.Errorf("the end at %d of %d bytes", at, size)
		}
		return
	}
	var where *transport.FrameError
	known := errors.Is(err, transport.ErrCorrupt) || errors.Is(err, transport.ErrTooLarge) || errors.Is(err, io.ErrUnexpectedEOF)
	if !errors.As(err, &where) || !known {
		t.Errorf("an error without its place or class: %v", err)
	} else if where.Off < int64(at) || where.Off > int64(size) {
		t.Errorf("%v: read up to %#x of %#x", err, at, size)
	}
}

// FuzzDecompress gives any bytes to the decompressors. They never panic, write
// within raw bytes, and what they accept a plain decoder reads alike.
func FuzzDecompress(f *testing.F) {
	body := func(codec string, b []byte) []byte {
		return writtenFrames(f, sendData(codec, nil, b))[transport.HeaderSize:]
	}
	streamSeeds(f, map[string][]any{
		"lz4":        {byte(1), uint32(600), body("lz4", sample(600))},
		"lz4-zeroes": {byte(1), uint32(4096), body("lz4", make([]byte, 4096))},
		"lz4-short":  {byte(1), uint32(599), body("lz4", sample(600))},
		"zstd":       {byte(2), uint32(600), body("zstd", sample(600))},
		"zstd-fast":  {byte(2), uint32(5000), body("zstd-fast", sample(5000))},
		"zstd-long":  {byte(2), uint32(601), body("zstd", sample(600))},
	})
	dst := make([]byte, transport.MaxRaw+64)
	f.Fuzz(func(t *testing.T, codec byte, raw uint32, stored []byte) {
		fr := &transport.Frame{Codec: transport.Codec(codec), Raw: int(raw % (transport.MaxRaw + 2)), Body: stored}
		fence := dst[min(fr.Raw, transport.MaxRaw):]
		for i := range min(len(fence), 64) {
			fence[i] = 0xee
		}
		var got []byte
		var err error
		if n := allocated(func() { got, err = transport.Decode(fr, dst) }); n > 4<<20 {
			t.Errorf("allocated %d bytes", n) // the first zstd frame makes the decoders
		}
		if fr.Codec != transport.None && bytes.Count(fence[:min(len(fence), 64)], []byte{0xee}) != min(len(fence), 64) {
			t.Errorf("written past %d bytes", fr.Raw)
		}
		if err != nil {
			if !errors.Is(err, transport.ErrCorrupt) && !errors.Is(err, transport.ErrTooLarge) {
				t.Errorf("an error without its class: %v", err)
			}
			return
		}
		if len(got) != fr.Raw {
			t.Fatalf("%d bytes, want %d", len(got), fr.Raw)
		}
		if want := plainDecode(t, fr); !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes differ from those of the plain decoder (%d)", fr.Codec, len(got), len(want))
		}
	})
}

// plainDecode is the judge: slow, and written or configured otherwise.
func plainDecode(t *testing.T, fr *transport.Frame) []byte {
	switch fr.Codec {
	case transport.LZ4:
		return plainLZ4(fr.Body)
	case transport.Zstd:
		r, err := zstd.NewReader(bytes.NewReader(fr.Body), zstd.WithDecoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		out, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("the plain decoder refuses it: %v", err)
		}
		return out
	}
	return fr.Body
}

// plainLZ4 decodes an LZ4 block byte by byte; nil if it is none.
func plainLZ4(src []byte) (out []byte) {
	length := func(n int) int {
		for n >= 15 && len(src) > 0 {
			x := src[0]
			src = src[1:]
			n += int(x)
			if x != 255 {
				break
			}
		}
		return n
	}
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		n := length(int(token >> 4))
		if n > len(src) {
			return nil
		}
		out = append(out, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return out
		}
		if len(src) < 2 {
			return nil
		}
		back := int(src[0]) | int(src[1])<<8
		src = src[2:]
		n = length(int(token&15)) + 4
		if back == 0 || back > len(out) {
			return nil
		}
		for range n {
			out = append(out, out[len(out)-back])
		}
	}
	return out
}
