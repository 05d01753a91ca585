package transport

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// Frame is one received frame. It is the caller's until Release.
type Frame struct {
	Kind  Kind
	Codec Codec  // of Body
	Seq   uint32 // frame number on its connection, wraps
	Raw   int    // bytes of Body once decompressed
	Head  []byte // never compressed
	Body  []byte // as stored; starts at a multiple of 4096 in memory

	room  arena
	class int8 // index into pools
	state atomic.Uint32
}

// The states of a frame: in the pool, with a caller.
const (
	frameFree uint32 = 0
	frameHeld uint32 = 1
)

// Payload returns head and body as one slice. It copies only if the frame was
// not received but made by hand.
func (f *Frame) Payload() []byte {
	if f.room.mem != nil {
		return f.room.span(len(f.Head), len(f.Body))
	}
	if len(f.Head) == 0 {
		return f.Body
	}
	return append(append(make([]byte, 0, len(f.Head)+len(f.Body)), f.Head...), f.Body...)
}

// Append adds the frame as it is on the wire to b.
func (f *Frame) Append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = append(append(b, f.Head...), f.Body...)
	f.header().put(b[start:])
	var d xxhash.Digest
	seal(b[start:], f.Seq, &d)
	return b
}

func (f *Frame) header() header {
	return header{kind: f.Kind, codec: f.Codec, head: len(f.Head),
		stored: len(f.Head) + len(f.Body), raw: f.Raw}
}

// Release gives the frame's memory back. The frame, its head and its body, and
// whatever was decoded from them without a copy, must not be touched afterwards.
func (f *Frame) Release() {
	if f.room.mem == nil {
		return
	}
	if !f.state.CompareAndSwap(frameHeld, frameFree) {
		if invariants {
			panic("transport: frame released twice")
		}
		return
	}
	if invariants {
		mangle(f.room.mem)
	}
	f.Head, f.Body = nil, nil
	pools[f.class].put(f)
}
