package failback

import (
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Buffers for direct I/O. The kernel moves data straight between them and the
// device, so they start on a page; they are mapped outside the Go heap, so the
// collector neither scans them nor lets their size pace its cycles.

const (
	minBufBits = 12              // smallest class: one 4 KiB page
	maxBufBits = 22              // largest class: 4 MiB, the largest leaf
	maxBuf     = 1 << maxBufBits // bytes; larger buffers are mapped each time
	maxIdle    = int64(32) << 20 // bytes kept idle, all classes together
	classes    = maxBufBits - minBufBits + 1
	bufLive    = int32(0x6c697665) // a buffer that getBuf has handed out
	bufIdle    = int32(0x69646c65) // a buffer that put has taken back
)

// buffer is one page-aligned piece of memory. b has the length asked for; its
// contents are whatever the last user left. It must not be used after put.
type buffer struct {
	b     []byte
	mem   []byte // all of it: a power of two of bytes, or whole pages above maxBuf
	heap  bool   // mem belongs to the collector and must not be unmapped
	state atomic.Int32
}

// bufPool keeps idle buffers by class, last in first out so that memory still
// in the processor's cache is used first.
type bufPool struct {
	mu   sync.Mutex
	free [classes][]*buffer
	idle int64 // bytes in free
	out  atomic.Int64
}

var (
	bufs     bufPool
	pageSize = os.Getpagesize() // bytes, a power of two; 4 KiB or 64 KiB in practice
)

// getBuf returns a buffer of n bytes. The caller bounds n: a length that came
// from outside is checked before it gets here. Cost: about 50 ns when an idle
// buffer is at hand, else one mmap and its page faults.
func getBuf(n int) *buffer { return bufs.get(n) }

// buffersOut is the number of buffers handed out and not yet put back.
func buffersOut() int64 { return bufs.out.Load() }

// bufClass is the class whose buffers hold n bytes; -1 if none is large enough.
func bufClass(n int) int {
	switch {
	case n <= 1<<minBufBits:
		return 0
	case n > maxBuf:
		return -1
	}
	return bits.Len(uint(n-1)) - minBufBits
}

func (p *bufPool) get(n int) *buffer {
	n = max(n, 0)
	p.out.Add(1)
	b := p.take(bufClass(max(n, pageSize)))
	if b == nil {
		b = newBuffer(n)
	}
	b.state.Store(bufLive)
	b.b = b.mem[:n]
	mangle(b.mem)
	return b
}

// take returns an idle buffer of a class, nil if there is none.
func (p *bufPool) take(class int) *buffer {
	if class < 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.free[class]
	if len(list) == 0 {
		return nil
	}
	b := list[len(list)-1]
	list[len(list)-1] = nil
	p.free[class] = list[:len(list)-1]
	p.idle -= int64(len(b.mem))
	return b
}

// put gives the buffer back. A second put of the same buffer does nothing, for
// otherwise two users would share one memory; under the build tag "invariants"
// it panics.
func (b *buffer) put() {
	if !b.state.CompareAndSwap(bufLive, bufIdle) {
		misused("buffer put back twice")
		return
	}
	mangle(b.mem)
	b.b = nil
	bufs.out.Add(-1)
	if !bufs.keep(b) {
		b.release()
	}
}

// keep stores an idle buffer unless enough are kept already.
func (p *bufPool) keep(b *buffer) bool {
	class := bufClass(len(b.mem))
	if class < 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.idle+int64(len(b.mem)) > maxIdle {
		return false
	}
	p.free[class] = append(p.free[class], b)
	p.idle += int64(len(b.mem))
	return true
}

// newBuffer makes a buffer of the class of n. Where the system gives no mapping
// it comes from the heap, which always answers or ends the process.
func newBuffer(n int) *buffer {
	n = max(n, pageSize)
	length := (n + pageSize - 1) &^ (pageSize - 1)
	if c := bufClass(n); c >= 0 {
		length = 1 << (minBufBits + c)
	}
	if !raceBuild {
		mem, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err == nil {
			return &buffer{mem: mem}
		}
	}
	raw := make([]byte, length+pageSize)
	skip := -int(addr(raw)) & (pageSize - 1)
	return &buffer{mem: raw[skip : skip+length : skip+length], heap: true}
}

// release returns the memory to the system.
func (b *buffer) release() {
	if !b.heap {
		// The only failure munmap has here is an address we did not map.
		_ = unix.Munmap(b.mem)
	}
	b.mem = nil
}

// addr is where a slice's memory begins.
func addr(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
