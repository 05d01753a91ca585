//go:build invariants

package transport

import "bytes"

// invariants makes misuse loud: a frame released twice panics, and what lies in
// a released frame turns to 0xdb.
const invariants = true

// In pieces: the race detector looks at a copy once, and at a loop once a byte.
var mangledPiece = bytes.Repeat([]byte{0xdb}, 4<<10)

func mangle(b []byte) {
	for len(b) > 0 {
		b = b[copy(b, mangledPiece):]
	}
}
