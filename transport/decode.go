package transport

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Decode returns the body of f as it was before compression, f.Raw bytes long.
//
// With codec none that is f.Body itself, good until f.Release, and dst is not
// used. Else it is in dst, which must have room for f.Raw bytes
// ([io.ErrShortBuffer] in the chain if not). What does not give f.Raw
// bytes and end there is [ErrCorrupt]; never is more than f.Raw bytes written.
func Decode(f *Frame, dst []byte) ([]byte, error) {
	if f.Codec == None {
		if len(f.Body) != f.Raw {
			return nil, fmt.Errorf("%w: %d bytes stored as they are, %d raw", ErrCorrupt, len(f.Body), f.Raw)
		}
		return f.Body, nil
	}
	if f.Raw > MaxRaw || f.Raw <= 0 {
		return nil, fmt.Errorf("decompress frame %d: %w: %d bytes raw, limit %d", f.Seq, ErrTooLarge, f.Raw, MaxRaw)
	}
	if cap(dst) < f.Raw {
		return nil, fmt.Errorf("decompress frame %d: %d bytes into %d: %w", f.Seq, f.Raw, cap(dst), io.ErrShortBuffer)
	}
	dst = dst[:f.Raw:f.Raw]
	var n int
	var err error
	switch f.Codec {
	case LZ4:
		n, err = lz4.UncompressBlock(f.Body, dst)
	case Zstd:
		n, err = decodeZstd(f.Body, dst)
	default:
		err = fmt.Errorf("unknown %v", f.Codec)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress frame %d: %w: %v: %v", f.Seq, ErrCorrupt, f.Codec, err)
	}
	if n != f.Raw {
		return nil, fmt.Errorf("decompress frame %d: %w: %v gives %d bytes, expected %d",
			f.Seq, ErrCorrupt, f.Codec, n, f.Raw)
	}
	return dst, nil
}

// zstdDecoder is shared by the process: it holds at most four block decoders,
// each well under 1 MiB, and starts no goroutine.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(min(runtime.GOMAXPROCS(0), 4)),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxRaw),
		zstd.WithDecoderMaxWindow(MaxRaw),
		zstd.WithDecodeAllCapLimit(true)) // never past dst
	if err != nil {
		panic(err) // the options are constants
	}
	return d
})

// decodeZstd fills dst, which has the length and capacity that must come out,
// from one zstd frame that is all of src.
func decodeZstd(src, dst []byte) (int, error) {
	if err := checkZstd(src, len(dst)); err != nil {
		return 0, err
	}
	out, err := zstdDecoder().DecodeAll(src, dst[:0])
	if err != nil {
		return 0, err
	}
	if len(out) > 0 && &out[0] != &dst[0] {
		return 0, fmt.Errorf("%d bytes, expected %d", len(out), len(dst))
	}
	return len(out), nil
}

// checkZstd walks over the blocks of a zstd frame without decoding them. The
// frame must state that it holds want bytes, and src must end where it ends:
// a decoder would go on with a second frame or pass over a skippable one.
func checkZstd(src []byte, want int) error {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return err
	}
	switch {
	case h.Skippable:
		return fmt.Errorf("skippable frame")
	case !h.HasFCS || h.FrameContentSize != uint64(want):
		return fmt.Errorf("content size %d stated, expected %d", h.FrameContentSize, want)
	case h.DictionaryID != 0:
		return fmt.Errorf("dictionary %d", h.DictionaryID)
	}
	at := h.HeaderSize
	for last := false; !last; {
		// Block header, 3 bytes: bit 0 last, bits 1-2 type, then the size.
		if len(src)-at < 3 {
			return fmt.Errorf("cut at byte %d", at)
		}
		b := uint32(binary.LittleEndian.Uint16(src[at:])) | uint32(src[at+2])<<16
		at += 3
		last = b&1 != 0
		if b>>1&3 == 1 { // one byte, repeated size times
			at++
		} else {
			at += int(b >> 3)
		}
	}
	if h.HasCheckSum {
		at += 4
	}
	if at != len(src) {
		return fmt.Errorf("frame of %d bytes in a body of %d", at, len(src))
	}
	return nil
}
