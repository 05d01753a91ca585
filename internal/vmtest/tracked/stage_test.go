package tracked

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
	"golang.org/x/sys/unix"
)

// scratchDevices names the devices that may be overwritten, with blanks between.
const scratchDevices = "FAILBACK_SCRATCH"

const (
	block   = cbt.MinBlock
	maxSize = 256 << 20 // bytes
	epoch   = 2         // that all trackers here vouch for
	patient = time.Minute
)

// volume is a device of the test.
type volume struct {
	path string
	disk string // that it is or is on, in sysfs
	size int64
	// unit is what it discards in, in bytes, 0 if it does not. What it says of
	// the rest is not asked: a discarded range is read again.
	unit int64
}

// eachVolume runs a test on each device.
func eachVolume(t *testing.T, test func(*testing.T, volume)) {
	list := strings.Fields(os.Getenv(scratchDevices))
	if len(list) == 0 {
		t.Skipf("needs block devices that may be overwritten, named in %s", scratchDevices)
	}
	for _, path := range list {
		t.Run(filepath.Base(path), func(t *testing.T) { test(t, look(t, path)) })
	}
}

func look(t *testing.T, path string) volume {
	t.Helper()
	f := open(t, path, os.O_RDONLY)
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	if size < 16<<20 || size > maxSize {
		t.Skipf("needs a device of 16 to %d MiB: %s has %d bytes", maxSize>>20, path, size)
	}
	v := volume{path: path, size: size}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/partition"); err == nil {
		dir = filepath.Dir(dir)
	}
	v.disk = dir
	if limit := number(t, dir+"/queue/discard_max_bytes"); limit > 0 {
		v.unit = max(block, number(t, dir+"/queue/discard_granularity"))
	}
	return v
}

func number(t *testing.T, path string) int64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t testing.TB, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// ownFS is a folder that bpffs will be mounted on.
func ownFS(t testing.TB) string {
	t.Helper()
	fs := t.TempDir()
	t.Cleanup(func() {
		var err error
		// Busy while anybody on this machine looks at it; not mounted where the start was refused.
		if !until(t, func() bool { err = unix.Unmount(fs, 0); return !errors.Is(err, unix.EBUSY) }) || err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return fs
}

// track records what is written to v until the test ends, and seals an epoch. The
// pins are in fs.
func track(t testing.TB, v volume, fs string) *ebpf.Tracker {
	t.Helper()
	tr, err := ebpf.Start(t.Context(), v.path, ebpf.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := tr.Stop(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if err := errors.Join(tr.Drain(ctx), tr.Seal(epoch)); err != nil {
		t.Fatal(err)
	}
	return tr
}

// filled writes noise over a device that holds nothing, so that what is
// discarded or zeroed differs. One that holds something is taken as it is.
func (v volume) filled(t *testing.T) {
	t.Helper()
	for _, b := range v.copy(t)[:1<<20] {
		if b != 0 {
			return
		}
	}
	f, rng, p := open(t, v.path, os.O_RDWR|unix.O_DIRECT), rand.New(rand.NewPCG(1, 1)), aligned(1<<20)
	for off := int64(0); off < v.size; off += int64(len(p)) {
		noise(rng, p)
		if _, err := f.WriteAt(p[:min(int64(len(p)), v.size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
}

// copy reads a device from the medium.
func (v volume) copy(t testing.TB) []byte {
	t.Helper()
	p := aligned(int(v.size))
	if _, err := io.ReadFull(open(t, v.path, os.O_RDONLY|unix.O_DIRECT), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// noise fills p so that no block of it is like another.
func noise(rng *rand.Rand, p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		*(*uint64)(unsafe.Pointer(&p[i])) = rng.Uint64()
	}
}

// aligned is n bytes for direct I/O.
func aligned(n int) []byte {
	p := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(&p[0]))) & 4095
	return p[skip : skip+n : skip+n]
}

// ioctlRange calls an ioctl that takes an offset and a length in bytes.
func ioctlRange(f *os.File, request uintptr, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	return ioctl(f, request, unsafe.Pointer(&arg))
}

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// until asks again and again, for a state of the kernel that tells nobody when
// it changes.
func until(t testing.TB, is func() bool) bool {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patient)
	for !is() {
		select {
		case <-tick.C:
		case <-late:
			return false
		}
	}
	return true
}
