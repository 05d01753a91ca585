package quiesce

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// host is this machine, or one that a test has made up.
type host struct{ sysfs.Host }

var thisHost = host{sysfs.This}

// loops lists the loop devices in use, with what lies behind each.
func (h host) loops() map[sysfs.Devno]string {
	all := map[sysfs.Devno]string{}
	dirs, err := filepath.Glob(filepath.Join(h.Sys, "block", "loop*"))
	if err != nil {
		return all
	}
	for _, dir := range dirs {
		n, ok := sysfs.ParseDevno(sysfs.Attr(dir, "dev"))
		if back := sysfs.Attr(dir, "loop", "backing_file"); ok && back != "" {
			all[n] = back
		}
	}
	return all
}

// walk visits a device and all that next leads to from there.
func walk(from sysfs.Devno, next func(sysfs.Devno) []sysfs.Devno) map[sysfs.Devno]bool {
	seen := map[sysfs.Devno]bool{from: true}
	for list := []sysfs.Devno{from}; len(list) > 0; {
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
func (h host) above(n sysfs.Devno) map[sysfs.Devno]bool {
	loops := h.loops()
	return walk(n, func(n sysfs.Devno) []sysfs.Devno {
		list := append(sysfs.Devnos(filepath.Join(h.Dir(n), "holders", "*", "dev")), h.Partitions(n)...)
		for loop, back := range loops {
			if on, ok := sysfs.BlockDevice(back); ok && on == n {
				list = append(list, loop)
			}
		}
		return list
	})
}

// below is a device with all that it lies on, down to files: see behind.
func (h host) below(n sysfs.Devno) map[sysfs.Devno]bool {
	loops := h.loops()
	return walk(n, func(n sysfs.Devno) []sysfs.Devno {
		list := h.Slaves(n)
		if disk, _ := h.Disk(n); disk != n {
			list = append(list, disk)
		}
		if on, ok := sysfs.BlockDevice(loops[n]); ok {
			list = append(list, on)
		}
		return list
	})
}

// writeOut writes out all in which writes to a device may be held back: what lies
// on it, the disk that it is a partition of, and, for these may write to it, the
// device itself last. Each has a page cache of its own.
func (h host) writeOut(device *os.File) error {
	var all error
	if n, ok := sysfs.BlockDevice(device.Name()); ok {
		others := h.above(n)
		disk, _ := h.Disk(n)
		others[disk] = true
		delete(others, n)
		for m := range others {
			all = errors.Join(all, h.writeOutOther(m))
		}
	}
	return errors.Join(all, device.Sync())
}

// writeOutOther passes over what has no node in /dev, for nobody writes it by that
// way, and what cannot be opened any more.
func (h host) writeOutOther(n sysfs.Devno) error {
	path := filepath.Join("/dev", strings.ReplaceAll(h.Name(n), "!", "/"))
	if on, ok := sysfs.BlockDevice(path); !ok || on != n {
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

// devices lists those that a file system lies on; none for one without.
func (h host) devices(m sysfs.Mount) []sysfs.Devno {
	if m.Dev.Major != 0 {
		return []sysfs.Devno{m.Dev}
	}
	// btrfs has a number that no device has, and may lie on several.
	if !strings.HasPrefix(m.Source, "/dev/") {
		return nil // never a path on a network that may not answer
	}
	n, ok := sysfs.BlockDevice(m.Source)
	if !ok {
		return nil
	}
	pools, err := filepath.Glob(filepath.Join(h.Sys, "fs", "btrfs", "*", "devices"))
	if err != nil {
		return []sysfs.Devno{n}
	}
	for _, pool := range pools {
		all := sysfs.Devnos(filepath.Join(pool, "*", "dev"))
		for _, m := range all {
			if m == n {
				return all
			}
		}
	}
	return []sysfs.Devno{n}
}

// mountOf finds the mount that an open file was reached through. root tells that
// it is its root.
func (h host) mountOf(f *os.File, list []sysfs.Mount) (m sysfs.Mount, root bool, err error) {
	var sx unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &sx); err != nil {
		return m, false, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	if sx.Mask&unix.STATX_MNT_ID == 0 || sx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return m, false, fmt.Errorf("stat %s: the kernel does not say what it is mounted on (needs Linux 5.8)", f.Name())
	}
	for _, m := range list {
		if m.ID == sx.Mnt_id {
			return m, sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
		}
	}
	return m, false, fmt.Errorf("stat %s: its mount is not in %s/self/mountinfo", f.Name(), h.Proc)
}
