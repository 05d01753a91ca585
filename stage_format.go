package failback

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/cbt"
)

// A stage is three files of one name. Version 1, little endian. Numbers are on
// disk: append only. docs/format-stage.md says the same in more words.
//
//	NAME.fbs, the head, 2048 bytes
//	off size field
//	  0    8 magic     89 46 42 53 0d 0a 1a 0a (0x89 "FBS" CR LF SUB LF)
//	  8    4 version   1
//	 12    1 state     1 filling, 2 kept, 3 whole
//	 13    3 zero
//	 16    8 size      of the target, bytes, a multiple of 512
//	 24    4 block     bytes, power of two, 4096 to 1048576
//	 28    4 lengths   of the names that follow, a byte each
//	 32   16 session
//	 48   16 after     the session as which's end the target was found when this one began; zeroes: none
//	 64    8 key       random; makes the checksums of this stage its own
//	 72    8 made      seconds since 1970
//	 80    8 source    size of the source, bytes
//	 88    8 data      blocks that have content; 0 while filling, as the next two
//	 96    8 zeroes    blocks that are zeroes
//	104    8 pages     xxhash64 of number and checksum of every page of the index that says something, in order
//	112    1 stamp     length of the target's stamp
//	113    7 zero
//	120      names     of the target its identity and its name, of the source its
//	                   identity and its name; the target's stamp; then zeroes
//	2040   8 sum       xxhash64 of what is before it
//
//	NAME.fbs-index, a page of 4096 bytes for each 511 blocks of the target
//	  0 4088 entries   8 bytes for each block: 0 not staged, 1 zeroes, else its checksum
//	4088   8 sum       xxhash64 of the key, the number of the page and the entries;
//	                   0 where no block is staged, and while the stage is filling
//
//	NAME.fbs-data, a file of the target's size: the content of what is staged,
//	where it lies in the target, and holes
//
// The checksum of a block is xxhash64 of the key, the number of the block and its
// content; where that is 0 or 1 it is 2 more.
const (
	stageMagic     = "\x89FBS\r\n\x1a\n"
	stageVersion   = 1
	stageHeadBytes = 2048
	stageSumAt     = stageHeadBytes - 8
	stageNamesAt   = 120

	stagePage    = 4096 // bytes of a page of the index
	stageEntries = 511  // blocks that a page tells of

	entryNone uint64 = 0
	entryZero uint64 = 1
)

// stageState is how far a stage has come.
type stageState uint8

const (
	stageFilling stageState = 1 // what is in it nobody knows
	stageKept    stageState = 2 // the session goes on with it when its peer is back
	stageWhole   stageState = 3 // all of the session is in it, proven
)

// What can be wrong with a stage.
var (
	errNotStage     = errors.New("not a stage")
	errStageVersion = errors.New("stage version not supported")
	errStageCorrupt = errors.New("corrupt stage")
)

func stageCorrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errStageCorrupt}, args...)...)
}

// stageHead is what a stage says of itself.
type stageHead struct {
	state          stageState
	block          int64 // bytes
	target, source undoVolume
	session, after [16]byte
	key            uint64
	made           int64  // seconds since 1970
	data, zeroes   int64  // blocks
	pages          uint64 // checksum
	stamp          string // the target's when the stage was begun; "" if nothing told
}

// encode makes the head.
func (h *stageHead) encode() []byte {
	b := make([]byte, stageHeadBytes)
	le := binary.LittleEndian
	copy(b, stageMagic)
	le.PutUint32(b[8:], stageVersion)
	b[12] = byte(h.state)
	le.PutUint64(b[16:], uint64(h.target.Size))
	le.PutUint32(b[24:], uint32(h.block))
	copy(b[32:], h.session[:])
	copy(b[48:], h.after[:])
	le.PutUint64(b[64:], h.key)
	le.PutUint64(b[72:], uint64(h.made))
	le.PutUint64(b[80:], uint64(h.source.Size))
	le.PutUint64(b[88:], uint64(h.data))
	le.PutUint64(b[96:], uint64(h.zeroes))
	le.PutUint64(b[104:], h.pages)
	b[112] = byte(len(h.stamp))
	at := stageNamesAt
	for i, name := range []string{h.target.Identity, h.target.Name, h.source.Identity, h.source.Name} {
		b[28+i] = byte(len(name))
		at += copy(b[at:], name)
	}
	copy(b[at:], h.stamp)
	le.PutUint64(b[stageSumAt:], xxhash.Sum64(b[:stageSumAt]))
	return b
}

