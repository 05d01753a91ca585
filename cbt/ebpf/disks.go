package ebpf

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// The table of disks: one value of the map "disks", in memory that the programs
// read at any moment. bpf/tracker.bpf.c and bpf/view.h have the same.
const (
	diskViews  = 8 // tracked volumes of a disk
	diskBits   = 8
	diskPlaces = 1 << diskBits
	diskTries  = 16         // how far from where its hash says a disk may be
	diskHash   = 0x9e3779b1 // spreads numbers in a row
	diskSize   = 4 + 4*diskViews
	tableSize  = diskPlaces * diskSize
)

// disk is a place of the table. A number that is there stays until another disk
// takes the place, and that only when there is no view: so whoever looks for a disk
// behind it finds it at every moment.
type disk struct {
	number uint32            // of the disk, 0: no disk was ever here
	view   [diskViews]uint32 // number of a view plus 1, or 0
}

func (d *disk) tracked() bool {
	for i := range d.view {
		if d.view[i] != 0 {
			return true
		}
	}
	return false
}

// disks returns all places.
func (k *kernel) disks() []disk {
	return unsafe.Slice((*disk)(unsafe.Pointer(&k.table[0])), diskPlaces)
}

// placeOf returns the place of a disk, and gives it one if it has none.
func (k *kernel) placeOf(number kernelNumber) (*disk, error) {
	disks, first := k.disks(), uint32(number)*diskHash>>(32-diskBits)
	var free *disk
	for i := range uint32(diskTries) {
		d := &disks[(first+i)%diskPlaces]
		if d.number == uint32(number) {
			return d, nil
		}
		if free == nil && !d.tracked() {
			free = d
		}
		if d.number == 0 {
			break
		}
	}
	if free == nil {
		return nil, fmt.Errorf("disk %v has no place in the table of tracked disks: those near it are taken", number)
	}
	atomic.StoreUint32(&free.number, uint32(number))
	return free, nil
}

// enter makes the programs mark view i on its disk.
func (k *kernel) enter(i int, number kernelNumber) error {
	d, err := k.placeOf(number)
	if err != nil {
		return err
	}
	for n := range d.view {
		if d.view[n] == 0 {
			atomic.StoreUint32(&d.view[n], uint32(i)+1)
			return nil
		}
	}
	return fmt.Errorf("disk %v has %d tracked volumes already", number, diskViews)
}

// leave makes the programs forget view i; some may still be at work on it.
func (k *kernel) leave(i int) {
	disks := k.disks()
	for at := range disks {
		for n := range disks[at].view {
			if disks[at].view[n] == uint32(i)+1 {
				atomic.StoreUint32(&disks[at].view[n], 0)
			}
		}
	}
}
