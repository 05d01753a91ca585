package failback

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// OpenOptions says how [Open] opens a volume. The zero value opens it for
// reading.
type OpenOptions struct {
	// Write opens it as a target: for reading and writing, alone. A volume that is
	// in use is then refused. Without it the volume may be in use, also mounted.
	Write bool
	// Buffered keeps a regular file off direct I/O. Block devices take no notice:
	// their page cache may be older than what lies on them.
	Buffered bool
}

// Open opens a regular file or a block device. What must not be used is refused
// with a [*RefusedError]: a thing of another kind, of a size that is 0 or not a
// multiple of 512 bytes, without permission; as a target also one that is
// mounted, swapped to, built upon by another device, read-only, or open as the
// target of another failback. Open never waits for a device or a pipe, and
// changes nothing on the volume.
//
// A target stays locked against other failbacks, and a target device against
// mounting, until Close.
func Open(path string, o OpenOptions) (*Disk, error) {
	return thisHost.open(path, o)
}

func (h host) open(path string, o OpenOptions) (*Disk, error) {
	var st unix.Stat_t
	// stat before open: opening a pipe waits, and opening some devices acts.
	if err := again(func() error { return unix.Stat(path, &st) }); err != nil {
		return nil, refuseOpen(path, o.Write, err)
	}
	if err := refuseKind(path, st.Mode); err != nil {
		return nil, err
	}
	d := &Disk{path: path, write: o.Write, fdDirect: -1, fdBuf: -1, idle: make(chan struct{})}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		err = d.openDevice(h, &st)
	} else {
		err = d.openFile(h, &st, o.Buffered)
	}
	if err != nil {
		// The error that ended the opening matters more than one of closing.
		_ = d.closeFiles()
		return nil, err
	}
	return d, nil
}

// openAgain opens what stat saw, and nothing else that came to the path since.
func (d *Disk) openAgain(st *unix.Stat_t, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_LARGEFILE | unix.O_NOCTTY
	if d.write {
		flags |= unix.O_RDWR
	}
	fd := -1
	err := again(func() (err error) {
		fd, err = unix.Open(d.path, flags, 0)
		return err
	})
	if err != nil {
		return -1, err
	}
	var now unix.Stat_t
	err = unix.Fstat(fd, &now)
	if err == nil && (now.Dev != st.Dev || now.Ino != st.Ino || now.Rdev != st.Rdev || now.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT) {
		err = &RefusedError{Volume: d.path, Reason: "it was replaced by something else while it was being opened",
			Next: "find out by what, then try again"}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// openDevice opens a block device. O_EXCL is what keeps others out for good; the
// look around before it is there to say who is in.
func (d *Disk) openDevice(h host, st *unix.Stat_t) error {
	n := sysfs.DevnoOf(st.Rdev)
	flags := unix.O_DIRECT
	if d.write {
		flags |= unix.O_EXCL
		if err := h.refuseUsedDevice(d.path, n); err != nil {
			return err
		}
	}
	fd, err := d.openAgain(st, flags)
	if err != nil {
		return d.refuseOpen(err)
	}
	d.fdDirect, d.block, d.direct, d.honest = fd, true, true, true
	sector, err := unix.IoctlGetUint32(fd, unix.BLKSSZGET)
	if err == nil {
		d.size, err = deviceSize(fd)
	}
	if err != nil {
		return fmt.Errorf("ask %s for its size: %w", d.path, err)
	}
	if !usableAlign(int64(sector)) {
		return fmt.Errorf("open %s: sectors of %d bytes: %w", d.path, sector, unix.EOPNOTSUPP)
	}
	if err := refuseSize(d.path, d.size, int64(sector)); err != nil {
		return err
	}
	d.align, d.mem, d.end = int64(sector), int64(sector), d.size
	if mem, _, ok := directAlign(fd); ok && usableAlign(mem) {
		d.mem = mem
	}
	d.identity = h.deviceIdentity(n, d.size)
	d.places = h.devicePlaces(n, place{end: d.size}, 0)
	return nil
}

// refuseOpen passes on what is a refusal already.
func (d *Disk) refuseOpen(err error) error {
	if r, ok := err.(*RefusedError); ok {
		return r
	}
	return refuseOpen(d.path, d.write, err)
}

// openFile opens a regular file, up to twice: for the page cache and, where that
// works, for direct I/O.
func (d *Disk) openFile(h host, st *unix.Stat_t, buffered bool) error {
	if err := refuseSize(d.path, st.Size, 1); err != nil {
		return err
	}
	if d.write {
		if err := h.refuseUsedFile(d.path, st); err != nil {
			return err
		}
	}
	fd, err := d.openAgain(st, 0)
	if err != nil {
		return d.refuseOpen(err)
	}
	d.fdBuf = fd
	if d.write {
		if err := d.lock(); err != nil {
			return err
		}
	}
	// Under the lock no other failback changes the size any more.
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return fmt.Errorf("ask %s for its size: %w", d.path, err)
	}
	if err := refuseSize(d.path, now.Size, 1); err != nil {
		return err
	}
	d.size = now.Size
	if err := d.chooseAccess(st, buffered); err != nil {
		return err
	}
	var sx unix.Statx_t // zero where the kernel is too old for it
	_ = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME|unix.STATX_MNT_ID, &sx)
	d.identity = fileIdentity(&now, &sx)
	d.places = h.filePlaces(sysfs.DevnoOf(now.Dev), now.Ino, sx.Mnt_id, place{end: d.size}, 0)
	return nil
}

