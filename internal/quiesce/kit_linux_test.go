package quiesce

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// patience is how long anything may take that happens at once.
const patience = 20 * time.Second

// TestMain makes of the test binary the program with the hold command, and the
// parent that tests kill.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "hold":
		role := ""
		if len(os.Args) > 2 {
			role = os.Args[2]
		}
		if err := Serve(role, os.Stdin, os.Stdout); err != nil {
			os.Exit(3)
		}
		os.Exit(0)
	case "parent":
		os.Exit(parent())
	}
	os.Exit(m.Run())
}

// parent begins the pause of a plan, says so, and holds it until it is told not
// to.
func parent() int {
	var p Plan
	if err := json.Unmarshal([]byte(os.Args[2]), &p); err != nil {
		fmt.Println(err)
		return 2
	}
	h, err := p.Begin(context.Background())
	if err != nil {
		fmt.Println(err)
		return 3
	}
	fmt.Println("resting", h.cmd.Process.Pid)
	_, _ = io.ReadAll(os.Stdin)
	if _, err := h.End(); err != nil {
		fmt.Println(err)
		return 3
	}
	return 0
}

// stage is a file system of its own on a loop device.
type stage struct {
	dir, device string
}

// size of each kind of file system that is tested, bytes; the least it takes.
var kinds = map[string]int64{"ext4": 16 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}

func newStage(t *testing.T, kind string) *stage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to mount and freeze file systems")
	}
	mkfs, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Skipf("needs mkfs.%s", kind)
	}
	// Not t.TempDir: what it is in must not be removed while it is mounted.
	base, err := os.MkdirTemp("", "quiesce")
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(base, "fs.img")
	s := &stage{dir: filepath.Join(base, "at here")} // a space is escaped in mountinfo
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, kinds[kind]), os.Mkdir(s.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	args := map[string][]string{"ext4": {"-q", "-F"}, "xfs": {"-q"}, "btrfs": {"-q"}}[kind]
	if out, err := exec.Command(mkfs, append(args, image)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	if out, err := exec.Command("mount", "-t", kind, "-o", "loop", image, s.dir).CombinedOutput(); err != nil {
		_ = os.RemoveAll(base)
		t.Skipf("needs loop devices and mounts of %s: %v\n%s", kind, err, out)
	}
	t.Cleanup(func() {
		s.thawAll()
		eventually(t, "the file system to be unmounted", func() bool { return unix.Unmount(s.dir, 0) == nil })
		eventually(t, "the loop device to be gone", func() bool {
			for _, back := range thisHost.loops() {
				if strings.HasPrefix(back, base) {
					return false
				}
			}
			return true
		})
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	s.device = "/dev/" + thisHost.Name(s.mount(t).Dev)
	if m := s.mount(t); m.Dev.Major == 0 {
		s.device = m.Source
	}
	return s
}

func (s *stage) mount(t *testing.T) sysfs.Mount {
	t.Helper()
	list, err := thisHost.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Point == s.dir {
			return m
		}
	}
	t.Fatalf("%s is not mounted", s.dir)
	return sysfs.Mount{}
}

func (s *stage) plan() Plan {
	return Plan{Device: s.device, Mount: s.dir, Timeout: patience, Limit: patience}
}

// request freezes or thaws by hand.
func (s *stage) request(nr uint) error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return fsRequest(d, nr)
}

// thawAll leaves nothing frozen, so that no test leaves what cannot be killed.
func (s *stage) thawAll() {
	for s.request(fiThaw) == nil {
	}
}

// free requires that the file system is not frozen, by thawing it in vain.
func (s *stage) free(t *testing.T) {
	t.Helper()
	if err := s.request(fiThaw); !errors.Is(err, unix.EINVAL) {
		t.Errorf("thaw %s: %v: it was still frozen", s.dir, err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "free"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
}

// writer is a write that is under way.
type writer struct {
	let   atomic.Bool // writes may go on from here
	early atomic.Bool // it was done before
	done  chan struct{}
}

// write begins a write and returns once it waits in the kernel.
func (s *stage) write(t *testing.T) *writer {
	t.Helper()
	w := &writer{done: make(chan struct{})}
	task := make(chan int)
	go func() {
		defer close(w.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		task <- unix.Gettid()
		err := os.WriteFile(filepath.Join(s.dir, "written"), []byte("x"), 0o600)
		w.early.Store(!w.let.Load() || err != nil)
	}()
	id := <-task
	eventually(t, "the write to wait", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", id))
		_, rest, _ := strings.Cut(string(stat), ") ")
		return err == nil && strings.HasPrefix(rest, "D") || gone(w.done)
	})
	return w
}

// goesOn requires that the write ends, and that it did not before.
func (w *writer) goesOn(t *testing.T) {
	t.Helper()
	select {
	case <-w.done:
	case <-time.After(patience):
		t.Fatal("a write still waits")
	}
	if w.early.Load() {
		t.Error("a write did not wait for the end of the pause")
	}
}

func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	late := time.After(patience)
	for pause := time.Millisecond; !happened(); pause = min(pause*3/2, 50*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func begin(t *testing.T, p Plan) *Hold {
	t.Helper()
	h, err := p.Begin(t.Context())
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	t.Cleanup(func() { _, _ = h.End() }) // the test has looked at it
	return h
}

// process finds the child of a process that goes by a name.
func process(t *testing.T, parent int, name string) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "stat"))
		// 12 (name) S 11 ...
		id, rest, ok := strings.Cut(string(b), " (")
		comm, rest, ok2 := strings.Cut(rest, ") ")
		if fields := strings.Fields(rest); err == nil && ok && ok2 && comm == name && fields[1] == fmt.Sprint(parent) {
			n, err := strconv.Atoi(id)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no child %s", parent, name)
	return 0
}

func (h *Hold) guard(t *testing.T) int { return process(t, h.cmd.Process.Pid, guardName) }

func kill(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := unix.Kill(pid, s); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// stop returns once the process is stopped, with all its threads.
func stop(t *testing.T, pid int) {
	t.Helper()
	kill(t, pid, syscall.SIGSTOP)
	eventually(t, "a process to be stopped", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, path := range stats {
			b, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(b), ") T ") {
				return false
			}
		}
		return err == nil
	})
}

// leavesNone requires that processes are gone.
func leavesNone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d to be gone", pid), func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			// Whoever takes over from its parent may leave it unburied.
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	}
}

// read is the content of a file that a command may not have made yet.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

// run runs a program of the system and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
