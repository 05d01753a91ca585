package failback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/looptest"
)

// TestZeroAtStaysSparse compares what is stored before and after.
func TestZeroAtStaysSparse(t *testing.T) {
	const size = 16 << 20
	for _, k := range kinds[:6] {
		t.Run(k.name, func(t *testing.T) {
			path := k.open(t, size)
			stored := path
			if d := openDisk(t, path, OpenOptions{}); d.block {
				l, ok := thisHost.loop(filepath.Base(path))
				if !ok {
					t.Fatal("not a loop device in use")
				}
				stored = l.backing
			}
			d := openDisk(t, path, k.o)
			empty := storedBlocks(t, stored)
			for _, at := range []struct{ off, n int64 }{{0, size}, {4096, 8 << 20}, {100, 1 << 20}, {size - 512, 512}} {
				if err := d.ZeroAt(at.off, at.n); err != nil {
					t.Fatal(err)
				}
			}
			mustSync(t, d)
			// Edges of a device are written, a block each at most.
			if now := storedBlocks(t, stored); now > empty+64 {
				t.Errorf("zeroing nothing stored %d blocks, before %d", now, empty)
			}
			mustWrite(t, d, noise(size, 1), 0)
			mustSync(t, d)
			full := storedBlocks(t, stored)
			if err := d.ZeroAt(1<<20, 8<<20); err != nil {
				t.Fatal(err)
			}
			mustSync(t, d)
			if now := storedBlocks(t, stored); now > full-(7<<20)/512 {
				t.Errorf("%d blocks stored after zeroing 8 MiB, %d before", now, full)
			}
			if !allZero(mustRead(t, d.ReadMediumAt, 8<<20, 1<<20)) {
				t.Error("not zero")
			}
		})
	}
}

