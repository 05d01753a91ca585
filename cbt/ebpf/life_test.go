package ebpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
)

// child starts, or takes, says what it has, and waits to be killed; or it holds
// something, see guard_test.go.
func child(role string, args []string) error {
	switch role {
	case "freeze":
		return holdFrozen(args[0])
	case "zram":
		return holdZram(args[0])
	}
	ctx, device, fs := context.Background(), args[0], args[1]
	switch role {
	case "start":
		t, err := Start(ctx, device, Options{FS: fs})
		if err != nil {
			return err
		}
		if err := errors.Join(t.Drain(ctx), t.Seal(2)); err != nil {
			return err
		}
		fmt.Println("started")
	case "take":
		t, err := Open(device, Options{FS: fs})
		if err != nil {
			return err
		}
		taken, err := t.Take(ctx, 2)
		if err != nil {
			return err
		}
		fmt.Println("took", taken.Extents())
	}
	_, err := io.Copy(io.Discard, os.Stdin) // until killed
	return err
}

// runChild starts a child, returns its line, and a function that kills it.
func runChild(t *testing.T, role, device, fs string) (line string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], device, fs)
	cmd.Env = append(os.Environ(), childVariable+"="+role)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		in.Close()
	}
	t.Cleanup(kill)
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error") {
		t.Fatalf("child that is to %s: %q, %v", role, line, err)
	}
	return strings.TrimSpace(line), kill
}

// Killed with a map in its hands, a process loses no bit; the marks at the end
// of writes go on; who comes next has all.
func TestKilled(t *testing.T) {
	fs := ownFS(t)
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	_, kill := runChild(t, "start", f.device, fs)
	kill()
	dev := openFile(t, f.device, os.O_RDWR|unixDirect)
	writeDirect(t, dev, 0, 4096, 1)

	line, kill := runChild(t, "take", f.device, fs)
	if line != "took [[0x0,0x1000)]" {
		t.Errorf("the child %s", line)
	}
	if _, err := Open(f.device, Options{FS: fs}); err == nil || !strings.Contains(err.Error(), "another process has the tracker open") {
		t.Errorf("opened a tracker that another process has: %v", err)
	}
	if list, err := List(Options{FS: fs}); err != nil || len(list) != 1 || list[0].Dirty != 4096 || !list[0].Reading {
		t.Errorf("list beside another process: %+v, %v", list, err)
	}
	if m, err := Peek(f.device, Options{FS: fs}); err != nil || !slices.Equal(m.Extents(), []cbt.Extent{block(0)}) || m.Epoch != 2 {
		t.Errorf("peeked beside another process: %+v, %v", m, err)
	}
	kill()
	writeDirect(t, dev, 8192, 4096, 1)

	tr, err := Open(f.device, Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, tr) })
	if !tr.adopted {
		t.Error("the marks at the end of writes died with the session")
	}
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); !slices.Equal(got, []cbt.Extent{block(0), block(2)}) {
		t.Errorf("after the kill took %v", got)
	}
	mustPutBack(t, tr, taken, block(0))
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if tr, err = Open(f.device, Options{FS: fs}); err != nil {
		t.Fatal(err)
	}
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{block(2)}) {
		t.Errorf("opened again: %v, want what was not proven", got)
	}
	if mustStatus(t, tr).Reading {
		t.Error("still reads after a clean close")
	}
}

