package failback

import "github.com/failback/failback/cbt"

// A blockSet holds which blocks of a volume were seen. Memory follows what is
// added: 4 KiB for each 32768 blocks of which one was.
type blockSet struct {
	block int64
	pages map[int64]*[blockPage / 64]uint64
}

const blockPage = 32768 // blocks

func newBlockSet(block int64) *blockSet {
	return &blockSet{block: block, pages: make(map[int64]*[blockPage / 64]uint64)}
}

// add calls f, in order, with the parts of x that were not in the set. x is of
// whole blocks, but for a last one that the volume cuts short.
func (s *blockSet) add(x cbt.Extent, f func(cbt.Extent) error) error {
	fresh := cbt.Extent{Off: x.Off, End: x.Off}
	flush := func() error {
		if fresh.Off == fresh.End {
			return nil
		}
		return f(fresh)
	}
	for off := x.Off; off < x.End; off += s.block {
		end := min(off+s.block, x.End)
		if s.set(off / s.block) {
			fresh.End = end
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		fresh = cbt.Extent{Off: end, End: end}
	}
	return flush()
}

// set adds a block and reports whether it was not there.
func (s *blockSet) set(i int64) bool {
	page := s.pages[i/blockPage]
	if page == nil {
		page = new([blockPage / 64]uint64)
		s.pages[i/blockPage] = page
	}
	word, bit := &page[i%blockPage/64], uint64(1)<<(i%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// has reports whether a block is in the set.
func (s *blockSet) has(i int64) bool {
	page := s.pages[i/blockPage]
	return page != nil && page[i%blockPage/64]&(1<<(i%64)) != 0
}
