package failback

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Stamp implements [Stamper]. A regular file is stamped by its size and the time
// it was last written, a block device by the boot, the number of its disk in it,
// and what the kernel has counted of writes, discards and flushed-in sectors to
// it. Bytes that reach a loop device's file, or a disk from another machine, by
// another way are not in that count.
func (d *Disk) Stamp() (string, error) {
	if err := d.enter(); err != nil {
		return "", err
	}
	defer d.leave()
	if d.block {
		return thisHost.deviceStamp(d.fdDirect)
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fdBuf, &st); err != nil {
		return "", fmt.Errorf("ask %s when it was written: %w", d.path, err)
	}
	return fmt.Sprintf("file:mtime=%d.%09d,size=%d", st.Mtim.Sec, st.Mtim.Nsec, st.Size), nil
}

// Fields of a block device's "stat" file, from 0: Documentation/block/stat.rst.
const (
	statWrites         = 4
	statSectorsWritten = 6
	statDiscards       = 11
	statSectorsDropped = 13
)

// deviceStamp returns "" where the kernel does not tell enough.
func (h host) deviceStamp(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("ask a device when it was written: %w", err)
	}
	n := devnoOf(st.Rdev)
	disk, _ := h.disk(n)
	boot := h.attr(h.proc, "sys", "kernel", "random", "boot_id")
	seq := h.number(h.dir(disk), "diskseq")
	counts := strings.Fields(h.attr(h.dir(n), "stat"))
	if boot == "" || seq == 0 || len(counts) <= statSectorsWritten || h.number(h.dir(disk), "queue", "iostats") == 0 {
		return "", nil
	}
	stamp := fmt.Sprintf("block:boot=%s,diskseq=%d,writes=%s,sectors=%s", boot, seq, counts[statWrites], counts[statSectorsWritten])
	if len(counts) > statSectorsDropped {
		stamp += fmt.Sprintf(",discards=%s,dropped=%s", counts[statDiscards], counts[statSectorsDropped])
	}
	return stamp, nil
}
