package failback

import (
	"bytes"
	"sync"

	"golang.org/x/sys/unix"
)

// zeroPage is compared against. It is small, so it stays in the processor's
// first-level cache and only the other side of the comparison costs memory reads.
var zeroPage [4096]byte

// allZero reports whether every byte of b is zero. It runs at memory speed and
// stops in the first 4 KiB that holds something else; data is mostly told from
// zeroes by its first and last bytes, before any comparison.
func allZero(b []byte) bool {
	if len(b) == 0 {
		return true
	}
	if b[0]|b[len(b)-1]|b[len(b)/2] != 0 {
		return false
	}
	for len(b) > len(zeroPage) {
		if !bytes.Equal(b[:len(zeroPage)], zeroPage[:]) {
			return false
		}
		b = b[len(zeroPage):]
	}
	return bytes.Equal(b, zeroPage[:len(b)])
}

const zeroChunk = 1 << 20 // bytes written at once where zeroes must be written

// zeroes returns zeroChunk read-only zero bytes, aligned for direct I/O. A
// mapping that is never written is backed by the kernel's one zero page, so it
// costs address space and no memory.
var zeroes = sync.OnceValue(func() []byte {
	mem, err := unix.Mmap(-1, 0, zeroChunk, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b := newBuffer(zeroChunk) // kept for good
		clear(b.mem)
		return b.mem
	}
	return mem
})
