package failback

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroStep bounds one call to the kernel, which does not return until a whole
// range is zeroed and cannot be cancelled before.
const zeroStep = 1 << 30 // bytes

// ZeroAt makes a range read as zeroes; see [Zeroer].
//
// A regular file gets a hole: the range reads as zeroes, gives its blocks back,
// and where there were none none are made.
//
// A block device is asked for the same by fallocate. The kernel then sends
// write-zeroes that may unmap, which are bound to read back as zeroes, and says
// so if the device has none; a discard promises nothing about what is read later
// (discard_zeroes_data in sysfs has been 0 on every device since Linux 4.12) and
// is never used. BLKZEROOUT comes second: it must not unmap, so that on a thin
// device or a loop device it would take up all the space it zeroes.
//
// What neither can do, and edges that are not aligned for the device, are
// written. Durable after Sync.
func (d *Disk) ZeroAt(off, n int64) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if err := d.checkWrite("zero", off, n); err != nil {
		return err
	}
	for n > 0 {
		step := min(n, zeroStep-off%zeroStep)
		if err := d.zero(off, step); err != nil {
			return d.ioError("zero", off, int(step), err)
		}
		off, n = off+step, n-step
	}
	return nil
}

func (d *Disk) zero(off, n int64) error {
	if !d.block {
		hole := n
		if off+n == d.size {
			// A file system frees whole blocks only. What follows the end of the
			// file is nobody's, and its size stays.
			hole += -d.size & int64(pageSize-1)
		}
		done, err := d.punch(d.fdBuf, off, hole)
		if done || err != nil {
			return err
		}
		return d.writeZeroes(off, n)
	}
	start := min((off+d.align-1)&^(d.align-1), off+n)
	end := max((off+n)&^(d.align-1), start)
	if err := d.writeZeroes(off, start-off); err != nil {
		return err
	}
	if err := d.zeroBlocks(start, end-start); err != nil {
		return err
	}
	return d.writeZeroes(end, off+n-end)
}

// zeroBlocks zeroes whole sectors of a device by the best way it has.
func (d *Disk) zeroBlocks(off, n int64) error {
	if n == 0 {
		return nil
	}
	if done, err := d.punch(d.fdDirect, off, n); done || err != nil {
		return err
	}
	if !d.noZeroOut.Load() {
		err := again(func() error { return zeroOut(d.fdDirect, off, n) })
		if err == nil || !unsupported(err) {
			return err
		}
		d.noZeroOut.Store(true)
	}
	return d.writeZeroes(off, n)
}

// punch deallocates a range. It reports whether that was done; false without an
// error means that it cannot be done here, now or ever.
func (d *Disk) punch(fd int, off, n int64) (bool, error) {
	if d.noPunch.Load() {
		return false, nil
	}
	if d.hasTail() {
		// The file system zeroes parts of pages in its cache.
		d.edge.Lock()
		defer d.edge.Unlock()
	}
	err := again(func() error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err == nil {
		return true, nil
	}
	if unsupported(err) {
		d.noPunch.Store(true)
		return false, nil
	}
	return false, err
}

// writeZeroes writes them.
func (d *Disk) writeZeroes(off, n int64) error {
	for n > 0 {
		step := min(n, zeroChunk)
		if _, err := d.writeAny(zeroes()[:step], off); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// unsupported reports whether an error says that the kernel, the file system or
// the device lacks an operation, and not that it went wrong.
func unsupported(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || err == unix.ENOTTY || err == unix.EINVAL
}

// zeroOut is the BLKZEROOUT ioctl.
func zeroOut(fd int, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	if errno != 0 {
		return errno
	}
	return nil
}
