// Package floor measures how fast this machine can do what every program that brings a volume in line must do, and nothing
// else: read, hash, send, write, sync. What failback needs on top of a floor is its own.
//
// Read it in this order: [Send] (what differs is known), [Hash] (nothing is known), [Copy] and [ReadBack].
package floor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
)

// sector is what offsets and lengths past the page cache are multiples of, in bytes: enough for every device.
const sector = 4 << 10

// chunk is the most that is read, sent or written at once, in bytes.
const chunk = 1 << 20

// A Result is what a loop took.
type Result struct {
	Seconds     float64 `json:"seconds"`      // all of it, until it is durable where it writes
	SyncSeconds float64 `json:"sync_seconds"` // of that, in the last fsync
	Bytes       int64   `json:"bytes"`        // read, copied or sent, before compression
	WireBytes   int64   `json:"wire_bytes"`   // what went through the socket, where there is one
	Sum         uint64  `json:"sum"`          // folds what was hashed, where something was
}

// openRead opens a file for reading, past the page cache where direct is set, and returns its size.
func openRead(path string, direct bool) (*os.File, int64, error) {
	flag := os.O_RDONLY
	if direct {
		flag |= unix.O_DIRECT
	}
	f, err := os.OpenFile(path, flag, 0)
	if direct && errors.Is(err, unix.EINVAL) {
		return nil, 0, fmt.Errorf("open %s: no O_DIRECT on this file system", path)
	}
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, fi.Size(), nil
}

// alignedBuffer returns n bytes at an address that O_DIRECT takes.
func alignedBuffer(n int) []byte {
	b := make([]byte, n+sector)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (sector - 1))
	return b[skip : skip+n : skip+n]
}

// split cuts extents so that none is longer than limit bytes.
func split(x []cbt.Extent, limit int64) []cbt.Extent {
	var out []cbt.Extent
	for _, e := range x {
		for off := e.Off; off < e.End; off += limit {
			out = append(out, cbt.Extent{Off: off, End: min(off+limit, e.End)})
		}
	}
	return out
}

// Copy copies the extents, or all where there are none, from source to target on all cores: read, write, fsync.
func Copy(ctx context.Context, source, target string, extents []cbt.Extent) (Result, error) {
	start := time.Now()
	src, size, err := openRead(source, false)
	if err != nil {
		return Result{}, err
	}
	defer src.Close()
	dst, err := os.OpenFile(target, os.O_WRONLY, 0)
	if err != nil {
		return Result{}, err
	}
	defer dst.Close()
	if extents == nil {
		extents = []cbt.Extent{{Off: 0, End: size}}
	}
	err = eachExtent(ctx, extents, runtime.GOMAXPROCS(0), func(e cbt.Extent, buf []byte) error {
		if _, err := src.ReadAt(buf, e.Off); err != nil {
			return err
		}
		_, err := dst.WriteAt(buf, e.Off)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("copy %s to %s: %w", source, target, err)
	}
	r := Result{Bytes: cbt.Total(extents)}
	return r, r.finish(dst, start)
}

// finish syncs what was written and takes both times.
func (r *Result) finish(dst *os.File, start time.Time) error {
	before := time.Now()
	if err := dst.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dst.Name(), err)
	}
	r.SyncSeconds, r.Seconds = time.Since(before).Seconds(), time.Since(start).Seconds()
	return nil
}

// ReadBack reads the extents from the medium, past the page cache: what proving a result costs at least.
func ReadBack(ctx context.Context, path string, extents []cbt.Extent) (Result, error) {
	start := time.Now()
	fd, size, err := openRead(path, true)
	if err != nil {
		return Result{}, err
	}
	defer fd.Close()
	if n := len(extents); n > 0 && extents[n-1].End > size {
		return Result{}, fmt.Errorf("read back %s: %v is not within its %d bytes", path, extents[n-1], size)
	}
	err = eachExtent(ctx, cbt.Align(extents, sector, size), directReaders, func(e cbt.Extent, buf []byte) error {
		_, err := fd.ReadAt(buf, e.Off)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("read back %s: %w", path, err)
	}
	return Result{Seconds: time.Since(start).Seconds(), Bytes: cbt.Total(extents)}, nil
}

// eachExtent calls f from n goroutines, at most one chunk at a time; buf is aligned and as long as the extent.
func eachExtent(ctx context.Context, x []cbt.Extent, n int, f func(e cbt.Extent, buf []byte) error) error {
	x = split(x, chunk)
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(n, max(len(x), 1)) {
		g.Go(func() error {
			buf := alignedBuffer(chunk)
			for ctx.Err() == nil {
				i := int(next.Add(1) - 1)
				if i >= len(x) {
					return nil
				}
				if err := f(x[i], buf[:x[i].Len()]); err != nil {
					return fmt.Errorf("at %v: %w", x[i], err)
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}
