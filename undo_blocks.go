package failback

import "github.com/failback/failback/cbt"

// A blockSet holds which blocks of a volume were seen. Memory follows what is
// added: 4 KiB for each 32768 blocks of which one was.
type blockSet struct {
	block int64
	pages map[int64]*setPage
}

// A setPage is a run of blocks.
type setPage struct {
	bits [pageBlocks / 64]uint64
	full int // how many of them are in the set
}

const pageBlocks = 32768

func newBlockSet(block int64) *blockSet {
	return &blockSet{block: block, pages: make(map[int64]*setPage)}
}

// add calls f, in order, with the parts of x that were not in the set. x is of
// whole blocks, but for a last one that the volume cuts short. What was seen as a
// whole costs a step for each 32768 blocks.
func (s *blockSet) add(x cbt.Extent, f func(cbt.Extent) error) error {
	fresh := cbt.Extent{Off: x.Off, End: x.Off}
	flush := func() error {
		if fresh.Off == fresh.End {
			return nil
		}
		return f(fresh)
	}
	for off := x.Off; off < x.End; {
		i := off / s.block
		page := s.page(i)
		if page.full == pageBlocks {
			if err := flush(); err != nil {
				return err
			}
			off = min(x.End, (i/pageBlocks+1)*pageBlocks*s.block)
			fresh = cbt.Extent{Off: off, End: off}
			continue
		}
		off = min(off+s.block, x.End)
		if page.set(i % pageBlocks) {
			fresh.End = off
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		fresh = cbt.Extent{Off: off, End: off}
	}
	return flush()
}

func (s *blockSet) page(i int64) *setPage {
	page := s.pages[i/pageBlocks]
	if page == nil {
		page = new(setPage)
		s.pages[i/pageBlocks] = page
	}
	return page
}

// set adds a block and reports whether it was not there.
func (p *setPage) set(i int64) bool {
	word, bit := &p.bits[i/64], uint64(1)<<(i%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	p.full++
	return true
}

// has reports whether a block is in the set.
func (s *blockSet) has(i int64) bool {
	page := s.pages[i/pageBlocks]
	return page != nil && page.bits[i%pageBlocks/64]&(1<<(i%64)) != 0
}
