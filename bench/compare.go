package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
)

// chunk is what one read of the checks takes, in bytes.
const chunk = 1 << 20

// differing compares two files of the same size and returns the 4 KiB pieces that differ, merged into extents.
// It reads both files once, on all cores, through the page cache.
func differing(ctx context.Context, a, b string) ([]cbt.Extent, error) {
	var (
		mu  sync.Mutex
		out []cbt.Extent
	)
	size, err := sameSize(a, b)
	if err != nil {
		return nil, err
	}
	err = eachChunk(ctx, []string{a, b}, size, func(off int64, data [][]byte) error {
		if bytes.Equal(data[0], data[1]) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < len(data[0]); i += piece {
			end := min(i+piece, len(data[0]))
			if !bytes.Equal(data[0][i:end], data[1][i:end]) {
				out = append(out, cbt.Extent{Off: off + int64(i), End: off + int64(end)})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare %s with %s: %w", a, b, err)
	}
	return cbt.Normalize(out), nil
}

func sameSize(a, b string) (int64, error) {
	x, err := os.Stat(a)
	if err != nil {
		return 0, err
	}
	y, err := os.Stat(b)
	if err != nil {
		return 0, err
	}
	if x.Size() != y.Size() {
		return 0, fmt.Errorf("compare %s with %s: sizes differ: %d and %d bytes", a, b, x.Size(), y.Size())
	}
	return x.Size(), nil
}

// eachChunk reads the same range of every file and hands it to f, on all cores and in no order. data is reused.
func eachChunk(ctx context.Context, paths []string, size int64, f func(off int64, data [][]byte) error) error {
	files := make([]*os.File, len(paths))
	for i, p := range paths {
		fd, err := os.Open(p)
		if err != nil {
			return err
		}
		defer fd.Close()
		files[i] = fd
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			data := make([][]byte, len(files))
			for i := range data {
				data[i] = make([]byte, chunk)
			}
			for ctx.Err() == nil {
				off := next.Add(chunk) - chunk
				if off >= size {
					return nil
				}
				n := min(chunk, size-off)
				for i, fd := range files {
					data[i] = data[i][:n]
					if _, err := fd.ReadAt(data[i], off); err != nil {
						return fmt.Errorf("read at %#x: %w", off, err)
					}
				}
				if err := f(off, data); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// digestFile returns the SHA-256 of a file and how many of its bytes are in all-zero pieces.
func digestFile(ctx context.Context, path string) (sum [32]byte, zero int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, 0, err
	}
	defer f.Close()
	h := sha256.New()
	buf, empty := make([]byte, chunk), make([]byte, piece)
	for ctx.Err() == nil {
		n, err := io.ReadFull(f, buf)
		for i := 0; i < n; i += piece {
			if p := buf[i:min(i+piece, n)]; bytes.Equal(p, empty[:len(p)]) {
				zero += int64(len(p))
			}
		}
		h.Write(buf[:n])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return [32]byte(h.Sum(nil)), zero, nil
		}
		if err != nil {
			return sum, 0, err
		}
	}
	return sum, 0, ctx.Err()
}
