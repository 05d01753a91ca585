package ebpf

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"golang.org/x/sys/unix"
)

// wantLost wants a take to be refused for a reason, for good.
func wantLost(t *testing.T, tr *Tracker, reason string) {
	t.Helper()
	_, err := tr.Take(t.Context(), 2)
	if !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("take: %v, want a lost epoch because %q", err, reason)
	}
	if m := mustMap(t, tr); m.Epoch != 0 {
		t.Errorf("the map of a lost epoch says epoch %d", m.Epoch)
	}
}

func TestResized(t *testing.T) {
	needKernel(t)
	backing := makeFile(t, scratch(t)+"/disk", 4<<20)
	path := newLoop(t, backing, 0)
	tr := sealed(t, path, Options{}, 2)
	resize := func(size int64) {
		t.Helper()
		if err := os.Truncate(backing, size); err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetInt(int(openFile(t, path, os.O_RDWR).Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
			t.Fatal(err)
		}
	}
	resize(8 << 20)
	wantLost(t, tr, "resized from 4194304 to 8388608 bytes")
	if err := tr.Seal(3); err == nil || !strings.Contains(err.Error(), "resized") {
		t.Errorf("sealed a device that was resized: %v", err)
	}
	resize(4 << 20)
	wantLost(t, tr, "resized from 4194304 to 8388608 bytes") // it stays lost
}

// A write behind the old end tells of a size that was there only between takes.
func TestGrownAndShrunk(t *testing.T) {
	needKernel(t)
	backing := makeFile(t, scratch(t)+"/disk", 4<<20)
	path := newLoop(t, backing, 0)
	tr := sealed(t, path, Options{}, 2)
	f := openFile(t, path, os.O_RDWR|unixDirect)
	for _, size := range []int64{8 << 20, 4 << 20} {
		if err := errors.Join(os.Truncate(backing, size), unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0)); err != nil {
			t.Fatal(err)
		}
		if size == 8<<20 {
			writeDirect(t, f, 6<<20, 4096, 1)
		}
	}
	wantLost(t, tr, "resized")
}

func TestReplaced(t *testing.T) {
	needKernel(t)
	dir := scratch(t)
	first := briefLoop(t, makeFile(t, dir+"/one", 4<<20), 0)
	tr := sealed(t, first.Path, Options{}, 2)
	first.Release()
	wantLost(t, tr, "replaced")
	newLoop(t, makeFile(t, dir+"/two", 4<<20), 0)
	wantLost(t, tr, "replaced")
	if err := tr.Seal(3); err == nil {
		t.Error("sealed a device that was replaced")
	}
}

func TestDetachedByHand(t *testing.T) {
	needKernel(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr := sealed(t, path, Options{}, 2)
	if err := os.Remove(tr.pins.link("mark_queued")); err != nil {
		t.Fatal(err)
	}
	wantLost(t, tr, "mark_queued was detached")
}

func TestSessionDetachedByHand(t *testing.T) {
	needKernel(t)
	tr := sealed(t, newZram(t, 4<<20), Options{}, 2)
	mustPutBack(t, tr, mustTake(t, tr, 2))
	if err := os.Remove(tr.sessionDir() + "/remember_bio"); err != nil {
		t.Fatal(err)
	}
	wantLost(t, tr, "remember_bio was detached")
}

func TestCounters(t *testing.T) {
	needKernel(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr := sealed(t, path, Options{}, 2)
	tr.rec.set(offPassthrough, 3)
	wantLost(t, tr, "written: 3 are counted")
	if err := tr.Seal(3); err != nil {
		t.Fatal(err)
	}
	if err := tr.Trust().Check(3); err != nil {
		t.Errorf("after the next seal: %v", err)
	}
	tr.rec.set(offBaseMissed, ^uint64(0)) // as if the kernel had counted one more
	wantLost(t, tr, "1 writes came in an interrupt")
	if err := tr.Seal(4); err != nil {
		t.Fatal(err)
	}
	// The map that the programs are given is gone: a real mark that fails.
	if err := tr.k.maps["bitmaps"].Delete(uint32(tr.number)); err != nil {
		t.Fatal(err)
	}
	writeDirect(t, openFile(t, path, os.O_RDWR|unixDirect), 0, 4096, 1)
	wantLost(t, tr, "1 writes could not be marked")
	if err := tr.Seal(5); err == nil {
		t.Error("sealed over marks that were lost")
	}
}

// What is under way at the start is waited for, where its end would not be
// marked: it has no mark at all.
func TestUndrained(t *testing.T) {
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	land := early(t, f)
	tr := start(t, f.device, Options{})
	tr.request = false
	if err := tr.Seal(2); !errors.Is(err, errUndrained) {
		t.Errorf("sealed beside a write that was never marked: %v", err)
	}
	if err := tr.Drain(ended(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("drained beside a write: %v", err)
	}
	land()
	if err := errors.Join(tr.Drain(t.Context()), tr.Seal(2)); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	file := makeFile(t, scratch(t)+"/file", 1<<20)
	for path, want := range map[string]string{file: "no block device", file + "-not": "no such file", emptyLoop(t): "has no size"} {
		if _, err := Start(t.Context(), path, Options{FS: fs}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start %s: %v, want %q", path, err, want)
		}
	}
	path := newLoop(t, file, 0)
	for _, o := range []Options{
		{FS: fs, Block: 1000}, {FS: fs, Block: 2 << 20}, {FS: fs, Name: strings.Repeat("x", 256)}, {FS: fs + "/none"},
	} {
		if tr, err := Start(t.Context(), path, o); err == nil {
			t.Errorf("started with %+v", o)
			stop(t, tr)
		}
	}
}

// emptyLoop is a loop device without a file.
func emptyLoop(t *testing.T) string {
	t.Helper()
	for _, path := range []string{"/dev/loop7", "/dev/loop6", "/dev/loop5", "/dev/loop4"} {
		if d, err := lookDevice(path); err == nil && d.sectors == 0 {
			return path
		}
	}
	t.Skip("needs a loop device without a file")
	return ""
}
