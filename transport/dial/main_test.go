package dial

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// roleEnv makes this test binary play the ssh program or the server behind it.
const roleEnv = "FAILBACK_DIAL_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	flag.Parse()
	before := openFiles()
	goroutines := runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		code = leaks(before, goroutines)
	}
	os.Exit(code)
}

// play returns the exit status of the role.
func play(role string) int {
	switch role {
	case "echo": // a server: says its process id, then what it hears
		conn := Stdio()
		defer conn.Close()
		fmt.Fprintln(conn, os.Getpid())
		if _, err := io.Copy(conn, conn); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	case "argv":
		fmt.Printf("%q\n", os.Args[1:])
	case "chatty": // dies after more last words than are kept
		for i := range 1000 {
			fmt.Fprintf(os.Stderr, "line %d of \x1b[31mmany\x1b[0m\tlines\r\n", i)
		}
		return 3
	case "stubborn": // neither end of input nor SIGTERM ends it
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	case "multiplex": // leaves a process behind that holds stderr open
		left := exec.Command("sleep", "1000")
		left.Stderr = os.Stderr
		if err := left.Start(); err != nil {
			return 1
		}
		fmt.Println(left.Process.Pid)
	case "half": // closes its output and lives on until its input ends
		os.Stdout.Close()
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return 1
		}
	}
	return 0
}

// acting is the ssh program that plays role instead.
func acting(t *testing.T, role string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"env", roleEnv + "=" + role, self}
}

func openFiles() map[string]string {
	found := map[string]string{}
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") {
			found[l] = to
		}
	}
	return found
}

// leaks waits a while for what is on its way out and reports what stays.
func leaks(before map[string]string, goroutines int) int {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 250 {
		runtime.GC() // frees what the runtime keeps, as the pipes it splices through
		if runtime.NumGoroutine() <= goroutines && len(openFiles()) <= len(before) {
			break
		}
		<-tick.C
	}
	code := 0
	if n := runtime.NumGoroutine(); n > goroutines {
		stacks := make([]byte, 1<<20)
		fmt.Printf("%d goroutines left over:\n%s\n", n-goroutines, stacks[:runtime.Stack(stacks, true)])
		code = 1
	}
	for l, to := range openFiles() {
		if before[l] == "" {
			fmt.Printf("descriptor left open: %s -> %s\n", l, to)
			code = 1
		}
	}
	var ws syscall.WaitStatus
	if pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil); err == nil {
		fmt.Printf("child process left over: %d (0: still running)\n", pid)
		code = 1
	}
	return code
}
