package main

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// table is the one target of a device of the kernel's device mapper: size in
// sectors, kind, and what dmsetup(8) calls its parameters.
type table struct {
	sectors uint64
	kind    string
	params  string
}

// dmRequest is struct dm_ioctl with room for what follows it.
type dmRequest struct {
	unix.DmIoctl
	spec   unix.DmTargetSpec
	params [512]byte
}

const dmVersionMajor = 4

func dmCall(request uintptr, name string, fill func(*dmRequest)) (*dmRequest, error) {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &dmRequest{}
	r.Version[0], r.Data_size, r.Data_start = dmVersionMajor, uint32(unsafe.Sizeof(*r)), uint32(unsafe.Offsetof(r.spec))
	copy(r.Name[:len(r.Name)-1], name)
	if fill != nil {
		fill(r)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(r))); errno != 0 {
		return nil, fmt.Errorf("device mapper: %s: request %#x: %w", name, request, errno)
	}
	return r, nil
}

// dmCreate makes a device and returns its path. It gets a UUID, as from a volume
// manager, so that it is the same volume when it is made again.
func dmCreate(name string, t table) (string, error) {
	r, err := dmCall(unix.DM_DEV_CREATE, name, func(r *dmRequest) { copy(r.Uuid[:len(r.Uuid)-1], "VMTEST-"+name) })
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("/dev/dm-%d", unix.Minor(r.Dev))
	if err := dmReload(name, t); err != nil {
		return "", errors.Join(err, dmRemove(name))
	}
	return path, until(path, func() bool { _, err := os.Stat(path); return err == nil })
}

// dmReload gives a device another table, in the place of the one it has.
func dmReload(name string, t table) error {
	_, err := dmCall(unix.DM_TABLE_LOAD, name, func(r *dmRequest) {
		r.Target_count = 1
		r.spec.Length = t.sectors
		copy(r.spec.Target_type[:len(r.spec.Target_type)-1], t.kind)
		copy(r.params[:len(r.params)-1], t.params)
	})
	if err != nil {
		return fmt.Errorf("%w (table %q)", err, t.kind+" "+t.params)
	}
	_, err = dmCall(unix.DM_DEV_SUSPEND, name, nil) // without the flag that says so it resumes
	return err
}

// dmMessage tells a device something that its driver knows. The kernel wants
// struct dm_target_msg: the sector that it is for, and the text.
func dmMessage(name, text string) error {
	_, err := dmCall(unix.DM_TARGET_MSG, name, func(r *dmRequest) {
		after := unsafe.Slice((*byte)(unsafe.Pointer(&r.spec)), unsafe.Sizeof(r.spec)+unsafe.Sizeof(r.params))
		copy(after[8:len(after)-1], text)
	})
	if err != nil {
		return fmt.Errorf("%w (message %q)", err, text)
	}
	return nil
}

// dmRemove takes a device away, once nobody uses it any more.
func dmRemove(name string) error {
	var err error
	if until("an idle device", func() bool {
		_, err = dmCall(unix.DM_DEV_REMOVE, name, nil)
		return !errors.Is(err, unix.EBUSY)
	}) != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return err
}

// linear is a part of a device as a device.
func linear(path string, off, size int) table {
	return table{uint64(size / sector), "linear", fmt.Sprintf("%s %d", path, off/sector)}
}
