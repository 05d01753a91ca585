//go:build invariants

package failback

import "bytes"

// invariantsBuild reports whether broken promises inside the package panic.
const invariantsBuild = true

// mangled fills buffers that enter or leave the pool, so that whoever counts on
// old contents, or reads after put, sees this and not luck.
const mangled = 0xdb

// In pieces: the race detector looks at a copy once, and at a loop once a byte.
var mangledPiece = bytes.Repeat([]byte{mangled}, 4<<10)

func mangle(p []byte) {
	for len(p) > 0 {
		p = p[copy(p, mangledPiece):]
	}
}

func misused(what string) { panic("failback: " + what) }
