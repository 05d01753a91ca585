package failback

import (
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// maxMark bounds what a device says of itself, so that an identity with its
// numbers stays within 255 bytes.
const maxMark = 128 // bytes

// fileIdentity is that of a regular file: its inode, when that inode was made,
// and its size.
func fileIdentity(st *unix.Stat_t, sx *unix.Statx_t) string {
	return fmt.Sprintf("file:dev=%v,ino=%d%s,size=%d", sysfs.DevnoOf(st.Dev), st.Ino, born(sx), st.Size)
}

// born says when a file was made, for its inode number is used again once it is
// gone; "" where the file system does not know.
func born(sx *unix.Statx_t) string {
	if sx.Mask&unix.STATX_BTIME == 0 {
		return ""
	}
	return fmt.Sprintf(",born=%d.%09d", sx.Btime.Sec, sx.Btime.Nsec)
}

// deviceIdentity is that of a block device. The best mark wins: the name that
// the hardware or the volume manager gives it, the file behind a loop device,
// or else its number with the sequence number of its disk, which says that this
// is still the disk that had the number, until the next boot.
func (h host) deviceIdentity(n sysfs.Devno, size int64) string {
	disk, start := h.Disk(n)
	part := ""
	if disk != n {
		part = fmt.Sprintf(",start=%d", start)
	}
	return fmt.Sprintf("block:%s%s,size=%d", h.mark(disk), part, size)
}

func (h host) mark(disk sysfs.Devno) string {
	dir := h.Dir(disk)
	if id := h.wwid(disk); id != "" {
		return "wwid=" + id
	}
	for _, at := range []struct{ name, file string }{
		{"dm", "dm/uuid"}, {"md", "md/uuid"}, {"serial", "serial"}, {"serial", "device/serial"},
	} {
		if id := plain(sysfs.Attr(dir, at.file)); id != "" {
			return at.name + "=" + id
		}
	}
	if l, ok := h.loop(h.Name(disk)); ok {
		if l.isBlock {
			return fmt.Sprintf("loop=%v+%d", l.device, l.offset)
		}
		return fmt.Sprintf("loop=%v/%d+%d%s", l.file, l.ino, l.offset, l.born)
	}
	return fmt.Sprintf("dev=%v,diskseq=%d", disk, sysfs.Number(dir, "diskseq"))
}

// wwid is the world-wide name of a disk, "" if it has none.
func (h host) wwid(disk sysfs.Devno) string {
	dir := h.Dir(disk)
	if id := plain(sysfs.Attr(dir, "wwid")); id != "" {
		return id
	}
	return plain(sysfs.Attr(dir, "device", "wwid"))
}

// plain makes one printable word of a name that hardware gives, which may be
// padded or hold anything. A long one ends in a hash of the whole.
func plain(s string) string {
	word := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == ',' {
			return '_'
		}
		return r
	}, strings.Join(strings.Fields(s), "_"))
	if len(word) <= maxMark {
		return word
	}
	return fmt.Sprintf("%s~%016x", word[:maxMark-17], xxhash.Sum64String(s))
}
