package quiesce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is where to look for mounts and devices; tests look elsewhere.
type host struct{ sys, proc string }

var thisHost = host{sys: "/sys", proc: "/proc"}

// devno is the number of a device.
type devno struct{ major, minor uint32 }

func devnoOf(n uint64) devno { return devno{unix.Major(n), unix.Minor(n)} }

func (n devno) String() string { return fmt.Sprintf("%d:%d", n.major, n.minor) }

func parseDevno(s string) (devno, bool) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return devno{uint32(major), uint32(minor)}, ok && err1 == nil && err2 == nil
}

// attr reads a short attribute; "" if there is none.
func (h host) attr(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// dir is the sysfs directory of a device, a partition's within that of its disk.
func (h host) dir(n devno) string {
	dir := filepath.Join(h.sys, "dev", "block", n.String())
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return real
	}
	return dir
}

func (h host) name(n devno) string { return filepath.Base(h.dir(n)) }

// devnos reads the files that match pattern, each the number of a device.
func (h host) devnos(pattern string) []devno {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return nil // a malformed pattern: no device has such a name
	}
	var list []devno
	for _, file := range files {
		if n, ok := parseDevno(h.attr(file)); ok {
			list = append(list, n)
		}
	}
	return list
}

// loops lists the loop devices in use, with what lies behind each.
func (h host) loops() map[devno]string {
	all := map[devno]string{}
	dirs, err := filepath.Glob(filepath.Join(h.sys, "block", "loop*"))
	if err != nil {
		return all
	}
	for _, dir := range dirs {
		n, ok := parseDevno(h.attr(dir, "dev"))
		if back := h.attr(dir, "loop", "backing_file"); ok && back != "" {
			all[n] = back
		}
	}
	return all
}

// walk visits a device and all that next leads to from there.
func walk(from devno, next func(devno) []devno) map[devno]bool {
	seen := map[devno]bool{from: true}
	for list := []devno{from}; len(list) > 0; {
		n := list[0]
		list = list[1:]
		for _, m := range next(n) {
			if !seen[m] {
				seen[m] = true
				list = append(list, m)
			}
		}
	}
	return seen
}

// above is a device with all that lies on it: its partitions, what is stacked on
// it, and loop devices over any of these.
func (h host) above(n devno) map[devno]bool {
	loops := h.loops()
	return walk(n, func(n devno) []devno {
		list := append(h.devnos(filepath.Join(h.dir(n), "holders", "*", "dev")), h.partitions(n)...)
		for loop, back := range loops {
			if on, ok := blockDevice(back); ok && on == n {
				list = append(list, loop)
			}
		}
		return list
	})
}

// below is a device with all that it lies on, down to files: see behind.
func (h host) below(n devno) map[devno]bool {
	loops := h.loops()
	return walk(n, func(n devno) []devno {
		dir := h.dir(n)
		list := h.devnos(filepath.Join(dir, "slaves", "*", "dev"))
		if h.attr(dir, "partition") != "" {
			list = append(list, h.devnos(filepath.Join(filepath.Dir(dir), "dev"))...)
		}
		if on, ok := blockDevice(loops[n]); ok {
			list = append(list, on)
		}
		return list
	})
}

func (h host) partitions(n devno) []devno {
	var list []devno
	files, err := filepath.Glob(filepath.Join(h.dir(n), "*", "partition"))
	if err != nil {
		return nil
	}
	for _, file := range files {
		list = append(list, h.devnos(filepath.Join(filepath.Dir(file), "dev"))...)
	}
	return list
}

// writeOut writes out all in which writes to a device may be held back: what lies
// on it, the disk that it is a partition of, and, for these may write to it, the
// device itself last. Each has a page cache of its own.
func (h host) writeOut(device *os.File) error {
	var all error
	if n, ok := blockDevice(device.Name()); ok {
		others := h.above(n)
		if dir := h.dir(n); h.attr(dir, "partition") != "" {
			for _, disk := range h.devnos(filepath.Join(filepath.Dir(dir), "dev")) {
				others[disk] = true
			}
		}
		delete(others, n)
		for m := range others {
			all = errors.Join(all, h.writeOutOther(m))
		}
	}
	return errors.Join(all, device.Sync())
}

// writeOutOther passes over what has no node in /dev, for nobody writes it by that
// way, and what cannot be opened any more.
func (h host) writeOutOther(n devno) error {
	path := filepath.Join("/dev", strings.ReplaceAll(h.name(n), "!", "/"))
	if on, ok := blockDevice(path); !ok || on != n {
		return nil
	}
	f, err := openCache(path)
	if err != nil {
		return nil
	}
	return errors.Join(f.Sync(), f.Close())
}

// openCache does not open for writing: that is not needed to write out a cache,
// and its end would have others look for a new content.
func openCache(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// blockDevice is the number of the block device at path, if it is one.
func blockDevice(path string) (devno, bool) {
	var st unix.Stat_t
	if path == "" || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return devno{}, false
	}
	return devnoOf(st.Rdev), true
}

// mount is one line of mountinfo.
type mount struct {
	id       uint64 // as statx gives it for a file
	dev      devno  // of the file system; major 0 where it is not one device's
	point    string // where it is mounted
	kind     string // of file system
	source   string // what was mounted
	writable bool   // the file system, not only this mount of it
}

// mounts reads the mounts that this process sees.
func (h host) mounts() ([]mount, error) {
	text, err := os.ReadFile(filepath.Join(h.proc, "self", "mountinfo"))
	if err != nil {
		return nil, err
	}
	var list []mount
	for line := range strings.Lines(string(text)) {
		// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/source rw,errors=continue
		before, after, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 2 {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		n, ok := parseDevno(fields[2])
		if !ok || err != nil {
			continue
		}
		options := strings.Split(tail[len(tail)-1], ",")
		list = append(list, mount{id: id, dev: n, point: unescape(fields[4]), kind: tail[0],
			source: unescape(tail[1]), writable: options[0] == "rw"})
	}
	return list, nil
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

// devices lists those that a file system lies on; none for one without.
func (h host) devices(m mount) []devno {
	if m.dev.major != 0 {
		return []devno{m.dev}
	}
	// btrfs has a number that no device has, and may lie on several.
	if !strings.HasPrefix(m.source, "/dev/") {
		return nil // never a path on a network that may not answer
	}
	n, ok := blockDevice(m.source)
	if !ok {
		return nil
	}
	pools, err := filepath.Glob(filepath.Join(h.sys, "fs", "btrfs", "*", "devices"))
	if err != nil {
		return []devno{n}
	}
	for _, pool := range pools {
		all := h.devnos(filepath.Join(pool, "*", "dev"))
		for _, m := range all {
			if m == n {
				return all
			}
		}
	}
	return []devno{n}
}

// mountOf finds the mount that an open file was reached through. root tells that
// it is its root.
func (h host) mountOf(f *os.File, list []mount) (m mount, root bool, err error) {
	var sx unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &sx); err != nil {
		return m, false, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if sx.Mask&unix.STATX_MNT_ID == 0 || sx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return m, false, fmt.Errorf("stat %s: the kernel does not say what it is mounted on (needs Linux 5.8)", f.Name())
	}
	for _, m := range list {
		if m.id == sx.Mnt_id {
			return m, sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
		}
	}
	return m, false, fmt.Errorf("stat %s: its mount is not in %s/self/mountinfo", f.Name(), h.proc)
}
