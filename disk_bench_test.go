package failback

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkReadAt reads 256 KiB and 4 KiB pieces in order, from the page cache
// and past it; "pread" is the bare system call beside it, so that the difference
// is what Disk adds.
func BenchmarkReadAt(b *testing.B) {
	const size = 64 << 20
	path := makeNoise(b, filepath.Join(b.TempDir(), "volume"), size, 1)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	d := openDisk(b, path, OpenOptions{})
	if !d.Direct() {
		b.Skip("needs direct I/O on " + path)
	}
	readers := []struct {
		name string
		warm bool
		read func([]byte, int64) (int, error)
	}{
		{"cached", true, d.ReadAt},
		{"cached-pread", true, func(p []byte, off int64) (int, error) { return unix.Pread(d.fdBuf, p, off) }},
		{"direct", false, d.ReadAt},
		{"medium", false, d.ReadMediumAt},
		{"direct-pread", false, func(p []byte, off int64) (int, error) { return unix.Pread(d.fdDirect, p, off) }},
	}
	for _, n := range []int{256 << 10, 4 << 10} {
		for _, r := range readers {
			b.Run(fmt.Sprintf("%s/%dKiB", r.name, n>>10), func(b *testing.B) {
				if err := unix.Fadvise(d.fdBuf, 0, 0, unix.FADV_DONTNEED); err != nil {
					b.Fatal(err)
				}
				buf := getBuf(max(n, 1<<20))
				defer buf.put()
				if r.warm {
					for off := int64(0); off < size; off += 1 << 20 {
						mustRead(b, f.ReadAt, 1<<20, off)
					}
				}
				b.SetBytes(int64(n))
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if _, err := r.read(buf.b[:n], off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(n)) % size
				}
			})
		}
	}
}
