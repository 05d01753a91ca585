package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// device is what the kernel tells of a block device now.
type device struct {
	path    string
	number  kernelNumber // its own
	disk    kernelNumber // of the disk it is a part of, or is
	start   uint64       // first sector on the disk
	sectors uint64
	diskseq uint64 // 0: not known
	dir     string // in sysfs
	diskDir string
	request bool // the disk is driven by requests, which know their place to the end
}

// whole reports whether the device is a disk.
func (d device) whole() bool { return d.number == d.disk }

// identity is what the device is called when the caller has no better name.
func (d device) identity() string {
	return fmt.Sprintf("block:dev=%v,diskseq=%d,start=%d,size=%d", d.disk, d.diskseq, d.start, d.sectors*sector)
}

// lookDevice asks for a device by its path, or by its number: "major:minor". It
// returns the number with the error, if it is known.
func lookDevice(path string) (device, error) {
	if n, err := parseNumber(path); err == nil {
		d, err := lookNumber(n)
		d.path = deviceName(n)
		return d, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return device{}, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return device{}, &RefusedError{Device: path, Reason: "it is no block device", Next: "put a loop device over the file and use that"}
	}
	d, err := lookNumber(numberOf(unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	d.path = path
	if err != nil {
		return d, fmt.Errorf("look at %s: %w", path, err)
	}
	return d, nil
}

// lookNumber asks for a device by its number.
func lookNumber(n kernelNumber) (device, error) {
	d := device{number: n, disk: n}
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + n.String())
	if err != nil {
		return d, fmt.Errorf("device %v: %w", n, err)
	}
	d.dir, d.diskDir = dir, dir
	if _, err := os.Stat(dir + "/partition"); err == nil {
		d.diskDir = filepath.Dir(dir)
		if d.disk, err = readNumber(d.diskDir + "/dev"); err != nil {
			return d, err
		}
		if d.start, err = attrUint(dir + "/start"); err != nil {
			return d, err
		}
	}
	if d.sectors, err = attrUint(dir + "/size"); err != nil {
		return d, err
	}
	if d.diskseq, err = attrUint(d.diskDir + "/diskseq"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d, err
	}
	_, err = os.Stat(d.diskDir + "/mq")
	d.request = err == nil
	return d, nil
}

// refuse returns a [RefusedError] if the device cannot be tracked at all.
func (d device) refuse() error {
	e := &RefusedError{Device: d.path}
	zoned := sysfs.Attr(d.diskDir + "/queue/zoned")
	who := d.opaqueHolder()
	m := d.mapping()
	switch {
	case zoned != "none" && zoned != "":
		e.Reason = fmt.Sprintf("it is a zoned device (%s): its write pointers move by other commands than writes", zoned)
	case sysfs.Attr(d.diskDir+"/queue/dax") == "1":
		e.Reason = "it can be mapped directly (DAX): stores to such a mapping pass no block layer"
	case d.sectors == 0:
		e.Reason = "it has no size: nothing is attached to it"
	case who != "":
		e.Reason = fmt.Sprintf("it is a part of %s, which may send on requests that are not announced again", who)
		e.Next = "track " + who
	case m.why != "":
		e.Reason, e.Next = m.why, m.next
	case !d.counted() && d.isRAID():
		e.Reason, e.Next = quietRAID, "echo 1 > "+d.statsFile()+", and start again"
	default:
		return nil
	}
	return e
}

// DiskOf returns the path of the disk that a device is a partition of, or its
// own if it is a disk.
func DiskOf(path string) (string, error) {
	d, err := lookDevice(path)
	if err != nil {
		return "", err
	}
	if d.whole() {
		return path, nil
	}
	return deviceName(d.disk), nil
}

// opaqueHolder names a driver on top of the disk that may hand its requests on
// unannounced (md, bcache, multipath); "" when there is none. Device-mapper makes
// new ones, but where it is driven by requests: those it puts into the disk's queue
// as they are, past the place where writes are announced. Multipath is that kind,
// or may become it with its next table.
func (d device) opaqueHolder() string {
	dirs, _ := filepath.Glob(d.diskDir + "/holders/*")
	parts, _ := filepath.Glob(d.diskDir + "/*/holders/*")
	for _, h := range append(dirs, parts...) {
		name := filepath.Base(h)
		if !strings.HasPrefix(name, "dm-") {
			return "/dev/" + name
		}
		_, err := os.Stat(h + "/mq")
		if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(sysfs.Attr(h+"/dm/uuid"), "mpath-") {
			continue
		}
		if mapped := sysfs.Attr(h + "/dm/name"); mapped != "" {
			return "/dev/mapper/" + mapped
		}
		return "/dev/" + name
	}
	return ""
}

// counted reports whether the kernel counts what is under way on the disk: not
// with its io statistics off. For zram that is no matter, it counts always.
func (d device) counted() bool {
	return sysfs.Attr(d.diskDir+"/queue/iostats") == "1" || d.driver("zram")
}

// isRAID reports whether the disk is one of md. With the io statistics off some of
// its levels send the bios that they get on as they are, in parts, and the end of
// the last one is told of nowhere.
func (d device) isRAID() bool {
	_, err := os.Stat(d.diskDir + "/md")
	return err == nil
}

const quietRAID = "its io statistics are off, and md does not tell then when a write has ended"

// driver reports whether the disk has a name of this driver: the name and a number.
func (d device) driver(name string) bool {
	n, ok := strings.CutPrefix(filepath.Base(d.diskDir), name)
	return ok && n != "" && strings.Trim(n, "0123456789") == ""
}

// uncounted is why no quiet moment of the disk can be seen, as the record has it:
// 0 if one can.
func (d device) uncounted() (why uint64) {
	if !d.counted() {
		why |= uncountedStats
	}
	if d.holds() {
		why |= uncountedHolds
	}
	return why
}

func (d device) statsFile() string {
	return "/sys/block/" + filepath.Base(d.diskDir) + "/queue/iostats"
}

// changed reports whether the kernel has counted a write or a discard that ended.
func (d device) changed() bool {
	f := strings.Fields(sysfs.Attr(d.diskDir + "/stat")) // Documentation/block/stat.rst
	return len(f) > 4 && f[4] != "0" || len(f) > 11 && f[11] != "0"
}

// quiet reports whether no write to the disk is under way, as far as the kernel
// counts them, and what it has counted so far. It does not count what waits in a
// plug or a scheduler. A plug is emptied when its task sleeps, so it is the caller
// who asks more than once. A scheduler holds a write back for the sake of reads or
// of other writes, so where there is one the disk must not have done anything
// from one answer to the next. A device-mapper device that is suspended holds all.
// Where the disk is not counted the answer means nothing: see Tracker.watch.
func (d device) quiet() (counted string, idle bool) {
	f := strings.Fields(sysfs.Attr(d.diskDir + "/inflight"))
	if len(f) != 2 || f[1] != "0" || sysfs.Attr(d.diskDir+"/dm/suspended") == "1" {
		return "", false
	}
	if s := sysfs.Attr(d.diskDir + "/queue/scheduler"); s == "" || s == "none" || strings.Contains(s, "[none]") {
		return "", true
	}
	return sysfs.Attr(d.diskDir + "/stat"), f[0] == "0"
}

// attrUint returns a number of sysfs. A file that is not there is an error.
func attrUint(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

// readNumber reads a "major:minor".
func readNumber(path string) (kernelNumber, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	n, err := parseNumber(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

func parseNumber(s string) (kernelNumber, error) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 12)
	minor, err2 := strconv.ParseUint(b, 10, 20)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no device number", s)
	}
	return numberOf(uint32(major), uint32(minor)), nil
}
