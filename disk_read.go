package failback

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

// ReadAt reads what a write that has returned left there. See [Disk] for the
// way it takes. A file that has shrunk since Open gives io.ErrUnexpectedEOF.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	n, eof := d.checkRead(p, off)
	if n == 0 {
		return 0, eof
	}
	got, err := d.read(p[:n], off)
	if err != nil {
		return got, d.ioError("read", off, n, err)
	}
	return got, eof
}

// ReadMediumAt reads from the medium, past the page cache, what was durable
// before the call; see [MediumReader]. Where direct I/O does not work, or may
// fall back to the page cache inside the file system, the cached pages of the
// range are first dropped. On tmpfs memory is the medium.
func (d *Disk) ReadMediumAt(p []byte, off int64) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	n, eof := d.checkRead(p, off)
	if n == 0 {
		return 0, eof
	}
	got, err := d.readMedium(p[:n], off)
	if err != nil {
		return got, d.ioError("read medium of", off, n, err)
	}
	return got, eof
}

func (d *Disk) read(p []byte, off int64) (int, error) {
	done, drop := 0, !d.memory
	if d.cached {
		have, all, err := pagesCached(d.fdBuf, off, int64(len(p)))
		if err == nil && have >= all {
			done = d.readCached(p, off)
		}
		// Where others keep a part of it, it is not for us to drop.
		drop = err == nil && have == 0
	}
	if done == len(p) {
		return done, nil
	}
	rest, at := p[done:], off+int64(done)
	if d.direct {
		n, err := d.readDirect(rest, at)
		return done + n, err
	}
	n, err := readFull(d.fdBuf, rest, at)
	if drop && n > 0 {
		// Advice: what goes wrong with it is no error of the read.
		_ = unix.Fadvise(d.fdBuf, at, int64(n), unix.FADV_DONTNEED)
	}
	return done + n, err
}

func (d *Disk) readMedium(p []byte, off int64) (int, error) {
	if d.direct {
		if !d.honest {
			if err := d.evict(off, int64(len(p))); err != nil {
				return 0, err
			}
		}
		return d.readDirect(p, off)
	}
	if !d.memory {
		if err := d.evict(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	return readFull(d.fdBuf, p, off)
}

// readCached takes a range from the page cache, up to the first page that has
// left it meanwhile.
func (d *Disk) readCached(p []byte, off int64) int {
	done := 0
	for done < len(p) {
		n, err := preadNowait(d.fdBuf, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			// EAGAIN: no longer cached. Anything else, the read that follows meets
			// again and reports.
			break
		}
		done += n
	}
	if done < len(p) && d.direct {
		// Direct I/O takes over on its own boundary.
		done = max(0, done-int((off+int64(done))&(d.align-1)))
	}
	return done
}

// readDirect reads by direct I/O; what is not aligned goes through a buffer of
// ours, and the tail of a file that cannot be read directly at all through the
// page cache.
func (d *Disk) readDirect(p []byte, off int64) (int, error) {
	done := 0
	if off&(d.align-1) == 0 && d.alignedAddr(p) {
		whole := len(p) &^ int(d.align-1)
		n, err := d.readBlocks(p[:whole], off, whole)
		if done = n; err != nil {
			return done, err
		}
	}
	if done == len(p) {
		return done, nil
	}
	n, err := d.readBounced(p[done:], off+int64(done))
	return done + n, err
}

// bounceMax is the largest piece moved through a buffer of ours at once.
const bounceMax = 1 << 20 // bytes

func (d *Disk) readBounced(p []byte, off int64) (int, error) {
	lead := int(off & (d.align - 1))
	span := min((lead+len(p)+int(d.align)-1)&^int(d.align-1), bounceMax)
	buf := getBuf(span)
	defer buf.put()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if d.noTail && at >= d.end {
			n, err := d.readTail(p[done:], at)
			return done + n, err
		}
		lead := int(at & (d.align - 1))
		need := min(lead+len(p)-done, span)
		if d.noTail {
			need = int(min(int64(need), d.end-at+int64(lead)))
		}
		ask := (need + int(d.align) - 1) &^ int(d.align-1)
		n, err := d.readBlocks(buf.b[:ask], at-int64(lead), need)
		if n > lead {
			done += copy(p[done:], buf.b[lead:min(n, need)])
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readBlocks fills at least the first need bytes of p, which is aligned as a
// whole. It asks for more than need only at the end of a file, which may lie
// inside the last block.
func (d *Disk) readBlocks(p []byte, off int64, need int) (int, error) {
	done := 0
	for done < need {
		n, err := unix.Pread(d.fdDirect, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		done += n
		if done >= need {
			break
		}
		// A short read goes on at the last whole block; one that brought none
		// will never bring more: the file has shrunk.
		if n < int(d.align) {
			return done, io.ErrUnexpectedEOF
		}
		done &^= int(d.align - 1)
	}
	return done, nil
}

// readTail reads behind the last whole block, through the page cache but from
// the medium. It costs a few system calls; there is one such piece in a file.
func (d *Disk) readTail(p []byte, off int64) (int, error) {
	if err := d.evict(off, int64(len(p))); err != nil {
		return 0, err
	}
	return readFull(d.fdBuf, p, off)
}

// largestFolio is the most the page cache keeps as one piece. A piece is dropped
// only as a whole, so it must lie in the range given to the kernel as a whole.
const largestFolio = 2 << 20 // bytes

// evict makes sure that the next read of a range through the page cache comes
// from the medium: what is dirty is written first, then the pages are dropped.
func (d *Disk) evict(off, n int64) error {
	const writeAndWait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	first := max(0, off-largestFolio) &^ (largestFolio - 1)
	last := min((off+n+2*largestFolio-1)&^(largestFolio-1), d.size)
	err := again(func() error { return unix.SyncFileRange(d.fdBuf, first, last-first, writeAndWait) })
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	// The kernel leaves a page at either end alone that the range covers in part;
	// past the end of the file there is none to leave.
	end := (last + int64(pageSize) - 1) &^ int64(pageSize-1)
	return unix.Fadvise(d.fdBuf, first, end-first, unix.FADV_DONTNEED)
}

// readFull reads all of p or says why not.
func readFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		done += n
	}
	return done, nil
}
