package failback

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// refuseUsedFile refuses a regular file that something writes behind our back.
func (h host) refuseUsedFile(path string, st *unix.Stat_t) error {
	if st.Mode&0o222 == 0 {
		// Root may write it all the same; whoever took the write permission away
		// did not mean it to be overwritten.
		return &RefusedError{Volume: path, Reason: "nobody has permission to write it", Next: "allow it with: chmod u+w FILE"}
	}
	for _, name := range h.swaps() {
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
		if !l.isBlock && l.file == devnoOf(st.Dev) && l.ino == st.Ino {
			return refuseLoop(path, l)
		}
	}
	return nil
}

// refuseUsedDevice refuses a block device that is mounted, swapped to or built
// upon, it or a part of it, or the disk it is a part of. Opening it with O_EXCL
// finds most of these too, but cannot say which.
func (h host) refuseUsedDevice(path string, n devno) error {
	if h.attr(h.dir(n), "ro") == "1" {
		return &RefusedError{Volume: path, Reason: "the device is read-only", Next: "allow writes with: blockdev --setrw DEVICE"}
	}
	family := h.family(n)
	if err := h.refuseMounted(path, n, family); err != nil {
		return err
	}
	for _, name := range h.swaps() {
		var s unix.Stat_t
		if unix.Stat(name, &s) == nil && s.Mode&unix.S_IFMT == unix.S_IFBLK && slices.Contains(family, devnoOf(s.Rdev)) {
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
func (h host) family(n devno) []devno {
	list := append([]devno{n}, h.partitions(n)...)
	if disk, _ := h.disk(n); disk != n {
		list = append(list, disk)
	}
	return list
}

// which names a member of a device's family as seen from the device.
func (h host) which(n, member devno) string {
	switch disk, _ := h.disk(n); member {
	case n:
		return "it"
	case disk:
		return "its disk " + h.name(member)
	}
	return "its partition " + h.name(member)
}

func (h host) refuseMounted(path string, n devno, family []devno) error {
	mounts, err := h.mounts()
	if err != nil {
		return refuseBlind(path, err)
	}
	for _, m := range mounts {
		at := m.dev
		if at.major == 0 {
			// btrfs and its like have a number that no device has.
			var ok bool
			if at, ok = h.mountedDevice(m); !ok {
				continue
			}
		}
		if slices.Contains(family, at) {
			return &RefusedError{Volume: path,
				Reason: fmt.Sprintf("%s is mounted on %s", h.which(n, at), m.point),
				Next:   "unmount it first (umount " + m.point + "), or " + otherTarget}
		}
	}
	return nil
}

// mountedDevice finds the device of a mount that is known by its source only.
func (h host) mountedDevice(m mount) (devno, bool) {
	if !strings.HasPrefix(m.source, h.dev+"/") {
		return devno{}, false // never a path on a network that may not answer
	}
	var st unix.Stat_t
	if unix.Stat(m.source, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return devno{}, false
	}
	return devnoOf(st.Rdev), true
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
