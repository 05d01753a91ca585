// Package sysfs reads what Linux tells about block devices, mounts and swap. It
// opens no device and changes nothing.
//
// Read it in this order: [Devno] (what a device is known by), [Host] (where to
// look, and what lies around a device), [Mount] (what is mounted).
package sysfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Devno is the number of a block device, or of the one a file system lies on.
type Devno struct{ Major, Minor uint32 }

// DevnoOf takes a number of stat apart.
func DevnoOf(n uint64) Devno { return Devno{unix.Major(n), unix.Minor(n)} }

// ParseDevno reads "major:minor"; false if s is anything else.
func ParseDevno(s string) (Devno, bool) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return Devno{uint32(major), uint32(minor)}, ok && err1 == nil && err2 == nil
}

// BlockDevice is the number of the block device at path; false if none is there.
func BlockDevice(path string) (Devno, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Devno{}, false
	}
	return DevnoOf(st.Rdev), true
}

// String returns n as "major:minor".
func (n Devno) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

// Attr reads one short attribute, without the space around it; "" if there is
// none. The elements of path are joined.
func Attr(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Number reads an attribute that is a number not below zero; 0 if there is none.
func Number(path ...string) int64 {
	n, err := strconv.ParseInt(Attr(path...), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// Devnos reads the numbers of the devices whose directories hold the files that
// match pattern, as filepath.Glob understands it. Those without one are left out.
func Devnos(pattern string) []Devno {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil // a malformed pattern: no device has such a name
	}
	var list []Devno
	for _, file := range files {
		if n, ok := ParseDevno(Attr(filepath.Dir(file), "dev")); ok {
			list = append(list, n)
		}
	}
	return list
}

// Host is where a machine tells about its devices. Tests put trees of their own
// in its place, for kinds of devices that a test machine lacks.
type Host struct {
	Sys  string // sysfs
	Proc string // procfs
}

// This is the machine that we run on.
var This = Host{Sys: "/sys", Proc: "/proc"}

// Dir is the directory of a device in sysfs: for a partition it lies within that
// of its disk. Of a device that is not known it is a path where nothing is.
func (h Host) Dir(n Devno) string {
	dir := filepath.Join(h.Sys, "dev", "block", n.String())
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

// Name is the kernel's name of a device, or its number where sysfs has none.
func (h Host) Name(n Devno) string { return filepath.Base(h.Dir(n)) }

// sectorSize is what sysfs counts in, whatever a device's own sectors are.
const sectorSize = 512 // bytes

// Disk returns the disk that a device is a partition of and where in it the
// partition starts, in bytes; a disk is its own.
func (h Host) Disk(n Devno) (disk Devno, start int64) {
	dir := h.Dir(n)
	if Attr(dir, "partition") == "" {
		return n, 0
	}
	disk, ok := ParseDevno(Attr(filepath.Dir(dir), "dev"))
	if !ok {
		return n, 0
	}
	return disk, Number(dir, "start") * sectorSize
}

// Partitions lists those of a disk.
func (h Host) Partitions(n Devno) []Devno { return Devnos(filepath.Join(h.Dir(n), "*", "partition")) }

// Slaves lists the devices that a device-mapper or md device is made of.
func (h Host) Slaves(n Devno) []Devno { return Devnos(filepath.Join(h.Dir(n), "slaves", "*", "dev")) }
