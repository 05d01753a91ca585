package failback

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The stage for tests with real devices. Everything set up here is taken down
// by t.Cleanup; loop devices also go by themselves if the test process dies.

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

// loopSpec is how a loop device is to lie on its file.
type loopSpec struct {
	sector    uint32 // bytes; 0: 512
	offset    uint64
	limit     uint64
	readOnly  bool
	partition bool
}

// newLoop puts a loop device over a file or device and returns its path. It
// stays as long as the test; detach by hand with the function returned.
func newLoop(t testing.TB, backing string, s loopSpec) (string, func()) {
	t.Helper()
	needRoot(t)
	back, err := os.OpenFile(backing, map[bool]int{false: os.O_RDWR, true: os.O_RDONLY}[s.readOnly], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	defer control.Close()
	conf := unix.LoopConfig{Fd: uint32(back.Fd()), Size: s.sector}
	conf.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	conf.Info.Offset, conf.Info.Sizelimit = s.offset, s.limit
	if s.readOnly {
		conf.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if s.partition {
		conf.Info.Flags |= unix.LO_FLAGS_PARTSCAN
	}
	for range 100 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Skipf("needs a free loop device: %v", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if err := unix.IoctlLoopConfigure(int(dev.Fd()), &conf); err != nil {
			dev.Close()
			if errors.Is(err, unix.EBUSY) {
				continue
			}
			t.Fatalf("configure %s over %s: %v", path, backing, err)
		}
		done := false
		detach := func() {
			if !done {
				done = true
				dev.Close() // the last user's close detaches it
			}
		}
		t.Cleanup(detach)
		return path, detach
	}
	t.Skip("needs a loop device: none stayed free")
	return "", nil
}

// addPartition makes a partition of a loop device without a partition table.
func addPartition(t testing.TB, disk string, number int, off, size int64) string {
	t.Helper()
	type blkpgPartition struct {
		start, length int64
		pno           int32
		devname       [64]byte
		volname       [64]byte
		_             [4]byte
	}
	type blkpgArg struct {
		op, flags, datalen int32
		data               unsafe.Pointer
	}
	call := func(op int32) error {
		f, err := os.Open(disk)
		if err != nil {
			return err
		}
		defer f.Close()
		part := blkpgPartition{start: off, length: size, pno: int32(number)}
		arg := blkpgArg{op: op, datalen: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			return errno
		}
		return nil
	}
	if err := call(unix.BLKPG_ADD_PARTITION); err != nil {
		t.Skipf("needs partitions on loop devices: %v", err)
	}
	t.Cleanup(func() {
		// Whoever looks at new devices (udev, mkfs of another test) may hold it for a moment.
		late := time.After(10 * time.Second)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			err := call(unix.BLKPG_DEL_PARTITION)
			if err == nil {
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Errorf("remove partition %d of %s: %v", number, disk, err)
				return
			}
		}
	})
	return fmt.Sprintf("%sp%d", disk, number)
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
func fileSystem(t testing.TB, kind string, size int64, s loopSpec) (dir, backing string) {
	t.Helper()
	needRoot(t)
	needTool(t, "mkfs."+kind)
	backing = makeFile(t, filepath.Join(scratch(t), kind+".img"), size)
	device, _ := newLoop(t, backing, s)
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
