package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rigSize is the size of the devices that the tracker is tried on, in bytes. The
// disks that the machine gives the guest are as large.
const rigSize = 48 << 20

// rig is a device that the tracker is tried on.
type rig struct {
	path string
	end  func() error // takes it down
}

// kind is a kind of device.
type kind struct {
	name    string
	make    func(g *guest) (rig, error)
	refused string // words with which failback track start refuses it; "": it works
}

// The RAM disks, for what lies below a device: those of the scenarios about
// media are not used in the same guest.
const (
	dataRAM = "/dev/ram3"
	metaRAM = "/dev/ram4"
	moreRAM = "/dev/ram5"
)

const virtioDisk = "/dev/vda"

var kinds = []kind{
	{"virtio disk", existing(virtioDisk), ""},
	{"partition", partition, ""},
	{"SCSI disk", scsi, ""},
	{"NVMe disk", nvme("one"), ""},
	{"NVMe disk of two paths, as it comes", nvme("two"), ""},
	{"NVMe disk of two paths, with io statistics", stats("1", nvme("two")), ""},
	{"loop device", loop, ""},
	{"NBD disk", func(*guest) (rig, error) { return made(nbdCreate()) }, ""},
	{"zram", zram, ""},
	{"RAM disk", existing(moreRAM), ""},
	{"device-mapper, linear", mapped("linear", linear(virtioDisk, 0, rigSize)), ""},
	{"device-mapper, linear, with io statistics", stats("1", mapped("linear", linear(virtioDisk, 0, rigSize))), ""},
	{"device-mapper, thin", func(g *guest) (rig, error) { return g.thin("", false) }, ""},
	{"device-mapper, thin with a snapshot", func(g *guest) (rig, error) { return g.thin("", true) }, ""},
	{"device-mapper, origin of a snapshot", func(g *guest) (rig, error) { return g.snapshot(false) }, ""},
	{"device-mapper, snapshot", func(g *guest) (rig, error) { return g.snapshot(true) }, ""},
	{"device-mapper, crypt", mapped("crypt", table{rigSize / sector, "crypt", "aes-xts-plain64 " + strings.Repeat("5a", 64) + " 0 " + virtioDisk + " 0"}), ""},
	{"device-mapper, multipath", mapped("multipath", overPaths), ""},
	{"md, RAID 0", raid(0, 0), ""},
	{"md, RAID 1", raid(1, 0), ""},
	{"md, RAID 10", raid(10, raid10Near), ""},
	{"md, RAID 5", raid(5, raid5Symmetric), ""},

	{"device-mapper, thin without zeroing", func(g *guest) (rig, error) { return g.thin("1 skip_block_zeroing", false) }, "does not zero what it hands out"},
	{"md, RAID 0 without io statistics", stats("0", raid(0, 0)), "its io statistics are off"},
	{"disk below md", below(raid(1, 0), virtioDisk), "it is a part of /dev/md0"},
	{"disk below multipath", below(mapped("multipath", overPaths), virtioDisk), "it is a part of /dev/mapper/multipath"},
	{"zoned disk", existing("/dev/nullb0"), "it is a zoned device"},
	{"persistent memory", existing("/dev/pmem0"), "it can be mapped directly (DAX)"},
}

// overPaths is multipath with one path.
var overPaths = table{rigSize / sector, "multipath", "0 0 1 1 round-robin 0 1 1 " + virtioDisk + " 1"}

// below is a device that another one is made of.
func below(create func(*guest) (rig, error), path string) func(*guest) (rig, error) {
	return func(g *guest) (rig, error) {
		r, err := create(g)
		r.path = path
		return r, err
	}
}

func made(path string, end func() error, err error) (rig, error) { return rig{path, end}, err }

func nothing() error { return nil }

// existing is a device that is there, or will be.
func existing(path string) func(*guest) (rig, error) {
	return func(*guest) (rig, error) {
		return rig{path, nothing}, until(path, func() bool { return sectorsOf(path) > 0 })
	}
}

// sectorsOf is the size of a device, 0 if there is none.
func sectorsOf(path string) (n int64) {
	text, err := os.ReadFile("/sys/class/block/" + filepath.Base(path) + "/size")
	if err != nil {
		return 0
	}
	_, _ = fmt.Sscan(string(text), &n) // stays 0
	return n
}

// scsi is a disk of the driver that pretends to have one.
func scsi(*guest) (rig, error) {
	disk, err := scsiDisk()
	return rig{disk, nothing}, err
}

// nvme is the disk of the controllers with a serial number. Where there are two
// controllers, the disk is what the kernel puts over both paths to it.
func nvme(serial string) func(*guest) (rig, error) {
	return func(*guest) (rig, error) {
		path := ""
		err := until("NVMe disk "+serial, func() bool {
			disks, _ := filepath.Glob("/sys/class/block/nvme*n1") // no error: the pattern is right
			for _, d := range disks {
				told, err := os.ReadFile(d + "/device/serial")
				if err == nil && strings.TrimSpace(string(told)) == serial {
					path = "/dev/" + filepath.Base(d)
				}
			}
			return path != ""
		})
		return rig{path, nothing}, err
	}
}

// stats turns the io statistics of a device on or off.
func stats(to string, create func(*guest) (rig, error)) func(*guest) (rig, error) {
	return func(g *guest) (rig, error) {
		r, err := create(g)
		if err != nil {
			return rig{}, err
		}
		return r, os.WriteFile("/sys/block/"+filepath.Base(r.path)+"/queue/iostats", []byte(to), 0)
	}
}