func TestStop(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr := sealed(t, path, Options{FS: fs, Identity: "disk of orders", Name: "orders"}, 5)
	if _, err := Start(t.Context(), path, Options{FS: fs}); !errors.Is(err, ErrTracked) {
		t.Errorf("started twice: %v", err)
	}
	f := openFile(t, path, os.O_RDWR|unixDirect)
	writeDirect(t, f, 0, 4096, 1)
	_ = mustTake(t, tr, 5) // out: comes back
	writeDirect(t, f, 8192, 4096, 1)
	m, err := tr.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Extents(); !slices.Equal(got, []cbt.Extent{block(0), block(2)}) || m.Epoch != 5 || m.Identity != "disk of orders" {
		t.Errorf("stopped with %v of %q at epoch %d", got, m.Identity, m.Epoch)
	}
	for _, look := range []func() error{
		func() error { _, err := Open(path, Options{FS: fs}); return err },
		func() error { _, err := Peek(path, Options{FS: fs}); return err },
		func() error { _, err := Peek(path, Options{FS: t.TempDir()}); return err },
	} {
		if err := look(); !errors.Is(err, ErrNotTracked) {
			t.Errorf("after stop: %v", err)
		}
	}
	if _, err := tr.Take(t.Context(), 5); !errors.Is(err, os.ErrClosed) {
		t.Errorf("take after stop: %v", err)
	}
	if _, err := os.Stat(fs + "/failback"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("left in bpffs: %v", err)
	}
	if list, err := List(Options{FS: fs}); err != nil || len(list) > 0 {
		t.Errorf("list after stop: %v, %v", list, err)
	}
	again := start(t, path, Options{FS: fs})
	if err := errors.Join(again.Add(m), again.Seal(5)); err != nil {
		t.Fatal(err)
	}
	if got := mustMap(t, again).Extents(); !slices.Equal(got, m.Extents()) {
		t.Errorf("what was saved is %v, taken over %v", m.Extents(), got)
	}
}

// What a start that was killed leaves is removed by the next one.
func TestHalfStarted(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr := sealed(t, path, Options{FS: fs}, 2)
	tr.rec.set32(offLive, 0) // as if killed before the last step
	dir := tr.pins.dir
	if err := errors.Join(os.Mkdir(dir+"-new", 0o700), os.Mkdir(dir+"-new/maps", 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := tr.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{FS: fs}); !errors.Is(err, ErrNotTracked) {
		t.Errorf("opened what is not complete: %v", err)
	}
	tr = sealed(t, path, Options{FS: fs}, 3)
	writeDirect(t, openFile(t, path, os.O_RDWR|unixDirect), 0, 4096, 1)
	if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{block(0)}) {
		t.Errorf("started anew: %v", got)
	}
	if s := mustStatus(t, tr); s.Writes != 1 {
		t.Errorf("%d writes counted, want 1: an old view marks as well", s.Writes)
	}
}

func TestOtherVersion(t *testing.T) {
	needKernel(t)
	fs := ownFS(t)
	if err := os.MkdirAll(fs+"/failback/v9", 0o700); err != nil {
		t.Fatal(err)
	}
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	if _, err := Start(t.Context(), path, Options{FS: fs}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("v9, this one has v%d", layoutVersion)) {
		t.Errorf("beside the pins of another version: %v", err)
	}
}

// The last one out removes the directory while the next one comes in.
func TestComeAndGo(t *testing.T) {
	needKernel(t)
	fs, dir := ownFS(t), scratch(t)
	failed := make(chan error, 3)
	for i := range 3 {
		path := newLoop(t, makeFile(t, fmt.Sprintf("%s/disk%d", dir, i), 1<<20), 0)
		go func() { failed <- comeAndGo(t.Context(), path, fs) }()
	}
	if err := errors.Join(<-failed, <-failed, <-failed); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(fs + "/failback"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("left in bpffs: %v", err)
	}
}

func comeAndGo(ctx context.Context, path, fs string) error {
	for range 4 {
		tr, err := Start(ctx, path, Options{FS: fs, Drain: 1})
		if err != nil {
			return err
		}
		if _, err := List(Options{FS: fs}); err != nil {
			return err
		}
		if _, err := tr.Stop(); err != nil {
			return err
		}
	}
	return nil
}

// A directory of the same name that was put in the place of the one that is locked
// is not locked.
func TestLockOfAnother(t *testing.T) {
	dir := t.TempDir() + "/pins"
	for _, put := range []bool{false, true} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		lock, err := lockDir(dir, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := stillThere(dir, lock); err != nil {
			t.Error(err)
		}
		if err := os.Rename(dir, dir+"-old"); err != nil {
			t.Fatal(err)
		}
		if put {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := stillThere(dir, lock); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("put in its place %v: %v", put, err)
		}
		if err := lock.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the lock is kept: %v", err)
		}
		if err := os.Remove(dir + "-old"); err != nil {
			t.Fatal(err)
		}
	}
}
