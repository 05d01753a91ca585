package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// stream is a connection that reads in and keeps what is written.
type stream struct {
	io.Reader
	out bytes.Buffer
}

func (s *stream) Write(b []byte) (int, error) { return s.out.Write(b) }
func (s *stream) Close() error                { return nil }

func reading(b []byte) *Conn { return New(&stream{Reader: bytes.NewReader(b)}, Options{}) }

// text is n bytes that compress about twofold.
func text(n int) []byte {
	b := make([]byte, 0, n+64)
	for i := uint64(1); len(b) < n; i++ {
		b = binary.BigEndian.AppendUint64(b, xxhash.Sum64String(string(rune(i))))
		b = append(b, "the same"...)
	}
	return b[:n]
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	b := make([]byte, 0, n+8)
	x := uint64(88172645463325252)
	for len(b) < n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b[:n]
}

// written returns what a connection writes for the frames that send makes.
func written(t testing.TB, send func(c *Conn)) []byte {
	t.Helper()
	s := &stream{Reader: bytes.NewReader(nil)}
	send(New(s, Options{}))
	return s.out.Bytes()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func packet(t testing.TB, codec string, kind Kind, head, body []byte) *Packet {
	t.Helper()
	ch, err := NewChooser(codec, 1)
	check(t, err)
	e := NewEncoder(ch)
	e.Reset(kind)
	p, err := e.Finish(append(e.Head(), head...), e.Body()[:copy(e.Body(), body)])
	check(t, err)
	return p
}

func TestFramesRoundTrip(t *testing.T) {
	sizes := []int{0, 1, 511, 4096, 4097, 8 << 10, 8<<10 + 1, 64 << 10, 64<<10 + 1, 1<<20 - 1, 1 << 20}
	for _, codec := range []string{"none", "lz4", "zstd-fast", "zstd", "auto"} {
		for _, n := range sizes {
			head, body := text(n/19+2), text(n)
			b := written(t, func(c *Conn) { check(t, c.SendFrame(packet(t, codec, 13, head, body))) })
			f, err := reading(b).Read()
			check(t, err)
			if f.Kind != 13 || !bytes.Equal(f.Head, head) || f.Raw != n {
				t.Errorf("%s, %d bytes: kind %d, head %d of %d bytes, raw %d", codec, n, f.Kind, len(f.Head), len(head), f.Raw)
			}
			got, err := Decode(f, make([]byte, MaxRaw))
			check(t, err)
			if !bytes.Equal(got, body) {
				t.Errorf("%s, %d bytes: body differs", codec, n)
			}
			if n == 1<<20 && (codec != "none" && codec != "auto") != (len(f.Body) < n/2+n/4) {
				t.Errorf("%s: %d bytes stored as %d", codec, n, len(f.Body))
			}
			if len(f.Body) > 0 && uintptr(unsafe.Pointer(&f.Body[0]))%4096 != 0 {
				t.Errorf("%s, %d bytes: body is not aligned", codec, n)
			}
			if again := f.Append(nil); !bytes.Equal(again, b) {
				t.Errorf("%s, %d bytes: Append gives other bytes", codec, n)
			}
			f.Release()
		}
	}
}

func TestControlFrames(t *testing.T) {
	sizes := []int{0, 1, smallFrame, smallFrame + 1, 70000, MaxStored}
	b := written(t, func(c *Conn) {
		for _, n := range sizes {
			check(t, c.Send(20, text(n)))
		}
		if err := c.Send(20, make([]byte, MaxStored+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("too long a payload: %v", err)
		}
	})
	c := reading(b)
	for i, n := range sizes {
		f, err := c.Read()
		check(t, err)
		if !bytes.Equal(f.Payload(), text(n)) || len(f.Head) != 0 || f.Seq != uint32(i) {
			t.Errorf("%d bytes came as %d", n, len(f.Payload()))
		}
		f.Release()
	}
	for range 2 {
		if _, err := c.Read(); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
	s := c.Stats()
	if s.BytesIn != int64(len(b)) || s.FramesIn != int64(len(sizes)) {
		t.Errorf("%+v, read %d bytes", s, len(b))
	}
}

// goldenFrames are two control frames and a data frame of version 1.
const goldenFrames = "1a000000000000000000000000000000 fa0c71109b47f504" +
	"0c000000080000000800000001000000c71602993a7d2a0a 0900000000000000" +
	"0d0003000b00000008000000020000008462b6dc2d1408950102036661696c6261636b"

// TestGoldenFrames: the bytes of version 1. A difference is a change of the wire.
func TestGoldenFrames(t *testing.T) {
	b := written(t, func(c *Conn) {
		check(t, c.Send(26, nil))
		check(t, c.Send(12, []byte{9, 0, 0, 0, 0, 0, 0, 0}))
		check(t, c.SendFrame(packet(t, "none", 13, []byte{1, 2, 3}, []byte("failback"))))
	})
	want := strings.ReplaceAll(goldenFrames, " ", "")
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("the wire changed:\n got %s\nwant %s", got, want)
	}
}

// goldenBodies are frames of 64 raw bytes, as an encoder of version 1 made them.
// Another version of a codec may compress otherwise, but must read these.
var goldenBodies = []string{
	"0d0103002200000040000000000000009abebf372ebee16d0102038f6661696c6261636b080011002800002800c06261636b6661696c6261636b",
	"0d0203001b000000400000000000000020fb8660597f93fd01020328b52ffd20407d0000406661696c6261636b01540803265d",
}

func TestGoldenBodies(t *testing.T) {
	for _, s := range goldenBodies {
		b, err := hex.DecodeString(s)
		check(t, err)
		f, err := reading(b).Read()
		check(t, err)
		got, err := Decode(f, make([]byte, f.Raw))
		check(t, err)
		if want := strings.Repeat("failback", 8); string(got) != want || string(f.Head) != "\x01\x02\x03" {
			t.Errorf("%v: %q", f.Codec, got)
		}
		f.Release()
	}
}

// TestCutFrames: a stream cut anywhere but between frames is an unexpected end.
func TestCutFrames(t *testing.T) {
	b := written(t, func(c *Conn) {
		check(t, c.Send(4, text(40)))
		check(t, c.SendFrame(packet(t, "lz4", 13, text(20), text(300))))
	})
	for n := range b {
		c := New(&stream{Reader: iotest.OneByteReader(bytes.NewReader(b[:n]))}, Options{})
		frames := 0
		f, err := c.Read()
		for ; err == nil; f, err = c.Read() {
			frames++
			f.Release()
		}
		boundary := n == 0 || n == HeaderSize+40
		if boundary && err != io.EOF || !boundary && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		var where *FrameError
		if !boundary && (!errors.As(err, &where) || where.Seq != uint64(frames) || where.Off != int64(frames)*(HeaderSize+40)) {
			t.Errorf("cut at %d: %v does not say where", n, err)
		}
	}
}

// TestFlippedFrames: any bit that is turned is found.
func TestFlippedFrames(t *testing.T) {
	b := written(t, func(c *Conn) { check(t, c.SendFrame(packet(t, "lz4", 13, text(20), text(300)))) })
	for i := range len(b) * 8 {
		x := bytes.Clone(b)
		x[i/8] ^= 1 << (i % 8)
		_, err := reading(x).Read()
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("bit %d: %v", i, err)
		}
	}
}

// forge returns a frame with a right sum and whatever else.
func forge(kind, codec byte, head uint16, stored, raw, seq uint32, payload []byte) []byte {
	b := []byte{kind, codec}
	b = binary.LittleEndian.AppendUint16(b, head)
	b = binary.LittleEndian.AppendUint32(b, stored)
	b = binary.LittleEndian.AppendUint32(b, raw)
	b = binary.LittleEndian.AppendUint32(b, seq)
	b = binary.LittleEndian.AppendUint64(b, xxhash.Sum64(slices.Concat(b, payload)))
	return append(b, payload...)
}

func TestWrongHeaders(t *testing.T) {
	p := make([]byte, 100)
	tests := []struct {
		name string
		want error
		b    []byte
	}{
		{"kind 0", ErrCorrupt, forge(0, 0, 0, 100, 100, 0, p)},
		{"unknown codec", ErrCorrupt, forge(1, 3, 0, 100, 200, 0, p)},
		{"head beyond the payload", ErrCorrupt, forge(1, 0, 101, 100, 0, 0, p)},
		{"raw is not the body", ErrCorrupt, forge(1, 0, 0, 100, 99, 0, p)},
		{"raw is not the rest", ErrCorrupt, forge(1, 0, 10, 100, 100, 0, p)},
		{"compressed to nothing", ErrCorrupt, forge(1, 1, 100, 100, 50, 0, p)},
		{"compressed to no less", ErrCorrupt, forge(1, 1, 0, 100, 100, 0, p)},
		{"not the first", ErrCorrupt, forge(1, 0, 0, 100, 100, 1, p)},
		{"ping with a payload", ErrCorrupt, forge(254, 0, 0, 100, 100, 0, p)},
		{"stored past the cap", ErrTooLarge, forge(1, 0, 0, MaxStored+1, MaxStored+1, 0, nil)},
		{"stored 4 GiB", ErrTooLarge, forge(1, 0, 0, 1<<32-1, 1<<32-1, 0, nil)},
		{"raw past the cap", ErrTooLarge, forge(1, 2, 0, 100, MaxRaw+1, 0, p)},
		{"raw 4 GiB", ErrTooLarge, forge(1, 2, 0, 100, 1<<32-1, 0, p)},
		{"a repeated frame", ErrCorrupt, append(forge(1, 0, 0, 0, 0, 0, nil), forge(1, 0, 0, 0, 0, 0, nil)...)},
		{"a lost frame", ErrCorrupt, append(forge(1, 0, 0, 0, 0, 0, nil), forge(1, 0, 0, 0, 0, 2, nil)...)},
	}
	for _, tt := range tests {
		c := reading(tt.b)
		_, err := c.Read()
		if err == nil {
			_, err = c.Read()
		}
		var where *FrameError
		if !errors.Is(err, tt.want) || !errors.As(err, &where) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestSeqWraps: frame 2^32 has number 0.
func TestSeqWraps(t *testing.T) {
	s := &stream{Reader: bytes.NewReader(nil)}
	w := New(s, Options{})
	w.out.seq = 1<<32 - 1
	check(t, w.Send(1, nil))
	check(t, w.Send(2, nil))
	r := reading(s.out.Bytes())
	r.in.seq = 1<<32 - 1
	for _, want := range []uint32{1<<32 - 1, 0} {
		f, err := r.Read()
		check(t, err)
		if f.Seq != want {
			t.Errorf("frame number %d, want %d", f.Seq, want)
		}
		f.Release()
	}
}

func TestForward(t *testing.T) {
	p := packet(t, "zstd", 13, text(500), text(100000))
	b := written(t, func(c *Conn) { check(t, c.SendFrame(p)) })
	in := reading(b)
	f, err := in.Read()
	check(t, err)
	on := written(t, func(c *Conn) {
		check(t, c.Send(12, text(8)))
		check(t, c.Forward(f))
		if err := c.Forward(&Frame{Kind: 1}); err == nil {
			t.Error("forwarded a frame that was not received")
		}
	})
	f.Release()
	out := reading(on)
	first, err := out.Read()
	check(t, err)
	first.Release()
	g, err := out.Read()
	check(t, err)
	defer g.Release()
	body, err := Decode(g, make([]byte, MaxRaw))
	check(t, err)
	if g.Seq != 1 || !bytes.Equal(g.Head, text(500)) || !bytes.Equal(body, text(100000)) {
		t.Errorf("frame %d came with other bytes", g.Seq)
	}
}

// TestHandMadeFrame: Payload and Append also serve frames that were not received.
func TestHandMadeFrame(t *testing.T) {
	f := &Frame{Kind: 13, Raw: 3, Head: []byte("ab"), Body: []byte("cde")}
	if string(f.Payload()) != "abcde" || string((&Frame{Body: []byte("x")}).Payload()) != "x" {
		t.Error("payload")
	}
	g, err := reading(f.Append(nil)).Read()
	check(t, err)
	if string(g.Payload()) != "abcde" || string(g.Head) != "ab" {
		t.Error("came otherwise")
	}
	g.Release()
	f.Release() // nothing to give back
}
