package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSSH runs testdata/ssh against a real sshd on loopback, as the user of the
// test, with keys of its own.
func TestSSH(t *testing.T) {
	for _, tool := range []string{"ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd, err = exec.LookPath("/usr/sbin/sshd"); err != nil {
			t.Skip("needs sshd")
		}
	}
	if _, err := os.Stat("/run/sshd"); err != nil && os.Geteuid() == 0 {
		t.Skip("needs /run/sshd, which sshd of this system separates its privileges in")
	}
	config := startSSHD(t, sshd)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/ssh",
		Cmds:                scriptCommands,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			binary, err := exec.LookPath("failback")
			if err != nil {
				return err
			}
			e.Setenv("SSH_CONFIG", config)
			e.Setenv("BINARY", binary)
			return nil
		},
	})
}

// startSSHD returns the ssh configuration that reaches it as host "home".
func startSSHD(t *testing.T, sshd string) string {
	t.Helper()
	dir := t.TempDir()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	port := freePort(t)
	write := func(name, content string) {
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("sshd_config", fmt.Sprintf(`ListenAddress 127.0.0.1:%d
HostKey %s
AuthorizedKeysFile %s
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
`, port, file("host"), file("user.pub")))
	write("ssh_config", fmt.Sprintf(`Host home
	HostName 127.0.0.1
	Port %d
	User %s
	IdentityFile %s
	IdentitiesOnly yes
	IdentityAgent none
	BatchMode yes
	StrictHostKeyChecking no
	UserKnownHostsFile /dev/null
	LogLevel ERROR
`, port, me.Username, file("user")))

	ctx, cancel := context.WithCancel(context.Background())
	server := exec.CommandContext(ctx, sshd, "-D", "-e", "-f", file("sshd_config"))
	var said strings.Builder
	server.Stderr = &said
	if err := server.Start(); err != nil {
		cancel()
		t.Skipf("needs an sshd that starts: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			t.Errorf("sshd: %v", err)
		}
	})
	awaitPort(t, port, ended, &said)
	return file("ssh_config")
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// awaitPort returns when sshd answers, and skips if it ends instead.
func awaitPort(t *testing.T, port int, ended chan error, said *strings.Builder) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
		select {
		case err := <-ended:
			ended <- nil
			t.Skipf("needs an sshd that runs here: %v: %s", err, said.String())
		case <-tick.C:
		}
	}
}
