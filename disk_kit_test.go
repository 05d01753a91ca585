package failback

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// The stage for tests with real devices. Everything set up here is taken down
// by t.Cleanup.

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to set up loop devices and mounts")
	}
}

func needTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
}

// makeFile makes a sparse file.
func makeFile(t testing.TB, path string, size int64) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// makeNoise makes a file of bytes that depend on seed only.
func makeNoise(t testing.TB, path string, size int64, seed uint64) string {
	t.Helper()
	if err := os.WriteFile(path, noise(int(size), seed), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = r.Read(p) // never fails
	return p
}

// mountOn mounts a device on a new directory.
func mountOn(t testing.TB, device, kind string, flags uintptr) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(device, dir, kind, flags, ""); err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
			t.Skipf("needs mounts of %s: %v", kind, err)
		}
		t.Fatalf("mount %s on %s: %v", device, dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fileSystem makes a file system on a loop device, mounts it, and returns its
// directory and the file behind the device.
func fileSystem(t testing.TB, kind string, size int64, o looptest.Options) (dir, backing string) {
	t.Helper()
	needRoot(t)
	needTool(t, "mkfs."+kind)
	backing = makeFile(t, filepath.Join(scratch(t), kind+".img"), size)
	device := looptest.Attach(t, backing, o).Path
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}, "btrfs": {"-q", "-f"}}[kind]
	if out, err := exec.Command("mkfs."+kind, append(args, device)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v\n%s", kind, err, out)
	}
	return mountOn(t, device, kind, 0), backing
}

// scratch is a directory for files behind loop devices: on tmpfs where there is
// one, so that the many syncs of tests cost no disk of this machine anything.
func scratch(t testing.TB) string {
	t.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "failback"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

// memoryDir is a directory on tmpfs.
func memoryDir(t testing.TB) string {
	t.Helper()
	var fs unix.Statfs_t
	if unix.Statfs("/dev/shm", &fs) != nil || int64(fs.Type) != unix.TMPFS_MAGIC {
		t.Skip("needs tmpfs on /dev/shm")
	}
	dir, err := os.MkdirTemp("/dev/shm", "failback")
	if err != nil {
		t.Skipf("needs to write to /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openDisk(t testing.TB, path string, o OpenOptions) *Disk {
	t.Helper()
	d, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

// refused opens what must be refused, and returns the refusal if all of its
// parts are there and the reason speaks of what is wanted.
func refused(t *testing.T, path string, o OpenOptions, reason string) *RefusedError {
	t.Helper()
	d, err := Open(path, o)
	if err == nil {
		d.Close()
		t.Fatalf("open %s: not refused, want: %s", path, reason)
	}
	return isRefused(t, err, path, reason)
}

func isRefused(t *testing.T, err error, path, reason string) *RefusedError {
	t.Helper()
	var r *RefusedError
	if !errors.As(err, &r) {
		t.Fatalf("error %v (%T), want a refusal", err, err)
	}
	if r.Volume != path || !strings.Contains(r.Reason, reason) || r.Next == "" {
		t.Fatalf("refusal %#v, want volume %s, reason %q and a next step", r, path, reason)
	}
	for _, part := range []string{r.Volume, r.Reason, r.Next} {
		if !strings.Contains(r.Error(), part) {
			t.Errorf("message %q lacks %q", r.Error(), part)
		}
	}
	return r
}

// shifted is n bytes that start skew bytes behind an aligned address.
func shifted(n, skew int) []byte {
	p := make([]byte, n+4096+skew)
	start := -int(addr(p))&4095 + skew
	return p[start : start+n : start+n]
}

func mustRead(t testing.TB, read func([]byte, int64) (int, error), n int, off int64) []byte {
	t.Helper()
	p := make([]byte, n)
	if got, err := read(p, off); err != nil || got != n {
		t.Fatalf("read %d bytes at %d: %d, %v", n, off, got, err)
	}
	return p
}

func mustWrite(t testing.TB, d *Disk, p []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("write %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func mustSync(t testing.TB, d *Disk) {
	t.Helper()
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

// sameBytes fails with the place of the first difference.
func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: differs first at %d: %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

// storedBlocks is what a file takes up, in units of 512 bytes.
func storedBlocks(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}
