package transport

import (
	"sync"
	"unsafe"
)

// framePool keeps free frames of one size. It is a plain list and not a
// sync.Pool, so that a collection does not make the next megabyte anew.
type framePool struct {
	head, body int // room in bytes
	keep       int // free frames kept, at most
	mu         sync.Mutex
	free       []*Frame
}

// headRoom is enough for a header and the longest head, in whole pages.
const headRoom = 68 << 10

// pools keep at most 1.3, 2.4 and 19 MiB for the whole process.
var pools = [...]framePool{
	{head: 4 << 10, body: 8 << 10, keep: 80},
	{head: 8 << 10, body: 64 << 10, keep: 32},
	{head: headRoom, body: MaxStored, keep: 16},
}

func (p *framePool) get() *Frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.free)
	if n == 0 {
		return nil
	}
	f := p.free[n-1]
	p.free = p.free[:n-1]
	return f
}

func (p *framePool) put(f *Frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < p.keep {
		p.free = append(p.free, f)
	}
}

// arena is memory for one frame. The body starts at base, a page in memory, so
// that it can be read and written with O_DIRECT; head and header lie before it,
// so that the whole goes out in one write.
type arena struct {
	mem  []byte
	base int
}

const page = 4096

func newArena(head, body int) arena {
	mem := make([]byte, head+body+page)
	skip := (page - int(uintptr(unsafe.Pointer(&mem[0]))%page)) % page
	return arena{mem: mem, base: head + skip} // head is whole pages
}

// span returns the head bytes before base and the body bytes after it.
func (a *arena) span(head, body int) []byte {
	return a.mem[a.base-head : a.base+body : a.base+body]
}

// newFrame takes a frame with room for what h, already checked, announces.
func newFrame(h header) *Frame {
	body := h.stored - h.head
	class := 0
	for pools[class].body < body || pools[class].head < h.head+HeaderSize {
		class++
	}
	f := pools[class].get()
	if f == nil {
		f = &Frame{room: newArena(pools[class].head, pools[class].body), class: int8(class)}
	}
	f.state.Store(frameHeld)
	f.Kind, f.Codec, f.Seq, f.Raw = h.kind, h.codec, h.seq, h.raw
	b := f.room.span(h.head, body)
	f.Head, f.Body = b[:h.head:h.head], b[h.head:]
	return f
}
