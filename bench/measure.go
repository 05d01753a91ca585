package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Figures is what one run of a process took, with everything it started and waited for.
type Figures struct {
	Wall       float64 `json:"wall_seconds"`
	Flush      float64 `json:"flush_seconds"`  // of an fsync of the target after it: what it left in the page cache
	User       float64 `json:"user_seconds"`   // processor time in the program
	System     float64 `json:"system_seconds"` // processor time in the kernel
	PeakRSS    int64   `json:"peak_rss_bytes"` // of the largest single process; see shed for how small it can be
	DiskRead   int64   `json:"disk_read_bytes"`
	DiskWrite  int64   `json:"disk_write_bytes"`  // made dirty in the page cache or written past it; large folios count whole
	CallsRead  int64   `json:"calls_read_bytes"`  // through read calls: files, pipes and sockets
	CallsWrite int64   `json:"calls_write_bytes"` // through write calls
}

// Total is the time until the result is durable, in seconds.
func (f Figures) Total() float64 { return f.Wall + f.Flush }

// maxOutput is how much of a command's output is kept, in bytes: a JSON report, or the end of a complaint.
const maxOutput = 1 << 20

// tail keeps the last maxOutput bytes written to it. It may be read while a process still writes.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.b)
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*maxOutput {
		t.b = append(t.b[:0], t.b[len(t.b)-maxOutput:]...)
	}
	return len(p), nil
}

// A process is a started command line whose figures are taken when it ends.
type process struct {
	cmd      *exec.Cmd
	out, err tail
	start    time.Time
}

// startProcess starts a command line in a process group of its own, so that what it starts can be ended with it.
func startProcess(ctx context.Context, args []string) (*process, error) {
	if len(args) == 0 {
		return nil, errors.New("start: no command line")
	}
	p := &process{cmd: exec.CommandContext(ctx, args[0], args[1:]...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = time.Second
	shed()
	p.start = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	return p, nil
}

// shed gives back what memory this process does not need. The kernel counts a child's peak from before its exec, when it
// still shares the memory of its parent: without this a child would seem as large as the harness ever was. What remains,
// some 15 MiB, is the least that can be seen of a child.
func shed() {
	debug.FreeOSMemory()
	// 5 sets the peak to what is there now (Linux 4.0). Where it cannot be written, small peaks are not true.
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// wait returns the figures of a process once it has ended. A process that failed has figures too.
//
// The kernel tells the bytes a process moved only until it is reaped: the wait that leaves it a zombie comes first.
func (p *process) wait() (Figures, error) {
	pid := p.cmd.Process.Pid
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		err = unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	}
	f := Figures{Wall: time.Since(p.start).Seconds()}
	if err == nil {
		f.readIO(pid)
	}
	err = p.cmd.Wait()
	if ru, ok := p.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		f.User, f.System = seconds(ru.Utime), seconds(ru.Stime)
		f.PeakRSS = int64(ru.Maxrss) << 10
	}
	if err != nil {
		return f, fmt.Errorf("%s: %w: %s", p.cmd.Args[0], err, complaint(p.err.Bytes()))
	}
	return f, nil
}

func seconds(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }

// runProcess runs a command line that nobody measures.
func runProcess(ctx context.Context, args []string) error {
	p, err := startProcess(ctx, args)
	if err != nil {
		return err
	}
	_, err = p.wait()
	return err
}

// readIO reads what the kernel counted. A kernel without the counters leaves zeroes.
func (f *Figures) readIO(pid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		key, val, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, err := strconv.ParseInt(val, 10, 64)
		if err != nil {
			continue
		}
		switch key {
		case "read_bytes":
			f.DiskRead = n
		case "write_bytes":
			f.DiskWrite = n
		case "rchar":
			f.CallsRead = n
		case "wchar":
			f.CallsWrite = n
		}
	}
}

// complaint is the end of what a command said, in one line of at most 500 bytes.
func complaint(b []byte) string {
	words := bytes.Join(bytes.Fields(b), []byte(" "))
	return string(words[max(0, len(words)-500):])
}

func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// measureFunc runs f in this process. Its peak memory is not its own and stays zero.
func measureFunc(ctx context.Context, f func(context.Context) error) (Figures, error) {
	var before, after syscall.Rusage
	runtime.GC() // what earlier runs left is not this one's to clear
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &before); err != nil {
		return Figures{}, err
	}
	start := time.Now()
	err := f(ctx)
	fig := Figures{Wall: time.Since(start).Seconds()}
	if err := errors.Join(err, syscall.Getrusage(syscall.RUSAGE_SELF, &after)); err != nil {
		return fig, err
	}
	fig.User = seconds(after.Utime) - seconds(before.Utime)
	fig.System = seconds(after.Stime) - seconds(before.Stime)
	return fig, nil
}

// flush syncs a file and returns how long that took, in seconds.
func flush(path string) (float64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("sync %s: %w", path, err)
	}
	return time.Since(start).Seconds(), nil
}
