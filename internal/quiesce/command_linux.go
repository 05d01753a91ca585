package quiesce

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a command that is asked to end may take for it, and how
// long we wait for one that is killed.
const grace = 500 * time.Millisecond

// atWord runs a command once it is told to, and not at all if whoever started it
// is gone before that.
const atWord = `read -r go && exec /bin/sh -c "$1" </dev/null`

// command runs one of the user's commands to its end. started is told the
// process group before the command does anything: who is killed here leaves no
// command that nobody knows of. The command is ended, as a group, when the time
// is up or stop is closed.
func (p *Plan) command(what step, text string, limit time.Duration, stop <-chan struct{}, started func(group int)) error {
	cmd := exec.Command("/bin/sh", "-c", atWord, "sh", text)
	wait, start, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("%s command: %w", stepName[what], err)
	}
	defer start.Close()
	cmd.Stdin = wait
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "FAILBACK_DEVICE="+p.Device, "FAILBACK_MOUNT="+p.Mount, "FAILBACK_STEP="+stepName[what])
	cmd.Env = append(cmd.Env, p.Env...)
	// What a command leaves running may keep its output open: not our concern.
	cmd.WaitDelay = 50 * time.Millisecond
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	begun, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that started it for ours.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		begun <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	err = <-begun
	_ = wait.Close() // the command has its own
	if err != nil {
		return fmt.Errorf("%s command: %w", stepName[what], err)
	}
	group := cmd.Process.Pid
	started(group)
	if _, err := start.WriteString("go\n"); err != nil {
		return fmt.Errorf("%s command: %w", stepName[what], err)
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	var cause string
	select {
	case err := <-ended:
		return out.explain(what, exitError(err))
	case <-late.C:
		cause = fmt.Sprintf("did not end within %v", limit)
	case <-stop:
		cause = "was ended, for the pause is not wanted any more"
	}
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = unix.Kill(-group, s) // nobody there any more: the wait below says so
		select {
		case <-ended:
			_ = unix.Kill(-group, syscall.SIGKILL) // those it started and that do not listen
			return out.explain(what, errors.New(cause))
		case <-time.After(grace):
		}
	}
	return out.explain(what, fmt.Errorf("%s, and process %d does not even die", cause, group))
}

// stepName is what the steps with commands are called in their environment.
var stepName = map[step]string{stepQuiescing: "quiesce", stepResuming: "resume"}

func exitError(err error) error {
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	return err
}

// tail keeps the end of what a command says.
type tail struct {
	mu   sync.Mutex
	text []byte
	cut  bool
}

const maxTail = 2048 // bytes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p[max(0, len(p)-maxTail):]...)
	if over := len(t.text) - maxTail; over > 0 || len(p) > maxTail {
		t.text = append(t.text[:0], t.text[max(0, over):]...)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) explain(what step, err error) error {
	if err == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	said := strings.ToValidUTF8(strings.TrimSpace(string(t.text)), "?")
	switch {
	case said == "":
		return fmt.Errorf("%s command: %w", stepName[what], err)
	case t.cut:
		said = "… " + said
	}
	return fmt.Errorf("%s command: %w; it said: %s", stepName[what], err, said)
}
