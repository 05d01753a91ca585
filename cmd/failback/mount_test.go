package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// smallFS is an ext4 of its own on a loop device.
type smallFS struct {
	dir, image string
	device     *looptest.Device
	mounted    bool
}

func newSmallFS(t *testing.T, size int64) *smallFS {
	t.Helper()
	return newSmallFSIn(t, t.TempDir(), size)
}

// newSmallFSIn has the file that it lies on in a directory.
func newSmallFSIn(t *testing.T, dir string, size int64) *smallFS {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4")
	}
	fs := &smallFS{dir: t.TempDir(), image: filepath.Join(dir, "fs.img")}
	write(t, fs.image, nil)
	if err := os.Truncate(fs.image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-q", "-F", "-m", "0", fs.image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	t.Cleanup(func() { fs.unmount(t) })
	fs.mount(t)
	return fs
}

func (fs *smallFS) path(name string) string { return filepath.Join(fs.dir, name) }

func (fs *smallFS) mount(t *testing.T) {
	t.Helper()
	if fs.device == nil {
		fs.device = looptest.Attach(t, fs.image, looptest.Options{})
	}
	if err := unix.Mount(fs.device.Path, fs.dir, "ext4", 0, ""); err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
			t.Skipf("needs mounts of ext4: %v", err)
		}
		t.Fatalf("mount %s: %v", fs.device.Path, err)
	}
	fs.mounted = true
}

// unmount does nothing where nothing is mounted. The device stays until the test
// ends: with another one the files would lie on another file system, and volumes
// over them be others.
func (fs *smallFS) unmount(t *testing.T) {
	t.Helper()
	if !fs.mounted {
		return
	}
	fs.mounted = false
	// A loop device that is detached lazily may hold its file for a moment.
	eventually(t, "the file system to be idle", func() bool { return unix.Unmount(fs.dir, 0) == nil })
}

// cutOff ends the file system as a disk does that is pulled out: what is asked
// of it from then on is an input/output error. See ext4_shutdown in Linux.
func (fs *smallFS) cutOff(t *testing.T) {
	t.Helper()
	d, err := os.Open(fs.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const shutdown, noLogFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(d.Fd()), shutdown, noLogFlush); err != nil {
		t.Skipf("needs an ext4 that can be shut down: %v", err)
	}
}

// sync makes durable what was written to it.
func (fs *smallFS) sync(t *testing.T) {
	t.Helper()
	d, err := os.Open(fs.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Fatal(err)
	}
}

// fill takes all the room that is left, and returns what gives it back. The
// file system keeps some room aside for what is not written out yet, so that it
// is full only when it is so right after a sync.
func (fs *smallFS) fill(t *testing.T) (makeRoom func()) {
	t.Helper()
	path := fs.path("filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for more := true; more; {
		more = false
		for n := 1 << 20; n >= 512; { // from large to small, so that nothing is left over
			if _, err := f.Write(make([]byte, n)); err == nil {
				more = true
				continue
			} else if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			n /= 2
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// leave gives back some of the room that fill took, bytes.
func (fs *smallFS) leave(t *testing.T, room int64) {
	t.Helper()
	info, err := os.Stat(fs.path("filler"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(fs.path("filler"), info.Size()-room); err != nil {
		t.Fatal(err)
	}
}
