package dial

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// sshServer is a real sshd on loopback with keys and files of its own.
type sshServer struct {
	address Address
	options Options // a client that it lets in
	dir     string
}

// needSSH finds the programs, or names what is missing.
func needSSH(t *testing.T) (sshd string) {
	t.Helper()
	for _, p := range []string{"ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian: openssh-client)", p)
		}
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd" // not in everybody's PATH
	}
	if _, err := os.Stat(sshd); err != nil {
		t.Skip("needs sshd (Debian: openssh-server)")
	}
	if os.Geteuid() == 0 { // where sshd locks up its unprivileged half; a service manager makes it
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Skipf("needs the directory /run/sshd: %v", err)
		}
	}
	return sshd
}

// startSSHD runs sshd until the test ends. On the other side of it, the binary
// named by RemoteFailback plays role.
func startSSHD(t *testing.T, host, role string) sshServer {
	t.Helper()
	sshd := needSSH(t)
	dir := t.TempDir()
	for _, key := range []string{"host", "mine", "other"} {
		run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("needs a listener on %s: %v", host, err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "config", fmt.Sprintf(`ListenAddress %s
HostKey %s/host
AuthorizedKeysFile %s/mine.pub
PidFile %s/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
`, net.JoinHostPort(host, strconv.Itoa(port)), dir, dir, dir))
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "config"))
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("kill sshd: %v", err)
		}
		if s := <-said; t.Failed() {
			t.Logf("sshd said: %s", s)
		}
		_ = cmd.Wait() // killed
	})
	waitListening(t, log, said)
	known, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "known", fmt.Sprintf("[%s]:%d %s", host, port, known))
	s := sshServer{
		dir:     dir,
		address: Address{Scheme: SSH, User: me.Username, Host: host, Port: port, Volume: "/dev/x"},
		options: Options{SSH: sshClient(dir, "mine", "known")},
	}
	needAccount(t, s)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := write(t, dir, "it's fail;back", fmt.Sprintf("#!/bin/sh\n[ \"$*\" = 'serve --stdio' ] || exit 9\n%s=%s exec '%s'\n", roleEnv, role, self))
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	s.options.RemoteFailback = bin
	return s
}

// needAccount finds out, without the code under test, whether this user can log
// in with a key: a locked account or one without a shell can not.
func needAccount(t *testing.T, s sshServer) {
	t.Helper()
	argv := append(s.options.SSH[1:], "-p", strconv.Itoa(s.address.Port), "-l", s.address.User, "--", s.address.Host, "echo let in")
	out, err := exec.Command(s.options.SSH[0], argv...).CombinedOutput()
	if err != nil || string(out) != "let in\n" {
		t.Skipf("needs an account that sshd lets in and that has a shell; %s: %v: %s", s.address.User, err, out)
	}
}

func sshClient(dir, key, known string) []string {
	return []string{"ssh", "-F", "none", "-i", filepath.Join(dir, key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", "UserKnownHostsFile=" + filepath.Join(dir, known)}
}

// waitListening returns once sshd has its socket. All it says goes to said when
// it ends.
func waitListening(t *testing.T, log io.Reader, said chan<- string) {
	t.Helper()
	ready := make(chan bool, 1)
	go func() {
		var all bytes.Buffer
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			fmt.Fprintln(&all, lines.Text())
			if strings.Contains(lines.Text(), "Server listening") {
				ready <- true
			}
		}
		close(ready)
		said <- all.String()
	}()
	if !<-ready {
		t.Fatal("sshd ended before it listened")
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRealSSH(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			s := startSSHD(t, host, "echo")
			a, err := Parse(s.address.String())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := Dial(t.Context(), a, s.options)
			if err != nil {
				t.Fatal(err)
			}
			pid := converse(t, conn)
			if err := conn.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			gone(t, pid)
			if _, err := os.Stat("/proc/" + strconv.Itoa(conn.(*sshConn).cmd.Process.Pid)); err == nil {
				t.Error("ssh was not waited for")
			}
		})
	}
}

func TestRealSSHRefused(t *testing.T) {
	s := startSSHD(t, "127.0.0.1", "chatty")
	for _, c := range []struct {
		name   string
		change func(*Options, *Address)
		status int
		want   string
	}{
		{"wrong key", func(o *Options, _ *Address) { o.SSH = sshClient(s.dir, "other", "known") }, 255, "Permission denied"},
		{"unknown host key", func(o *Options, _ *Address) { o.SSH = sshClient(s.dir, "mine", "mine.pub") }, 255, "Host key verification failed"},
		{"no such binary", func(o *Options, _ *Address) { o.RemoteFailback = "/no/such; touch " + s.dir + "/pwned" }, 127, "--remote-failback"},
		{"nobody listens", func(_ *Options, a *Address) { a.Port = 1 }, 255, "Connection refused"},
		{"remote dies", func(*Options, *Address) {}, 3, "line 999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, a := s.options, s.address
			c.change(&o, &a)
			conn, err := Dial(t.Context(), a, o)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = io.ReadAll(conn)
			var e *SSHError
			if !errors.As(err, &e) || e.Status != c.status || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want status %d and %q", err, c.status, c.want)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(s.dir, "pwned")); err == nil {
		t.Error("the remote shell took the name of the binary apart")
	}
}
