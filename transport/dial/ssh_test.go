package dial

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var elsewhere = Address{Scheme: SSH, User: "me", Host: "there", Port: 2222, Volume: "/dev/sda"}

func dialRole(t *testing.T, role string) *sshConn {
	t.Helper()
	conn, err := Dial(t.Context(), elsewhere, Options{SSH: acting(t, role)})
	if err != nil {
		t.Fatal(err)
	}
	c := conn.(*sshConn)
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func TestSSHCommand(t *testing.T) {
	argv := []string{"-T", "-p", "2222", "-l", "me", "--", "there"}
	for _, c := range []struct {
		a    Address
		o    Options
		want []string
	}{
		{elsewhere, Options{}, append(append([]string{"ssh"}, argv...), "failback serve --stdio")},
		{elsewhere, Options{SSH: []string{"my ssh", "-i", "k"}}, append(append([]string{"my ssh", "-i", "k"}, argv...), "failback serve --stdio")},
		{Address{Scheme: SSH, Host: "::1", Volume: "/x"}, Options{RemoteFailback: "/opt/bin/failback"},
			[]string{"ssh", "-T", "--", "::1", "/opt/bin/failback serve --stdio"}},
	} {
		if got, err := sshCommand(c.a, c.o); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("sshCommand(%v, %+v) = %q, %v; want %q", c.a, c.o, got, err, c.want)
		}
	}
	for _, bin := range []string{"-x", "a\nb", "a\x00"} {
		if got, err := sshCommand(elsewhere, Options{RemoteFailback: bin}); err == nil {
			t.Errorf("remote binary %q runs %q", bin, got)
		}
	}
	if got, err := sshCommand(elsewhere, Options{SSH: []string{""}}); err == nil {
		t.Errorf("a program without a name runs %q", got)
	}
}

// What a shell makes of the remote binary is one word, the one that was given.
func TestShellQuote(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("needs sh")
	}
	for _, s := range []string{"failback", "/opt/a b", "a'b", `a"b`, "$(id)", "`id`", "a;b", "a&&b", "*", "~", "~x", "a\\b", "!x", "#x", "ü", "''"} {
		out, err := exec.Command(sh, "-c", "printf %s "+shellQuote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q becomes %q, %v", s, out, err)
		}
	}
	cmd := exec.Command(sh, "-c", "printf %s "+shellQuote("~/my bin/failback"))
	cmd.Env = []string{"HOME=/home/me"}
	if out, err := cmd.Output(); err != nil || string(out) != "/home/me/my bin/failback" {
		t.Errorf("~/ becomes %q, %v", out, err)
	}
}

func TestSplitCommand(t *testing.T) {
	for in, want := range map[string][]string{
		"":                           nil,
		"ssh":                        {"ssh"},
		" ssh  -i\tkey ":             {"ssh", "-i", "key"},
		`ssh -i "my key" -o 'A=b c'`: {"ssh", "-i", "my key", "-o", "A=b c"},
		`a\ b c\"d 'e\f' "g\"h"`:     {"a b", `c"d`, `e\f`, `g"h`},
		`x '' ""`:                    {"x", "", ""},
		`$HOME *`:                    {"$HOME", "*"},
	} {
		if got, err := SplitCommand(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("SplitCommand(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{`a "b`, `a 'b`, `a\`} {
		if got, err := SplitCommand(in); err == nil {
			t.Errorf("SplitCommand(%q) = %q, want an error", in, got)
		}
	}
}

func TestSSHRunsCommand(t *testing.T) {
	got, err := io.ReadAll(dialRole(t, "argv"))
	want := `["-T" "-p" "2222" "-l" "me" "--" "there" "failback serve --stdio"]` + "\n"
	if err != nil || string(got) != want {
		t.Errorf("ran with %s, %v; want %s", got, err, want)
	}
}

func TestSSHConversation(t *testing.T) {
	c := dialRole(t, "echo")
	converse(t, c)
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := c.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

// converse sends 4 MiB to an echo role, both ways at once, and checks what
// comes back. It returns the process id that the role has told.
func converse(t *testing.T, conn io.ReadWriter) int {
	t.Helper()
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("read greeting: %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("greeting %q: %v", line, err)
	}
	sent := make([]byte, 4<<20)
	for i := range sent {
		sent[i] = byte(i * i >> 7)
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("read echo: %v", err)
	}
	if err := <-wrote; err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatal("the echo differs from what was sent")
	}
	return pid
}

func TestSSHDeadline(t *testing.T) {
	c := dialRole(t, "echo")
	converse(t, c)
	if err := c.SetDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write past its deadline: %v", err)
	}
	if err := errors.Join(c.SetReadDeadline(time.Time{}), c.SetWriteDeadline(time.Time{})); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Errorf("write after the deadline was lifted: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("read after the deadline was lifted: %v", err)
	}
}

// L9: what the other side writes to stderr is bounded and cannot steer a terminal.
func TestSSHLastWords(t *testing.T) {
	_, err := io.ReadAll(dialRole(t, "chatty"))
	var e *SSHError
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want an SSHError", err)
	}
	if e.Status != 3 || e.Host != "there" || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%+v", e)
	}
	if len(e.Stderr) > maxStderr+10 || strings.ContainsAny(e.Stderr, "\x1b\n\r\t") {
		t.Errorf("stderr of %d bytes: %q", len(e.Stderr), e.Stderr)
	}
	if !strings.HasPrefix(e.Stderr, "…; ") || !strings.HasSuffix(e.Stderr, "line 999 of [31mmany[0m lines") {
		t.Errorf("stderr is not the end of what was written: %q", e.Stderr)
	}
}

