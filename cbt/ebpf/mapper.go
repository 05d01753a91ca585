package ebpf

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/failback/failback/internal/sysfs"
	"golang.org/x/sys/unix"
)

// countedTargets are the kinds of device-mapper tables whose writes the kernel
// counts as under way from when they are queued until they end. Others keep
// writes to themselves first (thin makes room, crypt encrypts, raid notes what it
// is about to write), and the kernel counts those only when they go on.
var countedTargets = []string{"linear", "striped", "snapshot", "snapshot-origin"}

// holds reports whether the driver of the disk may hold back writes that the
// kernel does not count as under way, or is not known not to. A disk that is
// driven by requests has them counted by the block layer, zram and brd end each
// write before they return from it.
func (d device) holds() bool {
	switch {
	case d.request, d.driver("zram"), d.driver("ram"):
		return false
	case !isMapper(d.diskDir):
		return true // md, the paths of NVMe together, ...
	}
	parts, err := mapperState(d.disk, 0)
	return err != nil || slices.ContainsFunc(parts, func(p target) bool { return !slices.Contains(countedTargets, p.kind) })
}

// below returns the disk and all that it is made of, by their directories in sysfs.
// Of a loop device that is another device, if it lies over one.
func (d device) below() []string {
	list := []string{d.diskDir}
	for i := 0; i < len(list); i++ {
		slaves, _ := filepath.Glob(list[i] + "/slaves/*") // no error: the pattern is right
		if back, ok := sysfs.BlockDevice(sysfs.Attr(list[i] + "/loop/backing_file")); ok {
			slaves = append(slaves, "/sys/dev/block/"+back.String())
		}
		for _, s := range slaves {
			at, err := filepath.EvalSymlinks(s)
			if err != nil { // it has just gone
				continue
			}
			if _, err := os.Stat(at + "/partition"); err == nil {
				at = filepath.Dir(at)
			}
			if !slices.Contains(list, at) {
				list = append(list, at)
			}
		}
	}
	return list
}

// mapping is what the device-mapper tables of a disk and of all below it say.
type mapping struct {
	// why what is read may change by other things than a write of that place, "" if
	// it does not; next is what to do about it.
	why, next string
	// thin stands for which volumes of thin pools there are, 0 for none. LVM gives a
	// volume that a snapshot is merged into that of the snapshot.
	thin uint64
}

func (d device) mapping() mapping {
	var m mapping
	h := fnv.New64a()
	for _, dir := range d.below() {
		if !isMapper(dir) {
			continue
		}
		thin := m.look(dir)
		if m.why != "" {
			return m
		}
		if thin != "" {
			fmt.Fprintf(h, "%s %s\n", sysfs.Attr(dir+"/dev"), thin)
			m.thin = h.Sum64() | 1 // some, whatever the hash
		}
	}
	return m
}

// look asks for the table of one device-mapper device, and returns the parameters
// of those of its parts that are volumes of a thin pool.
//
// A pool that does not zero what it hands out: before the first write to a part of
// a volume that part reads as zeroes, and then, beside that write, as what lay in
// the room before.
func (m *mapping) look(dir string) (thin string) {
	name := "/dev/mapper/" + sysfs.Attr(dir+"/dm/name")
	n, err := readNumber(dir + "/dev")
	var parts []target
	if err == nil {
		parts, err = mapperState(n, 0)
	}
	if err == nil && slices.ContainsFunc(parts, func(p target) bool { return strings.HasPrefix(p.kind, "thin") }) {
		parts, err = mapperState(n, unix.DM_STATUS_TABLE_FLAG)
	}
	if err != nil {
		m.why = fmt.Sprintf("the device-mapper table of %s cannot be read (%v): it may be a thin pool that does not zero what it hands out", name, err)
		m.next = "see that /dev/mapper/control can be opened here"
	}
	for _, p := range parts {
		switch {
		case p.kind == "thin":
			thin += p.params + ";"
		case p.kind == "thin-pool" && slices.Contains(strings.Fields(p.params), "skip_block_zeroing"):
			m.why = fmt.Sprintf("the thin pool %s does not zero what it hands out: a write changes what is read beside it, too", name)
			m.next = "have the pool zero (lvchange --zero y VG/POOL), and start again"
		case p.kind == "snapshot-merge":
			m.why = fmt.Sprintf("a snapshot is merged into %s: what it held is replaced", name)
			m.next = "wait until that is over, and start again"
		}
	}
	return thin
}

// isMapper reports whether a disk is one of device-mapper.
func isMapper(dir string) bool { return sysfs.Attr(dir+"/dm/name") != "" }

const mapperVersion = 4 // of the interface, the major one

// target is a part of a device-mapper table.
type target struct{ kind, params string }

var errLongTable = errors.New("it has too many parts")

// mapperState returns the parts of the table of a device-mapper device that is in
// use: with flag DM_STATUS_TABLE_FLAG as they were set up, which for an encrypted
// volume may have its key, else in which state they are.
func mapperState(n kernelNumber, flag uint32) ([]target, error) {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const head = int(unsafe.Sizeof(unix.DmIoctl{}))
	for room := 16 << 10; room <= 16<<20; room *= 8 { // bytes; a part takes some 50
		words := make([]uint64, (head+room)/8) // whose memory is aligned
		r := (*unix.DmIoctl)(unsafe.Pointer(&words[0]))
		r.Version[0], r.Data_size, r.Data_start = mapperVersion, uint32(len(words)*8), uint32(head)
		r.Dev, r.Flags = unix.Mkdev(uint32(n)>>20, uint32(n)&0xfffff), unix.DM_NOFLUSH_FLAG|flag
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.DM_TABLE_STATUS, uintptr(unsafe.Pointer(r))); errno != 0 {
			return nil, os.NewSyscallError("ioctl", errno)
		}
		if r.Flags&unix.DM_BUFFER_FULL_FLAG == 0 {
			answer := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)[head:]
			return readTargets(answer, int(r.Target_count))
		}
	}
	return nil, errLongTable
}

// readTargets reads an answer: for each target a struct dm_target_spec, which says
// where the next one begins, and behind it its text.
func readTargets(answer []byte, count int) ([]target, error) {
	var list []target
	for at := 0; count > 0; count-- {
		var spec unix.DmTargetSpec
		size := int(unsafe.Sizeof(spec))
		if at < 0 || at > len(answer)-size {
			return nil, fmt.Errorf("target %d lies at %d in an answer of %d bytes", len(list), at, len(answer))
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&spec)), size), answer[at:])
		list = append(list, target{unix.ByteSliceToString(spec.Target_type[:]), unix.ByteSliceToString(answer[at+size:])})
		at = int(spec.Next)
	}
	return list, nil
}
