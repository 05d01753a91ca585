package cbt

import (
	"iter"
	"math/bits"
	"sync/atomic"
)

// The bits of a map lie in pages that exist only where a bit is set:
//
//	plane  [ * | nil | nil | * | nil ]     one pointer per 32768 blocks
//	         |               |
//	page   [512 words]     [512 words]     one bit per block
//
// A map has two planes, dirty and discarded; where both have the bit, the
// block is dirty. No word holds bits of both, so that raising a state is one
// atomic OR and there is no order of two calls that lowers it.
const (
	pageWords  = 512
	pageBlocks = pageWords * 64
)

// page is one page of a live plane.
type page [pageWords]atomic.Uint64

// words is the frozen content of a page.
type words [pageWords]uint64

// plane is one bit for each block of a volume, safe for concurrent use.
type plane []atomic.Pointer[page]

func newPlane(blocks int64) plane {
	return make(plane, (blocks+pageBlocks-1)/pageBlocks)
}

// set sets the bits of the blocks [first, end).
func (pl plane) set(first, end int64) {
	for first < end {
		i := first / pageBlocks
		base := i * pageBlocks
		stop := min(end, base+pageBlocks)
		for {
			p := pl.page(i)
			p.set(first-base, stop-base)
			// take unhooks a page and then reads it. If ours is still hooked,
			// our bits were there before any take that is to come. If it is
			// not, the take may have read it too early: set them once more.
			if pl[i].Load() == p {
				break
			}
		}
		first = stop
	}
}

// page returns page i, made if there is none.
func (pl plane) page(i int64) *page {
	for {
		if p := pl[i].Load(); p != nil {
			return p
		}
		if p := new(page); pl[i].CompareAndSwap(nil, p) {
			return p
		}
	}
}

// set sets the bits [lo, hi) of p, 0 <= lo < hi <= pageBlocks.
func (p *page) set(lo, hi int64) {
	for lo < hi {
		w := lo / 64
		stop := min(hi, (w+1)*64)
		mask := wordMask(lo-w*64, stop-w*64)
		// Rewriting a hot block is the common case: a load leaves the cache
		// line shared, an OR would take it from the other writers.
		if p[w].Load()&mask != mask {
			p[w].Or(mask)
		}
		lo = stop
	}
}

// wordMask returns a word with the bits [lo, hi) set, 0 <= lo < hi <= 64.
func wordMask(lo, hi int64) uint64 { return ^uint64(0) >> (64 - (hi - lo)) << lo }

// take empties the plane and returns what it held, nil for empty pages. A bit
// set meanwhile is returned, or stays, or both; it is never in neither.
func (pl plane) take() []*words {
	out := make([]*words, len(pl))
	for i := range pl {
		if pl[i].Load() == nil {
			continue
		}
		// The copy is what makes the taken page immutable: a set that holds
		// the old page may still write to it. The old page is left to the
		// garbage collector, so what is live stays one copy.
		p, w, any := pl[i].Swap(nil), new(words), uint64(0)
		for k := range p {
			w[k] = p[k].Load()
			any |= w[k]
		}
		if any != 0 {
			out[i] = w
		}
	}
	return out
}

// or sets the bits of taken pages. It must not run beside take.
func (pl plane) or(taken []*words) {
	for i, w := range taken {
		if w == nil || *w == (words{}) {
			continue
		}
		p := pl.page(int64(i))
		for k, bits := range w {
			if bits != 0 {
				p[k].Or(bits)
			}
		}
	}
}

// addTo ORs the bits of page i into w and reports whether there was a page.
func (pl plane) addTo(i int, w *words) bool {
	p := pl[i].Load()
	if p == nil {
		return false
	}
	for k := range p {
		w[k] |= p[k].Load()
	}
	return true
}

// has reports whether the bit of the given block is set.
func (pl plane) has(block int64) bool {
	p := pl[block/pageBlocks].Load()
	return p != nil && p[block%pageBlocks/64].Load()&(1<<(block%64)) != 0
}

// orWords ORs src, which may be nil, into w and reports whether it was there.
func orWords(w, src *words) bool {
	if src == nil {
		return false
	}
	for k, bits := range src {
		w[k] |= bits
	}
	return true
}

// clearWords clears the bits of the blocks [first, end) in taken pages.
func clearWords(taken []*words, first, end int64) {
	for first < end {
		i := first / pageBlocks
		base := i * pageBlocks
		stop := min(end, base+pageBlocks)
		if w := taken[i]; w != nil {
			for lo := first - base; lo < stop-base; {
				k := lo / 64
				hi := min(stop-base, (k+1)*64)
				w[k] &^= wordMask(lo-k*64, hi-k*64)
				lo = hi
			}
		}
		first = stop
	}
}

// source adds page i of a map to dirty and discarded, which come zeroed, and
// reports whether the page exists.
type source func(i int, dirty, discarded *words) bool

// eachPage calls visit with each existing page of n until it returns false.
func eachPage(n int, src source, visit func(i int, dirty, discarded *words) bool) {
	var dirty, discarded words
	for i := range n {
		if !src(i, &dirty, &discarded) {
			continue
		}
		if !visit(i, &dirty, &discarded) {
			return
		}
		dirty, discarded = words{}, words{}
	}
}

// blockRun is a run counted in blocks.
type blockRun struct {
	first, end int64
	state      State
}

// blockRuns returns the runs in the n pages of src, in order and whole.
func blockRuns(n int, src source) iter.Seq[blockRun] {
	return func(yield func(blockRun) bool) {
		var open blockRun // not yielded yet: it may go on
		ok := true
		eachPage(n, src, func(i int, dirty, discarded *words) bool {
			for k := range dirty {
				first := int64(i)*pageBlocks + int64(k)*64
				if ok = open.word(first, dirty[k], discarded[k], yield); !ok {
					return false
				}
			}
			return true
		})
		if ok && open.state != Clean {
			yield(open)
		}
	}
}

// word goes through 64 blocks from first on. It extends r while the state
// stays and yields r before it begins the next run.
func (r *blockRun) word(first int64, dirty, discarded uint64, yield func(blockRun) bool) bool {
	discarded &^= dirty
	for at := 0; at < 64; {
		d, x := dirty>>at, discarded>>at
		state, n := Clean, bits.TrailingZeros64(d|x)
		switch {
		case d&1 != 0:
			state, n = Dirty, bits.TrailingZeros64(^d)
		case x&1 != 0:
			state, n = Discarded, bits.TrailingZeros64(^x)
		}
		lo := first + int64(at)
		at = min(at+n, 64)
		if state == Clean {
			continue
		}
		if state != r.state || lo != r.end {
			if r.state != Clean && !yield(*r) {
				return false
			}
			*r = blockRun{first: lo, state: state}
		}
		r.end = first + int64(at)
	}
	return true
}
