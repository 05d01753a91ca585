package faulty

import (
	"encoding/binary"
	"sync"
)

// flow is one way of a link: how far the stream is, the frames in it, and where
// rules wait. Offsets are those of the stream as it was written, before faults.
type flow struct {
	way    Way
	busy   sync.Mutex // one Read or Write at a time
	rules  []*LinkRule
	mu     sync.Mutex // guards frames
	frames []Frame

	pos    int64             // bytes that have come
	head   [frameHeader]byte // of the frame that pos is in
	got    int               // bytes of head
	first  int64             // offset of that frame
	end    int64             // of it; known once the header is whole
	open   bool              // pos is inside a frame
	counts map[uint8]int     // frames begun, by kind
	places []place           // of rules still to come to work
	flip   []*LinkRule       // for the next byte
	drop   int64             // bytes from pos on that are taken out
	again  int64             // bytes from pos on that are sent twice
	copy   []byte            // those of them that have come
}

func newFlow(way Way, rules []LinkRule) *flow {
	f := &flow{way: way, counts: map[uint8]int{}}
	for _, r := range rules {
		if r.Way != way {
			continue
		}
		f.rules = append(f.rules, &r)
		if !r.framed() {
			f.places = append(f.places, place{&r, r.At})
		}
	}
	return f
}

// pass takes the bytes of p through the rules and hands on what comes of them,
// in runs. fire is called where a rule comes to work; if it returns false,
// nothing more passes, and pass returns false too.
func (f *flow) pass(p []byte, emit func([]byte) bool, fire func(*LinkRule) bool) bool {
	for {
		if !f.fireHere(fire) {
			return false
		}
		if len(p) == 0 {
			return true
		}
		if !f.open {
			f.begin(p[0])
			continue
		}
		n := min(int64(len(p)), f.stretch())
		f.take(p[:n])
		if !f.hand(p[:n], emit) {
			return false
		}
		p = p[n:]
	}
}

// begin notes the frame whose first byte is kind, and where rules wait in it.
func (f *flow) begin(kind uint8) {
	f.open, f.got, f.first = true, 0, f.pos
	f.counts[kind]++
	f.mu.Lock()
	all := len(f.frames) + 1
	f.frames = append(f.frames, Frame{Way: f.way, Kind: kind, Nth: f.counts[kind], Off: f.pos})
	f.mu.Unlock()
	for _, r := range f.rules {
		nth := f.counts[kind]
		if r.Frame == 0 {
			nth = all
		}
		if !r.framed() || (r.Frame != 0 && r.Frame != kind) || (r.Nth != 0 && r.Nth != nth) {
			continue
		}
		at := place{r, f.pos + r.At}
		if r.Past {
			at.off = -1
		}
		f.places = append(f.places, at)
	}
}

// fireHere lets the rules come to work whose place is pos.
func (f *flow) fireHere(fire func(*LinkRule) bool) bool {
	for i := 0; i < len(f.places); {
		r := f.places[i].rule
		if f.places[i].off != f.pos {
			i++
			continue
		}
		f.places = append(f.places[:i], f.places[i+1:]...)
		switch r.Kind {
		case Flip:
			f.flip = append(f.flip, r)
		case Drop:
			f.drop = r.length()
		case Repeat:
			f.again, f.copy = r.length(), nil
		}
		if !fire(r) {
			return false
		}
	}
	return true
}

// toFrameEnd is a length: up to where the frame ends that pos is in.
const toFrameEnd = -1

// length is how many bytes a Drop or Repeat is about.
func (r *LinkRule) length() int64 {
	if r.Len > 0 {
		return r.Len
	}
	return toFrameEnd
}

// stretch is how many bytes pass before anything may happen.
func (f *flow) stretch() int64 {
	n := int64(frameHeader - f.got)
	if f.got == frameHeader {
		n = f.end - f.pos
	}
	for _, at := range f.places {
		if d := at.off - f.pos; d > 0 {
			n = min(n, d)
		}
	}
	if f.drop > 0 {
		n = min(n, f.drop)
	}
	if f.again > 0 {
		n = min(n, f.again)
	}
	if len(f.flip) > 0 {
		n = 1
	}
	return n
}

// take moves pos past run, which lies inside a frame.
func (f *flow) take(run []byte) {
	f.pos += int64(len(run))
	if f.got < frameHeader {
		f.got += copy(f.head[f.got:], run)
		if f.got < frameHeader {
			return
		}
		f.end = f.first + frameHeader + int64(binary.LittleEndian.Uint32(f.head[frameLen:]))
		for i := range f.places {
			if f.places[i].off < 0 {
				f.places[i].off = f.end
			}
		}
	}
	f.open = f.pos < f.end
	f.mu.Lock()
	defer f.mu.Unlock()
	last := &f.frames[len(f.frames)-1]
	last.Len, last.Passed = f.end-f.first, !f.open
}

// hand emits run as the faults at work leave it. pos is after it.
func (f *flow) hand(run []byte, emit func([]byte) bool) bool {
	if len(f.flip) > 0 {
		run = []byte{run[0]}
		for _, r := range f.flip {
			run[0] ^= 1 << (r.Bit % 8)
		}
		f.flip = nil
	}
	if f.drop != 0 {
		f.drop = f.left(f.drop, len(run))
		return true
	}
	if !emit(run) {
		return false
	}
	if f.again == 0 {
		return true
	}
	f.copy = append(f.copy, run...)
	if f.again = f.left(f.again, len(run)); f.again != 0 {
		return true
	}
	twice := f.copy
	f.copy = nil
	return emit(twice)
}

// left is what remains of a length after n bytes.
func (f *flow) left(length int64, n int) int64 {
	if length != toFrameEnd {
		return length - int64(n)
	}
	if f.open {
		return toFrameEnd
	}
	return 0
}

func (f *flow) log() []Frame {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Frame(nil), f.frames...)
}
