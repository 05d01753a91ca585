package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

// Kind says what the payload of a frame means. Numbers are on the wire: append
// only. 0 is never used; the numbers of messages are in the package message.
type Kind uint8

// The two kinds that belong to the connection itself. Their payload is empty.
const (
	Ping Kind = 254 // sent when nothing else was for a while
	Pong Kind = 255 // answers a ping
)

// Codec says how the body of a frame is stored. Numbers are on the wire.
type Codec uint8

// The codecs. Which level of zstd made a body is not on the wire.
const (
	None Codec = 0 // as it is
	LZ4  Codec = 1 // one LZ4 block
	Zstd Codec = 2 // one zstd frame that states its content size
)

// String returns none, lz4, zstd, or the number.
func (c Codec) String() string {
	switch c {
	case None:
		return "none"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// Sizes in bytes.
const (
	HeaderSize = 24              // of the header of a frame
	MaxRaw     = 1 << 20         // most of a body that is compressed, or of an Encoder's body
	MaxHead    = 1<<16 - 1       // most of a head
	MaxStored  = MaxRaw + 64<<10 // most of a payload
)

var (
	// ErrCorrupt is in the chain of an error when bytes arrived that no writer sent.
	ErrCorrupt = errors.New("corrupt frame")
	// ErrTooLarge is in the chain of an error when something exceeds its limit.
	ErrTooLarge = errors.New("frame too large")
)

// FrameError says where in the stream a frame was bad.
type FrameError struct {
	Seq uint64 // frame number on its connection, from 0
	Off int64  // stream offset of the frame's header, in bytes
	Err error
}

// Error names the frame, its offset and what was wrong.
func (e *FrameError) Error() string {
	return fmt.Sprintf("frame %d at %#x: %v", e.Seq, e.Off, e.Err)
}

// Unwrap returns Err.
func (e *FrameError) Unwrap() error { return e.Err }

// Frame header, 24 bytes, little endian, then stored bytes of payload. The
// numbers are on the wire: append only.
//
//	off size field
//	  0    1 kind     what the payload says; never 0
//	  1    1 codec    of the body: 0 none, 1 LZ4 block, 2 zstd frame
//	  2    2 head     bytes at the start of the payload that are never compressed
//	  4    4 stored   payload bytes that follow: head and stored body; at most MaxStored
//	  8    4 raw      body bytes once decompressed: stored-head with codec 0, else
//	                  at most MaxRaw and more than stored-head, which is not 0
//	 12    4 seq      frame number on this connection and direction, from 0, wraps
//	 16    8 sum      xxhash64 of header bytes 0 to 16 and the payload as stored
type header struct {
	kind   Kind
	codec  Codec
	head   int
	stored int
	raw    int
	seq    uint32
	sum    uint64
}

// put writes all but seq and sum, which [seal] does when the frame goes out.
func (h header) put(b []byte) {
	b[0] = byte(h.kind)
	b[1] = byte(h.codec)
	binary.LittleEndian.PutUint16(b[2:], uint16(h.head))
	binary.LittleEndian.PutUint32(b[4:], uint32(h.stored))
	binary.LittleEndian.PutUint32(b[8:], uint32(h.raw))
}

// seal numbers and sums the frame in b: header and payload, back to back.
func seal(b []byte, seq uint32, d *xxhash.Digest) {
	binary.LittleEndian.PutUint32(b[12:], seq)
	binary.LittleEndian.PutUint64(b[16:], sum(d, b[:16], b[HeaderSize:]))
}

// sum hashes the two parts as one. It allocates nothing.
func sum(d *xxhash.Digest, head, payload []byte) uint64 {
	d.Reset()
	d.Write(head)
	d.Write(payload)
	return d.Sum64()
}

// parseHeader reads a header and holds every number in it against its limits,
// before anyone allocates by it. want is the number the frame must have.
func parseHeader(b []byte, want uint32) (header, error) {
	stored, raw := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
	if stored > MaxStored {
		return header{}, fmt.Errorf("%w: %d bytes stored, limit %d", ErrTooLarge, stored, MaxStored)
	}
	if raw > MaxStored { // of what is compressed check has the lower limit
		return header{}, fmt.Errorf("%w: %d bytes raw, limit %d", ErrTooLarge, raw, MaxRaw)
	}
	h := header{
		kind:   Kind(b[0]),
		codec:  Codec(b[1]),
		head:   int(binary.LittleEndian.Uint16(b[2:])),
		stored: int(stored),
		raw:    int(raw),
		seq:    binary.LittleEndian.Uint32(b[12:]),
		sum:    binary.LittleEndian.Uint64(b[16:]),
	}
	return h, h.check(want)
}

func (h header) check(want uint32) error {
	body := h.stored - h.head
	switch {
	case h.kind == 0:
		return fmt.Errorf("%w: kind 0", ErrCorrupt)
	case h.codec > Zstd:
		return fmt.Errorf("%w: unknown %v", ErrCorrupt, h.codec)
	case body < 0:
		return fmt.Errorf("%w: head of %d bytes in a payload of %d", ErrCorrupt, h.head, h.stored)
	case h.codec == None && h.raw != body:
		return fmt.Errorf("%w: %d bytes stored as they are, %d raw", ErrCorrupt, body, h.raw)
	case h.codec != None && h.raw > MaxRaw:
		return fmt.Errorf("%w: %d bytes raw, limit %d", ErrTooLarge, h.raw, MaxRaw)
	case h.codec != None && (body == 0 || body >= h.raw):
		return fmt.Errorf("%w: %d bytes compressed to %d", ErrCorrupt, h.raw, body)
	case h.kind >= Ping && h.stored != 0:
		return fmt.Errorf("%w: keep-alive with %d bytes", ErrCorrupt, h.stored)
	case h.seq != want:
		return fmt.Errorf("%w: frame number %d, expected %d", ErrCorrupt, h.seq, want)
	}
	return nil
}

// frameReader reads the frames of one direction of a connection.
type frameReader struct {
	r    io.Reader
	seq  uint64 // of the next frame
	off  int64  // stream offset of the next frame's header
	hash xxhash.Digest
	hdr  [HeaderSize]byte
}

// next reads one frame. The error is io.EOF where the stream ends between two
// frames, else a *FrameError; a cut inside a frame is io.ErrUnexpectedEOF.
func (r *frameReader) next() (*Frame, error) {
	if _, err := io.ReadFull(r.r, r.hdr[:]); err != nil {
		if err == io.EOF {
			return nil, io.EOF
		}
		return nil, r.bad(fmt.Errorf("read header: %w", err))
	}
	h, err := parseHeader(r.hdr[:], uint32(r.seq))
	if err != nil {
		return nil, r.bad(err)
	}
	f := newFrame(h)
	if _, err := io.ReadFull(r.r, f.Payload()); err != nil {
		f.Release()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, r.bad(fmt.Errorf("read payload: %w", err))
	}
	if got := sum(&r.hash, r.hdr[:16], f.Payload()); got != h.sum {
		f.Release()
		return nil, r.bad(fmt.Errorf("%w: checksum %016x, the bytes give %016x", ErrCorrupt, h.sum, got))
	}
	r.seq++
	r.off += HeaderSize + int64(h.stored)
	return f, nil
}

func (r *frameReader) bad(err error) error {
	return &FrameError{Seq: r.seq, Off: r.off, Err: err}
}
