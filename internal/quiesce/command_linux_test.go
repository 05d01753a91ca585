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
	return Plan{Device: volumeFile(t), Env: []string{"LOG=" + log}, Timeout: patience, Limit: patience,
		OnQuiesce: "echo quiesce >>$LOG; " + quiesce, OnResume: "echo resume >>$LOG; " + resume}, log
}

// volumeFile stands for a device where nothing of it matters.
func volumeFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "v")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loopOver puts a loop device over a file or a device.
func loopOver(t *testing.T, backing string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to set up loop devices")
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).Output()
	if err != nil {
		t.Skipf("needs a loop device: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

// TestCommandsLeaveNothing: what a command, or an application that it stops, has
// written through the page cache of the device lies on the medium when the writers
// rest, also while others have the device open, and where it was written by way of
// a device on it.
func TestCommandsLeaveNothing(t *testing.T) {
	image := volumeFile(t)
	if err := os.Truncate(image, 1<<20); err != nil {
		t.Fatal(err)
	}
	device := loopOver(t, image)
	upper := loopOver(t, device)
	for i, path := range []string{device, upper} {
		others, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer others.Close()
		last := fmt.Sprintf("last words %d", i)
		p := Plan{Device: device, Timeout: patience, Limit: patience, OnQuiesce: fmt.Sprintf("printf '%s' | dd of=%s bs=4096 seek=%d conv=notrunc", last, path, 10+i)}
		begin(t, p)
		got := make([]byte, len(last))
		f, err := os.Open(image)
		if err == nil {
			_, err = f.ReadAt(got, int64(10+i)*4096)
			f.Close()
		}
		if err != nil || string(got) != last {
			t.Errorf("by way of %s: %q on the medium, %v; want %q", path, got, err, last)
		}
	}
}

// TestCommandsWithoutDevice: it is refused before anybody is stopped.
func TestCommandsWithoutDevice(t *testing.T) {
	p, log := commands(t, "", "")
	p.Device = "/nonexistent"
	var refused *RefusedError
	if err := p.Check(); !errors.As(err, &refused) {
		t.Errorf("check: %v", err)
	}
	if _, err := p.Begin(t.Context()); !errors.As(err, &refused) || read(t, log) != "" {
		t.Errorf("begin: %v; the commands were %q", err, read(t, log))
	}
}

// TestWriteOutLate: the time for it is bounded like that of a command.
func TestWriteOutLate(t *testing.T) {
	p := pause{plan: Plan{Timeout: patience, Limit: shortTime}, tell: func(word) {}, word: word{Begun: now()}}
	block, began := make(chan struct{}), now()
	defer close(block)
	err := p.out("v", nil, func() error { <-block; return nil })
	if took := now() - began; err == nil || !strings.Contains(err.Error(), "write out v: not done within") || took > patience/2 || p.word.Step != stepQuiescing {
		t.Errorf("%v after %v, %+v", err, took, p.word)
	}
}

// TestOutOfMemory: who ends the pause is not killed for its memory; the commands
// are as others.
func TestOutOfMemory(t *testing.T) {
	ours := strings.TrimSpace(read(t, "/proc/self/oom_score_adj"))
	if ours == unkillable {
		t.Skip("needs a process that memory can be taken from")
	}
	if err := exec.Command("/bin/sh", "-c", "echo -1000 >/proc/self/oom_score_adj").Run(); err != nil {
		t.Skip("needs CAP_SYS_RESOURCE")
	}
	p, log := commands(t, "cat /proc/self/oom_score_adj >>$LOG", "cat /proc/self/oom_score_adj >>$LOG")
	want := "quiesce\n" + ours + "\nresume\n" + ours + "\n"
	for _, killed := range []bool{false, true} {
		h := begin(t, p)
		for what, pid := range map[string]int{"holder": h.cmd.Process.Pid, "guard": h.guard(t)} {
			if got := strings.TrimSpace(read(t, fmt.Sprintf("/proc/%d/oom_score_adj", pid))); got != unkillable {
				t.Errorf("the %s has %s", what, got)
			}
		}
		if killed { // the guard has the commands of the one that it follows
			kill(t, h.cmd.Process.Pid, syscall.SIGKILL)
			<-h.Ended()
		}
		if _, err := h.End(); (err != nil) != killed {
			t.Errorf("end: %v", err)
		}
		if got := read(t, log); got != want {
			t.Errorf("killed %t: the commands have\n%s\nwant\n%s", killed, got, want)
		}
		if err := os.Remove(log); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommandsAreNotSpared: they get back what their caller had, from who has
// taken over, too. A higher value needs no right, so this runs for everybody.
func TestCommandsAreNotSpared(t *testing.T) {
	plan, log := commands(t, "cat /proc/self/oom_score_adj >>$LOG", "cat /proc/self/oom_score_adj >>$LOG")
	b, err := json.Marshal(word{Step: stepStarting, Spared: "777"})
	if err != nil {
		t.Fatal(err)
	}
	p := pause{plan: plan, tell: func(word) {}}
	if err := json.Unmarshal(b, &p.word); err != nil {
		t.Fatal(err)
	}
	if err := p.begin(nil); err != nil {
		t.Errorf("begin: %v", err)
	}
	p.takeOver("the test says so")
	if got := read(t, log); got != "quiesce\n777\nresume\n777\n" {
		t.Errorf("the commands have\n%s", got)
	}
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
	if got, want := read(t, log), "quiesce\nquiesce of "+p.Device+" on ()\n"; got != want {
		t.Errorf("while it rests the commands said:\n%s\nwant\n%s", got, want)
	}
	rests := now()
	begun := now() - time.Since(h.Begun())
	pause, err := h.End()
	if err != nil {
		t.Fatalf("end: %v", err)
	}
	if got, want := read(t, log), "quiesce\nquiesce of "+p.Device+" on ()\nresume\nresume\n"; got != want {
		t.Errorf("the commands said:\n%s\nwant\n%s", got, want)
	}
	if pause.Begun <= before || pause.Begun >= rests || pause.Ended <= rests || pause.Frozen != 0 {
		t.Errorf("%+v, from %v, at rest at %v", pause, before, rests)
	}
	if off := begun - pause.Begun; off.Abs() > 100*time.Millisecond {
		t.Errorf("begun is %v off", off)
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
