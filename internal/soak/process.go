package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a failback that was started. It dies with us.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	said   tail // stderr
	ended  chan struct{}
}

func (s *soak) start(args ...string) (*process, error) {
	p := &process{cmd: exec.Command(s.bin, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer close(p.ended)
		// The kernel takes the end of the thread that started it for ours.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // the code is what counts
		}
	}()
	return p, <-started
}

// signal sends one. A process that has ended is no error.
func (p *process) signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	return nil
}

// wait returns the exit code, -1 after a signal. One that takes too long tells
// what all of it is doing, and is an error.
func (p *process) wait(limit time.Duration) (int, error) {
	select {
	case <-p.ended:
	case <-time.After(limit):
		err := errors.Join(p.signal(syscall.SIGCONT), p.signal(syscall.SIGQUIT))
		<-p.ended
		return 0, errors.Join(fmt.Errorf("%v did not end within %v; it said:\n%s", p.cmd.Args, limit, p.said.String()), err)
	}
	if said := p.said.String(); strings.Contains(said, "goroutine ") {
		return 0, fmt.Errorf("%v panicked:\n%s", p.cmd.Args, said)
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// command runs failback to its end.
func (s *soak) command(args ...string) (*process, int, error) {
	p, err := s.start(args...)
	if err != nil {
		return nil, 0, err
	}
	code, err := p.wait(s.timeout)
	return p, code, err
}

// must runs failback and requires an exit code.
func (s *soak) must(want int, args ...string) error {
	p, code, err := s.command(args...)
	if err == nil && code != want {
		err = fmt.Errorf("failback %s: exit code %d, want %d; it said:\n%s", strings.Join(args, " "), code, want, p.said.String())
	}
	return err
}

// server is a failback serve with both volumes.
type server struct {
	*process
	s      *soak
	socket string
}

func (s *soak) serve(name string) (*server, error) {
	v := &server{s: s, socket: s.path(name + ".sock")}
	return v, v.restart()
}

// restart starts it, and returns when it listens.
func (v *server) restart() error {
	p, err := v.s.start("serve", "--listen", "unix://"+v.socket, "--grace", "0s", "--undo", v.s.path(undoDir),
		"--volume", "a="+v.s.a.path+",rw", "--volume", "b="+v.s.b.path+",rw")
	if err != nil {
		return err
	}
	v.process = p
	return until(context.Background(), "a server to listen", func() bool {
		return strings.Contains(p.said.String(), "listening on unix://")
	})
}

// stop asks it to end, and requires that it does so well.
func (v *server) stop() error {
	if err := v.signal(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := v.wait(v.s.timeout)
	if err == nil && code != 0 {
		err = fmt.Errorf("a server ended with exit code %d; it said:\n%s", code, v.said.String())
	}
	return err
}

// until asks again and again, for what another process does.
func until(ctx context.Context, what string, happened func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("waited in vain for %s", what)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// tail keeps the end of what a process says.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 32 << 10 // bytes

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailSize; over > tailSize {
		t.text = append([]byte(nil), t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
