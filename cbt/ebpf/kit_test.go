package ebpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/looptest"
	"github.com/failback/failback/internal/sysfs"
)

// The stage: real devices, and a bpffs of the test's own. All is taken down by
// t.Cleanup.

// needKernel skips where the kernel, or the user, cannot track. A kernel that
// should be able to fails: a skip would hide a fault of ours.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN)")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor)
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		t.Skipf("needs a kernel with BTF: %v", err)
	}
	if major < 5 || major == 5 && minor < 17 {
		t.Skipf("needs Linux 5.17, this is %d.%d", major, minor)
	}
}

func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
}

// ownFS mounts a bpffs that only this test sees.
func ownFS(t testing.TB) string {
	t.Helper()
	needKernel(t)
	dir := t.TempDir()
	if err := mountFS(dir); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("needs to mount bpffs: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		// Busy while anybody on this machine looks at it.
		if !until(t, 5*second, func() bool { err = unix.Unmount(dir, 0); return !errors.Is(err, unix.EBUSY) }) || err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return dir
}

// scratch is a directory in memory where there is one.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "failback-ebpf")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

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

// newLoop puts a loop device over a file until the test ends.
func newLoop(t testing.TB, backing string, flags uint32) string {
	t.Helper()
	return briefLoop(t, backing, flags).Path
}

// briefLoop puts a loop device over a file until it is released.
func briefLoop(t testing.TB, backing string, flags uint32) *looptest.Device {
	t.Helper()
	d := looptest.Attach(t, backing, looptest.Options{Flags: flags})
	setStats(t, d.Path, true) // whoever had this number before may have been killed
	return d
}

// setStats turns the io statistics of a disk on or off, which waits for all that
// is under way: never call it while a write is held.
func setStats(t testing.TB, device string, on bool) {
	t.Helper()
	path, want := "/sys/block/"+filepath.Base(device)+"/queue/iostats", map[bool]string{true: "1", false: "0"}[on]
	if sysfs.Attr(path) == want {
		return
	}
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newZram adds a zram device.
func newZram(t testing.TB, size int64) string {
	t.Helper()
	if _, err := os.Stat("/sys/class/zram-control/hot_add"); err != nil {
		t.Skipf("needs zram: %v", err)
	}
	_, n := hold(t, "zram", fmt.Sprint(size))
	return "/dev/zram" + n
}

// until asks again and again, for a state of the kernel that tells nobody when
// it changes.
func until(t testing.TB, limit time.Duration, is func() bool) bool {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(limit)
	for !is() {
		select {
		case <-tick.C:
		case <-late:
			return false
		}
	}
	return true
}

// mkfs makes a file system and mounts it on a new directory.
func mkfs(t testing.TB, device, kind string) string {
	t.Helper()
	needTool(t, "mkfs."+kind)
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q", "-f"}, "btrfs": {"-q", "-f"}}[kind]
	mustRun(t, "mkfs."+kind, append(args, device)...)
	return mountOn(t, device, kind)
}

func mountOn(t testing.TB, device, kind string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(device, dir, kind, 0, map[string]string{"ext4": "discard", "xfs": "discard", "btrfs": "discard=sync"}[kind]); err != nil {
		t.Skipf("needs mounts of %s: %v", kind, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	var err error
	// A loop device over a file in it goes some time after its last user.
	until(t, 5*time.Second, func() bool { err = unix.Unmount(dir, 0); return !errors.Is(err, unix.EBUSY) })
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // it is not mounted any more
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		t.Errorf("unmount %s: %v", dir, err)
	}
}

func mustRun(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// start tracks a device until the test ends.
func start(t testing.TB, device string, o Options) *Tracker {
	t.Helper()
	if o.FS == "" {
		o.FS = ownFS(t)
	}
	tr, err := Start(t.Context(), device, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, tr) })
	return tr
}

// stop stops a tracker that a test may have stopped or closed itself.
func stop(t testing.TB, tr *Tracker) {
	t.Helper()
	if _, err := tr.Stop(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// sealed tracks a device and seals an epoch.
func sealed(t testing.TB, device string, o Options, e cbt.Epoch) *Tracker {
	t.Helper()
	tr := start(t, device, o)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := tr.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tr.Seal(e); err != nil {
		t.Fatal(err)
	}
	return tr
}

func openFile(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// aligned is n bytes for direct I/O.
func aligned(n int) []byte {
	p := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(&p[0]))) & 4095
	return p[skip : skip+n : skip+n]
}

// writeDirect writes n bytes of fill around the page cache.
func writeDirect(t testing.TB, f *os.File, off int64, n int, fill byte) {
	t.Helper()
	p := aligned(n)
	for i := range p {
		p[i] = fill
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func mustTake(t testing.TB, tr *Tracker, e cbt.Epoch) *cbt.Taken {
	t.Helper()
	taken, err := tr.Take(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func mustPutBack(t testing.TB, tr *Tracker, taken *cbt.Taken, proven ...cbt.Extent) {
	t.Helper()
	if err := tr.PutBack(taken, proven); err != nil {
		t.Fatal(err)
	}
}

func mustMap(t testing.TB, tr *Tracker) *cbt.Map {
	t.Helper()
	m, err := tr.Map()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// frozen is a loop device over a file whose file system can be frozen: a write
// to the device waits then, with its mark made and its bytes not on the device.
type frozen struct {
	device string
	holder *holder
	held   bool
	stats  bool // to be turned on again
}

// newFreezer mounts a file system for what newFrozen makes.
func newFreezer(t testing.TB, size int64) string {
	t.Helper()
	needKernel(t)
	return mkfs(t, newLoop(t, makeFile(t, filepath.Join(scratch(t), "below.img"), size), 0), "ext4")
}

// newFrozen makes a device of size bytes over a file in dir, on a file system
// of newFreezer that is frozen as a whole.
func newFrozen(t testing.TB, dir string, size int64) *frozen {
	t.Helper()
	path := makeFile(t, filepath.Join(dir, "disk.img"), size)
	f := &frozen{device: newLoop(t, path, 0)}
	f.holder, _ = hold(t, "freeze", dir)
	// In this order at the end: thaw, detach the upper device, unmount.
	t.Cleanup(func() {
		if f.thaw(t); f.stats {
			setStats(t, f.device, true)
		}
	})
	return f
}

// withoutStats turns the io statistics off until the device goes.
func (f *frozen) withoutStats(t testing.TB) {
	t.Helper()
	setStats(t, f.device, false)
	f.stats = true
}

func (f *frozen) freeze(t testing.TB) {
	t.Helper()
	f.holder.tell(t, "freeze")
	f.held = true
}

func (f *frozen) thaw(t testing.TB) {
	t.Helper()
	if f.held {
		f.holder.tell(t, "thaw")
		f.held = false
	}
}

// ioctlRange calls an ioctl that takes an offset and a length in bytes.
func ioctlRange(f *os.File, request uintptr, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	return ioctlPointer(f, request, unsafe.Pointer(&arg))
}

func ioctlPointer(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

const (
	unixDirect = unix.O_DIRECT
	second     = time.Second
)

// ended is a context that is over.
func ended(t testing.TB) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
