package failback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// kinds are the volumes that every general test runs on.
var kinds = []struct {
	name   string
	open   func(t *testing.T, size int64) string // makes a volume of that size
	o      OpenOptions
	sector int64 // sizes are multiples of this
	direct bool
}{
	{"file", plainFile, OpenOptions{Write: true}, 512, true},
	{"file-buffered", plainFile, OpenOptions{Write: true, Buffered: true}, 512, false},
	{"tmpfs", tmpfsFile, OpenOptions{Write: true}, 512, false},
	{"loop", loopOf(512), OpenOptions{Write: true}, 512, true},
	{"loop-4096", loopOf(4096), OpenOptions{Write: true, Buffered: true}, 4096, true},
	{"ext4-4096", fileOn("ext4", 64<<20), OpenOptions{Write: true}, 512, true},
	{"xfs-4096", fileOn("xfs", 320<<20), OpenOptions{Write: true}, 512, true},
	{"btrfs", fileOn("btrfs", 128<<20), OpenOptions{Write: true}, 512, true},
}

func plainFile(t *testing.T, size int64) string {
	return makeFile(t, filepath.Join(t.TempDir(), "volume"), size)
}

func tmpfsFile(t *testing.T, size int64) string {
	return makeFile(t, filepath.Join(memoryDir(t), "volume"), size)
}

func loopOf(sector uint32) func(*testing.T, int64) string {
	return func(t *testing.T, size int64) string {
		path := looptest.Attach(t, makeFile(t, filepath.Join(scratch(t), "disk"), size), looptest.Options{Sector: sector}).Path
		return path
	}
}

func fileOn(kind string, size int64) func(*testing.T, int64) string {
	return func(t *testing.T, n int64) string {
		dir, _ := fileSystem(t, kind, size, looptest.Options{Sector: 4096})
		return makeFile(t, filepath.Join(dir, "volume"), n)
	}
}

// TestDiskAgainstSlice does the same random reads, writes and zeroings on a
// volume and on a byte slice, aligned and not, in all sizes.
func TestDiskAgainstSlice(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			for _, size := range []int64{512, 64<<10 + 512, 2<<20 + 8192, 2<<20 + 8192 - 512} {
				if size%k.sector == 0 {
					path := k.open(t, size)
					d := openDisk(t, path, k.o)
					if d.Size() != size {
						t.Fatalf("size %d, want %d", d.Size(), size)
					}
					if k.name != "file" && d.Direct() != k.direct { // "file" is on whatever the machine has
						t.Errorf("direct I/O: %v, want %v", d.Direct(), k.direct)
					}
					randomWalk(t, d, 50)
				}
			}
		})
	}
}

// TestDiskPoorFileSystem takes away what file systems here have and others lack.
func TestDiskPoorFileSystem(t *testing.T) {
	for name, worsen := range map[string]func(*Disk){
		"no direct read of the tail":    func(d *Disk) { d.noTail = true },
		"no question to the page cache": func(d *Disk) { d.cached = false },
		"direct reads may be cached":    func(d *Disk) { d.honest = false },
		"no holes":                      func(d *Disk) { d.noPunch.Store(true) },
		"alignment of a page":           func(d *Disk) { d.align, d.mem = 4096, 4096; d.end = d.size &^ 4095 },
		"all of it": func(d *Disk) {
			d.noTail, d.cached, d.honest = true, false, false
			d.noPunch.Store(true)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int64{512, 1<<20 + 512} {
				d := openDisk(t, fileOn("ext4", 64<<20)(t, size), OpenOptions{Write: true})
				worsen(d)
				randomWalk(t, d, 30)
			}
		})
	}
	t.Run("device without offload", func(t *testing.T) {
		for _, sector := range []uint32{512, 4096} {
			d := openDisk(t, loopOf(sector)(t, 64<<10), OpenOptions{Write: true})
			d.noPunch.Store(true)
			randomWalk(t, d, 30)
			d = openDisk(t, loopOf(sector)(t, 64<<10), OpenOptions{Write: true})
			d.noPunch.Store(true)
			d.noZeroOut.Store(true)
			randomWalk(t, d, 30)
		}
	})
}

