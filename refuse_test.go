package failback

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

var asTarget = OpenOptions{Write: true}

func TestRefusedKinds(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	loopless := filepath.Join(dir, "loop")
	if err := os.Symlink(loopless, loopless); err != nil {
		t.Fatal(err)
	}
	for _, o := range []OpenOptions{{}, asTarget} {
		refused(t, dir, o, "a directory")
		refused(t, pipe, o, "a pipe") // and does not wait for its other end
		refused(t, "/dev/null", o, "a character device")
		refused(t, socket, o, "a socket")
		for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(pipe, "x"), ""} {
			refused(t, path, o, "does not exist")
		}
		if r := refused(t, filepath.Join(dir, "none"), o, "does not exist"); !errors.Is(r, fs.ErrNotExist) {
			t.Errorf("%v is not fs.ErrNotExist", r)
		}
		if _, err := Open(loopless, o); !errors.Is(err, unix.ELOOP) {
			t.Errorf("link to itself: %v", err)
		}
	}
}

func TestRefusedSizes(t *testing.T) {
	dir := t.TempDir()
	for size, reason := range map[int64]string{0: "empty", 1: "multiple of 512", 511: "multiple of 512", 513: "multiple of 512", 1<<20 + 1: "multiple of 512"} {
		path := makeFile(t, filepath.Join(dir, "volume"), size)
		refused(t, path, OpenOptions{}, reason)
		refused(t, path, asTarget, reason)
	}
	for _, size := range []int64{512, 64<<10 + 512, 1 << 20} {
		openDisk(t, makeFile(t, filepath.Join(dir, "volume"), size), OpenOptions{})
	}
	t.Run("sectors", func(t *testing.T) {
		path := looptest.Attach(t, makeFile(t, filepath.Join(dir, "odd"), 64<<10+512), looptest.Options{Sector: 4096}).Path
		refused(t, path, OpenOptions{}, "4096-byte sectors")
	})
	t.Run("no device", func(t *testing.T) {
		needRoot(t)
		for range 100 { // until nobody else takes the free one
			path := looptest.Free(t)
			d, err := Open(path, OpenOptions{})
			if err != nil {
				isRefused(t, err, path, "empty")
				return
			}
			d.Close()
		}
		t.Skip("needs a loop device that stays free")
	})
}

func TestRefusedMounted(t *testing.T) {
	dir, backing := fileSystem(t, "ext4", 16<<20, looptest.Options{Flags: unix.LO_FLAGS_PARTSCAN})
	l := loopOver(t, backing)
	device := "/dev/" + l.name
	r := refused(t, device, asTarget, "mounted on "+dir)
	if !strings.Contains(r.Next, "umount "+dir) {
		t.Errorf("next step %q", r.Next)
	}
	openDisk(t, device, OpenOptions{}) // a source may be live
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(device, link); err != nil {
		t.Fatal(err)
	}
	refused(t, link, asTarget, "mounted on "+dir)
	t.Run("partition of it", func(t *testing.T) {
		refused(t, looptest.Partition(t, device, 1, 1<<20, 1<<20), asTarget, "its disk "+l.name+" is mounted on")
	})
	t.Run("file behind it", func(t *testing.T) {
		refused(t, backing, asTarget, "the loop device "+l.name+" lies on it")
		openDisk(t, backing, OpenOptions{})
	})
	t.Run("its own files", func(t *testing.T) {
		openDisk(t, makeFile(t, filepath.Join(dir, "volume"), 4096), asTarget)
	})
}

func TestRefusedPartitionMounted(t *testing.T) {
	needTool(t, "mkfs.ext4")
	disk := looptest.Attach(t, makeFile(t, filepath.Join(t.TempDir(), "disk"), 32<<20), looptest.Options{Flags: unix.LO_FLAGS_PARTSCAN}).Path
	one := looptest.Partition(t, disk, 1, 1<<20, 8<<20)
	two := looptest.Partition(t, disk, 2, 16<<20, 8<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", one).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	dir := mountOn(t, one, "ext4", 0)
	refused(t, disk, asTarget, "its partition "+filepath.Base(one)+" is mounted on "+dir)
	refused(t, one, asTarget, "it is mounted on "+dir)
	d := openDisk(t, two, asTarget) // its neighbour is free
	if d.Size() != 8<<20 {
		t.Errorf("size %d", d.Size())
	}
	randomWalk(t, d, 20)
}

func TestRefusedBtrfsMounted(t *testing.T) {
	dir, backing := fileSystem(t, "btrfs", 128<<20, looptest.Options{})
	refused(t, "/dev/"+loopOver(t, backing).name, asTarget, "mounted on "+dir)
}

// loopOver finds the loop device over a file.
func loopOver(t *testing.T, backing string) loop {
	t.Helper()
	list, err := thisHost.loops()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.backing == backing {
			return l
		}
	}
	t.Fatalf("no loop device over %s in %v", backing, list)
	return loop{}
}

