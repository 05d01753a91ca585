package quiesce

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commands is a plan of commands only, which log what they do.
func commands(t *testing.T, quiesce, resume string) (p Plan, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	return Plan{Device: "/dev/v", Env: []string{"LOG=" + log}, Timeout: patience, Limit: patience,
		OnQuiesce: "echo quiesce >>$LOG; " + quiesce, OnResume: "echo resume >>$LOG; " + resume}, log
}

func TestCommandsOnly(t *testing.T) {
	p, log := commands(t, `echo "$FAILBACK_STEP of $FAILBACK_DEVICE on ($FAILBACK_MOUNT)" >>$LOG`, `echo $FAILBACK_STEP >>$LOG`)
	if err := p.Check(); err != nil {
		t.Fatalf("check: %v", err)
	}
	if err := p.Outside("/anything"); err != nil {
		t.Errorf("outside: %v", err)
	}
	before := now()
	h := begin(t, p)
	if got, want := read(t, log), "quiesce\nquiesce of /dev/v on ()\n"; got != want {
		t.Errorf("while it rests the commands said:\n%s\nwant\n%s", got, want)
	}
	rests := now()
	pause, err := h.End()
	if err != nil {
		t.Fatalf("end: %v", err)
	}
	if got, want := read(t, log), "quiesce\nquiesce of /dev/v on ()\nresume\nresume\n"; got != want {
		t.Errorf("the commands said:\n%s\nwant\n%s", got, want)
	}
	if pause.Begun <= before || pause.Begun >= rests || pause.Ended <= rests || pause.Frozen != 0 {
		t.Errorf("%+v, from %v, at rest at %v", pause, before, rests)
	}
}

// The commands come around the freeze, not within it.
func TestCommandsAndMount(t *testing.T) {
	s := newStage(t, "ext4")
	p, _ := commands(t, "echo x >$FAILBACK_MOUNT/quiesced", "echo x >$FAILBACK_MOUNT/resumed")
	p.Device, p.Mount = s.device, s.dir
	h := begin(t, p)
	w := s.write(t)
	w.let.Store(true)
	pause, err := h.End()
	if err != nil {
		t.Fatalf("end: %v", err)
	}
	w.goesOn(t)
	if read(t, s.dir+"/quiesced") == "" || read(t, s.dir+"/resumed") == "" {
		t.Error("a command could not write")
	}
	if pause.Frozen <= 0 || pause.Frozen >= pause.Length() {
		t.Errorf("%+v: frozen for all of it", pause)
	}
	s.free(t)
}

// A command that does not do its work is told, with what it said, and resumed
// from.
func TestCommandFails(t *testing.T) {
	for name, c := range map[string]struct {
		quiesce string
		timeout time.Duration
		told    []string
	}{
		"fails":           {"echo the database is away >&2; exit 7", patience, []string{"quiesce command: exit status 7", "it said: the database is away"}},
		"too late":        {"echo waiting; sleep 300 & echo $! >$LOG.pid; wait", shortTime, []string{"did not end within 1s", "waiting"}},
		"does not listen": {"trap '' TERM; echo $$ >$LOG.pid; while :; do sleep 300; done", shortTime, []string{"did not end within 1s"}},
		"talks":           {"seq 100000; exit 1", patience, []string{"…", "99999\n100000"}},
		"is killed":       {"kill -9 $$", patience, []string{"signal: killed"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, log := commands(t, c.quiesce, "")
			p.Timeout = c.timeout
			h, err := p.Begin(t.Context())
			if err == nil {
				_, _ = h.End()
				t.Fatal("it began")
			}
			for _, word := range c.told {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("begin: %v, want %q in it", err, word)
				}
			}
			if n := len(err.Error()); n > 2*maxTail {
				t.Errorf("an error of %d bytes", n)
			}
			if got := read(t, log); got != "quiesce\nresume\n" {
				t.Errorf("the commands were:\n%s", got)
			}
			if pid, err := strconv.Atoi(strings.TrimSpace(read(t, log+".pid"))); err == nil {
				leavesNone(t, pid)
			}
		})
	}
}

