package merkle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// disk is the little of a file system that tree files need. Tests put one in
// its place that loses power between any two steps.
type disk interface {
	open(path string, flag int) (media, error)
	rename(from, to string) error // durable after syncDir of the folder
	remove(path string) error     // likewise; no error if it is not there
	syncDir(path string) error    // the folder that path lies in
}

// media is one open file.
type media interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
	Truncate(size int64) error
	size() (int64, error)
	// nextData returns the first offset from off on that may hold other than
	// zeroes, or the size of the file. off itself is always a true answer.
	nextData(off int64) int64
	// zero makes n bytes at off read as zeroes, as a hole where it can.
	zero(off, n int64) error
	// lock takes the file for this process alone, or for reading with others.
	// It does not wait: the error is ErrInUse.
	lock(exclusive bool) error
}

// osDisk is the disk of the operating system.
type osDisk struct{}

func (osDisk) open(path string, flag int) (media, error) {
	f, err := os.OpenFile(path, flag|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644) // a fifo must not hang us
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close() // nothing was written
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return osFile{f}, nil
}

// temp returns a file in folder dir that has no name: it is gone when closed.
func (osDisk) temp(dir string) (media, error) {
	f, err := os.CreateTemp(dir, ".failback-tree-*")
	if err != nil {
		return nil, fmt.Errorf("make temporary tree file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, fmt.Errorf("make temporary tree file: %w", err)
	}
	return osFile{f}, nil
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (osDisk) syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

type osFile struct{ *os.File }

func (f osFile) size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// nextData moves the file's own offset, which nothing here uses.
func (f osFile) nextData(off int64) int64 {
	next, err := f.Seek(off, unix.SEEK_DATA)
	switch {
	case err == nil:
		return next
	case errors.Is(err, unix.ENXIO): // only a hole from here to the end, or off is past it
		if size, err := f.size(); err == nil && size > off {
			return size
		}
	}
	return off
}

func (f osFile) zero(off, n int64) error {
	err := f.control(func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.writeZeros(off, n)
	}
	return err
}

// writeZeros is zero for file systems that cannot punch holes. It writes only
// where there is data.
func (f osFile) writeZeros(off, n int64) error {
	page := make([]byte, 64<<10)
	for end := off + n; off < end; {
		if off = max(off, f.nextData(off)); off >= end {
			break
		}
		k, err := f.WriteAt(page[:min(int64(len(page)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// lock is advisory, by flock. File systems without it do not lock.
func (f osFile) lock(exclusive bool) error {
	how := unix.LOCK_SH
	if exclusive {
		how = unix.LOCK_EX
	}
	err := f.control(func(fd int) error { return unix.Flock(fd, how|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s is held by another process or another part of this one", ErrInUse, f.Name())
	}
	return nil
}

// control runs op on the descriptor, again if a signal cut it off.
func (f osFile) control(op func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = conn.Control(func(fd uintptr) {
		for {
			if opErr = op(int(fd)); opErr != unix.EINTR {
				return
			}
		}
	})
	return errors.Join(err, opErr)
}
