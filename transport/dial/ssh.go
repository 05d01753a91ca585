package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
)

const (
	maxStderr = 4 << 10         // bytes of the program's last words that are kept
	exitGrace = 2 * time.Second // for the program to end by itself, then for SIGTERM, then SIGKILL
)

// SSHError is an ssh program that ended, or could not start, before the
// conversation was over.
type SSHError struct {
	Host   string
	Status int    // exit status; -1 if it did not start or was killed
	Stderr string // the last 4 KiB it wrote there, made printable
	Err    error
}

// Error says how the program ended, its last words, and what to do.
func (e *SSHError) Error() string {
	s := fmt.Sprintf("ssh to %s: %v", e.Host, e.Err)
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	switch e.Status {
	case 126, 127: // the remote shell's words for "cannot run" and "not found"
		s += "; install failback there, or say where it is with --remote-failback PATH"
	case 255: // ssh's own failure
		s += "; the same ssh command has to work by hand"
	}
	return s
}

// Unwrap returns the cause.
func (e *SSHError) Unwrap() error { return e.Err }

// sshConn is a running ssh program and its standard input and output.
type sshConn struct {
	duplex
	host   string
	cmd    *exec.Cmd
	stderr tail
	heard  atomic.Bool   // the other side has said something
	closed atomic.Bool   // by us: how the program ends no longer matters
	done   chan struct{} // closed when the program has been waited for
	err    error         // how it ended; set before done is closed
	once   sync.Once
}

func dialSSH(ctx context.Context, a Address, o Options) (io.ReadWriteCloser, error) {
	argv, err := sshCommand(a, o)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("reach %s: %w", a, err)
	}
	c := &sshConn{host: a.Host, done: make(chan struct{}), cmd: exec.Command(argv[0], argv[1:]...)}
	if err := c.start(); err != nil {
		hint := ""
		if errors.Is(err, exec.ErrNotFound) {
			hint = "; install an ssh client, or name another program with --ssh"
		}
		return nil, &SSHError{Host: a.Host, Status: -1, Err: fmt.Errorf("run %s: %w%s", argv[0], err, hint)}
	}
	return c, nil
}

// start runs the program and the goroutine that waits for it.
func (c *sshConn) start() error {
	in, toChild, err := os.Pipe()
	if err != nil {
		return err
	}
	fromChild, out, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close(), toChild.Close())
	}
	c.duplex = duplex{r: fromChild, w: toChild}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = in, out, &c.stderr
	// A multiplexing ssh leaves a process behind that holds stderr open.
	c.cmd.WaitDelay = exitGrace / 2
	err = c.cmd.Start()
	if err = errors.Join(err, in.Close(), out.Close()); err != nil {
		if c.cmd.Process != nil {
			err = errors.Join(err, c.cmd.Process.Kill(), c.cmd.Wait())
		}
		return errors.Join(err, c.duplex.Close())
	}
	go func() { // ends with the program; Close sees to it that the program ends
		c.err = c.cmd.Wait()
		if errors.Is(c.err, exec.ErrWaitDelay) {
			c.err = nil // it did end, with status 0
		}
		close(c.done)
	}()
	return nil
}

// Read returns io.EOF only if the program ended with status 0.
func (c *sshConn) Read(p []byte) (int, error) {
	n, err := c.duplex.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	if err == io.EOF {
		err = c.ended(io.EOF)
	}
	return n, err
}

func (c *sshConn) Write(p []byte) (int, error) {
	n, err := c.duplex.Write(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = c.ended(err)
	}
	return n, err
}

// ended says why the stream ended: err, or what the program died of.
func (c *sshConn) ended(err error) error {
	if c.closed.Load() {
		return os.ErrClosed
	}
	t := time.NewTimer(exitGrace)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C: // it closed its output and goes on: nothing more to learn
		return err
	}
	if c.err == nil || c.closed.Load() {
		return err
	}
	e := &SSHError{Host: c.host, Status: -1, Stderr: c.stderr.String(), Err: c.err}
	if ps := c.cmd.ProcessState; ps != nil {
		e.Status = ps.ExitCode()
	}
	if c.heard.Load() { // it was a conversation, and it was cut
		e.Err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, c.err)
	}
	return e
}

// Close ends the conversation and the program, and waits for both. A program
// that has lost its peer may not notice: it gets a while, then a signal.
func (c *sshConn) Close() error {
	err := os.ErrClosed
	c.once.Do(func() {
		c.closed.Store(true)
		err = c.duplex.Close()
		for _, sig := range []os.Signal{nil, syscall.SIGTERM, os.Kill} {
			if sig != nil {
				err = errors.Join(err, ignoreDone(c.cmd.Process.Signal(sig)))
			}
			t := time.NewTimer(exitGrace)
			select {
			case <-c.done:
				t.Stop()
				return
			case <-t.C:
			}
		}
		<-c.done
	})
	return err
}

func ignoreDone(err error) error {
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// sshCommand is what runs: the user's program, then only words that cannot be
// taken for options, then one word that the remote shell reads.
func sshCommand(a Address, o Options) ([]string, error) {
	argv := append([]string(nil), o.SSH...)
	if len(argv) == 0 {
		argv = []string{"ssh"}
	}
	if argv[0] == "" {
		return nil, &AddressError{Address: a.String(), Reason: "the ssh program has no name"}
	}
	bin := o.RemoteFailback
	if bin == "" {
		bin = "failback"
	}
	if strings.HasPrefix(bin, "-") || strings.ContainsFunc(bin, unicode.IsControl) {
		return nil, &AddressError{Address: a.String(), Reason: "remote binary " + strconv.Quote(bin) + " is not the name of a program"}
	}
	argv = append(argv, "-T")
	if a.Port != 0 {
		argv = append(argv, "-p", strconv.Itoa(a.Port))
	}
	if a.User != "" {
		argv = append(argv, "-l", a.User)
	}
	command := shellQuote(bin) + " serve --stdio"
	for _, arg := range o.RemoteArgs {
		if strings.ContainsFunc(arg, unicode.IsControl) {
			return nil, &AddressError{Address: a.String(), Reason: "remote argument " + strconv.Quote(arg) + " holds a control character"}
		}
		command += " " + shellQuote(arg)
	}
	return append(argv, "--", a.Host, command), nil
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// shellQuote makes s one word for the shells people log in with. A leading ~/
// is left for the shell to expand.
func shellQuote(s string) string {
	home := ""
	if rest, ok := strings.CutPrefix(s, "~/"); ok && rest != "" {
		home, s = "~/", rest
	}
	if plainWord.MatchString(s) {
		return home + s
	}
	return home + "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// SplitCommand splits a command line such as `ssh -i "my key"` into words:
// quotes of both kinds hold a word together, a backslash outside single quotes
// takes the next character as it is. Nothing is expanded.
func SplitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord, escaped := false, false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, inWord = r, true
		case quote == 0 && unicode.IsSpace(r):
			if inWord {
				words = append(words, word.String())
			}
			word.Reset()
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, fmt.Errorf("split command %q: a quote or backslash is left open", s)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// tail keeps the last maxStderr bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
	cut bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if n > maxStderr {
		p = p[n-maxStderr:]
		t.cut = true
	}
	if over := len(t.buf) + len(p) - maxStderr; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
		t.cut = true
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

// String is what was kept as one line, without anything a terminal obeys.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	if t.cut {
		lines = append(lines, "…")
	}
	for line := range strings.Lines(strings.ToValidUTF8(string(t.buf), "?")) {
		line = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return -1
		}, strings.ReplaceAll(line, "\t", " "))
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
