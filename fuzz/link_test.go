package fuzz_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A change is what happens to one frame of one direction.
type change struct {
	conn  int
	in    bool // towards who dialed
	frame int
	op    byte
	pos   int
	value byte
	n     int
}

// What a change does.
const (
	opFlip   byte = 0  // n+1 bytes at pos are xored with value, or with 1
	opSet    byte = 1  // n+1 bytes at pos become value
	opDelete byte = 2  // n+1 bytes at pos are gone
	opInsert byte = 3  // n+1 bytes of value come before pos
	opDrop   byte = 4  // the frame does not come
	opTwice  byte = 5  // it comes twice
	opSwap   byte = 6  // it comes after the next one
	opCut    byte = 7  // the connection ends with byte pos of it
	opKind   byte = 8  // it becomes one of kind value
	opCopy   byte = 9  // n+1 bytes at pos are those at value
	ops      byte = 10 // so many there are
)

// changeBytes is a change in an input: where (bit 0 direction, bit 1
// connection, then the frame's number), op, pos u16, value, n.
const changeBytes = 6

// planOf reads the changes of an input, at most 64.
func planOf(b []byte) []change {
	var plan []change
	for ; len(b) >= changeBytes && len(plan) < 64; b = b[changeBytes:] {
		plan = append(plan, change{
			conn: int(b[0] >> 1 & 1), in: b[0]&1 != 0, frame: int(b[0] >> 2), op: b[1] % ops,
			pos: int(binary.LittleEndian.Uint16(b[2:])), value: b[4], n: int(b[5]),
		})
	}
	return plan
}

// A tap is one end of a connection whose frames pass through two lanes.
type tap struct {
	under   io.ReadWriteCloser
	out, in lane
	rest    []byte // read, changed, and not yet taken
}

func (t *tap) Close() error { return t.under.Close() }

// Write takes one frame: a connection without a limit writes nothing less.
func (t *tap) Write(b []byte) (int, error) {
	changed, cut := t.out.pass(bytes.Clone(b))
	if len(changed) > 0 {
		if _, err := t.under.Write(changed); err != nil {
			return 0, err
		}
	}
	if cut {
		return 0, errors.Join(io.ErrClosedPipe, t.under.Close())
	}
	return len(b), nil
}