// partition is a part of the virtio disk.
func partition(g *guest) (rig, error) {
	part := struct {
		start, length int64
		number        int32
		_             [132]byte
	}{start: 1<<20 + piece, length: rigSize - 4<<20, number: 2}
	edit := func(op int32) error {
		f, err := os.Open(virtioDisk)
		if err != nil {
			return err
		}
		defer f.Close()
		arg := struct {
			op, flags, length int32
			data              unsafe.Pointer
		}{op: op, length: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
		return ioctl(f, unix.BLKPG, unsafe.Pointer(&arg))
	}
	if err := edit(unix.BLKPG_ADD_PARTITION); err != nil {
		return rig{}, fmt.Errorf("add a partition: %w", err)
	}
	path := virtioDisk + "2"
	return rig{path, func() error { return edit(unix.BLKPG_DEL_PARTITION) }}, until(path, func() bool { _, err := os.Stat(path); return err == nil })
}

// loop is a loop device over a file in memory.
func loop(*guest) (rig, error) {
	back, err := os.CreateTemp("", "loop")
	if err != nil {
		return rig{}, err
	}
	defer back.Close()
	if err := back.Truncate(rigSize); err != nil {
		return rig{}, err
	}
	path := "/dev/loop0"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return rig{}, err
	}
	conf := unix.LoopConfig{Fd: uint32(back.Fd())}
	conf.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_PARTSCAN
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &conf); err != nil {
		return rig{}, fmt.Errorf("configure %s: %w", path, err)
	}
	return rig{path, func() error { return errors.Join(f.Close(), os.Remove(back.Name())) }}, nil
}

func zram(*guest) (rig, error) {
	const path, dir = "/dev/zram0", "/sys/block/zram0"
	if err := os.WriteFile(dir+"/disksize", fmt.Append(nil, rigSize), 0); err != nil {
		return rig{}, err
	}
	return rig{path, func() error { return os.WriteFile(dir+"/reset", []byte("1"), 0) }}, nil
}

// mapped is a device of the device mapper.
func mapped(name string, t table) func(*guest) (rig, error) {
	return func(*guest) (rig, error) {
		path, err := dmCreate(name, t)
		return rig{path, func() error { return dmRemove(name) }}, err
	}
}

// raid is an array of disks that discard: two, or for RAID 5 three.
func raid(level, layout int32) func(*guest) (rig, error) {
	return func(g *guest) (rig, error) {
		one, err1 := nvme("one")(g)
		two, err2 := nvme("two")(g)
		if err := errors.Join(err1, err2); err != nil {
			return rig{}, err
		}
		disks := []string{virtioDisk, one.path}
		if level == 5 {
			disks = append(disks, two.path)
		}
		return made(mdCreate(level, layout, disks...))
	}
}

const raid5Symmetric = 2 // layout: the usual one

// stack makes devices on each other, and takes them down from the top.
type stack struct{ names []string }

func (s *stack) add(name string, t table) (string, error) {
	path, err := dmCreate(name, t)
	if err == nil {
		s.names = append(s.names, name)
	}
	return path, err
}

func (s *stack) end() error {
	var err error
	for i := len(s.names) - 1; i >= 0; i-- {
		err = errors.Join(err, dmRemove(s.names[i]))
	}
	return err
}

// thin is a volume of a pool, and maybe has a snapshot that shares what it holds.
func (g *guest) thin(features string, snapshot bool) (rig, error) {
	const chunk = 128 // sectors
	if features == "" {
		features = "0"
	}
	if err := store(metaRAM, make([]byte, piece)); err != nil { // no pool is there
		return rig{}, err
	}
	s := &stack{}
	pool, err := s.add("pool", table{ramSize / sector, "thin-pool", fmt.Sprintf("%s %s %d 0 %s", metaRAM, dataRAM, chunk, features)})
	if err == nil {
		err = dmMessage("pool", "create_thin 0")
	}
	path := ""
	if err == nil {
		path, err = s.add("thin", table{rigSize / sector, "thin", pool + " 0"})
	}
	if err == nil && snapshot {
		err = g.share(s, pool, path)
	}
	if err != nil {
		return rig{}, errors.Join(err, s.end())
	}
	return rig{path, s.end}, nil
}

// share gives a thin volume content, and a snapshot of that.
func (g *guest) share(s *stack, pool, path string) error {
	if err := store(path, g.noise(rigSize)); err != nil {
		return err
	}
	suspend := func(r *dmRequest) { r.Flags |= unix.DM_SUSPEND_FLAG }
	_, err1 := dmCall(unix.DM_DEV_SUSPEND, "thin", suspend)
	err2 := dmMessage("pool", "create_snap 1 0")
	_, err3 := dmCall(unix.DM_DEV_SUSPEND, "thin", nil)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	_, err := s.add("shared", table{rigSize / sector, "thin", pool + " 1"})
	return err
}

// snapshot is a volume with a snapshot, or the snapshot itself.
func (g *guest) snapshot(itself bool) (rig, error) {
	if err := errors.Join(store(dataRAM, g.noise(rigSize)), store(moreRAM, make([]byte, piece))); err != nil {
		return rig{}, err
	}
	s := &stack{}
	origin, err := s.add("origin", table{rigSize / sector, "snapshot-origin", dataRAM})
	path := ""
	if err == nil {
		path, err = s.add("snapshot", table{rigSize / sector, "snapshot", fmt.Sprintf("%s %s P 8", dataRAM, moreRAM)})
	}
	if err != nil {
		return rig{}, errors.Join(err, s.end())
	}
	if !itself {
		path = origin
	}
	return rig{path, s.end}, nil
}
