package transport

import (
	"io"
	"sync"
)

// pipeRing is how many bytes a direction of a pipe holds.
const pipeRing = 64 << 10

// Pipe returns the two ends of a connection inside the process. Both ends also
// have CloseWrite, which ends one direction: the reader gets what was written
// before, then io.EOF.
//
// Each direction holds 64 KiB: a write that fits in what is free returns at
// once. A longer one waits for its reader, which takes the bytes out of the
// writer's slice: a megabyte is copied once. A write is never mixed with another.
//
// After Close of either end writes fail with io.ErrClosedPipe, and so do reads
// of the closed end; the other end may still read what was buffered.
func Pipe() (a, b io.ReadWriteCloser) {
	x, y := newHalf(), newHalf()
	return &pipeEnd{in: x, out: y}, &pipeEnd{in: y, out: x}
}

type pipeEnd struct{ in, out *half }

func (p *pipeEnd) Read(b []byte) (int, error)  { return p.in.read(b) }
func (p *pipeEnd) Write(b []byte) (int, error) { return p.out.write(b) }

// CloseWrite ends the direction this end writes to.
func (p *pipeEnd) CloseWrite() error {
	p.out.close(true, false)
	return nil
}

func (p *pipeEnd) Close() error {
	p.out.close(true, false)
	p.in.close(false, true)
	return nil
}

// half is one direction. The bytes under way are those in the ring, then those
// in direct.
type half struct {
	mu     sync.Mutex
	change sync.Cond // any field below changed for somebody who waits
	ring   []byte    // nil until the first write
	start  int       // of the oldest byte in the ring
	n      int       // bytes in the ring
	direct []byte    // rest of the slice of a writer that waits
	busy   bool      // a writer waits on direct
	wdone  bool      // no more writes
	rdone  bool      // no more reads
}

func newHalf() *half {
	h := new(half)
	h.change.L = &h.mu
	return h
}

func (h *half) write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.busy && !h.wdone && !h.rdone {
		h.change.Wait()
	}
	if h.wdone || h.rdone {
		return 0, io.ErrClosedPipe
	}
	if len(b) <= pipeRing-h.n {
		h.fill(b)
		h.change.Broadcast()
		return len(b), nil
	}
	h.busy, h.direct = true, b
	h.change.Broadcast()
	for len(h.direct) > 0 && !h.wdone && !h.rdone {
		h.change.Wait()
	}
	n := len(b) - len(h.direct)
	h.busy, h.direct = false, nil
	h.change.Broadcast()
	if n < len(b) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

// fill copies b, which fits, to the end of the ring.
func (h *half) fill(b []byte) {
	if h.ring == nil {
		h.ring = make([]byte, pipeRing)
	}
	end := (h.start + h.n) % pipeRing
	k := copy(h.ring[end:], b)
	copy(h.ring, b[k:])
	h.n += len(b)
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.rdone:
			return 0, io.ErrClosedPipe
		case len(b) == 0:
			return 0, nil
		case h.n > 0:
			k := copy(b, h.ring[h.start:min(h.start+h.n, pipeRing)])
			h.start, h.n = (h.start+k)%pipeRing, h.n-k
			return k, nil
		case len(h.direct) > 0:
			k := copy(b, h.direct)
			h.direct = h.direct[k:]
			if len(h.direct) == 0 {
				h.change.Broadcast()
			}
			return k, nil
		case h.wdone:
			return 0, io.EOF
		}
		h.change.Wait()
	}
}

func (h *half) close(w, r bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wdone = h.wdone || w
	h.rdone = h.rdone || r
	h.change.Broadcast()
}
