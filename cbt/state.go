package cbt

import "fmt"

// State is what is known of a block since an epoch. The numbers are on disk:
// they are never reused. The states rise Clean, Discarded, Dirty; of two
// claims about one block the higher holds.
type State uint8

const (
	// Clean: not written since the epoch.
	Clean State = 0
	// Dirty: written, or perhaps written: its content must be compared.
	Dirty State = 1
	// Discarded: given back to the device as a whole and not written since.
	// It speaks of the volume whose map it is; what the other volume of a pair
	// holds there is as open as for Dirty.
	Discarded State = 2
)

// String returns "clean", "dirty" or "discarded".
func (s State) String() string {
	switch s {
	case Clean:
		return "clean"
	case Dirty:
		return "dirty"
	case Discarded:
		return "discarded"
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Run is an extent whose blocks all have one state. Lists of runs are sorted
// and disjoint, hold no clean run, and adjacent runs differ in state.
type Run struct {
	Extent
	State State
}

// String returns r as "[0x1000,0x3000) dirty".
func (r Run) String() string { return r.Extent.String() + " " + r.State.String() }

const (
	// MinBlock is the finest tracking granularity, in bytes.
	MinBlock int64 = 4 << 10
	// MaxBlock is the coarsest tracking granularity, in bytes.
	MaxBlock int64 = 1 << 20
	// MaxBlocks is the most blocks a map has. One bit for each is 64 MiB.
	MaxBlocks int64 = 64 << 20 * 8
)

// BlockSize returns the tracking granularity for a volume of size bytes: 4 KiB
// up to 2 TiB, then doubled so that there are at most [MaxBlocks] blocks. It
// ends at [MaxBlock]; volumes past 512 TiB have no valid block size and
// [NewDirtyMap] refuses them.
func BlockSize(size int64) int64 {
	block := MinBlock
	for block < MaxBlock && blocks(size, block) > MaxBlocks {
		block *= 2
	}
	return block
}

// blocks returns how many blocks cover size bytes, without overflow.
func blocks(size, block int64) int64 {
	n := size / block
	if size%block != 0 {
		n++
	}
	return n
}

// checkGeometry refuses what no map can have. It bounds every allocation that
// follows from a volume's size.
func checkGeometry(size, block int64) error {
	switch {
	case size <= 0:
		return fmt.Errorf("volume of %d bytes: want at least 1", size)
	case block < MinBlock || block > MaxBlock || block&(block-1) != 0:
		return fmt.Errorf("block of %d bytes: want a power of two from %d to %d", block, MinBlock, MaxBlock)
	case blocks(size, block) > MaxBlocks:
		return fmt.Errorf("volume of %d bytes in blocks of %d: %d blocks, limit %d", size, block, blocks(size, block), MaxBlocks)
	}
	return nil
}
