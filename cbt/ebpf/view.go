package ebpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The record of a view, a tracked volume: 1024 bytes of the map "views", in the
// byte order of the machine. The programs read the first four lines and add to
// the counters; bpf/view.h has the same. It is kept between versions of this
// program: whoever changes it raises layoutVersion.
//
//	off size field
//	  0    8 start        first sector of the volume on its disk
//	  8    8 end          the sector behind its last
//	 16    4 shift        log2 of the sectors (512 bytes) in a block
//	 20    4 whole        1: the volume is the disk
//	 24    8 words        of 64 blocks, in each plane of the bitmap
//	 32    8 beyond       counter: writes behind the end of a whole disk
//	 40    8 passthrough  counter: commands that may write and are no writes, as they are
//	                      issued and, while a session reads, once more as they end
//	 48    8 lost         counter: writes that could not be marked
//	 56    8 strangers    counter: ends of writes whose begin was not remembered
//	 64    4 live         1: the record is complete and the programs use it
//	 68    4 disk         number of the disk in the kernel's form
//	 72    8 epoch        that the tracker vouches for, 0: none
//	 80    8 diskseq      sequence number of the disk, 0: this kernel has none
//	 88    8 started      nanoseconds since 1970
//	 96    8 drained      1: what was under way at the start has ended
//	104    8 basePass     passthrough at the last seal
//	112    8 seenStranger strangers whose writes were reported
//	120    8 device       number of the volume in the kernel's form
//	128  256 identity     a length byte and as many bytes
//	384  256 name         a length byte and as many bytes
//	640  256 reason       why nothing is vouched for, a length byte and as many bytes
//	896    8 baseMissed   missed events of the programs at the last seal
//	904    8 uncounted    1: the disk was seen with its io statistics off; 2: its driver
//	                      may hold writes that are not counted; 3: both
//	912    8 thin         which volumes of thin pools it is made of; 0: none, or not known
//	920  104 zero
const (
	layoutVersion = 2

	viewSize = 1024 // bytes
	maxViews = 64   // tracked volumes of a machine

	offStart, offEnd, offShift, offWhole, offWords     = 0, 8, 16, 20, 24
	offBeyond, offPassthrough, offLost, offStrangers   = 32, 40, 48, 56
	offLive, offDisk, offEpoch, offDiskSeq, offStarted = 64, 68, 72, 80, 88
	offDrained, offBasePass, offSeenStranger           = 96, 104, 112
	offDevice, offIdentity, offName, offReason         = 120, 128, 384, 640
	offBaseMissed, offUncounted, offThin               = 896, 904, 912
)

// Values of uncounted.
const (
	uncountedStats = 1
	uncountedHolds = 2
)

const sector = 512 // bytes, whatever the device calls a sector

// view is a record in memory that is shared with the programs.
type view []byte

func (v view) u64(off int) *uint64     { return (*uint64)(unsafe.Pointer(&v[off])) }
func (v view) u32(off int) *uint32     { return (*uint32)(unsafe.Pointer(&v[off])) }
func (v view) get(off int) uint64      { return atomic.LoadUint64(v.u64(off)) }
func (v view) set(off int, x uint64)   { atomic.StoreUint64(v.u64(off), x) }
func (v view) get32(off int) uint32    { return atomic.LoadUint32(v.u32(off)) }
func (v view) set32(off int, x uint32) { atomic.StoreUint32(v.u32(off), x) }
func (v view) live() bool              { return v.get32(offLive) == 1 }
func (v view) size() int64             { return int64(v.get(offEnd)-v.get(offStart)) * sector }
func (v view) block() int64            { return sector << (v.get32(offShift) & 31) }
func (v view) same(dev device) bool    { return v.live() && v.get(offDevice) == uint64(dev.number) }
func (v view) text(off int) string     { return string(v[off+1 : off+1+int(v[off])]) }
func (v view) clearText(off int)       { v[off] = 0 }
func (v view) setText(off int, s string) {
	v[off] = 0 // a reader that comes between sees an empty text
	n := copy(v[off+1:off+256], s)
	v[off] = byte(n)
}

// check refuses a record that no version of this program writes.
func (v view) check() error {
	start, end, words := v.get(offStart), v.get(offEnd), v.get(offWords)
	shift := v.get32(offShift)
	if end <= start || end-start > 1<<54 || shift < 3 || shift > 11 {
		return fmt.Errorf("record of a tracked volume: sectors %d to %d in blocks of 2^%d", start, end, shift)
	}
	if want := wordsOf(end-start, shift); words != want {
		return fmt.Errorf("record of a tracked volume: %d words for %d sectors in blocks of 2^%d, want %d", words, end-start, shift, want)
	}
	return nil
}

// wordsOf returns how many words of 64 blocks cover so many sectors.
func wordsOf(sectors uint64, shift uint32) uint64 {
	blocks := (sectors + 1<<shift - 1) >> shift
	return (blocks + 63) / 64
}

// shared is an array map in the memory of this process.
type shared []byte

// mapShared maps the values of an array map. The map may be closed afterwards.
func mapShared(m *ebpf.Map, size uint64) (shared, error) {
	page := uint64(unix.Getpagesize())
	size = (size + page - 1) / page * page
	p, err := unix.Mmap(m.FD(), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map kernel memory of %d bytes: %w", size, err)
	}
	return p, nil
}

func (s shared) close() error {
	if s == nil {
		return nil
	}
	return unix.Munmap(s)
}

func (s shared) view(i int) view { return view(s[i*viewSize : (i+1)*viewSize]) }

// words returns n words from word first on.
func (s shared) words(first, n uint64) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(&s[first*8])), n)
}

// kernelNumber is a device number as the programs see it.
type kernelNumber uint32

func numberOf(major, minor uint32) kernelNumber { return kernelNumber(major<<20 | minor&0xfffff) }

// String returns n as "major:minor".
func (n kernelNumber) String() string { return fmt.Sprintf("%d:%d", uint32(n)>>20, uint32(n)&0xfffff) }
