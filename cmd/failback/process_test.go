package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The stage for tests with processes of their own: the program as it is shipped,
// started, killed and waited for.

// patience is how long a process may take for what it does at once.
const patience = 20 * time.Second

// build makes the program as make build does.
func build(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go command, to build the program")
	}
	path := filepath.Join(t.TempDir(), "failback")
	c := exec.Command(tool, "build", "-trimpath", "-buildvcs=false", "-o", path, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return path
}

// dice returns the source of all chance of a test. FAILBACK_SEED repeats a run.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("FAILBACK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("FAILBACK_SEED: %v", err)
		}
	}
	t.Logf("FAILBACK_SEED=%d repeats this", seed)
	return rand.New(rand.NewPCG(seed, 3))
}

// process is one that a test started. It leads a process group, so that what it
// starts is found too, and dies with the test.
type process struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	said   transcript // stderr
	ended  chan struct{}
}

func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{})}
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
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.ended
	})
	return p
}

// signal sends one to the process alone. One that has ended is no error.
func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal %v to %d: %v", s, p.cmd.Process.Pid, err)
	}
}

// wait returns the exit code, -1 after a signal, once the process has ended and
// nothing of its group is left.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.signal(t, syscall.SIGQUIT)
		<-p.ended
		t.Fatalf("%v did not end within %v; it said:\n%s", p.cmd.Args, patience, p.said.String())
	}
	eventually(t, "the process group to be empty", func() bool {
		return errors.Is(syscall.Kill(-p.cmd.Process.Pid, 0), syscall.ESRCH)
	})
	return p.cmd.ProcessState.ExitCode()
}

// finish runs it to its end and requires the code.
func finish(t *testing.T, want int, name string, args ...string) *process {
	t.Helper()
	p := start(t, name, args...)
	if got := p.wait(t); got != want {
		t.Fatalf("%s: exit code %d, want %d; it said:\n%s", strings.Join(args, " "), got, want, p.said.String())
	}
	return p
}

// eventually asks again and again, for what another process does.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	late := time.After(patience)
	for pause := 2 * time.Millisecond; !happened(); pause = min(pause*3/2, 100*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// transcript is what a process says, for those who wait for a word of it.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// serve starts a server on a socket and returns when it listens.
func serve(t *testing.T, bin, socket string, args ...string) *process {
	t.Helper()
	p := start(t, bin, append([]string{"serve", "--listen", "unix://" + socket}, args...)...)
	eventually(t, "the server to listen", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("the server ended; it said:\n%s", p.said.String())
		default:
		}
		return strings.Contains(p.said.String(), "listening on unix://")
	})
	return p
}

// noise is n bytes that no codec makes smaller.
func noise(n int, seed uint64) []byte {
	p := make([]byte, n)
	var key [32]byte
	copy(key[:], fmt.Append(nil, seed))
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
