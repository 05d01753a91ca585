package throttle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// scratchDevices names block devices that may be overwritten, with blanks between.
const scratchDevices = "FAILBACK_SCRATCH"

// real is a control group of a machine where the kernel keeps to its io.max, with a
// writer in it.
type real struct {
	dir, device string
	group       *Group
	written     func() int64 // bytes so far
}

// TestReal: what the kernel makes of it, on each of the devices that are given. The
// figures are for the log; what is asserted is that it is much or little.
func TestReal(t *testing.T) {
	devices := strings.Fields(os.Getenv(scratchDevices))
	if len(devices) == 0 {
		t.Skipf("needs %s=\"DEVICE...\", whose content will be lost, and cgroup v2 with its io controller", scratchDevices)
	}
	mount := thisHost.mount()
	if mount == "" {
		mount = t.TempDir()
		if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
			t.Skipf("needs to mount cgroup v2: %v", err)
		}
		defer func() { _ = unix.Unmount(mount, unix.MNT_DETACH) }()
	}
	if !has(mount, "cgroup.controllers", "io") {
		t.Skip("needs the io controller of cgroup v2")
	}
	for _, device := range devices {
		for _, way := range []string{"direct", "through the page cache", "through the page cache, no memory controller"} {
			t.Run(device+" "+way, func(t *testing.T) { limits(t, mount, device, way) })
		}
	}
}

// control turns controllers of the groups at the top on or off.
func control(t *testing.T, mount, what string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(mount, "cgroup.subtree_control"), []byte(what), 0); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func limits(t *testing.T, mount, device, way string) {
	memory := "+memory"
	if strings.HasSuffix(way, "no memory controller") {
		memory = "-memory"
	}
	control(t, mount, "+io "+memory)
	r := &real{device: device, dir: filepath.Join(mount, fmt.Sprintf("failback-test-%d", os.Getpid()))}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		eventually(t, "the group to be empty", func() bool { return os.Remove(r.dir) == nil })
	}()
	if _, err := Find(r.dir, device); err == nil || !strings.Contains(err.Error(), "no process in it") {
		t.Errorf("an empty group: %v", err)
	}
	defer r.write(t, way == "direct")()
	var err error
	if r.group, err = Find(r.dir, device); err != nil {
		t.Fatal(err)
	}
	if r.group.Direct != (memory == "-memory") {
		t.Errorf("only direct: %v", r.group.Direct)
	}
	r.compare(t, !r.group.Direct)
	r.killed(t)
}

// compare measures with a limit and without.
func (r *real) compare(t *testing.T, limited bool) {
	// Other limits of the disk stay.
	former := r.group.Disk + " rbps=max wbps=999999999999 riops=777777 wiops=max"
	files(t, r.dir, map[string]string{"io.max": former})
	free := r.rate()
	r.group.claims = t.TempDir()
	if _, err := r.group.Claim(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.group.Release() }()
	l, err := r.group.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.End() }()
	const slow = 1 << 20
	if now, err := l.Set(t.Context(), slow); now != slow || err != nil {
		t.Fatalf("set: %d, %v", now, err)
	}
	want(t, r.dir, strings.Replace(former, "999999999999", strconv.Itoa(slow), 1))
	held := r.rate()
	l.Lift()
	eventually(t, "it to be lifted", func() bool { return limitIn(t, r.dir) == former })
	lifted := r.rate()
	t.Logf("MiB a second: %.1f without, %.2f with a limit of %.2f, %.1f lifted", free/(1<<20), held/(1<<20), float64(slow)/(1<<20), lifted/(1<<20))
	switch {
	case limited && held > 1.5*slow:
		t.Errorf("%.0f bytes a second with a limit of %d", held, slow)
	case limited && free > 8*slow && lifted < 2*held:
		t.Errorf("%.0f bytes a second lifted, %.0f with the limit, %.0f without", lifted, held, free)
	}
	if err := l.End(); err != nil {
		t.Error(err)
	}
	want(t, r.dir, former)
}

// killed has a process that slows the group down killed.
func (r *real) killed(t *testing.T) {
	files(t, r.dir, map[string]string{"io.max": r.group.Disk + " rbps=max wbps=max riops=max wiops=max"})
	want(t, r.dir, "")
	c, keeper := startParent(t, r.dir, r.group.Disk, t.TempDir())
	want(t, r.dir, r.group.Disk+" rbps=max wbps=1000000 riops=max wiops=max")
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the limit to be what it was", func() bool { return limitIn(t, r.dir) == "" })
	eventually(t, "the keeper to end", func() bool { return ended(keeper) })
}

// write has a process in the group write to the device until what it returns is
// called.
func (r *real) write(t *testing.T, direct bool) (end func()) {
	t.Helper()
	group, err := os.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	c := exec.Command("/proc/self/exe", "writer", r.device, strconv.FormatBool(direct))
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	n, ok := sysfs.BlockDevice(r.device)
	if !ok {
		t.Fatalf("%s is not a block device", r.device)
	}
	stat := filepath.Join(sysfs.This.Dir(n), "stat")
	r.written = func() int64 {
		f := strings.Fields(sysfs.Attr(stat)) // Documentation/block/stat.rst
		if len(f) < 7 {
			return 0
		}
		sectors, err := strconv.ParseInt(f[6], 10, 64)
		if err != nil {
			return 0
		}
		return sectors * 512
	}
	return func() {
		_ = c.Process.Kill()
		_ = c.Wait() // killed is how it ends
	}
}

// rate measures how much is written in a second, once what was under way has ended.
func (r *real) rate() float64 {
	<-time.After(time.Second)
	from, began := r.written(), time.Now()
	<-time.After(2 * time.Second)
	return float64(r.written()-from) / time.Since(began).Seconds()
}

const writeUnit = 64 << 10 // bytes

// writer writes a device from its start to its end again and again.
func writer(device string, direct bool) error {
	flags := os.O_WRONLY
	if direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(device, flags, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < writeUnit {
		return errors.Join(err, errors.New("no room"))
	}
	p, err := unix.Mmap(-1, 0, writeUnit, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for n := int64(0); ; n++ {
		copy(p, strconv.FormatInt(n, 10))
		if _, err := f.WriteAt(p, n%(size/writeUnit)*writeUnit); err != nil {
			return err
		}
		if direct {
			continue
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
}
