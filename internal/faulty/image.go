package faulty

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
)

const (
	sector = 512  // bytes that the medium writes whole or not at all
	page   = 4096 // bytes that larger sectors and file systems do
)

// image is an array of bytes, as the running system sees it and as the medium
// has it:
//
//	cache   every write
//	device  medium and the first seen of pending: what a Sync that lied left
//	medium  what survives
type image struct {
	mu      sync.RWMutex
	cache   []byte
	medium  []byte
	pending []change // not yet on the medium, in the order they were made
	seen    int
}

// change is one write, or a new size.
type change struct {
	off    int64
	data   []byte
	resize bool // to off
}

func newImage(content []byte) *image {
	return &image{cache: bytes.Clone(content), medium: bytes.Clone(content)}
}

func (m *image) size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.cache))
}

// read fills p from off on, or returns io.EOF with the bytes there are.
func (m *image) read(p []byte, off int64, how alteration) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if how.short {
		p = p[:half(len(p))]
	}
	if off >= int64(len(m.cache)) {
		return 0, io.EOF
	}
	n := copy(p, m.cache[off:])
	how.turn(p[:n])
	switch {
	case n < len(p):
		return n, io.EOF
	case how.short:
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}

// readMedium is read past the cache of the machine, not past that of the device.
func (m *image) readMedium(p []byte, off int64, how alteration) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off >= int64(len(m.medium)) {
		return 0, io.EOF
	}
	n := copy(p, m.medium[off:])
	for _, c := range m.pending[:m.seen] {
		from, end := max(off, c.off), min(off+int64(n), c.off+int64(len(c.data)))
		if from < end {
			copy(p[from-off:end-off], c.data[from-c.off:])
		}
	}
	how.turn(p[:n])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// write takes p at off; the image grows where it must.
func (m *image) write(p []byte, off int64, how alteration) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	asked := len(p)
	if how.short {
		p = p[:half(len(p))]
	}
	m.cache = put(m.cache, off, p)
	if !how.lost {
		c := change{off: off, data: bytes.Clone(p)}
		how.turn(c.data)
		m.pending = append(m.pending, c)
	}
	if len(p) < asked {
		return len(p), io.ErrShortWrite
	}
	return asked, nil
}

func (m *image) truncate(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cache = resize(m.cache, size)
	m.pending = append(m.pending, change{off: size, resize: true})
}

// sync brings everything to the medium, or, if it is lost, to the device only.
func (m *image) sync(how alteration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if how.lost {
		m.seen = len(m.pending)
		return
	}
	for _, c := range m.pending {
		m.medium = c.apply(m.medium)
	}
	m.pending, m.seen = nil, 0
}

// forget is a sync that failed: no later one brings these writes to the medium.
func (m *image) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending, m.seen = nil, 0
}

// rot turns the lowest bit of the byte at off on the medium and in every cache.
func (m *image) rot(off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cache[off] ^= 1
	m.medium[off] ^= 1
}

func (m *image) cached() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.cache)
}

func (m *image) durable() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.medium)
}

// crash returns what a power cut leaves. What was synced is there. Of the rest,
// by the random numbers, one of these holds:
//
//	nothing of it is there
//	all of it is
//	it was written in order up to some point, at which a write is torn
//	each write is there or is not, whatever came before it
//	each sector of each write is there or is not
//
// Where a file grew, its new size may be there without its content, which then
// reads as zeroes.
func (m *image) crash(rng *rand.Rand) *image {
	m.mu.RLock()
	defer m.mu.RUnlock()
	data := bytes.Clone(m.medium)
	unit := int64(sector)
	if rng.IntN(2) == 0 {
		unit = page
	}
	switch rng.IntN(5) {
	case 0:
	case 1:
		data = applyAll(data, m.pending)
	case 2:
		data = tornPrefix(data, m.pending, unit, rng)
	case 3:
		data = applyAll(data, slices.DeleteFunc(slices.Clone(m.pending), func(change) bool { return rng.IntN(2) == 0 }))
	case 4:
		share := 1 + rng.IntN(3)
		for _, c := range m.pending {
			data = c.applyParts(data, unit, func() bool { return rng.IntN(4) < share })
		}
	}
	if rng.IntN(3) == 0 {
		data = grow(data, m.pending, rng)
	}
	return &image{cache: data, medium: bytes.Clone(data)}
}

// tornPrefix applies some of the changes, in order, the last one in part.
func tornPrefix(data []byte, pending []change, unit int64, rng *rand.Rand) []byte {
	n := rng.IntN(len(pending) + 1)
	data = applyAll(data, pending[:n])
	if n == len(pending) {
		return data
	}
	torn := pending[n]
	left := rng.Int64N(int64(len(torn.data))/unit + 2) // units of it that made it
	return torn.applyParts(data, unit, func() bool {
		left--
		return left >= 0
	})
}

// grow makes data as large as one of the changes made the file, if that is more.
func grow(data []byte, pending []change, rng *rand.Rand) []byte {
	if len(pending) == 0 {
		return data
	}
	c := pending[rng.IntN(len(pending))]
	if end := c.off + int64(len(c.data)); end > int64(len(data)) {
		return resize(data, end)
	}
	return data
}

func applyAll(data []byte, changes []change) []byte {
	for _, c := range changes {
		data = c.apply(data)
	}
	return data
}

// apply makes the change.
func (c *change) apply(data []byte) []byte {
	if c.resize {
		return resize(data, c.off)
	}
	return put(data, c.off, c.data)
}

// applyParts makes those parts of the change that keep says, cut at multiples of unit.
func (c *change) applyParts(data []byte, unit int64, keep func() bool) []byte {
	if c.resize {
		if keep() {
			data = resize(data, c.off)
		}
		return data
	}
	for i, n := int64(0), int64(len(c.data)); i < n; {
		end := min(n, i+unit-(c.off+i)%unit)
		if keep() {
			data = put(data, c.off+i, c.data[i:end])
		}
		i = end
	}
	return data
}

// resize cuts p to n bytes or fills it up with zeroes.
func resize(p []byte, n int64) []byte {
	if int64(len(p)) >= n {
		return p[:n]
	}
	return append(p, make([]byte, n-int64(len(p)))...)
}

// put writes data at off into p, which grows where it must.
func put(p []byte, off int64, data []byte) []byte {
	if end := off + int64(len(data)); int64(len(p)) < end {
		p = resize(p, end)
	}
	copy(p[off:], data)
	return p
}

// half is how much of n bytes a short operation does: whole sectors, if it can.
func half(n int) int {
	if n >= 2*sector {
		return n / 2 / sector * sector
	}
	return n / 2
}

// turn flips a bit of p, if that is asked for.
func (how alteration) turn(p []byte) {
	if !how.flip || len(p) == 0 {
		return
	}
	bit := how.bit % (8 * int64(len(p)))
	p[bit/8] ^= 1 << (bit % 8)
}