// lock takes the whole file for us, against other failbacks and against whoever
// else locks what he writes (QEMU locks its images). The lock belongs to the
// open file, so it also holds between two volumes of one process, and it goes
// with the descriptor, however the process ends.
func (d *Disk) lock() error {
	l := unix.Flock_t{Type: unix.F_WRLCK} // from byte 0 to the end, wherever that is
	err := again(func() error { return unix.FcntlFlock(uintptr(d.fdBuf), unix.F_OFD_SETLK, &l) })
	switch err {
	case nil:
		return nil
	case unix.EAGAIN, unix.EACCES:
		return &RefusedError{Volume: d.path, cause: err, busy: true,
			Reason: "another failback holds it, or another program (a virtual machine?) has locked it",
			Next:   "wait for that to end, or stop it; lslocks shows locks"}
	}
	return &RefusedError{Volume: d.path, cause: err,
		Reason: fmt.Sprintf("its file system cannot lock it (%v), so a second writer could not be kept out", err),
		Next:   "put it on a file system with locks"}
}

// chooseAccess decides how the file is read and written. Every choice is made
// from what the kernel says or does here, so that no call has to guess later.
func (d *Disk) chooseAccess(st *unix.Stat_t, buffered bool) error {
	var fs unix.Statfs_t
	if err := again(func() error { return unix.Fstatfs(d.fdBuf, &fs) }); err != nil {
		return fmt.Errorf("ask %s for its file system: %w", d.path, err)
	}
	d.cached = canAskCache(d.fdBuf)
	d.align, d.mem, d.end = sectorSize, 1, d.size
	switch int64(fs.Type) {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		// They take the flag for direct I/O and copy from the page cache as ever.
		d.memory, d.cached = true, false
		return nil
	}
	if !buffered {
		if err := d.openDirect(st, &fs); err != nil {
			return err
		}
	}
	if !d.direct {
		// Many reads are under way at once; reading ahead of each would bring in
		// pages only to drop them. Advice: an error of it changes nothing.
		_ = unix.Fadvise(d.fdBuf, 0, 0, unix.FADV_RANDOM)
	}
	return nil
}

// openDirect opens the file for direct I/O if its file system has it, and tries.
func (d *Disk) openDirect(st *unix.Stat_t, fs *unix.Statfs_t) error {
	mem, align, told := directAlign(d.fdBuf)
	if !told {
		// Linux before 6.1, or a file system that does not say. A page, or its
		// block if that is larger, is enough wherever direct I/O works.
		align = max(4096, int64(pageSize))
		if bs := int64(fs.Bsize); bs > align && usableAlign(bs) {
			align = bs
		}
		mem = align
	}
	if !usableAlign(mem) || !usableAlign(align) {
		return nil // 0: none for this file
	}
	fd, err := d.openAgain(st, unix.O_DIRECT)
	switch {
	case err == unix.EINVAL || err == unix.EOPNOTSUPP:
		return nil
	case err != nil:
		return d.refuseOpen(err)
	}
	d.fdDirect, d.align, d.mem, d.end = fd, align, mem, d.size&^(align-1)
	buf := getBuf(int(align))
	defer buf.put()
	if _, err := unix.Pread(fd, buf.b, 0); err == unix.EINVAL || err == unix.EOPNOTSUPP {
		d.align, d.mem, d.end = sectorSize, 1, d.size
		return nil
	}
	if d.hasTail() {
		n, err := unix.Pread(fd, buf.b, d.end)
		d.noTail = err == unix.EINVAL || err == nil && int64(n) < d.size-d.end
	}
	d.direct = true
	// These two read directly whenever they say they do. Others, like btrfs with
	// a compressed file, may quietly use the page cache.
	kind := int64(fs.Type)
	d.honest = told && (kind == unix.EXT4_SUPER_MAGIC || kind == unix.XFS_SUPER_MAGIC)
	return nil
}

// maxAlign is the largest alignment that direct I/O is done with; what needs
// more goes through the page cache.
const maxAlign = 64 << 10 // bytes

func usableAlign(n int64) bool { return n > 0 && n <= maxAlign && n&(n-1) == 0 }

// directAlign asks the kernel for the alignment of direct I/O on a file, in
// bytes, for addresses and for offsets; both 0 where there is none. Linux says
// so since 6.1, and not for every file system.
func directAlign(fd int) (mem, off int64, ok bool) {
	var sx unix.Statx_t
	if unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx) != nil || sx.Mask&unix.STATX_DIOALIGN == 0 {
		return 0, 0, false
	}
	return int64(sx.Dio_mem_align), int64(sx.Dio_offset_align), true
}

// deviceSize is the size of a block device in bytes.
func deviceSize(fd int) (int64, error) {
	var n uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0, os.NewSyscallError("BLKGETSIZE64", errno)
	}
	if int64(n) < 0 {
		return 0, unix.EOVERFLOW
	}
	return int64(n), nil
}
