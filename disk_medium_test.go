package failback

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// TestCoherence writes through another descriptor's page cache and reads through
// a Disk, and the other way about, dirty pages included.
func TestCoherence(t *testing.T) {
	for _, k := range kinds {
		if k.name == "loop" || k.name == "loop-4096" {
			continue // a device's page cache is nobody's friend: see the next test
		}
		t.Run(k.name, func(t *testing.T) {
			const size = 256<<10 + 512
			path := k.open(t, size)
			d := openDisk(t, path, k.o)
			other, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for i, at := range []struct{ off, n int64 }{{0, size}, {5000, 300}, {4096, 8192}, {size - 700, 700}, {60 << 10, 70 << 10}} {
				want := noise(int(at.n), uint64(2*i))
				if _, err := other.WriteAt(want, at.off); err != nil {
					t.Fatal(err)
				}
				sameBytes(t, "written by another", mustRead(t, d.ReadAt, int(at.n), at.off), want)
				want = noise(int(at.n), uint64(2*i+1))
				mustWrite(t, d, want, at.off)
				sameBytes(t, "read by another", mustRead(t, other.ReadAt, int(at.n), at.off), want)
				mustRead(t, d.ReadAt, size, 0)
			}
		})
	}
}

// TestDeviceNotFromPageCache changes what lies under a device behind its back:
// its page cache goes on showing the old bytes, a Disk must not.
func TestDeviceNotFromPageCache(t *testing.T) {
	backing := makeNoise(t, filepath.Join(t.TempDir(), "back"), 64<<10, 1)
	path := looptest.Attach(t, backing, looptest.Options{}).Path
	cache, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	mustRead(t, cache.ReadAt, 64<<10, 0)
	fresh := noise(64<<10, 2)
	overwrite(t, backing, fresh, 0)
	if stale := mustRead(t, cache.ReadAt, 64<<10, 0); bytes.Equal(stale, fresh) {
		t.Skip("needs a page cache that keeps the old bytes; this one did not")
	}
	d := openDisk(t, path, OpenOptions{})
	sameBytes(t, "read", mustRead(t, d.ReadAt, 64<<10, 0), fresh)
	sameBytes(t, "unaligned read", mustRead(t, d.ReadAt, 1000, 77), fresh[77:1077])
	sameBytes(t, "medium", mustRead(t, d.ReadMediumAt, 64<<10, 0), fresh)
}

