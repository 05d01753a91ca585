package main

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// RAID without anything on the disks that tells of it, as mdadm --build makes it.

// mdArray is mdu_array_info_t of linux/raid/md_u.h.
type mdArray struct {
	Major, Minor, Patch                int32
	Created                            uint32
	Level, Size, Disks, RaidDisks      int32 // Size in KiB, of each disk
	Number, NotPersistent              int32
	Updated                            uint32
	State, Active, Working, Bad, Spare int32
	Layout, Chunk                      int32 // Chunk in bytes
}

// mdDisk is mdu_disk_info_t.
type mdDisk struct{ Number, Major, Minor, RaidDisk, State int32 }

const (
	mdSetArray = 0x40480923
	mdAddDisk  = 0x40140921
	mdRun      = 0x400c0930
	mdStop     = 0x932

	mdClean      = 1
	mdDiskInSync = 1<<1 | 1<<2 // active, and in sync

	raid10Near = 0x102 // layout: two copies beside each other
)

// mdCreate makes an array of disks and returns its path.
func mdCreate(level, layout int32, disks ...string) (string, func() error, error) {
	const path, chunk = "/dev/md0", 64 << 10
	if err := os.WriteFile("/sys/module/md_mod/parameters/new_array", []byte("md0"), 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", nil, err
	}
	if err := until(path, func() bool { _, err := os.Stat(path); return err == nil }); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	a := mdArray{
		Level: level, Size: rigSize >> 10, Disks: int32(len(disks)), RaidDisks: int32(len(disks)), NotPersistent: 1,
		State: mdClean, Created: uint32(time.Now().Unix()), Active: int32(len(disks)), Working: int32(len(disks)), Layout: layout, Chunk: chunk,
	}
	if err := ioctl(f, mdSetArray, unsafe.Pointer(&a)); err != nil {
		return "", nil, fmt.Errorf("set up %s: %w", path, err)
	}
	for i, name := range disks {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return "", nil, err
		}
		d := mdDisk{int32(i), int32(unix.Major(st.Rdev)), int32(unix.Minor(st.Rdev)), int32(i), mdDiskInSync}
		if err := ioctl(f, mdAddDisk, unsafe.Pointer(&d)); err != nil {
			return "", nil, fmt.Errorf("add %s to %s: %w", name, path, err)
		}
	}
	if err := ioctl(f, mdRun, nil); err != nil {
		return "", nil, fmt.Errorf("run %s: %w", path, err)
	}
	return path, func() error { return mdEnd(path) }, nil
}

func mdEnd(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := ioctl(f, mdStop, nil); err != nil {
		return fmt.Errorf("stop %s: %w", path, err)
	}
	return nil
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
