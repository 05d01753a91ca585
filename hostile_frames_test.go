package failback

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// bombCrimes are bodies that give more, or something else, than they say.
func bombCrimes(t *testing.T) []crime {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	big := enc.EncodeAll(make([]byte, 64<<20), nil)
	fits := enc.EncodeAll(make([]byte, 64<<10), nil)
	lz4 := append([]byte{0x1f, 0, 1, 0}, bytes.Repeat([]byte{255}, 1000)...) // one zero, then 255,000 times what lies one byte back
	bomb := func(name, want string, codec transport.Codec, raw int, body []byte, quiet bool) crime {
		return crime{name: name, want: want, quiet: quiet, do: func(v *villain) {
			v.moving(first, third)
			v.packed(codec, raw, body, first)
		}}
	}
	const whole = 64 << 10
	return []crime{
		bomb("64 MiB in a frame that says 64 KiB", "content size 67108864 stated", transport.Zstd, whole, big, false),
		bomb("64 MiB in a frame that says so", "frame too large", transport.Zstd, 64<<20, big, true),
		bomb("two zstd frames", "bytes in a body of", transport.Zstd, whole, append(bytes.Clone(fits), fits...), false),
		bomb("a zstd frame to skip", "skippable", transport.Zstd, whole, append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, fits...), false),
		bomb("a zstd frame that is cut", "corrupt frame: zstd", transport.Zstd, whole, fits[:len(fits)-3], false),
		bomb("no zstd at all", "corrupt frame: zstd", transport.Zstd, whole, bytes.Repeat([]byte{7}, 100), false),
		bomb("255,000 bytes of LZ4 in a frame that says 64 KiB", "corrupt frame: lz4", transport.LZ4, whole, lz4, false),
		bomb("LZ4 that gives too little", "corrupt frame: lz4 gives 1 bytes", transport.LZ4, whole, []byte{0x10, 7}, false),
		bomb("an unknown codec", "unknown codec 3", 3, whole, fits, true),
		bomb("a body that is larger than what it gives", "corrupt frame", transport.Zstd, 100, make([]byte, 200), true),
	}
}

// streamCrimes break the stream of frames itself.
var streamCrimes = []crime{
	breaks("more bytes than a frame may have", "frame too large", func(b []byte) { b[6] = 0x40 }),
	breaks("more raw bytes than a frame may have", "frame too large", func(b []byte) { b[11] = 0x40 }),
	breaks("a head longer than the frame", "corrupt frame: head", func(b []byte) { b[2], b[3] = 255, 255 }),
	breaks("kind 0", "corrupt frame: kind 0", func(b []byte) { b[0] = 0 }),
	breaks("a frame number again", "corrupt frame: frame number", func(b []byte) { b[12] ^= 1 }),
	breaks("a bit of the content", "corrupt frame: checksum", func(b []byte) { b[len(b)-1] ^= 1 }),
	breaks("a bit of the sum", "corrupt frame: checksum", func(b []byte) { b[20] ^= 1 }),
	{name: "half a frame", want: "unexpected EOF", quiet: true, do: func(v *villain) {
		b := (&transport.Frame{Kind: kindStart, Seq: v.seq, Raw: 1000, Body: make([]byte, 1000)}).Append(nil)
		_, _ = v.rw.Write(b[:500])
		_ = v.rw.Close()
	}},
	{name: "a frame that never ends", want: "peer silent", quiet: true, do: func(v *villain) {
		b := (&transport.Frame{Kind: kindStart, Seq: v.seq, Raw: 1000, Body: make([]byte, 1000)}).Append(nil)
		_, _ = v.rw.Write(b[:500])
	}},
}

// breaks changes a frame after it was numbered and summed.
func breaks(name, want string, change func([]byte)) crime {
	return crime{name: name, want: want, quiet: true, do: func(v *villain) {
		p := message.Start{Session: hostileSession, Mode: 1, Volume: hostileInfo()}.Append(nil)
		b := (&transport.Frame{Kind: kindStart, Seq: v.seq, Raw: len(p), Body: p}).Append(nil)
		change(b)
		_, _ = v.rw.Write(b)
	}}
}