// parseStageHead reads a head. What it accepts, encode gives back to the byte.
// Errors wrap errNotStage, errStageVersion or errStageCorrupt.
func parseStageHead(b []byte) (*stageHead, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < len(stageMagic) || string(b[:len(stageMagic)]) != stageMagic:
		return nil, errNotStage
	case len(b) != stageHeadBytes:
		return nil, stageCorrupt("a head of %d bytes, a whole one has %d", len(b), stageHeadBytes)
	case le.Uint32(b[8:]) != stageVersion:
		return nil, fmt.Errorf("%w: version %d, this build reads %d", errStageVersion, le.Uint32(b[8:]), stageVersion)
	case le.Uint64(b[stageSumAt:]) != xxhash.Sum64(b[:stageSumAt]):
		return nil, stageCorrupt("the checksum of its head is wrong")
	}
	n := func(at int) int64 { return int64(le.Uint64(b[at:])) }
	h := &stageHead{
		state: stageState(b[12]), block: int64(le.Uint32(b[24:])), session: [16]byte(b[32:]), after: [16]byte(b[48:]),
		key: le.Uint64(b[64:]), made: n(72), data: n(88), zeroes: n(96), pages: le.Uint64(b[104:]),
	}
	names := b[stageNamesAt:stageSumAt]
	take := func(n byte) string {
		s := string(names[:n]) // five of at most 255 bytes
		names = names[n:]
		return s
	}
	h.target = undoVolume{n(16), take(b[28]), take(b[29])}
	h.source = undoVolume{n(80), take(b[30]), take(b[31])}
	h.stamp = take(b[112])
	if err := h.check(); err != nil {
		return nil, err
	}
	if !allZero(b[13:16]) || !allZero(b[113:120]) || !allZero(names) {
		return nil, stageCorrupt("reserved bytes of its head are not zero")
	}
	return h, nil
}

// check refuses what no writer makes.
func (h *stageHead) check() error {
	size := h.target.Size
	switch {
	case h.state < stageFilling || h.state > stageWhole:
		return stageCorrupt("state %d", h.state)
	case size <= 0 || size%sectorSize != 0 || size > cbt.MaxBlocks*cbt.MaxBlock:
		return stageCorrupt("a target of %d bytes", size)
	case h.block < cbt.MinBlock || h.block > cbt.MaxBlock || h.block&(h.block-1) != 0 || (size-1)/h.block >= cbt.MaxBlocks:
		return stageCorrupt("blocks of %d bytes for a target of %d", h.block, size)
	case h.source.Size <= 0 || h.source.Size > size:
		return stageCorrupt("a source of %d bytes", h.source.Size)
	case h.data < 0 || h.zeroes < 0 || h.data > h.blocks() || h.zeroes > h.blocks()-h.data:
		return stageCorrupt("%d and %d of %d blocks", h.data, h.zeroes, h.blocks())
	case h.state == stageFilling && (h.data != 0 || h.zeroes != 0 || h.pages != 0):
		return stageCorrupt("a stage that is filling tells what is in it")
	}
	return nil
}

func (h *stageHead) blocks() int64 { return (h.target.Size-1)/h.block + 1 }

// pageCount is how many pages the index has.
func (h *stageHead) pageCount() int64 { return (h.blocks()-1)/stageEntries + 1 }

// extent is where a block lies; the last of a volume may be short.
func (h *stageHead) extent(block int64) cbt.Extent {
	return cbt.Extent{Off: block * h.block, End: min((block+1)*h.block, h.target.Size)}
}

// entry is what the index says of a block with this content.
func (h *stageHead) entry(block int64, content []byte) uint64 {
	var x [16]byte
	binary.LittleEndian.PutUint64(x[:], h.key)
	binary.LittleEndian.PutUint64(x[8:], uint64(block))
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(x[:]) // a Digest never returns an error
	_, _ = d.Write(content)
	sum := d.Sum64()
	if sum <= entryZero {
		sum += 2
	}
	return sum
}

// pageSum is the checksum of a page of the index.
func (h *stageHead) pageSum(page int64, b []byte) uint64 {
	return h.entry(page, b[:stagePage-8])
}

// pageEntry is what a page of the index says of its i-th block.
func pageEntry(b []byte, i int64) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