func (t *tap) Read(b []byte) (int, error) {
	for len(t.rest) == 0 {
		frame, err := readFrame(t.under)
		if err != nil {
			return 0, err
		}
		changed, cut := t.in.pass(frame)
		if t.rest = changed; cut {
			_ = t.under.Close() // what is left of the frame is still read
		}
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// A timed connection has read deadlines, as those between machines do. A read
// that comes too late closes it.
type timed struct {
	io.ReadWriteCloser
	at   time.Time
	late atomic.Bool
}

// SetReadDeadline is called by who reads.
func (c *timed) SetReadDeadline(at time.Time) error {
	c.at = at
	return nil
}

func (c *timed) Read(b []byte) (int, error) {
	if c.at.IsZero() {
		return c.ReadWriteCloser.Read(b)
	}
	timer := time.AfterFunc(time.Until(c.at), func() {
		c.late.Store(true)
		_ = c.Close()
	})
	defer timer.Stop()
	n, err := c.ReadWriteCloser.Read(b)
	if err != nil && c.late.Load() {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// readFrame reads the bytes of a frame.
func readFrame(r io.Reader) ([]byte, error) {
	frame := make([]byte, transport.HeaderSize)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	frame = append(frame, make([]byte, binary.LittleEndian.Uint32(frame[4:]))...)
	_, err := io.ReadFull(r, frame[transport.HeaderSize:])
	return frame, err
}

// A lane is one direction of a connection. Its user sees to it that pass is not
// called twice at a time.
type lane struct {
	plan       []change
	reframe    bool // numbers and sums are made right again
	fromSource bool
	frame      int // number of the next frame that comes
	seq        uint32
	held       []byte // comes after the next frame

	record     func([]byte) // is given every frame as it came; nil: nobody
	candidates []cbt.Extent // that the target was told of
	hit        bool         // something was changed
	beyond     bool         // something that no digest stands for
}

// pass returns what is to be written in place of a frame, and whether the
// connection is cut after that.
func (l *lane) pass(frame []byte) (changed []byte, cut bool) {
	if l.record != nil {
		l.record(frame)
	}
	was, number := bytes.Clone(frame), l.frame
	l.frame++
	copies, swap, end := 1, false, -1
	for _, c := range l.plan {
		if c.frame != number {
			continue
		}
		switch c.op {
		case opDrop:
			copies = 0
		case opTwice:
			copies = 2
		case opSwap:
			swap = true
		case opCut:
			end = c.pos % max(len(frame), 1)
		default:
			frame = l.edit(frame, c)
		}
		l.beyond = l.beyond || !digested(was, frame, c, l.fromSource)
	}
	l.hit = l.hit || copies != 1 || swap || end >= 0 || !bytes.Equal(was, frame)
	var out []byte
	for range copies {
		if swap && l.held == nil {
			l.held = frame
			continue
		}
		out = append(out, l.finish(frame, was)...)
		if l.held != nil {
			out, l.held = append(out, l.finish(l.held, l.held)...), nil
		}
	}
	if end >= 0 {
		return out[:min(end, len(out))], true
	}
	return out, false
}

// finish makes a frame ready to be written.
func (l *lane) finish(frame, was []byte) []byte {
	if !l.reframe {
		l.note(was) // the sum refuses it if it is another
		return frame
	}
	frame = seal(bytes.Clone(frame), l.seq)
	l.seq++
	l.note(frame)
	return frame
}

// note looks for candidates in a frame that the target gets.
func (l *lane) note(frame []byte) {
	var m message.Extents
	if !l.fromSource || frame[0] != byte(m.Kind()) || m.Decode(frame[transport.HeaderSize:]) != nil {
		return
	}
	for _, x := range m.Extents {
		if m.Purpose == 3 {
			l.candidates = append(l.candidates, cbt.Extent(x))
		}
	}
}

// edit changes bytes of a frame: of its payload, or anywhere where the sum is
// not made right again.
func (l *lane) edit(frame []byte, c change) []byte {
	from := transport.HeaderSize
	if !l.reframe {
		from = 0
	}
	b := frame[from:]
	switch {
	case c.op == opKind && len(frame) > 0:
		frame[0] = c.value
		return frame
	case len(b) == 0 && c.op != opInsert:
		return frame
	}
	pos := c.pos % max(len(b), 1)
	n := min(c.n+1, len(b)-pos)
	switch c.op {
	case opFlip:
		for i := range n {
			b[pos+i] ^= max(c.value, 1)
		}
	case opSet:
		for i := range n {
			b[pos+i] = c.value
		}
	case opDelete:
		b = slices.Delete(b, pos, pos+n)
	case opInsert:
		b = slices.Insert(b, pos, bytes.Repeat([]byte{c.value}, c.n+1)...)
	case opCopy:
		copy(b[pos:pos+n], b[int(c.value)%len(b):])
	}
	return append(frame[:from:from], b...)
}

// seal numbers and sums a frame whose payload is what it shall be.
func seal(frame []byte, seq uint32) []byte {
	stored := len(frame) - transport.HeaderSize
	head := min(int(binary.LittleEndian.Uint16(frame[2:])), stored)
	binary.LittleEndian.PutUint16(frame[2:], uint16(head))
	binary.LittleEndian.PutUint32(frame[4:], uint32(stored))
	if transport.Codec(frame[1]) == transport.None {
		binary.LittleEndian.PutUint32(frame[8:], uint32(stored-head))
	}
	binary.LittleEndian.PutUint32(frame[12:], seq)
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(frame[:16])
	_, _ = d.Write(frame[transport.HeaderSize:])
	binary.LittleEndian.PutUint64(frame[16:], d.Sum64())
	return frame
}

// digested reports whether a change that made now of was is one that digests,
// or the number of frames in a barrier, stand for. A digest of zeroes is the one
// that anybody can make; a leaf's hash in a kept tree does not depend on the
// session or on its place.
func digested(was, now []byte, c change, fromSource bool) bool {
	kind := transport.Kind(was[0])
	if c.op == opCut {
		return true
	}
	if fromSource {
		head := transport.HeaderSize + int(binary.LittleEndian.Uint16(was[2:]))
		return kind == message.Data{}.Kind() && (c.op >= opDrop && c.op <= opSwap ||
			len(now) == len(was) && bytes.Equal(was[:head], now[:head]))
	}
	sums := transport.HeaderSize
	switch kind {
	case message.Credit{}.Kind(), message.Ack{}.Kind():
		return c.op >= opDrop && c.op <= opSwap
	case message.Digests{}.Kind():
		if sums += 11; was[transport.HeaderSize+8] != 16 {
			return c.op >= opDrop && c.op <= opSwap
		}
	case message.Pieces{}.Kind():
		sums += 19
	default:
		return false
	}
	if len(now) != len(was) || !bytes.Equal(was[:sums], now[:sums]) {
		return false
	}
	for b := now[sums:]; len(b) >= 16; b = b[16:] {
		if bytes.Equal(b[:16], make([]byte, 16)) && !bytes.Equal(was, now) {
			return false
		}
	}
	return true
}
