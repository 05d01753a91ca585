package transport

import (
	"fmt"
	"time"

	"github.com/pierrec/lz4/v4"
)

// Packet is a data frame that is ready to go. It belongs to its encoder and is
// good until the encoder's next Reset or Finish.
type Packet struct {
	header  header
	buf     []byte // room for the header, then the payload
	chooser *Chooser
	level   level // that was advised, though the body may have stayed raw
}

// Codec is how the body is stored.
func (p *Packet) Codec() Codec { return p.header.codec }

// Raw is the length of the body before compression, in bytes.
func (p *Packet) Raw() int { return p.header.raw }

// Stored is the length of the body as it goes out, in bytes.
func (p *Packet) Stored() int { return p.header.stored - p.header.head }

// Encoder makes data frames. It is for one goroutine; any number of encoders
// share a chooser. It holds 1.2 MiB, and as much again once it has compressed.
type Encoder struct {
	chooser *Chooser
	kind    Kind
	head    []byte
	raw     arena // header, head and body as they are
	out     arena // the same compressed; made on first use
	packet  Packet
	lz4     *lz4.Compressor
}

// NewEncoder returns an encoder that asks ch which codec to use; nil is none.
func NewEncoder(ch *Chooser) *Encoder {
	return &Encoder{chooser: ch, raw: newArena(headRoom, MaxRaw)}
}

// Reset begins the next frame. The packet of the one before is gone.
func (e *Encoder) Reset(kind Kind) {
	e.kind = kind
	e.packet = Packet{}
	if invariants {
		mangle(e.raw.mem)
		mangle(e.head[:cap(e.head)])
	}
}

// Head returns an empty slice with room for MaxHead bytes, to append a head to.
func (e *Encoder) Head() []byte {
	if e.head == nil {
		e.head = make([]byte, 0, MaxHead)
	}
	return e.head[:0]
}

// Body returns MaxRaw bytes to fill with a body. They start at a multiple of
// 4096 in memory, so that a volume can be read into them with O_DIRECT. What
// the bytes are after Reset is undefined.
func (e *Encoder) Body() []byte { return e.raw.span(0, MaxRaw) }

// Finish makes a packet of a head and a body. A body that is a start of Body is
// not copied; one that lies elsewhere is. The body is compressed as the chooser
// advises, and stays as it is where that does not make it smaller. The head may
// be empty. What is too long is [ErrTooLarge].
func (e *Encoder) Finish(head, body []byte) (*Packet, error) {
	if len(head) > MaxHead || len(body) > MaxRaw {
		return nil, fmt.Errorf("make frame of kind %d: %w: head of %d bytes, limit %d, body of %d, limit %d",
			e.kind, ErrTooLarge, len(head), MaxHead, len(body), MaxRaw)
	}
	if e.kind == 0 || e.kind >= Ping {
		return nil, fmt.Errorf("make frame: kind %d is not a message's", e.kind)
	}
	var own []byte // body at the place it has in e.raw
	if len(body) > 0 {
		own = e.raw.span(0, len(body))
		if &own[0] != &body[0] {
			copy(own, body)
		}
	}
	room, codec, stored, level := &e.raw, None, len(body), levelNone
	if e.chooser != nil && len(body) > 0 {
		if codec, stored, level = e.compress(own); codec != None {
			room = &e.out
		}
	}
	buf := room.span(HeaderSize+len(head), stored)
	copy(buf[HeaderSize:], head)
	e.packet = Packet{
		header: header{kind: e.kind, codec: codec, head: len(head),
			stored: len(head) + stored, raw: len(body)},
		buf: buf, chooser: e.chooser, level: level,
	}
	return &e.packet, nil
}

// compress puts the compressed body into e.out, if that pays. It returns the
// codec, the bytes stored, and the level that was advised.
func (e *Encoder) compress(body []byte) (Codec, int, level) {
	lv, probe := e.chooser.advise(len(body))
	if lv == levelNone && !probe {
		e.chooser.finished(lv, len(body), len(body), 0)
		return None, len(body), lv
	}
	if e.out.mem == nil {
		e.out = newArena(headRoom, MaxStored)
	}
	use := lv
	if probe && !e.sample(body) {
		use = levelNone
	}
	n := len(body)
	began := time.Now()
	switch use {
	case levelNone:
		e.chooser.finished(lv, n, n, 0)
		return None, n, lv
	case levelLZ4:
		n = e.compressLZ4(body, e.out.span(0, len(body)-1))
	default:
		n = len(e.chooser.zstd(use).EncodeAll(body, e.out.span(0, MaxStored)[:0]))
	}
	took := max(time.Since(began), 1)
	if n <= 0 || n >= len(body) {
		n, use = len(body), levelNone
	}
	e.chooser.finished(lv, len(body), n, took)
	return use.codec(), n, lv
}

// compressLZ4 returns how many bytes of dst it filled, 0 if dst is too short.
func (e *Encoder) compressLZ4(src, dst []byte) int {
	if e.lz4 == nil {
		e.lz4 = new(lz4.Compressor)
	}
	n, err := e.lz4.CompressBlock(src, dst)
	if err != nil {
		return 0
	}
	return n
}

// A sample is four blocks of 4 KiB, spread over the body.
const (
	sampleBlocks = 4
	sampleBlock  = 4 << 10
	sampleRatio  = 1.05 // less is incompressible
)

// sample tries four small blocks of the body and says whether the whole is
// worth compressing. It costs about 10 µs.
func (e *Encoder) sample(body []byte) bool {
	step := (len(body) - sampleBlock) / (sampleBlocks - 1)
	stored := 0
	for i := range sampleBlocks {
		block := body[i*step : i*step+sampleBlock]
		n := e.compressLZ4(block, e.out.span(0, sampleBlock-1))
		if n == 0 {
			n = sampleBlock
		}
		stored += n
	}
	e.chooser.sampled(sampleBlocks*sampleBlock, stored)
	return sampleBlocks*sampleBlock > sampleRatio*float64(stored)
}
