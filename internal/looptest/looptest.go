// Package looptest makes block devices for tests: loop devices over files, and
// partitions of them. What it makes is taken down when the test ends; a loop
// device goes by itself, too, if the test's process dies. A test is skipped, and
// says why, where the user or the machine cannot.
package looptest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options is how a loop device lies on its file. With the zero value it is the
// whole file, in sectors of 512 bytes, to be read and written.
type Options struct {
	Sector        uint32 // bytes; 0: 512
	Offset, Limit uint64 // bytes of the file before the device, and in it; 0: all
	Flags         uint32 // unix.LO_FLAGS_READ_ONLY, unix.LO_FLAGS_PARTSCAN
}

// Device is a loop device.
type Device struct {
	Path string
	held *os.File
}

// Attach puts a loop device over a file or device.
func Attach(t testing.TB, backing string, o Options) *Device {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to set up loop devices")
	}
	mode := os.O_RDWR
	if o.Flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	back, err := os.OpenFile(backing, mode, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	conf := unix.LoopConfig{Fd: uint32(back.Fd()), Size: o.Sector}
	conf.Info = unix.LoopInfo64{Offset: o.Offset, Sizelimit: o.Limit, Flags: unix.LO_FLAGS_AUTOCLEAR | o.Flags}
	for range 100 { // another process may take the free one first
		d := &Device{Path: Free(t)}
		if d.held, err = os.OpenFile(d.Path, os.O_RDWR, 0); err != nil {
			continue
		}
		if err = unix.IoctlLoopConfigure(int(d.held.Fd()), &conf); err == nil {
			t.Cleanup(d.Release)
			return d
		}
		d.held.Close()
		if !errors.Is(err, unix.EBUSY) {
			t.Fatalf("configure %s over %s: %v", d.Path, backing, err)
		}
	}
	t.Skipf("needs a loop device: none stayed free: %v", err)
	return nil
}

// Free returns a loop device with nothing behind it, which another process may
// take at any time.
func Free(t testing.TB) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Skipf("needs a free loop device: %v", err)
	}
	return fmt.Sprintf("/dev/loop%d", n)
}

// Release gives up the test's hold on the device, once or more often: with its
// last user it is detached.
func (d *Device) Release() { d.held.Close() }

// Detach is losetup -d: the device is empty once nobody else has it open.
func (d *Device) Detach(t testing.TB) {
	t.Helper()
	if err := unix.IoctlSetInt(int(d.held.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Fatalf("detach %s: %v", d.Path, err)
	}
	d.Release()
}

// Attached reports whether there is a file behind the device.
func (d *Device) Attached() bool {
	_, err := os.Stat("/sys/block/" + filepath.Base(d.Path) + "/loop/backing_file")
	return err == nil
}

// Partition makes a partition of a disk without a partition table and returns its
// path. off and size are in bytes.
func Partition(t testing.TB, disk string, number int, off, size int64) string {
	t.Helper()
	path, err := TryPartition(t, disk, number, off, size)
	if err != nil {
		t.Skipf("needs partitions on %s: %v", disk, err)
	}
	return path
}

// TryPartition is Partition for a test that goes on without.
func TryPartition(t testing.TB, disk string, number int, off, size int64) (string, error) {
	t.Helper()
	call := func(op int32) error { return partition(disk, op, number, off, size) }
	if err := call(unix.BLKPG_ADD_PARTITION); err != nil {
		return "", err
	}
	t.Cleanup(func() {
		// Whoever looks at new devices (udev, mkfs of another test) may hold it for a moment.
		late := time.After(10 * time.Second)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			err := call(unix.BLKPG_DEL_PARTITION)
			if err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Errorf("remove partition %d of %s: %v", number, disk, err)
				return
			}
		}
	})
	return fmt.Sprintf("%sp%d", disk, number), nil
}

// partition is BLKPG, from linux/blkpg.h.
func partition(disk string, op int32, number int, off, size int64) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	part := struct {
		start, length int64
		number        int32
		_             [132]byte // names, of no effect
	}{start: off, length: size, number: int32(number)}
	arg := struct {
		op, flags, size int32
		data            unsafe.Pointer
	}{op: op, size: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}
