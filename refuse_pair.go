package failback

import (
	"fmt"
	"math"

	"github.com/failback/failback/internal/sysfs"
)

// place is a range of something that bytes of a volume lie on. A volume has
// several, one under the other: a partition of a loop device lies on that loop
// device, on its backing file, and on the disk with that file's file system.
type place struct {
	key    string // which thing
	what   string // the same for people
	off    int64  // bytes, half-open
	end    int64
	hosted bool // the volume is somewhere within the range, not all of it
}

const maxLayers = 16 // loop devices on loop devices; the kernel stops earlier

// CheckPair refuses a target that is the source, or shares bytes with it: the
// same file or device under another name, a disk and its partition, a loop
// device and the file behind it, a file on the source's own file system. Both
// are to be open. It sees what this machine sees: a remote volume that is the
// same storage as a local one is for the session's identities to tell.
func CheckPair(source, target *Disk) error {
	for i, t := range target.places {
		for j, s := range source.places {
			if t.key != s.key || t.hosted && s.hosted || t.end <= s.off || s.end <= t.off {
				continue
			}
			r := &RefusedError{Volume: target.path, Next: otherTarget}
			switch {
			case t == s && i == 0 && j == 0:
				r.Reason = fmt.Sprintf("it is the source %s: both are %s", source.path, t.what)
			case t.hosted:
				r.Reason = fmt.Sprintf("it lies on the source %s (%s), so writing it would change the source", source.path, s.what)
			case s.hosted:
				r.Reason = fmt.Sprintf("the source %s lies on it (%s), so writing it would destroy the source", source.path, t.what)
			default:
				r.Reason = fmt.Sprintf("it shares storage with the source %s: both lie on %s", source.path, t.what)
			}
			return r
		}
	}
	return nil
}

// filePlaces lists what a range of a regular file lies on. mountID is that of
// the mount through which it was opened; 0 if that is not known.
func (h host) filePlaces(n sysfs.Devno, ino, mountID uint64, at place, depth int) []place {
	at.key = fmt.Sprintf("file %v/%d", n, ino)
	at.what = fmt.Sprintf("inode %d on %s", ino, h.Name(n))
	if n.Major == 0 {
		// btrfs and its like give files a number that no device has, and a
		// subvolume another than its mount: only the mount tells the device.
		var ok bool
		if n, ok = h.mountedBy(mountID); !ok {
			return []place{at}
		}
	}
	return append([]place{at}, h.devicePlaces(n, whole(h.size(n)), depth+1)...)
}

// mountedBy finds the device behind a mount.
func (h host) mountedBy(id uint64) (sysfs.Devno, bool) {
	mounts, err := h.Mounts()
	if err != nil {
		return sysfs.Devno{}, false
	}
	for _, m := range mounts {
		if m.ID == id {
			return h.mountedDevice(m)
		}
	}
	return sysfs.Devno{}, false
}

// whole is the hosted place of everything on a thing of some size.
func whole(size int64) place { return place{end: size, hosted: true} }

// devicePlaces lists what a range of a device lies on; at says which range, and
// whether it is hosted.
func (h host) devicePlaces(n sysfs.Devno, at place, depth int) []place {
	if depth > maxLayers {
		return nil
	}
	disk, start := h.Disk(n)
	at = at.moved(start)
	at.key, at.what = "device "+disk.String(), h.Name(disk)
	list := []place{at}
	if wwid := h.wwid(disk); wwid != "" {
		// Two paths to one disk are two devices with one name.
		at.key, at.what = "wwid "+wwid, "the disk "+wwid
		list = append(list, at)
	}
	if l, ok := h.loop(h.Name(disk)); ok {
		at = at.moved(l.offset)
		if l.isBlock {
			return append(list, h.devicePlaces(l.device, at, depth+1)...)
		}
		return append(list, h.filePlaces(l.file, l.ino, l.mountID, at, depth+1)...)
	}
	for _, s := range h.Slaves(disk) {
		list = append(list, h.devicePlaces(s, whole(h.size(s)), depth+1)...)
	}
	return list
}

// moved is the place further on by some bytes, without passing the largest.
func (p place) moved(by int64) place {
	p.off = min(p.off, math.MaxInt64-by) + by
	p.end = min(p.end, math.MaxInt64-by) + by
	return p
}