func TestRefusedHeld(t *testing.T) {
	t.Run("by another failback", func(t *testing.T) {
		device := looptest.Attach(t, makeFile(t, filepath.Join(t.TempDir(), "disk"), 1<<20), looptest.Options{}).Path
		d := openDisk(t, device, asTarget)
		refused(t, device, asTarget, "holds it")
		openDisk(t, device, OpenOptions{})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		openDisk(t, device, asTarget)
	})
	t.Run("file by another failback", func(t *testing.T) {
		path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 1<<20)
		d := openDisk(t, path, asTarget)
		refused(t, path, asTarget, "another failback holds it")
		openDisk(t, path, OpenOptions{})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		openDisk(t, path, asTarget)
	})
	t.Run("file locked in part, as QEMU does", func(t *testing.T) {
		path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 1<<20)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1, Whence: io.SeekStart}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			t.Fatal(err)
		}
		refused(t, path, asTarget, "has locked it")
	})
	t.Run("device under a loop device", func(t *testing.T) {
		under := looptest.Attach(t, makeFile(t, filepath.Join(t.TempDir(), "disk"), 1<<20), looptest.Options{Flags: unix.LO_FLAGS_PARTSCAN}).Path
		part := looptest.Partition(t, under, 1, 64<<10, 64<<10)
		over := looptest.Attach(t, part, looptest.Options{}).Path
		want := "the loop device " + filepath.Base(over) + " lies on it"
		refused(t, part, asTarget, want)
		refused(t, under, asTarget, want)
		openDisk(t, over, asTarget)
	})
}

func TestRefusedReadOnly(t *testing.T) {
	t.Run("device", func(t *testing.T) {
		device := looptest.Attach(t, makeFile(t, filepath.Join(t.TempDir(), "disk"), 1<<20), looptest.Options{Flags: unix.LO_FLAGS_READ_ONLY}).Path
		refused(t, device, asTarget, "read-only")
		openDisk(t, device, OpenOptions{})
	})
	t.Run("mode", func(t *testing.T) {
		path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 1<<20)
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
		refused(t, path, asTarget, "permission to write")
		openDisk(t, path, OpenOptions{})
	})
	t.Run("mount", func(t *testing.T) {
		dir, backing := fileSystem(t, "ext4", 16<<20, looptest.Options{})
		makeFile(t, filepath.Join(dir, "volume"), 4096)
		view := mountOn(t, "/dev/"+loopOver(t, backing).name, "ext4", 0)
		if err := unix.Mount("", view, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		refused(t, filepath.Join(view, "volume"), asTarget, "mounted read-only")
		openDisk(t, filepath.Join(view, "volume"), OpenOptions{})
	})
	t.Run("immutable", func(t *testing.T) {
		needTool(t, "chattr")
		dir, _ := fileSystem(t, "ext4", 16<<20, looptest.Options{})
		path := makeFile(t, filepath.Join(dir, "volume"), 4096)
		if out, err := exec.Command("chattr", "+i", path).CombinedOutput(); err != nil {
			t.Skipf("needs chattr: %v\n%s", err, out)
		}
		refused(t, path, asTarget, "immutable")
	})
	t.Run("running program", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "program")
		sleep, err := exec.LookPath("sleep")
		if err != nil {
			t.Skip("needs sleep")
		}
		code, err := os.ReadFile(sleep)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, make([]byte, -len(code)&511)...)
		if err := os.WriteFile(path, code, 0o700); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(path, "60")
		if err := c.Start(); err != nil {
			t.Skipf("needs to run a copy of sleep: %v", err)
		}
		defer c.Wait()
		defer c.Process.Kill()
		refused(t, path, asTarget, "a running program")
	})
}

// TestRefusedPermission asks as a user who may do nothing.
func TestRefusedPermission(t *testing.T) {
	path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 4096)
	if os.Geteuid() != 0 {
		if err := os.Chmod(path, 0o200); err != nil {
			t.Fatal(err)
		}
		refused(t, path, OpenOptions{}, "no permission to read it")
		return
	}
	for dir := filepath.Dir(path); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	device := looptest.Attach(t, makeFile(t, path+".disk", 4096), looptest.Options{}).Path
	// The permission checks of one thread only; the thread ends with the goroutine.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		for _, p := range []string{path, device} {
			refused(t, p, OpenOptions{}, "no permission to read it")
			refused(t, p, asTarget, "no permission to write it")
		}
	}()
	<-done
}

func TestRefusedSwap(t *testing.T) {
	needRoot(t)
	needTool(t, "mkswap")
	needTool(t, "swapon")
	device := looptest.Attach(t, makeFile(t, filepath.Join(t.TempDir(), "disk"), 1<<20), looptest.Options{}).Path
	if out, err := exec.Command("mkswap", device).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v\n%s", err, out)
	}
	if out, err := exec.Command("swapon", "-p", "0", device).CombinedOutput(); err != nil {
		t.Skipf("needs swap: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("swapoff", device).CombinedOutput(); err != nil {
			t.Errorf("swapoff: %v\n%s", err, out)
		}
	})
	refused(t, device, asTarget, "in use as swap")
}

// TestOpenReplaced has the path changed between the look at it and the opening.
func TestOpenReplaced(t *testing.T) {
	dir := t.TempDir()
	path := makeFile(t, filepath.Join(dir, "volume"), 4096)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(makeFile(t, path+".new", 4096), path); err != nil {
		t.Fatal(err)
	}
	d := &Disk{path: path, fdDirect: -1, fdBuf: -1}
	isRefused(t, d.openFile(thisHost, &st, false), path, "replaced")
	if err := d.closeFiles(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenLeavesNothingOpen(t *testing.T) {
	before := openDescriptors(t)
	path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 4096)
	d := openDisk(t, path, asTarget)
	for range 3 {
		refused(t, path, asTarget, "holds it")
		refused(t, "/dev/null", asTarget, "character")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}
