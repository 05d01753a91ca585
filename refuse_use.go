package failback

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// refuseUsedFile refuses a regular file that something writes behind our back.
func (h host) refuseUsedFile(path string, st *unix.Stat_t) error {
	if st.Mode&0o222 == 0 {
		// Root may write it all the same; whoever took the write permission away
		// did not mean it to be overwritten.
		return &RefusedError{Volume: path, Reason: "nobody has permission to write it", Next: "allow it with: chmod u+w FILE"}
	}
	for _, name := range h.Swaps() {
		var s unix.Stat_t
		if unix.Stat(name, &s) == nil && s.Dev == st.Dev && s.Ino == st.Ino {
			return refuseSwap(path, name)
		}
	}
	loops, err := h.loops()
	if err != nil {
		return refuseBlind(path, err)
	}
	for _, l := range loops {
		if !l.isBlock && l.file == sysfs.DevnoOf(st.Dev) && l.ino == st.Ino {
			return refuseLoop(path, l)
		}
	}
	return nil
}

// refuseUsedDevice refuses a block device that is mounted, swapped to or built
// upon, it or a part of it, or the disk it is a part of. Opening it with O_EXCL
// finds most of these too, but cannot say which.
func (h host) refuseUsedDevice(path string, n sysfs.Devno) error {
	if sysfs.Attr(h.Dir(n), "ro") == "1" {
		return &RefusedError{Volume: path, Reason: "the device is read-only", Next: "allow writes with: blockdev --setrw DEVICE"}
	}
	family := h.family(n)
	if err := h.refuseMounted(path, n, family); err != nil {
		return err
	}
	for _, name := range h.Swaps() {
		if at, ok := sysfs.BlockDevice(name); ok && slices.Contains(family, at) {
			return refuseSwap(path, name)
		}
	}
	for _, m := range family {
		if list := h.holders(m); len(list) > 0 {
			return &RefusedError{Volume: path,
				Reason: fmt.Sprintf("%s is held by %s", h.which(n, m), strings.Join(list, ", ")),
				Next:   "take that apart first (dmsetup remove, mdadm --stop), or name it instead"}
		}
	}
	loops, err := h.loops()
	if err != nil {
		return refuseBlind(path, err)
	}
	for _, l := range loops {
		if l.isBlock && slices.Contains(family, l.device) {
			return refuseLoop(path, l)
		}
	}
	return nil
}

// family is a device with the devices whose bytes are also its own: the
// partitions of a disk, or the disk of a partition.
func (h host) family(n sysfs.Devno) []sysfs.Devno {
	list := append([]sysfs.Devno{n}, h.Partitions(n)...)
	if disk, _ := h.Disk(n); disk != n {
		list = append(list, disk)
	}
	return list
}

// which names a member of a device's family as seen from the device.
func (h host) which(n, member sysfs.Devno) string {
	switch disk, _ := h.Disk(n); member {
	case n:
		return "it"
	case disk:
		return "its disk " + h.Name(member)
	}
	return "its partition " + h.Name(member)
}

func (h host) refuseMounted(path string, n sysfs.Devno, family []sysfs.Devno) error {
	mounts, err := h.Mounts()
	if err != nil {
		return refuseBlind(path, err)
	}
	for _, m := range mounts {
		at := m.Dev
		if at.Major == 0 {
			// btrfs and its like have a number that no device has.
			var ok bool
			if at, ok = h.mountedDevice(m); !ok {
				continue
			}
		}
		if slices.Contains(family, at) {
			return &RefusedError{Volume: path,
				Reason: fmt.Sprintf("%s is mounted on %s", h.which(n, at), m.Point),
				Next:   "unmount it first (umount " + m.Point + "), or " + otherTarget}
		}
	}
	return nil
}

// mountedDevice finds the device of a mount that is known by its source only.
func (h host) mountedDevice(m sysfs.Mount) (sysfs.Devno, bool) {
	if !strings.HasPrefix(m.Source, h.dev+"/") {
		return sysfs.Devno{}, false // never a path on a network that may not answer
	}
	return sysfs.BlockDevice(m.Source)
}

func refuseSwap(path, name string) error {
	return &RefusedError{Volume: path, Reason: "it is in use as swap (" + name + ")",
		Next: "stop that first (swapoff " + name + "), or " + otherTarget}
}

func refuseLoop(path string, l loop) error {
	return &RefusedError{Volume: path, Reason: "the loop device " + l.name + " lies on it",
		Next: "name /dev/" + l.name + " instead, or detach it first (losetup -d /dev/" + l.name + ")"}
}

// refuseBlind refuses a target whose use cannot be found out.
func refuseBlind(path string, err error) error {
	return &RefusedError{Volume: path, Reason: fmt.Sprintf("cannot tell whether it is in use: %v", err),
		Next: "mount /proc and /sys where failback runs", cause: err}
}
