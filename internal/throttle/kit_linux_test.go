package throttle

import (
	"bufio"
	"bytes"
	"context"
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
)

// enough is how long anything may take that happens at once.
const enough = 20 * time.Second

// TestMain makes of the test binary the program with the throttle command, and the
// parent that tests kill.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "throttle" {
		if text := os.Getenv(restoreEnv); text != "" {
			restoreTime, _ = time.ParseDuration(text)
		}
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(3)
		}
		os.Exit(0)
	}
	if len(os.Args) > 4 && os.Args[1] == "parent" {
		os.Exit(parent(os.Args[2], os.Args[3], os.Args[4]))
	}
	if len(os.Args) > 3 && os.Args[1] == "writer" {
		fmt.Println(writer(os.Args[2], os.Args[3] == "true"))
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// restoreEnv is how long a keeper that a test starts tries to take a limit away
// while there is somebody to tell.
const restoreEnv = "FAILBACK_TEST_RESTORE"

// claimsIn is where the claims of a test lie whose group is made up: beside it.
func claimsIn(dir string) string { return filepath.Join(filepath.Dir(dir), "claims") }

// parentRate is what a parent slows its group down to, bytes a second.
const parentRate = 1000000

// parent slows down a group, says so, and waits to be killed.
func parent(dir, disk, claims string) int {
	g := &Group{Dir: dir, Disk: disk, claims: claims}
	_, err := g.Claim()
	var l *Limit
	if err == nil {
		l, err = g.Begin()
	}
	if err == nil {
		_, err = l.Set(context.Background(), parentRate)
	}
	if err != nil {
		fmt.Println(err)
		return 3
	}
	fmt.Println("slow", l.cmd.Process.Pid)
	_, _ = io.ReadAll(os.Stdin)
	return 0
}

// madeUp is a directory with the files of a control group.
func madeUp(t *testing.T, ioMax string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "group")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files(t, dir, map[string]string{"cgroup.controllers": "cpu io memory pids\n", "cgroup.type": "domain\n", "cgroup.events": "populated 1\nfrozen 0\n", "io.max": ioMax})
	return dir
}

func files(t *testing.T, dir string, content map[string]string) {
	t.Helper()
	for name, text := range content {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func limitIn(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "io.max"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func want(t *testing.T, dir, text string) {
	t.Helper()
	if got := limitIn(t, dir); got != text {
		t.Errorf("io.max holds %q, want %q", got, text)
	}
}

func begin(t *testing.T, dir string) *Limit {
	t.Helper()
	return beginOf(t, claimed(t, dir))
}

func beginOf(t *testing.T, g *Group) *Limit {
	t.Helper()
	l, err := g.Begin()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill() // it has ended, or the test has failed
		_ = l.End()
	})
	return l
}

func groupOf(dir string) *Group { return &Group{Dir: dir, Disk: "7:3", claims: claimsIn(dir)} }

// claimed is a group that nobody else limits, until the test is over.
func claimed(t *testing.T, dir string) *Group {
	t.Helper()
	g := groupOf(dir)
	if undone, err := g.Claim(); err != nil || undone != 0 {
		t.Fatal(undone, err)
	}
	t.Cleanup(func() { _ = g.Release() })
	return g
}

func set(t *testing.T, l *Limit, rate, holds int64) {
	t.Helper()
	if got, err := l.Set(t.Context(), rate); got != holds || err != nil {
		t.Errorf("set %d: %d, %v, want %d", rate, got, err, holds)
	}
}

func end(t *testing.T, l *Limit) {
	t.Helper()
	if err := l.End(); err != nil {
		t.Error(err)
	}
}

// startParent starts one and returns it with the process that looks after its limit.
func startParent(t *testing.T, dir, disk, claims string) (c *exec.Cmd, keeper int) {
	t.Helper()
	c = exec.Command("/proc/self/exe", "parent", dir, disk, claims)
	c.Env = append(os.Environ(), restoreEnv+"=100ms")
	var complaints bytes.Buffer
	c.Stderr = &complaints
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = in.Close()
		_ = c.Wait() // killed is how it ends
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	text, ok := strings.CutPrefix(strings.TrimSpace(line), "slow ")
	keeper, err2 := strconv.Atoi(text)
	if err != nil || !ok || err2 != nil {
		t.Fatalf("the parent said %q, %v; %s", line, err, complaints.String())
	}
	return c, keeper
}

// eventually asks again and again, for what another process does.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	late := time.After(enough)
	for !happened() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// ended reports whether a process is no more, or waits to be buried: the first
// process of a small system may not do that for orphans.
func ended(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, ok := strings.Cut(string(text), ") ")
	return err != nil || !ok || state[0] == 'Z'
}

// awaitStopped waits until no thread of a process that got SIGSTOP runs any more.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // where the test fails: none is left behind
	eventually(t, "the keeper to be stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			_, state, ok := strings.Cut(string(text), ") ")
			if err != nil || !ok || state[0] != 'T' {
				return false
			}
		}
		return err == nil && len(threads) > 0
	})
}

// mayResource reports whether this process has CAP_SYS_RESOURCE.
func mayResource(t *testing.T) bool {
	t.Helper()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&h, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
