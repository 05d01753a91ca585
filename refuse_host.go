package failback

import (
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// host is this machine, or one that a test has made up.
type host struct {
	sysfs.Host
	dev string // device nodes
}

var thisHost = host{Host: sysfs.This, dev: "/dev"}

// size is that of a device in bytes; unknown is "up to any size".
func (h host) size(n sysfs.Devno) int64 {
	if sectors := sysfs.Number(h.Dir(n), "size"); sectors > 0 && sectors < math.MaxInt64/sectorSize {
		return sectors * sectorSize
	}
	return math.MaxInt64
}

// holders names what the kernel has built on a device: "dm-0 (vg-lv)", "md0".
func (h host) holders(n sysfs.Devno) []string {
	dirs, err := filepath.Glob(filepath.Join(h.Dir(n), "holders", "*"))
	if err != nil {
		return nil
	}
	var list []string
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if dm := sysfs.Attr(dir, "dm", "name"); dm != "" {
			name += " (" + dm + ")"
		}
		list = append(list, name)
	}
	return list
}

// loop is a loop device in use.
type loop struct {
	name    string
	backing string      // path, as it was when it was set up
	file    sysfs.Devno // file system of the backing file
	ino     uint64      // and its inode
	mountID uint64      // and the mount that the path leads through; 0: not known
	born    string      // when the file was made, as in identities; "": not known
	device  sysfs.Devno // the backing device, if it is one and not a file
	isBlock bool
	offset  int64 // bytes of the backing file before the first of the device
}

// loops lists the loop devices in use.
func (h host) loops() ([]loop, error) {
	entries, err := os.ReadDir(filepath.Join(h.Sys, "block"))
	if err != nil {
		return nil, err
	}
	var list []loop
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "loop") {
			if l, ok := h.loop(e.Name()); ok {
				list = append(list, l)
			}
		}
	}
	return list, nil
}

// loop asks what lies behind one loop device; false if it is not in use or not a
// loop device. The device itself knows best: the path in sysfs may be another
// file's by now, or one of another mount namespace, so it serves only where the
// device cannot be opened.
func (h host) loop(name string) (loop, bool) {
	dir := filepath.Join(h.Sys, "block", name)
	l := loop{name: name, backing: sysfs.Attr(dir, "loop", "backing_file"), offset: sysfs.Number(dir, "loop", "offset")}
	if l.backing == "" {
		return l, false
	}
	var st unix.Stat_t
	known := unix.Stat(l.backing, &st) == nil
	if known {
		l.file, l.ino = sysfs.DevnoOf(st.Dev), st.Ino
		l.isBlock, l.device = st.Mode&unix.S_IFMT == unix.S_IFBLK, sysfs.DevnoOf(st.Rdev)
	}
	info, err := h.loopStatus(name)
	if err != nil {
		return l, known
	}
	l.file, l.ino, l.offset = sysfs.DevnoOf(info.Device), info.Inode, int64(info.Offset)
	// For a regular file the kernel gives the number of its file system twice.
	l.isBlock, l.device = info.Rdevice != 0 && info.Rdevice != info.Device, sysfs.DevnoOf(info.Rdevice)
	if known && st.Ino == l.ino && sysfs.DevnoOf(st.Dev) == l.file {
		var sx unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, l.backing, 0, unix.STATX_MNT_ID|unix.STATX_BTIME, &sx) == nil {
			l.mountID, l.born = sx.Mnt_id, born(&sx)
		}
	}
	return l, true
}

func (h host) loopStatus(name string) (*unix.LoopInfo64, error) {
	fd, err := unix.Open(filepath.Join(h.dev, name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if want := sysfs.Attr(h.Sys, "block", name, "dev"); st.Mode&unix.S_IFMT != unix.S_IFBLK || sysfs.DevnoOf(st.Rdev).String() != want {
		return nil, unix.ENODEV // the node is some other device's
	}
	return unix.IoctlLoopGetStatus64(fd)
}