// overwrite writes into an existing file, durably.
func overwrite(t testing.TB, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestReadMediumSeesTheMedium (L7) spoils the medium under a file whose good
// bytes are all in the page cache. Only a read from the medium finds out.
func TestReadMediumSeesTheMedium(t *testing.T) {
	for _, c := range []struct {
		kind   string
		size   int64
		change func(*Disk)
		o      OpenOptions
	}{
		{"ext4", 64 << 20, nil, OpenOptions{Write: true}},
		{"ext4", 64 << 20, nil, OpenOptions{Write: true, Buffered: true}},
		{"ext4", 64 << 20, func(d *Disk) { d.noTail, d.honest = true, false }, OpenOptions{Write: true}},
		{"xfs", 320 << 20, nil, OpenOptions{Write: true}},
		{"xfs", 320 << 20, nil, OpenOptions{Write: true, Buffered: true}},
	} {
		t.Run(fmt.Sprintf("%s,buffered=%v,changed=%v", c.kind, c.o.Buffered, c.change != nil), func(t *testing.T) {
			const size = 6<<20 + 512 // several of the largest folios, and a tail
			dir, backing := fileSystem(t, c.kind, c.size, looptest.Options{Sector: 4096})
			path := makeFile(t, filepath.Join(dir, "volume"), size)
			d := openDisk(t, path, c.o)
			if c.change != nil {
				c.change(d)
			}
			good := noise(size, 1)
			mustWrite(t, d, good, 0)
			mustSync(t, d)
			sameBytes(t, "good medium", mustRead(t, d.ReadMediumAt, size, 0), good)

			cache, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer cache.Close()
			held, release := lockPages(t, cache, size)
			for _, at := range []int64{0, 3<<20 + 4096, size - 512} {
				spoil(t, backing, good[at:at+512])
			}
			sameBytes(t, "from the page cache", held, good)
			release()
			for _, at := range []int64{0, 3<<20 + 4096, size - 512} {
				mustRead(t, cache.ReadAt, size, 0)
				if got := mustRead(t, d.ReadMediumAt, 512, at); bytes.Equal(got, good[at:at+512]) {
					t.Errorf("at %d: read the page cache, not the medium", at)
				}
				mustRead(t, cache.ReadAt, size, 0)
				if got := mustRead(t, d.ReadMediumAt, size, 0); bytes.Equal(got[at:at+512], good[at:at+512]) {
					t.Errorf("at %d of all: read the page cache, not the medium", at)
				}
			}
		})
	}
}

// lockPages brings a file's pages into the page cache and keeps them there, also
// when memory is short, until release.
func lockPages(t *testing.T, f *os.File, size int) (held []byte, release func()) {
	t.Helper()
	held, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	release = func() {
		if held == nil {
			return
		}
		if err := unix.Munmap(held); err != nil {
			t.Error(err)
		}
		held = nil
	}
	t.Cleanup(release)
	if err := unix.Mlock(held); err != nil {
		t.Fatal(err)
	}
	return held, release
}

// spoil finds bytes in the file behind a file system and inverts them there.
func spoil(t *testing.T, backing string, sector []byte) {
	t.Helper()
	all, err := os.ReadFile(backing)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(all, sector)
	if at < 0 {
		t.Fatal("what was synced is not on the medium")
	}
	bad := make([]byte, len(sector))
	for i := range bad {
		bad[i] = ^sector[i]
	}
	overwrite(t, backing, bad, int64(at))
}

// TestReadLeavesPageCacheAlone counts cached pages around reads.
func TestReadLeavesPageCacheAlone(t *testing.T) {
	const size = 8 << 20
	for _, o := range []OpenOptions{{}, {Buffered: true}} {
		t.Run(fmt.Sprintf("buffered=%v", o.Buffered), func(t *testing.T) {
			path := makeNoise(t, filepath.Join(t.TempDir(), "volume"), size, 1)
			d := openDisk(t, path, o)
			if !o.Buffered && !d.Direct() {
				t.Skip("needs direct I/O on " + path)
			}
			if err := unix.Fsync(d.fdBuf); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fadvise(d.fdBuf, 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			if n := cachedPages(t, d.fdBuf); n != 0 {
				t.Skipf("needs a page cache that can be emptied; %d pages stay", n)
			}
			for off := int64(0); off < size; off += 256 << 10 {
				mustRead(t, d.ReadAt, 256<<10, off)
				mustRead(t, d.ReadMediumAt, 256<<10, off)
			}
			// The last read from the medium of a file without direct I/O stays.
			if n := cachedPages(t, d.fdBuf); n > (256<<10)/int64(pageSize) {
				t.Errorf("%d pages came into the page cache", n)
			}
			// What others keep there stays. A machine short of memory may take pages
			// at any moment, though hardly each time.
			var had, now int64
			for range 5 {
				if _, err := unix.Pread(d.fdBuf, make([]byte, 1<<20), 0); err != nil {
					t.Fatal(err)
				}
				had = cachedPages(t, d.fdBuf)
				mustRead(t, d.ReadAt, size, 0)
				if now = cachedPages(t, d.fdBuf); now >= had {
					break
				}
			}
			if now < had {
				t.Errorf("%d pages were cached, now %d", had, now)
			}
		})
	}
}

func cachedPages(t *testing.T, fd int) int64 {
	t.Helper()
	n, _, err := pagesCached(fd, 0, math.MaxInt64-int64(pageSize))
	if err != nil {
		t.Skipf("needs cachestat (Linux 6.5): %v", err)
	}
	return n
}
