package failback

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Disk is a [Volume] on this machine: a block device or a regular file. All its
// methods may be called from many goroutines; I/O that is aligned for the device
// takes no lock and allocates nothing.
//
// How the bytes travel:
//
//   - A block device is read and written by direct I/O only. Its page cache is
//     not the page cache of the file system mounted on it, so it may be old.
//   - A regular file has one page cache for everybody, which the kernel keeps
//     coherent with direct I/O. ReadAt takes from there a range that is cached as
//     a whole, and reads any other directly, so that it neither fills nor empties
//     the cache. Writes go directly.
//   - Where a file system knows no direct I/O (see [Disk.Direct]) both go through
//     the page cache, and pages that ReadAt brought in are dropped behind it.
type Disk struct {
	path  string
	size  int64 // bytes; fixed at Open
	write bool
	block bool // a block device

	// How the file is accessed: decided once, at Open.
	direct bool  // direct I/O works on fdDirect
	cached bool  // ReadAt looks into the page cache first
	memory bool  // the file system has no medium but memory (tmpfs, ramfs)
	honest bool  // direct reads never fall back to the page cache
	align  int64 // bytes; offsets and lengths of direct I/O are multiples
	mem    int64 // bytes; so are the addresses of buffers
	end    int64 // size rounded down to align: what lies behind is the tail
	noTail bool  // the tail cannot be read directly either

	fdDirect int // direct I/O; -1 if none
	fdBuf    int // page cache; -1 on block devices

	identity string
	places   []place // where the bytes lie, for CheckPair

	// users counts calls under way, so that no descriptor is closed, and its
	// number given to another file, under a call. closing is added by Close; idle
	// closes once nobody but late comers, who are turned away, is counted.
	users    atomic.Int64
	idle     chan struct{}
	idleOnce sync.Once

	// edge orders writes that share a direct block or a page with others. Writes
	// of part of a direct block hold it alone, from the read of that block to its
	// write. On a file with a tail, every write holds it: the tail goes through
	// the page cache, and a page that is dirty while a direct write lands next to
	// it would put old bytes back.
	edge sync.RWMutex

	noPunch   atomic.Bool           // fallocate cannot punch holes here
	noZeroOut atomic.Bool           // the device does not know BLKZEROOUT
	lost      atomic.Pointer[error] // first Sync that failed
}

const closing = math.MinInt64 / 2

// enter keeps the descriptors open until leave.
func (d *Disk) enter() error {
	if d.users.Add(1) < 0 {
		d.leave()
		return fmt.Errorf("use %s: %w", d.path, os.ErrClosed)
	}
	return nil
}

func (d *Disk) leave() {
	if d.users.Add(-1) == closing {
		d.idleOnce.Do(func() { close(d.idle) })
	}
}

// Close waits for calls under way and closes the volume. It does not make
// anything durable: that is Sync. A second Close returns os.ErrClosed.
func (d *Disk) Close() error {
	for {
		n := d.users.Load()
		if n < 0 {
			return fmt.Errorf("close %s: %w", d.path, os.ErrClosed)
		}
		if d.users.CompareAndSwap(n, n+1+closing) {
			break
		}
	}
	d.leave()
	<-d.idle
	return d.closeFiles()
}

func (d *Disk) closeFiles() error {
	var errs []error
	for _, fd := range []int{d.fdDirect, d.fdBuf} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", d.path, err)
	}
	return nil
}

// String is the path that was opened.
func (d *Disk) String() string { return d.path }

// Size is the size in bytes, as it was at Open.
func (d *Disk) Size() int64 { return d.size }

// Identity tells this volume from others; see [Identifier]. It names the kind,
// the best mark the machine has for it, and the size.
func (d *Disk) Identity() string { return d.identity }

// Direct reports whether the volume is read and written by direct I/O. If it is
// not, ReadMediumAt still asks the system to drop what it has cached and to read
// again, but a page that another process has mapped stays.
func (d *Disk) Direct() bool { return d.direct }

// Sync makes every write that returned before it durable: file data, what the
// file system needs to find it again, and the device's own write cache. Once it
// has failed it keeps failing, because the kernel forgets which pages it could
// not write: a later success would prove nothing.
func (d *Disk) Sync() error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if lost := d.lost.Load(); lost != nil {
		return *lost
	}
	if !d.write {
		return nil
	}
	fd := d.fdBuf
	if fd < 0 {
		fd = d.fdDirect
	}
	err := again(func() error { return unix.Fdatasync(fd) })
	if err != nil {
		err = fmt.Errorf("sync %s: %w", d.path, err)
		d.lost.CompareAndSwap(nil, &err)
		return err
	}
	if !d.direct && !d.memory {
		// What was written is on the medium; its pages serve nobody now.
		// Advice only: a system that does not take it loses nothing.
		_ = unix.Fadvise(d.fdBuf, 0, 0, unix.FADV_DONTNEED)
	}
	return nil
}

// checkRead clips a read to the volume. It returns how many bytes to read and
// the error to return with them: nil, or io.EOF where p reaches past the end.
func (d *Disk) checkRead(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, d.ioError("read", off, len(p), fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= d.size:
		return 0, io.EOF
	case int64(len(p)) > d.size-off:
		return int(d.size - off), io.EOF
	}
	return len(p), nil
}

// checkWrite refuses a write that is not wholly inside the volume.
func (d *Disk) checkWrite(what string, off, n int64) error {
	switch {
	case !d.write:
		return fmt.Errorf("%s %s: opened for reading only: %w", what, d.path, fs.ErrPermission)
	case off < 0 || n < 0 || off > d.size || n > d.size-off:
		return fmt.Errorf("%s %s at offset %d, %d bytes: outside its %d bytes: %w", what, d.path, off, n, d.size, fs.ErrInvalid)
	}
	return nil
}

// ioError says what failed, on which volume and where.
func (d *Disk) ioError(what string, off int64, n int, err error) error {
	return fmt.Errorf("%s %s at offset %d, %d bytes: %w", what, d.path, off, n, err)
}

// aligned reports whether p may go to or from off by direct I/O as it is.
func (d *Disk) aligned(p []byte, off int64) bool {
	return (off|int64(len(p)))&(d.align-1) == 0 && d.alignedAddr(p)
}

func (d *Disk) alignedAddr(p []byte) bool {
	return addr(p)&uintptr(d.mem-1) == 0
}

// hasTail reports whether the file ends within a direct block, so that its last
// bytes can be written only through the page cache.
func (d *Disk) hasTail() bool { return d.end < d.size }

// again calls f until it is not interrupted by a signal; the Go runtime sends
// itself many.
func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