func TestSSHErrorAdvice(t *testing.T) {
	cause := errors.New("exit status N")
	for status, want := range map[int]string{127: "--remote-failback", 126: "--remote-failback", 255: "by hand", 3: ""} {
		e := &SSHError{Host: "h", Status: status, Stderr: "why", Err: cause}
		if got := e.Error(); !strings.HasPrefix(got, "ssh to h: exit status N: why") || !strings.Contains(got, want) {
			t.Errorf("status %d: %s", status, got)
		}
		if !errors.Is(e, cause) {
			t.Errorf("status %d: the cause is lost", status)
		}
	}
}

func TestSSHNotThere(t *testing.T) {
	conn, err := Dial(t.Context(), elsewhere, Options{SSH: []string{"failback-no-such-program"}})
	var e *SSHError
	if conn != nil || !errors.As(err, &e) || !strings.Contains(err.Error(), "install an ssh client") {
		t.Errorf("%v, %v", conn, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if conn, err := Dial(ctx, elsewhere, Options{}); conn != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that is over: %v, %v", conn, err)
	}
}

// A conversation that was cut is told from one that never began (L6: a cut
// connection is something a session recovers from).
func TestSSHCut(t *testing.T) {
	c := dialRole(t, "echo")
	converse(t, c)
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	var e *SSHError
	if !errors.As(err, &e) || !errors.Is(err, io.ErrUnexpectedEOF) || e.Status != -1 {
		t.Errorf("read: %v", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.As(err, &e) {
		t.Errorf("write: %v", err)
	}
}

func TestSSHHalfClosed(t *testing.T) {
	t.Parallel()
	c := dialRole(t, "half")
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v, want EOF", err)
	}
}

// Close ends a program that does not want to end, and returns.
func TestSSHStubborn(t *testing.T) {
	t.Parallel()
	c := dialRole(t, "stubborn")
	if _, err := io.ReadFull(c, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("ended by %v, want SIGKILL", c.cmd.ProcessState)
	}
}

// A multiplexing ssh leaves a master process behind that keeps our pipe open.
func TestSSHMultiplexing(t *testing.T) {
	t.Parallel()
	c := dialRole(t, "multiplex")
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var left int
	if _, err := fmt.Sscan(line, &left); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v, want EOF", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err := syscall.Kill(left, syscall.SIGKILL); err != nil {
		t.Errorf("kill the process left behind: %v", err)
	}
}

// gone waits for a process that is not our child.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatalf("watch process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Errorf("process %d lives on 10 s after its connection was closed (%v)", pid, err)
		}
		return
	}
}

func TestStdioPlainFiles(t *testing.T) {
	in, err := os.CreateTemp(t.TempDir(), "in")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt([]byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range [][2]*os.File{{in, out}, {r, in}} {
		conn := joined(pair[0], pair[1])
		if _, ok := conn.(interface{ SetReadDeadline(time.Time) error }); ok {
			t.Errorf("%s and %s claim deadlines they do not have", pair[0].Name(), pair[1].Name())
		}
	}
	conn := joined(in, out)
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(conn.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := pollable(in); err == nil {
		t.Error("a closed file can be waited for")
	}
}

func TestStdioCloseWakesRead(t *testing.T) {
	in, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	sink, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	conn := joined(in, out)
	woken := make(chan error, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		woken <- err
	}()
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-woken; !errors.Is(err, os.ErrClosed) {
		t.Errorf("blocked read: %v", err)
	}
	if _, err := sink.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, want EOF", err)
	}
	if err := errors.Join(other.Close(), sink.Close()); err != nil {
		t.Error(err)
	}
}