func randomWalk(t *testing.T, d *Disk, steps int) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(d.Size()), 7))
	want := make([]byte, d.Size())
	for i := range steps {
		off := r.Int64N(d.Size())
		n := 1 + r.Int64N(min(d.Size()-off, 1200<<10))
		if r.IntN(3) == 0 { // on the grain of most callers
			off &^= 4095
			n = min((n+4095)&^4095, d.Size()-off)
		}
		p := shifted(int(n), r.IntN(3)*r.IntN(600))
		switch what := r.IntN(6); what {
		case 0, 1:
			copy(p, noise(int(n), uint64(i)))
			mustWrite(t, d, p, off)
			copy(want[off:], p)
		case 2:
			if err := d.ZeroAt(off, n); err != nil {
				t.Fatal(err)
			}
			clear(want[off : off+n])
		case 3:
			mustSync(t, d)
			if got, err := d.ReadMediumAt(p, off); err != nil || got != len(p) {
				t.Fatalf("read medium: %d, %v", got, err)
			}
			sameBytes(t, "read from the medium", p, want[off:off+n])
		default:
			if got, err := d.ReadAt(p, off); err != nil || got != len(p) {
				t.Fatalf("read: %d, %v", got, err)
			}
			sameBytes(t, "read", p, want[off:off+n])
		}
	}
	mustSync(t, d)
	sameBytes(t, "whole volume", mustRead(t, d.ReadAt, len(want), 0), want)
	sameBytes(t, "whole medium", mustRead(t, d.ReadMediumAt, len(want), 0), want)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(d.String())
	if err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "after close", got, want)
}

// TestDiskManyAtOnce has writers whose ranges share blocks, pages and the tail.
func TestDiskManyAtOnce(t *testing.T) {
	const writers, stripe = 8, 1000 // bytes; no multiple of any block
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			size := int64(256<<10+512) &^ (k.sector - 1)
			d := openDisk(t, k.open(t, size), k.o)
			want := noise(int(size), 1)
			var group sync.WaitGroup
			for w := range writers {
				group.Go(func() {
					for off := int64(w * stripe); off < size; off += writers * stripe {
						n := min(stripe, size-off)
						if _, err := d.WriteAt(want[off:off+n], off); err != nil {
							t.Error(err)
							return
						}
						got := make([]byte, n)
						if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+n]) {
							t.Errorf("at %d: own bytes not read back: %v", off, err)
							return
						}
					}
				})
			}
			group.Wait()
			mustSync(t, d)
			sameBytes(t, "all stripes", mustRead(t, d.ReadAt, len(want), 0), want)
			sameBytes(t, "medium", mustRead(t, d.ReadMediumAt, len(want), 0), want)
		})
	}
}

