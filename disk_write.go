package failback

import (
	"io"

	"golang.org/x/sys/unix"
)

// WriteAt writes all of p or returns an error; how much of p was then written
// is only a lower bound. It is durable after [Disk.Sync].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	if err := d.checkWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.writeAny(p, off)
	if err != nil {
		return n, d.ioError("write", off, len(p), err)
	}
	return n, nil
}

func (d *Disk) writeAny(p []byte, off int64) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case !d.direct:
		return d.writeBuffered(p, off)
	case d.aligned(p, off):
		return d.writeBlocks(p, off)
	}
	return d.writePieces(p, off)
}

// writeBlocks writes p, aligned in every respect, by direct I/O.
func (d *Disk) writeBlocks(p []byte, off int64) (int, error) {
	if d.hasTail() {
		d.edge.RLock()
		defer d.edge.RUnlock()
	}
	return writeFull(d.fdDirect, p, off)
}

// writePieces cuts a write that is not aligned into whole direct blocks, which
// are written as they are or copied to an aligned buffer, and parts of one.
func (d *Disk) writePieces(p []byte, off int64) (int, error) {
	mask := d.align - 1
	done := 0
	for done < len(p) {
		rest, at := p[done:], off+int64(done)
		var n int
		var err error
		switch {
		case at >= d.end:
			n, err = d.writeTail(rest, at)
		case at&mask != 0 || int64(len(rest)) < d.align:
			n, err = d.writePart(rest[:min(int64(len(rest)), d.align-at&mask)], at)
		case d.alignedAddr(rest):
			n, err = d.writeBlocks(rest[:min(int64(len(rest))&^mask, d.end-at)], at)
		default:
			n, err = d.writeCopied(rest[:min(int64(len(rest))&^mask, d.end-at, bounceMax)], at)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeCopied writes whole blocks from memory that is not aligned.
func (d *Disk) writeCopied(p []byte, off int64) (int, error) {
	buf := getBuf(len(p))
	defer buf.put()
	copy(buf.b, p)
	return d.writeBlocks(buf.b, off)
}

// writePart replaces part of one direct block: it is read, changed and written,
// and no other part of it may be written meanwhile.
func (d *Disk) writePart(p []byte, off int64) (int, error) {
	start := off &^ (d.align - 1)
	buf := getBuf(int(d.align))
	defer buf.put()
	d.edge.Lock()
	defer d.edge.Unlock()
	if _, err := d.readBlocks(buf.b, start, len(buf.b)); err != nil {
		return 0, err
	}
	copy(buf.b[off-start:], p)
	if n, err := writeFull(d.fdDirect, buf.b, start); err != nil {
		return max(0, min(len(p), n-int(off-start))), err
	}
	return len(p), nil
}

// writeTail writes behind the last whole block, where direct I/O would make the
// file longer. Nothing is left dirty in the page cache when it returns, so no
// direct write meets it there.
func (d *Disk) writeTail(p []byte, off int64) (int, error) {
	d.edge.Lock()
	defer d.edge.Unlock()
	n, err := writeFull(d.fdBuf, p, off)
	if err != nil {
		return n, err
	}
	if err := d.evict(off, int64(n)); err != nil {
		return 0, err
	}
	return n, nil
}

// writeBuffered writes through the page cache and starts the write-back at once,
// so that dirty pages do not pile up until Sync.
func (d *Disk) writeBuffered(p []byte, off int64) (int, error) {
	n, err := writeFull(d.fdBuf, p, off)
	if err == nil && !d.memory {
		// Only a start: what goes wrong in it is reported by Sync.
		_ = unix.SyncFileRange(d.fdBuf, off, int64(n), unix.SYNC_FILE_RANGE_WRITE)
	}
	return n, err
}

// writeFull writes all of p or says why not.
func writeFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(fd, p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrShortWrite
		}
		done += n
	}
	return done, nil
}
