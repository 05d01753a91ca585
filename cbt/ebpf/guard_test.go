package ebpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// Nothing is left behind, also by a test that is killed: mounts, and the pins in
// them, are in a mount namespace that dies with the tests, and loop devices go
// with their last user. What no death gives back, a zram device or a frozen file
// system, is held by a process of its own, which does so at the end of its input.

// Roles of a second process: the test binary, told by its environment what to do.
const (
	childVariable = "FAILBACK_EBPF_CHILD"
	guarded       = "guarded"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(childVariable); {
	case role != "" && role != guarded:
		if err := child(role, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case role == guarded:
		letGo()
		_ = unix.Mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "") // what lies there goes with it
	case os.Geteuid() == 0:
		if code, err := guard(); err == nil {
			os.Exit(code)
		}
	}
	os.Exit(m.Run())
}

// letGo unmounts the copies that a new mount namespace has of others' mounts: of
// tests that run beside these, whose loop devices would be busy as long as we are.
func letGo() {
	mounts, err := sysfs.This.Mounts()
	if err != nil {
		return // then there is nothing to be known of
	}
	for _, m := range slices.Backward(mounts) {
		if m.Point != "/" && strings.HasPrefix(m.Source, "/dev/loop") {
			_ = unix.Unmount(m.Point, unix.MNT_DETACH) // what stays disturbs others, not us
		}
	}
}

// guard runs the tests in a mount namespace of their own. An error means that
// they were not run.
func guard() (code int, err error) {
	runtime.LockOSThread() // whose end would be taken for ours
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), childVariable+"="+guarded)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	return 0, err
}

// holder is a process that holds something until its input ends.
type holder struct {
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

// hold starts a holder and returns its first line.
func hold(t testing.TB, role string, args ...string) (*holder, string) {
	t.Helper()
	h := &holder{cmd: exec.Command(os.Args[0], args...)}
	h.cmd.Env = append(os.Environ(), childVariable+"="+role)
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to all the others is not for it
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.in.Close()
		rest, _ := io.ReadAll(h.out)
		if err := h.cmd.Wait(); err != nil {
			t.Errorf("give back what was held by %s %v: %v: %s", role, args, err, rest)
		}
	})
	return h, h.line(t)
}

func (h *holder) line(t testing.TB) string {
	t.Helper()
	line, err := h.out.ReadString('\n')
	if err != nil || strings.HasPrefix(line, "error") {
		t.Fatalf("%v: %q, %v", h.cmd.Args, line, err)
	}
	return strings.TrimSpace(line)
}

// tell sends a word and waits for the answer.
func (h *holder) tell(t testing.TB, word string) {
	t.Helper()
	if _, err := fmt.Fprintln(h.in, word); err != nil {
		t.Fatal(err)
	}
	h.line(t)
}

const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// holdFrozen freezes and thaws the file system of dir as it is told to.
func holdFrozen(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	fmt.Println("ready")
	held := false
	for in := bufio.NewScanner(os.Stdin); in.Scan(); fmt.Println("done") {
		request := uint(ioctlThaw)
		if held = in.Text() == "freeze"; held {
			request = ioctlFreeze
		}
		if err := unix.IoctlSetInt(int(d.Fd()), request, 0); err != nil {
			return err
		}
	}
	if held {
		return unix.IoctlSetInt(int(d.Fd()), ioctlThaw, 0)
	}
	return nil
}

// holdZram adds a zram device of so many bytes and says its number.
func holdZram(size string) error {
	b, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		return err
	}
	n := strings.TrimSpace(string(b))
	err = os.WriteFile("/sys/block/zram"+n+"/disksize", []byte(size), 0)
	if err == nil {
		fmt.Println(n)
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	var gone error
	for range 1000 { // while those who used it die
		gone = errors.Join(os.WriteFile("/sys/block/zram"+n+"/reset", []byte("1"), 0), os.WriteFile("/sys/class/zram-control/hot_remove", []byte(n), 0))
		if gone == nil {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	return errors.Join(err, gone)
}
