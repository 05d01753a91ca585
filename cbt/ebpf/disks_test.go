package ebpf

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
)

func home(number kernelNumber) uint32 { return uint32(number) * diskHash >> (32 - diskBits) }

// others returns numbers of n disks that the hash gives the same place as this one.
func others(number kernelNumber, n int) []kernelNumber {
	var same []kernelNumber
	for x := uint32(1); len(same) < n; x++ {
		if home(kernelNumber(x)) == home(number) && x != uint32(number) {
			same = append(same, kernelNumber(x))
		}
	}
	return same
}

// A disk whose place is taken has one further on, and keeps it when those before
// it go; their places are for others.
func TestDiskTable(t *testing.T) {
	k := &kernel{table: make(shared, tableSize)}
	first := numberOf(7, 0)
	crowd := append([]kernelNumber{first}, others(first, diskTries)...)
	var places []*disk
	for i, number := range crowd[:diskTries] {
		if err := k.enter(i, number); err != nil {
			t.Fatal(err)
		}
		d, err := k.placeOf(number)
		if err != nil || d.number != uint32(number) || d.view[0] != uint32(i)+1 || slices.Contains(places, d) {
			t.Fatalf("disk %v: %+v, %v", number, d, err)
		}
		places = append(places, d)
	}
	last := crowd[diskTries]
	if err := k.enter(60, last); err == nil {
		t.Error("a disk was given a place where no program looks for it")
	}
	k.leave(3)
	if err := k.enter(60, last); err != nil {
		t.Fatal(err)
	}
	if d, err := k.placeOf(last); err != nil || d != places[3] || d.view[0] != 61 {
		t.Errorf("not the place that came free: %+v, %v", d, err)
	}
	for i, number := range crowd[4:diskTries] {
		if d, err := k.placeOf(number); err != nil || d != places[i+4] {
			t.Errorf("disk %v lost its place: %+v, %v", number, d, err)
		}
	}
}

// A disk has room for so many volumes, and what leaves makes room.
func TestDiskViews(t *testing.T) {
	k := &kernel{table: make(shared, tableSize)}
	number := numberOf(259, 5)
	for i := range diskViews {
		if err := k.enter(i, number); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.enter(diskViews, number); err == nil {
		t.Error("a volume was forgotten: its disk has no more room")
	}
	k.leave(2)
	if err := k.enter(diskViews, number); err != nil {
		t.Error(err)
	}
}

// The programs find a disk that is as far from where its hash says as may be.
func TestCrowdedDisk(t *testing.T) {
	needKernel(t)
	path := newZram(t, 4<<20)
	fs := ownFS(t)
	start(t, newZram(t, 4<<20), Options{FS: fs}) // makes the table, and keeps it
	d, err := lookDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPins(fs)
	if err != nil {
		t.Fatal(err)
	}
	k, err := openKernel(p)
	if err = errors.Join(err, p.close()); err != nil {
		t.Fatal(err)
	}
	defer k.close()
	crowd := others(d.disk, diskTries-1)
	for _, number := range crowd {
		if err := k.enter(maxViews-1, number); err != nil { // a view that is nobody's
			t.Fatal(err)
		}
	}
	tr := sealed(t, path, Options{FS: fs}, 2)
	for at, place := range slices.Clone(k.disks()) { // as far as the programs look
		if place.number == uint32(d.disk) && at%diskPlaces != int(home(d.disk)+diskTries-1)%diskPlaces {
			t.Fatalf("the disk is at place %d, its hash says %d", at, home(d.disk))
		}
	}
	writeDirect(t, openFile(t, path, os.O_RDWR|unixDirect), 5*cbt.MinBlock, int(cbt.MinBlock), 1)
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{{Off: 5 * cbt.MinBlock, End: 6 * cbt.MinBlock}}) {
		t.Errorf("marked: %v", got)
	}
}
