package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/quiesce"
)

// holdPlan is what a parent is told in its environment; see TestHoldParent.
const holdPlan = "FAILBACK_TEST_HOLD"

// TestHoldParent is no test of its own: it is the parent that TestHold kills.
func TestHoldParent(t *testing.T) {
	text := os.Getenv(holdPlan)
	if text == "" {
		t.Skip("started by TestHold")
	}
	var p quiesce.Plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	h, err := p.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("resting")
	<-h.Ended()
}

// frozenFS is a file system whose thaw is a part of the test, or else of the
// cleanup: who waits for a frozen one cannot be killed.
func frozenFS(t *testing.T) (fs *smallFS, plan quiesce.Plan) {
	t.Helper()
	fs = newSmallFS(t, 16<<20)
	t.Cleanup(func() {
		for thaw(t, fs) == nil {
		}
	})
	return fs, quiesce.Plan{Device: fs.device.Path, Mount: fs.dir, Program: build(t), Timeout: patience, Limit: patience}
}

func thaw(t *testing.T, fs *smallFS) error {
	t.Helper()
	d, err := os.Open(fs.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const fiThaw = 0xc0045878
	return unix.IoctlSetInt(int(d.Fd()), fiThaw, 0)
}

// holders lists the processes of the program, but for those that wait to be buried.
func holders(t *testing.T, program string) (pids []int) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		var pid int
		if to, err := os.Readlink(link); err != nil || to != program {
			continue // of somebody else, or gone
		}
		if _, err := fmt.Sscanf(link, "/proc/%d/exe", &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestHold is the pause as the shipped program makes it: it comes, it ends, and
// nothing of it is left.
func TestHold(t *testing.T) {
	fs, plan := frozenFS(t)
	if err := plan.Check(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		h, err := plan.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, pid := range holders(t, plan.Program) {
			says, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			comm, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil || err2 != nil || bytes.Contains(says, []byte("failback")) || !bytes.HasPrefix(comm, []byte("fbk-")) {
				t.Errorf("process %d is %q, %q: killing failback by name would reach it", pid, says, comm)
			}
		}
		pause, err := h.End()
		if err != nil || pause.Length() <= 0 || pause.Overdue {
			t.Errorf("end: %+v, %v", pause, err)
		}
		t.Logf("%v of pause", pause.Length())
	}
	if err := thaw(t, fs); err != unix.EINVAL {
		t.Errorf("it was still frozen: %v", err)
	}
	eventually(t, "the processes to be gone", func() bool { return len(holders(t, plan.Program)) == 0 })
}

// TestHoldKilled kills a parent with all its processes but one, of the shipped
// program. That one thaws.
func TestHoldKilled(t *testing.T) {
	for _, spared := range []string{"fbk-hold", "fbk-guard"} {
		t.Run("all but "+spared, func(t *testing.T) {
			fs, plan := frozenFS(t)
			text, err := json.Marshal(plan)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			parent := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^TestHoldParent$")
			parent.Env = append(os.Environ(), holdPlan+"="+string(text))
			said := &transcript{}
			parent.Stdout, parent.Stderr = said, said
			if err := parent.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = parent.Process.Kill(); _ = parent.Wait() }() // killed is how it ends
			eventually(t, "the parent to say that the writers rest; it said "+said.String(), func() bool {
				return strings.Contains(said.String(), "resting\n")
			})
			wrote := make(chan error, 1)
			go func() { wrote <- os.WriteFile(fs.path("x"), []byte("x"), 0o600) }()
			select {
			case err := <-wrote:
				t.Fatalf("a write did not wait: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			if err := parent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			for _, pid := range holders(t, plan.Program) {
				if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(comm)) != spared {
					_ = unix.Kill(pid, syscall.SIGKILL) // the parent's end may have ended it already
				}
			}
			select {
			case err := <-wrote:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("a write still waits")
			}
			eventually(t, "the processes to be gone", func() bool { return len(holders(t, plan.Program)) == 0 })
			if err := thaw(t, fs); err != unix.EINVAL {
				t.Errorf("it was still frozen: %v", err)
			}
		})
	}
}

// Nobody else is to start a holder, but who does gets no pause and no panic.
func TestHoldAlone(t *testing.T) {
	bin := build(t)
	for _, args := range [][]string{{"hold"}, {"hold", "guard"}} {
		finish(t, 3, bin, args...)
	}
	finish(t, 2, bin, "hold", "else")
	if help := finish(t, 0, bin, "--help"); strings.Contains(help.stdout.String(), "hold") {
		t.Error("the hold command is offered")
	}
}
