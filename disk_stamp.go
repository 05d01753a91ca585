package failback

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// Stamp implements [Stamper]. A regular file is stamped by its inode, its size
// and the times of its last write and its last change. A block device is stamped
// by the boot, the number of its disk in it, and what the kernel has counted of
// writes, discards and flushed-in sectors to it; so is all that it lies on, down
// to the file behind a loop device: its content changes with that, and nothing is
// counted for the device itself. What else is written there, to another partition
// of its disk or another volume of its group, therefore makes another stamp, too;
// to subtract what is counted for the others would not do: the kernel may merge a
// write into a request of the partition before, and counts it for that one.
// The stamp is empty where one of these cannot be asked.
//
// Bytes that reach a disk from another machine are not in any count, nor is a
// device-mapper table that is put in another's place over the same disks. For a
// file that was just written it waits for the file system's next tick, so that a
// write from then on gets another time: 10 ms at most, 2 s where times are in
// seconds. Where a file's times come from a server, nothing is known of its ticks.
func (d *Disk) Stamp() (string, error) {
	if err := d.enter(); err != nil {
		return "", err
	}
	defer d.leave()
	if d.block {
		return thisHost.deviceStamp(d.fdDirect)
	}
	stamp, err := fileStamp(func(st *unix.Stat_t) error { return unix.Fstat(d.fdBuf, st) })
	if err != nil {
		return "", fmt.Errorf("ask %s when it was written: %w", d.path, err)
	}
	return stamp, nil
}

// writes tells of writes to the volume and of no others: another one than before is
// somebody's write. It is empty where nothing is counted. Of a partition it may miss
// what the kernel has merged into a request of the one before. What lies in a device's
// page cache is written first, so that it is not counted later; that, and a flush by
// anybody, counts as a write of no sectors, so it is the sectors that tell.
func (d *Disk) writes() (string, error) {
	if !d.block {
		return d.Stamp()
	}
	if err := d.enter(); err != nil {
		return "", err
	}
	defer d.leave()
	if err := again(func() error { return unix.Fsync(d.fdDirect) }); err != nil {
		return "", fmt.Errorf("flush %s: %w", d.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fdDirect, &st); err != nil {
		return "", fmt.Errorf("ask %s when it was written: %w", d.path, err)
	}
	if stat, seq := thisHost.stat(sysfs.DevnoOf(st.Rdev)); stat != nil {
		text := fmt.Sprintf("diskseq=%d,sectors=%s", seq, stat[statSectorsWritten])
		if len(stat) > statSectorsDropped {
			text += ",dropped=" + stat[statSectorsDropped]
		}
		return text, nil
	}
	return "", nil
}

// stampTries is how often a file is asked that was written in the same tick.
const stampTries = 4

// fileStamp asks a file when it was written. One that is being written all the
// while gets a stamp that it has only once.
func fileStamp(stat func(*unix.Stat_t) error) (string, error) {
	for try := 1; ; try++ {
		// The clock comes first: a write after the question gets no earlier time.
		now, tick, err := coarseTime()
		if err != nil {
			return "", err
		}
		var st unix.Stat_t
		if err := stat(&st); err != nil {
			return "", err
		}
		stamp := fmt.Sprintf("file:ino=%d,ctime=%d.%09d,mtime=%d.%09d,size=%d", st.Ino, st.Ctim.Sec, st.Ctim.Nsec, st.Mtim.Sec, st.Mtim.Nsec, st.Size)
		wait := sameTick(now, tick, time.Duration(st.Ctim.Nano()))
		switch {
		case wait == 0:
			return stamp, nil
		case try == stampTries:
			return fmt.Sprintf("%s,busy=%d", stamp, now), nil
		}
		<-time.After(wait)
	}
}

// coarseTime reads the clock that files get their times from, since 1970, and how
// far apart its ticks are.
func coarseTime() (now, tick time.Duration, err error) {
	var t, step unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t); err != nil {
		return 0, 0, fmt.Errorf("read the clock: %w", err)
	}
	if err := unix.ClockGetres(unix.CLOCK_REALTIME_COARSE, &step); err != nil {
		return 0, 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(t.Nano()), time.Duration(step.Nano()), nil
}

// sameTick returns how long to wait until a change gets another time than one of
// time changed did; 0: it does now. A file system may have coarser times than the
// clock: what is a multiple of 10 ms or of a second is taken for that of one that
// has no finer ones, and those with seconds may have only the even ones.
func sameTick(now, tick, changed time.Duration) time.Duration {
	grain := time.Duration(1)
	switch {
	case changed%time.Second == 0:
		grain = 2 * time.Second
	case changed%(10*time.Millisecond) == 0:
		grain = 10 * time.Millisecond
	}
	next := changed - changed%grain + grain // the first time that is another one
	switch {
	case now >= next:
		return 0
	case changed > now+2*time.Second:
		return 0 // the clock was set back
	}
	return next - now + tick
}

// Fields of a block device's "stat" file, from 0: Documentation/block/stat.rst.
const (
	statWrites         = 4
	statSectorsWritten = 6
	statDiscards       = 11
	statSectorsDropped = 13
)

// maxBelow bounds on how many devices and files a device may lie to be stamped.
const maxBelow = 64

// deviceStamp returns "" where the kernel does not tell enough. What lies below
// goes in as a hash, for there may be much of it.
func (h host) deviceStamp(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("ask a device when it was written: %w", err)
	}
	return h.stamp(sysfs.DevnoOf(st.Rdev)), nil
}