func TestDiskBounds(t *testing.T) {
	for _, k := range kinds[:4] {
		t.Run(k.name, func(t *testing.T) {
			const size = 8192
			d := openDisk(t, k.open(t, size), k.o)
			p := make([]byte, 1024)
			for _, c := range []struct {
				off int64
				n   int
				err error
			}{{size - 100, 100, io.EOF}, {size, 0, io.EOF}, {size + 5000, 0, io.EOF}, {size - 1024, 1024, nil}, {-1, 0, fs.ErrInvalid}} {
				for _, read := range []func([]byte, int64) (int, error){d.ReadAt, d.ReadMediumAt} {
					if n, err := read(p, c.off); n != c.n || !errors.Is(err, c.err) {
						t.Errorf("read 1024 at %d: %d, %v; want %d, %v", c.off, n, err, c.n, c.err)
					}
				}
			}
			if n, err := d.ReadAt(nil, 0); n != 0 || err != nil {
				t.Errorf("read of nothing: %d, %v", n, err)
			}
			for _, off := range []int64{-1, size, size - 1023, 1 << 62} {
				if n, err := d.WriteAt(p, off); n != 0 || !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("write 1024 at %d: %d, %v", off, n, err)
				}
				if err := d.ZeroAt(off, 1024); !errors.Is(err, fs.ErrInvalid) {
					t.Errorf("zero 1024 at %d: %v", off, err)
				}
			}
			if err := d.ZeroAt(0, -1); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("zero -1: %v", err)
			}
			if err := errors.Join(d.ZeroAt(size, 0), d.Sync()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDiskReadOnly(t *testing.T) {
	d := openDisk(t, plainFile(t, 4096), OpenOptions{})
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("write: %v", err)
	}
	if err := d.ZeroAt(0, 512); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("zero: %v", err)
	}
	if err := d.Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
}

func TestDiskShrunk(t *testing.T) {
	for _, o := range []OpenOptions{{}, {Buffered: true}} {
		path := makeNoise(t, filepath.Join(t.TempDir(), "volume"), 64<<10, 1)
		d := openDisk(t, path, o)
		if err := os.Truncate(path, 10<<10); err != nil {
			t.Fatal(err)
		}
		for _, read := range []func([]byte, int64) (int, error){d.ReadAt, d.ReadMediumAt} {
			for _, off := range []int64{0, 8192, 32 << 10} {
				if n, err := read(make([]byte, 32<<10), off); !errors.Is(err, io.ErrUnexpectedEOF) || n == 32<<10 {
					t.Errorf("read at %d of a file that has shrunk: %d, %v", off, n, err)
				}
			}
		}
	}
}

// TestDiskMediumError cuts the file behind a device off: half of it is unreadable.
func TestDiskMediumError(t *testing.T) {
	backing := makeNoise(t, filepath.Join(scratch(t), "disk"), 64<<10, 1)
	path := looptest.Attach(t, backing, looptest.Options{}).Path
	d := openDisk(t, path, OpenOptions{Write: true})
	if err := os.Truncate(backing, 32<<10); err != nil {
		t.Fatal(err)
	}
	mustRead(t, d.ReadAt, 16<<10, 0)
	for what, read := range map[string]func([]byte, int64) (int, error){"read ": d.ReadAt, "read medium of ": d.ReadMediumAt} {
		for _, at := range []struct{ off, n int }{{40 << 10, 8 << 10}, {40<<10 + 3, 50}} {
			n, err := read(shifted(at.n, 0), int64(at.off))
			want := fmt.Sprintf("%s%s at offset %d, %d bytes: ", what, path, at.off, at.n)
			if n != 0 || !errors.Is(err, unix.EIO) || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%d, %v; want it to begin %q", n, err, want)
			}
		}
	}
	// Part of a block cannot be written where the rest of it cannot be read.
	if n, err := d.WriteAt(make([]byte, 100), 40<<10); n != 0 || !errors.Is(err, unix.EIO) {
		t.Errorf("write of part of a block: %d, %v", n, err)
	}
}

func TestDiskClose(t *testing.T) {
	before := openDescriptors(t)
	d, err := Open(plainFile(t, 1<<20), OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	var group, started sync.WaitGroup
	for range 4 {
		started.Add(1)
		group.Go(func() {
			p := make([]byte, 8192)
			_, err := d.ReadAt(p, 0)
			started.Done()
			for ; err == nil; _, err = d.ReadAt(p, 4096) {
			}
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("read while closing: %v", err)
			}
		})
	}
	started.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	group.Wait()
	_, werr := d.WriteAt(make([]byte, 512), 0)
	_, merr := d.ReadMediumAt(make([]byte, 512), 0)
	_, aerr := d.Allocated(t.Context())
	for _, err := range []error{d.Close(), werr, merr, aerr, d.Sync(), d.ZeroAt(0, 512)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("use after close: %v", err)
		}
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("needs /proc: %v", err)
	}
	return len(list)
}

// TestDiskSyncSticks checks that one failed Sync is never followed by a good one.
func TestDiskSyncSticks(t *testing.T) {
	d := openDisk(t, plainFile(t, 4096), OpenOptions{Write: true})
	good := d.fdBuf
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	d.fdBuf = pipe[0] // a thing that cannot be synced
	first := d.Sync()
	d.fdBuf = good
	if second := d.Sync(); first == nil || second == nil || first.Error() != second.Error() {
		t.Errorf("sync: first %v, then %v", first, second)
	}
}

func TestDiskAllocatesNothing(t *testing.T) {
	if raceBuild {
		t.Skip("the race detector allocates")
	}
	for _, k := range kinds[:5] {
		t.Run(k.name, func(t *testing.T) {
			d := openDisk(t, k.open(t, 1<<20), k.o)
			buf := getBuf(64 << 10)
			defer buf.put()
			for what, f := range map[string]func([]byte, int64) (int, error){
				"read": d.ReadAt, "read medium": d.ReadMediumAt, "write": d.WriteAt,
			} {
				n := testing.AllocsPerRun(20, func() {
					if _, err := f(buf.b, 64<<10); err != nil {
						t.Fatal(err)
					}
				})
				if n != 0 {
					t.Errorf("%s: %v allocations per call", what, n)
				}
			}
		})
	}
}
