package ebpf

import (
	"iter"
	"math/bits"
	"sync/atomic"

	"github.com/failback/failback/cbt"
)

// planes are the three bit planes of a view, one bit a block.
//
// The programs set bits in dirty and discarded and never clear one. User space
// moves them to held, which the programs do not know: a bit is in held as long
// as it is not proven. Since held is kernel memory too, a process that dies
// with a map in its hands loses no bit: who opens the tracker next finds it.
type planes struct {
	size, block            int64 // bytes
	dirty, discarded, held []uint64
}

const planeCount = 3

func planesOf(mem shared, v view) *planes {
	n := v.get(offWords)
	return &planes{
		size: v.size(), block: v.block(),
		dirty: mem.words(0, n), discarded: mem.words(n, n), held: mem.words(2*n, n),
	}
}

// move takes all that the programs have marked and adds it to m. For each word
// it copies the bits to held before it clears them, and it clears only what it
// has copied: killed between any two instructions, it leaves each bit in one
// place at least. A bit that is set again between the two was set before the
// clearing, so it is in the answer.
//
// Dirty first: a discard that stays behind was marked after both planes of its
// block were moved, so the mark of a write that came after it stays, too. The
// other way round that mark could be taken and proven, and the discard would be
// the last word on a block that holds data.
func (p *planes) move(m *cbt.DirtyMap) {
	p.moveOne(p.dirty, m.Mark)
	p.moveOne(p.discarded, m.Discard)
}

func (p *planes) moveOne(plane []uint64, add func(off, n int64)) {
	take := func(i int) uint64 {
		x := atomic.LoadUint64(&plane[i])
		if x != 0 {
			atomic.StoreUint64(&p.held[i], p.held[i]|x)
			atomic.AndUint64(&plane[i], ^x)
		}
		return x
	}
	for first, end := range runsOf(len(plane), take) {
		off := first * p.block
		add(off, min(end*p.block, p.size)-off)
	}
}

// peek adds what is marked to m and changes nothing.
func (p *planes) peek(m *cbt.DirtyMap) {
	for _, at := range []struct {
		plane []uint64
		add   func(off, n int64)
	}{{p.discarded, m.Discard}, {p.dirty, m.Mark}} {
		load := func(i int) uint64 { return atomic.LoadUint64(&at.plane[i]) }
		for first, end := range runsOf(len(at.plane), load) {
			off := first * p.block
			at.add(off, min(end*p.block, p.size)-off)
		}
	}
}

// heldTo adds what is held to m, as dirty: what it was taken as is not known.
func (p *planes) heldTo(m *cbt.DirtyMap) {
	load := func(i int) uint64 { return atomic.LoadUint64(&p.held[i]) }
	for first, end := range runsOf(len(p.held), load) {
		off := first * p.block
		m.Mark(off, min(end*p.block, p.size)-off)
	}
}

// hold makes held what runs say: all that is not proven yet, in order. The
// only writer of held calls it.
func (p *planes) hold(runs iter.Seq[cbt.Run]) {
	next, stop := iter.Pull(runs)
	defer stop()
	run, more := next()
	for i := range p.held {
		from := int64(i) * 64
		var want uint64
		for more && run.Off < (from+64)*p.block {
			first := max(run.Off/p.block, from) - from
			end := min((run.End+p.block-1)/p.block, from+64) - from
			want |= ^uint64(0) << first & (^uint64(0) >> (64 - end))
			if run.End > (from+64)*p.block {
				break
			}
			run, more = next()
		}
		if p.held[i] != want {
			atomic.StoreUint64(&p.held[i], want)
		}
	}
}

// mark sets the blocks of e, as the programs do.
func (p *planes) mark(e cbt.Extent) {
	for b := e.Off / p.block; b*p.block < min(e.End, p.size); b++ {
		atomic.OrUint64(&p.dirty[b/64], 1<<(b%64))
	}
}

// runsOf yields the runs [first, end) of set bits of n words, each asked for
// once and in order.
func runsOf(n int, word func(int) uint64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		open := int64(-1) // first block of a run that reaches the word before
		for i := range n {
			x, base := word(i), int64(i)*64
			for at := int64(0); at < 64; {
				if open < 0 {
					skip := int64(bits.TrailingZeros64(x >> at))
					if skip+at >= 64 {
						break
					}
					at += skip
					open = base + at
				}
				at += int64(bits.TrailingZeros64(^(x >> at)))
				if at >= 64 {
					break // it goes on in the next word
				}
				if !yield(open, base+at) {
					return
				}
				open = -1
			}
		}
		if open >= 0 {
			yield(open, int64(n)*64)
		}
	}
}
