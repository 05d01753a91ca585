package failback

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
)

const maxAllocated = 65536 // ranges that Allocated returns at most

// Allocated returns the ranges of a regular file that the file system stores,
// found by SEEK_DATA and SEEK_HOLE; a file system that does not tell, and a block
// device, give the whole volume. At most 65536 ranges come back: beyond that the
// nearest are joined. Cost: two system calls for each range of the file.
func (d *Disk) Allocated(ctx context.Context) ([]cbt.Extent, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.leave()
	whole := []cbt.Extent{{Off: 0, End: d.size}}
	if d.block {
		return whole, nil
	}
	list, err := dataRanges(ctx, d.size, maxAllocated, d.seek)
	if err != nil {
		if unsupported(err) {
			return whole, nil
		}
		return nil, fmt.Errorf("list allocated ranges of %s: %w", d.path, err)
	}
	return list, nil
}

// reserve has the file system set space aside for the n bytes at off where it stores
// nothing yet, so that writing them does not fail for want of it. They read as before;
// the time of the file's last change is another one. A device, and a file system that
// does not do that, are not asked. Cost: one system call where all is stored, else two.
func (d *Disk) reserve(off, n int64) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if d.block {
		return nil
	}
	if err := d.checkWrite("reserve", off, n); err != nil {
		return err
	}
	if hole, err := d.seek(off, unix.SEEK_HOLE); err == nil && hole >= off+n {
		return nil
	}
	err := again(func() error { return unix.Fallocate(d.fdBuf, unix.FALLOC_FL_KEEP_SIZE, off, n) })
	if err == nil || unsupported(err) {
		return nil
	}
	return d.ioError("reserve", off, int(n), err)
}

// dataRanges walks a file of size bytes by seek, which is lseek. It returns at
// most limit ranges and never holds more than twice as many.
func dataRanges(ctx context.Context, size int64, limit int, seek func(off int64, whence int) (int64, error)) ([]cbt.Extent, error) {
	var list []cbt.Extent
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		data, err := seek(at, unix.SEEK_DATA)
		if err == unix.ENXIO || err == nil && data >= size {
			break // nothing but a hole follows
		}
		if err != nil {
			return nil, err
		}
		hole, err := seek(data, unix.SEEK_HOLE)
		switch {
		case err == unix.ENXIO:
			return nil, fmt.Errorf("the file has shrunk to below %d bytes", data+1)
		case err != nil:
			return nil, err
		case data >= at && hole == data:
			// Somebody has punched it out between the two calls: what is at data
			// reads as zeroes now.
			at = data + 1
			continue
		case data < at || hole < data:
			return nil, fmt.Errorf("at offset %d the file system says data at %d, hole at %d", at, data, hole)
		}
		hole = min(hole, size)
		if k := len(list) - 1; k >= 0 && list[k].End == data {
			list[k].End = hole // filled between the two calls
		} else {
			list = append(list, cbt.Extent{Off: data, End: hole})
		}
		if len(list) >= 2*limit {
			list = cbt.Coarsen(list, limit)
		}
		at = hole
	}
	return cbt.Coarsen(list, limit), nil
}

// seek is lseek. It moves the offset of the descriptor, which nothing here uses:
// all I/O names its offset.
func (d *Disk) seek(off int64, whence int) (int64, error) {
	var at int64
	err := again(func() (err error) {
		at, err = unix.Seek(d.fdBuf, off, whence)
		return err
	})
	return at, err
}
