package failback

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is where the machine tells about its devices. Tests put trees of their
// own in its place, for kinds of devices that a test machine lacks.
type host struct {
	sys  string // sysfs
	proc string // procfs
	dev  string // device nodes
}

var thisHost = host{sys: "/sys", proc: "/proc", dev: "/dev"}

// devno is the number of a block device, or of the one a file system lies on.
type devno struct{ major, minor uint32 }

func devnoOf(n uint64) devno { return devno{unix.Major(n), unix.Minor(n)} }

func (n devno) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

// parseDevno reads "major:minor".
func parseDevno(s string) (devno, bool) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return devno{uint32(major), uint32(minor)}, ok && err1 == nil && err2 == nil
}

// attr reads one short attribute; "" if there is none.
func (h host) attr(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number reads an attribute that is a number not below zero.
func (h host) number(path ...string) int64 {
	n, err := strconv.ParseInt(h.attr(path...), 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// dir is the sysfs directory of a device: for a partition it lies within that of
// its disk.
func (h host) dir(n devno) string {
	dir := filepath.Join(h.sys, "dev", "block", n.String())
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

// name is the kernel's name of a device, or its number where sysfs has none.
func (h host) name(n devno) string { return filepath.Base(h.dir(n)) }

// size is that of a device in bytes; unknown is "up to any size".
func (h host) size(n devno) int64 {
	if sectors := h.number(h.dir(n), "size"); sectors > 0 && sectors < math.MaxInt64/sectorSize {
		return sectors * sectorSize
	}
	return math.MaxInt64
}

// disk returns the disk that a device is a partition of and where in it the
// partition starts, in bytes; a disk is its own.
func (h host) disk(n devno) (disk devno, start int64) {
	dir := h.dir(n)
	if h.attr(dir, "partition") == "" {
		return n, 0
	}
	disk, ok := parseDevno(h.attr(filepath.Dir(dir), "dev"))
	if !ok {
		return n, 0
	}
	return disk, h.number(dir, "start") * sectorSize
}

// partitions lists those of a disk.
func (h host) partitions(n devno) []devno {
	return h.devnos(filepath.Join(h.dir(n), "*", "partition"))
}

// slaves lists the devices that a device-mapper or md device is made of.
func (h host) slaves(n devno) []devno {
	return h.devnos(filepath.Join(h.dir(n), "slaves", "*", "dev"))
}

// devnos reads the numbers of the devices whose directories hold the files that
// match pattern.
func (h host) devnos(pattern string) []devno {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil // a malformed pattern: no device has such a name
	}
	var list []devno
	for _, file := range files {
		if n, ok := parseDevno(h.attr(filepath.Dir(file), "dev")); ok {
			list = append(list, n)
		}
	}
	return list
}

// holders names what the kernel has built on a device: "dm-0 (vg-lv)", "md0".
func (h host) holders(n devno) []string {
	dirs, err := filepath.Glob(filepath.Join(h.dir(n), "holders", "*"))
	if err != nil {
		return nil
	}
	var list []string
	for _, dir := range dirs {
		name := filepath.Base(dir)
		if dm := h.attr(dir, "dm", "name"); dm != "" {
			name += " (" + dm + ")"
		}
		list = append(list, name)
	}
	return list
}

// mount is one line of mountinfo.
type mount struct {
	id     uint64 // as statx gives it for a file
	dev    devno  // of the file system; major 0 where it is not one device's
	point  string // where it is mounted
	source string // what was mounted
}

// mounts reads the mounts that this process sees.
func (h host) mounts() ([]mount, error) {
	text, err := os.ReadFile(filepath.Join(h.proc, "self", "mountinfo"))
	if err != nil {
		return nil, err
	}
	var list []mount
	for line := range strings.Lines(string(text)) {
		// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/source rw
		before, after, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 2 {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		if n, ok := parseDevno(fields[2]); ok && err == nil {
			list = append(list, mount{id: id, dev: n, point: unescape(fields[4]), source: unescape(tail[1])})
		}
	}
	return list, nil
}

// swaps lists the files and devices used as swap.
func (h host) swaps() []string {
	text, err := os.ReadFile(filepath.Join(h.proc, "swaps"))
	if err != nil {
		return nil // a kernel without swap has no such file
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.HasPrefix(fields[0], "/") {
			list = append(list, unescape(fields[0]))
		}
	}
	return list
}

// unescape undoes the octal escapes (\040 for a space) of files in /proc.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// loop is a loop device in use.
type loop struct {
	name    string
	backing string // path, as it was when it was set up
	file    devno  // file system of the backing file
	ino     uint64 // and its inode
	mountID uint64 // and the mount that the path leads through; 0: not known
	born    string // when the file was made, as in identities; "": not known
	device  devno  // the backing device, if it is one and not a file
	isBlock bool
	offset  int64 // bytes of the backing file before the first of the device
}

// loops lists the loop devices in use.
func (h host) loops() ([]loop, error) {
	entries, err := os.ReadDir(filepath.Join(h.sys, "block"))
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
	dir := filepath.Join(h.sys, "block", name)
	l := loop{name: name, backing: h.attr(dir, "loop", "backing_file"), offset: h.number(dir, "loop", "offset")}
	if l.backing == "" {
		return l, false
	}
	var st unix.Stat_t
	known := unix.Stat(l.backing, &st) == nil
	if known {
		l.file, l.ino = devnoOf(st.Dev), st.Ino
		l.isBlock, l.device = st.Mode&unix.S_IFMT == unix.S_IFBLK, devnoOf(st.Rdev)
	}
	info, err := h.loopStatus(name)
	if err != nil {
		return l, known
	}
	l.file, l.ino, l.offset = devnoOf(info.Device), info.Inode, int64(info.Offset)
	// For a regular file the kernel gives the number of its file system twice.
	l.isBlock, l.device = info.Rdevice != 0 && info.Rdevice != info.Device, devnoOf(info.Rdevice)
	if known && st.Ino == l.ino && devnoOf(st.Dev) == l.file {
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
	if want := h.attr(h.sys, "block", name, "dev"); st.Mode&unix.S_IFMT != unix.S_IFBLK || devnoOf(st.Rdev).String() != want {
		return nil, unix.ENODEV // the node is some other device's
	}
	return unix.IoctlLoopGetStatus64(fd)
}