func TestResumeFails(t *testing.T) {
	p, _ := commands(t, "", "echo no such service; exit 5")
	pause, err := begin(t, p).End()
	if err == nil || errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "resume command: exit status 5; it said: no such service") {
		t.Errorf("end: %v", err)
	}
	if pause.Length() <= 0 {
		t.Errorf("told %+v", pause)
	}
}

// What a command leaves running on purpose stays, and is not waited for.
func TestCommandLeavesProcess(t *testing.T) {
	p, log := commands(t, "sleep 300 & echo $! >$LOG.pid", "kill $(cat $LOG.pid)")
	h := begin(t, p)
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, log+".pid")))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("what the command left running: %v", err)
	}
	if _, err := h.End(); err != nil {
		t.Errorf("end: %v", err)
	}
	leavesNone(t, pid)
}

// A command must not quiesce after the resume: it goes with its holder.
func TestHolderKilledInCommand(t *testing.T) {
	p, log := commands(t, "sleep 300 & echo $! >$LOG.pid; wait", "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "parent", string(text))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }() // it has ended
	eventually(t, "the command to run", func() bool { return strings.HasSuffix(read(t, log+".pid"), "\n") })
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, log+".pid")))
	if err != nil {
		t.Fatal(err)
	}
	kill(t, process(t, cmd.Process.Pid, holderName), syscall.SIGKILL)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "killed while it was quiescing") {
		t.Errorf("the parent said %q, %v", line, err)
	}
	leavesNone(t, pid)
	if got := read(t, log); got != "quiesce\nresume\n" {
		t.Errorf("the commands were:\n%s", got)
	}
}

// A program that cannot hold anything is an error, and no pause.
func TestNoHolder(t *testing.T) {
	for _, program := range []string{"/nonexistent", "/bin/false", "/bin/true"} {
		p, log := commands(t, "", "")
		p.Program = program
		if _, err := p.Begin(t.Context()); err == nil {
			t.Errorf("%s: it began", program)
		}
		if got := read(t, log); got != "" {
			t.Errorf("%s: the commands were:\n%s", program, got)
		}
	}
}

func TestTail(t *testing.T) {
	for _, size := range []int{0, 1, maxTail, maxTail + 1, 3 * maxTail} {
		for _, step := range []int{1, 7, maxTail, 10 * maxTail} {
			all := strings.Repeat("0123456789abcdef\n", size/17+1)[:size]
			var got tail
			for at := 0; at < size; at += step {
				if n, err := fmt.Fprint(&got, all[at:min(at+step, size)]); err != nil || n != min(step, size-at) {
					t.Fatal(n, err)
				}
			}
			if want := all[max(0, size-maxTail):]; string(got.text) != want || got.cut != (size > maxTail) {
				t.Errorf("%d bytes by %d: kept %d, cut %v", size, step, len(got.text), got.cut)
			}
		}
	}
}

// Whoever is told less than a whole line is told nothing.
func TestHear(t *testing.T) {
	path := filepath.Join(t.TempDir(), "words")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := word{Step: stepThawing, Within: time.Second, Begun: 1, Froze: 2, Rested: true, Refused: &RefusedError{Volume: "v"}}
	if err := errors.Join(tell(f, want), tell(f, word{Step: stepEnded})); err != nil {
		t.Fatal(err)
	}
	text := read(t, path)
	heard := make(chan word, 4)
	words(lines(strings.NewReader(text[:len(text)-3])), heard)
	var got []word
	for w := range heard {
		got = append(got, w)
	}
	if len(got) != 1 || got[0].Step != want.Step || got[0].Within != want.Within || *got[0].Refused != *want.Refused {
		t.Errorf("heard %+v of a cut text", got)
	}
	if err := tell(f, strings.Repeat("x", maxLine)); err == nil {
		t.Error("a line that nobody would read was told")
	}
}