func (h host) stamp(n sysfs.Devno) string {
	boot := sysfs.Attr(h.Proc, "sys", "kernel", "random", "boot_id")
	counts, ok := h.counts(n)
	if boot == "" || !ok {
		return ""
	}
	below, ok := h.below(n)
	if !ok {
		return ""
	}
	stamp := fmt.Sprintf("block:boot=%s,%s", boot, counts)
	if len(below) > 0 {
		sum := sha256.Sum256([]byte(strings.Join(below, "\n")))
		stamp += fmt.Sprintf(",below=%d:%x", len(below), sum[:16])
	}
	return stamp
}

// counts is what the kernel has counted of writes to a device itself; false where
// it does not count.
func (h host) counts(n sysfs.Devno) (string, bool) {
	stat, seq := h.stat(n)
	if stat == nil {
		return "", false
	}
	text := fmt.Sprintf("diskseq=%d,writes=%s,sectors=%s", seq, stat[statWrites], stat[statSectorsWritten])
	if len(stat) > statSectorsDropped {
		text += fmt.Sprintf(",discards=%s,dropped=%s", stat[statDiscards], stat[statSectorsDropped])
	}
	return text, true
}

// stat is the "stat" file of a device and the number of its disk in this boot; nil
// where the kernel does not count.
func (h host) stat(n sysfs.Devno) (fields []string, seq int64) {
	disk, _ := h.Disk(n)
	seq = sysfs.Number(h.Dir(disk), "diskseq")
	fields = strings.Fields(sysfs.Attr(h.Dir(n), "stat"))
	if seq == 0 || len(fields) <= statSectorsWritten || sysfs.Number(h.Dir(disk), "queue", "iostats") == 0 {
		return nil, 0
	}
	return fields, seq
}

// below stamps all that a device lies on: the disk of a partition, what
// device-mapper and md put together, the device or file behind a loop device, and
// what these lie on. It is false where not all of it can be asked.
func (h host) below(n sysfs.Devno) (facts []string, ok bool) {
	seen := map[sysfs.Devno]bool{n: true}
	for list := []sysfs.Devno{n}; len(list) > 0; list = list[1:] {
		on, file, ok := h.liesOn(list[0])
		if !ok {
			return nil, false
		}
		if file != "" {
			facts = append(facts, file)
		}
		for _, m := range on {
			if seen[m] {
				continue
			}
			seen[m] = true
			counts, ok := h.counts(m)
			if !ok || len(seen) > maxBelow {
				return nil, false
			}
			facts = append(facts, m.String()+":"+counts)
			list = append(list, m)
		}
	}
	return facts, true
}

// liesOn returns the devices that a device lies on directly, and the stamp of the
// file if it is one that lies on a file.
func (h host) liesOn(n sysfs.Devno) (on []sysfs.Devno, file string, ok bool) {
	on = h.Slaves(n)
	if all, err := os.ReadDir(filepath.Join(h.Dir(n), "slaves")); err == nil && len(all) != len(on) {
		return nil, "", false
	}
	if sysfs.Attr(h.Dir(n), "partition") != "" {
		disk, _ := h.Disk(n)
		return append(on, disk), "", disk != n
	}
	if sysfs.Attr(h.Dir(n), "loop", "backing_file") == "" {
		return on, "", true
	}
	l, ok := h.loop(h.Name(n))
	switch {
	case !ok:
		return nil, "", false
	case l.isBlock:
		return append(on, l.device), "", true
	}
	file, err := fileStamp(func(st *unix.Stat_t) error {
		err := unix.Stat(l.backing, st)
		if err == nil && (sysfs.DevnoOf(st.Dev) != l.file || st.Ino != l.ino) {
			return unix.ESTALE // the path is another file's by now
		}
		return err
	})
	return on, file, err == nil
}