func TestAllocated(t *testing.T) {
	const size = 64 << 20
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			d := openDisk(t, k.open(t, size), k.o)
			if k.name != "btrfs" { // btrfs stores a small file's first bytes with its inode
				if list := allocated(t, d); !d.block && len(list) != 0 {
					t.Errorf("empty file: %v", list)
				}
			}
			at := []int64{0, 5<<20 + 700, 32 << 20, size - 4096}
			for _, off := range at {
				mustWrite(t, d, noise(4096, 1), off)
			}
			list := allocated(t, d)
			if d.block {
				if want := []cbt.Extent{{Off: 0, End: size}}; !slices.Equal(list, want) {
					t.Errorf("%v, want %v", list, want)
				}
				return
			}
			for _, off := range at {
				if len(cbt.Subtract([]cbt.Extent{{Off: off, End: off + 4096}}, list)) != 0 {
					t.Errorf("data at %d is not in %v", off, list)
				}
			}
			if n := cbt.Total(list); n > 1<<20 {
				t.Errorf("%d bytes said to be stored, 16 KiB are", n)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		d := openDisk(t, makeNoise(t, filepath.Join(t.TempDir(), "volume"), 4096, 1), OpenOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := d.Allocated(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func allocated(t *testing.T, d *Disk) []cbt.Extent {
	t.Helper()
	list, err := d.Allocated(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(list, cbt.Normalize(slices.Clone(list))) {
		t.Fatalf("not normal: %v", list)
	}
	return list
}

// TestDataRanges walks made-up files: more ranges than the limit, ranges that
// change between two calls, file systems that lie or know nothing.
func TestDataRanges(t *testing.T) {
	const size = 1 << 30
	sparse := func(unit int64) func(int64, int) (int64, error) { // every other unit is stored
		return func(off int64, whence int) (int64, error) {
			i := off / unit
			stored := i%2 == 0
			if stored == (whence == unix.SEEK_DATA) {
				return off, nil
			}
			return (i + 1) * unit, nil
		}
	}
	t.Run("limit", func(t *testing.T) {
		list, err := dataRanges(t.Context(), size, 100, sparse(64<<10))
		if err != nil || len(list) > 100 || len(list) < 50 {
			t.Fatalf("%d ranges, %v", len(list), err)
		}
		for off := int64(0); off < size; off += 128 << 10 {
			if len(cbt.Subtract([]cbt.Extent{{Off: off, End: off + 64<<10}}, list)) != 0 {
				t.Fatalf("data at %d is missing (L1)", off)
			}
		}
	})
	t.Run("all", func(t *testing.T) {
		list, err := dataRanges(t.Context(), size, size/(128<<10), sparse(64<<10))
		if err != nil || cbt.Total(list) != size/2 {
			t.Fatalf("%d bytes, %v", cbt.Total(list), err)
		}
	})
	fixed := func(data, hole int64, err1, err2 error) func(int64, int) (int64, error) {
		return func(_ int64, whence int) (int64, error) {
			if whence == unix.SEEK_DATA {
				return data, err1
			}
			return hole, err2
		}
	}
	for name, c := range map[string]struct {
		seek func(int64, int) (int64, error)
		err  error // nil: any
	}{
		"backwards":     {fixed(-5, 10, nil, nil), nil},
		"hole first":    {fixed(4096, 100, nil, nil), nil},
		"shrunk":        {fixed(4096, 0, nil, unix.ENXIO), nil},
		"broken":        {fixed(0, 0, unix.EIO, nil), unix.EIO},
		"broken later":  {fixed(0, 0, nil, unix.EIO), unix.EIO},
		"not supported": {fixed(0, 0, unix.EINVAL, nil), unix.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			if list, err := dataRanges(t.Context(), size, 100, c.seek); err == nil || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
	t.Run("punched between", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		base := sparse(4096)
		list, err := dataRanges(t.Context(), 1<<20, 1000, func(off int64, whence int) (int64, error) {
			if whence == unix.SEEK_HOLE && off%4096 == 0 && r.IntN(2) == 0 {
				return off, nil
			}
			return base(off, whence)
		})
		if err != nil || !slices.Equal(list, cbt.Normalize(slices.Clone(list))) {
			t.Errorf("%v, %v", list, err)
		}
	})
}

// TestHugeSparse works at both ends of 16 TiB of which 4 KiB are stored.
func TestHugeSparse(t *testing.T) {
	const size = 16 << 40
	dir, _ := fileSystem(t, "xfs", 320<<20, looptest.Options{Sector: 4096})
	d := openDisk(t, makeFile(t, filepath.Join(dir, "volume"), size+512), OpenOptions{Write: true})
	last := noise(4096+512, 1)
	mustWrite(t, d, last, size-4096)
	mustSync(t, d)
	sameBytes(t, "end", mustRead(t, d.ReadMediumAt, len(last), size-4096), last)
	if list, want := allocated(t, d), []cbt.Extent{{Off: size - 4096, End: size + 512}}; !slices.Equal(list, want) {
		t.Errorf("allocated %v, want %v", list, want)
	}
	if err := d.ZeroAt(0, size+512); err != nil {
		t.Fatal(err)
	}
	if list := allocated(t, d); len(list) != 0 {
		t.Errorf("allocated after zeroing: %v", list)
	}
}

func TestFullFileSystem(t *testing.T) {
	dir, _ := fileSystem(t, "ext4", 16<<20, looptest.Options{})
	path := makeFile(t, filepath.Join(dir, "volume"), 64<<20)
	for _, o := range []OpenOptions{{Write: true}, {Write: true, Buffered: true}} {
		d := openDisk(t, path, o)
		_, err := d.WriteAt(noise(64<<20, 1), 0)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v", err)
		}
		if want := fmt.Sprintf("write %s at offset 0, %d bytes: ", path, 64<<20); err == nil || len(err.Error()) <= len(want) || err.Error()[:len(want)] != want {
			t.Errorf("message %q, want it to begin %q", err, want)
		}
		if err := errors.Join(d.ZeroAt(0, 64<<20), d.Close(), os.Truncate(path, 0), os.Truncate(path, 64<<20)); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Fatal(err)
		}
	}
}
