package ebpf

import (
	"os"
	"runtime"
	"testing"

	"github.com/failback/failback/cbt"
	"golang.org/x/sys/unix"
)

// TestOtherDisk: what ends on another disk marks nothing here. The kernel uses
// the memory of a bio again for the next one, of any disk, so whoever knows bios
// by their address must forget each of them when it ends.
func TestOtherDisk(t *testing.T) {
	const size = 4 << 20
	other := newZram(t, size)
	device := newLoop(t, makeFile(t, scratch(t)+"/disk", size), 0)
	tr := sealed(t, device, Options{}, 2)
	mustPutBack(t, tr, mustTake(t, tr, 2)) // from here on the ends of writes are looked at
	runtime.LockOSThread()                 // whose stack the bios of direct I/O are on
	defer runtime.UnlockOSThread()
	for _, path := range []string{device, other} {
		f := openFile(t, path, os.O_WRONLY|unix.O_DIRECT)
		for off := int64(0); off < size; off += cbt.MinBlock {
			writeDirect(t, f, off, int(cbt.MinBlock), 1)
		}
		if path == device {
			mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
		}
	}
	if x := mustMap(t, tr).Extents(); len(x) > 0 {
		t.Errorf("nobody wrote, and %d bytes in %d extents are dirty", cbt.Total(x), len(x))
	}
}
