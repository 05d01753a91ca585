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
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPause(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			s := newStage(t, kind)
			p := s.plan()
			if err := p.Check(); err != nil {
				t.Fatalf("check: %v", err)
			}
			before := now()
			h := begin(t, p)
			guard := h.guard(t)
			rests := now()
			w := s.write(t)
			w.let.Store(true)
			ends := now()
			pause, err := h.End()
			after := now()
			if err != nil {
				t.Fatalf("end: %v", err)
			}
			w.goesOn(t)
			s.free(t)
			if pause.Begun <= before || pause.Begun >= rests || pause.Ended <= ends || pause.Ended >= after ||
				pause.Frozen != pause.Length() || pause.Overdue {
				t.Errorf("%+v, in [%v,%v) resting from %v to %v", pause, before, after, rests, ends)
			}
			if again, err := h.End(); again != pause || err != nil {
				t.Errorf("a second end: %+v, %v", again, err)
			}
			leavesNone(t, h.cmd.Process.Pid, guard)
			t.Logf("%v of pause", pause.Length())
		})
	}
}

// What the parent may not survive, the file system does.
func TestKilled(t *testing.T) {
	type processes struct{ parent, holder, guard int }
	for name, victims := range map[string]func(p processes) []int{
		"parent":            func(p processes) []int { return []int{p.parent} },
		"holder":            func(p processes) []int { return []int{p.holder} },
		"guard":             func(p processes) []int { return []int{p.guard} },
		"parent and holder": func(p processes) []int { return []int{p.parent, p.holder} },
		"holder and parent": func(p processes) []int { return []int{p.holder, p.parent} },
		"holder and guard":  func(p processes) []int { return []int{p.guard, p.holder} },
		"parent and guard":  func(p processes) []int { return []int{p.guard, p.parent} },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "ext4")
			log := filepath.Join(t.TempDir(), "log")
			plan := s.plan()
			plan.OnQuiesce, plan.OnResume = "echo quiesce >>"+log, "echo resume >>"+log
			text, err := json.Marshal(plan)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe", "parent", string(text))
			stdin, err := cmd.StdinPipe() // open until the test ends
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }() // it may have ended
			p := processes{parent: cmd.Process.Pid}
			line, err := bufio.NewReader(out).ReadString('\n')
			if _, err2 := fmt.Sscanf(line, "resting %d", &p.holder); err != nil || err2 != nil {
				t.Fatalf("the parent said %q: %v", line, err)
			}
			p.guard = process(t, p.holder, guardName)
			w := s.write(t)
			w.let.Store(true)
			killed := time.Now()
			for _, pid := range victims(p) {
				kill(t, pid, syscall.SIGKILL)
			}
			w.goesOn(t)
			t.Logf("a write went on %v after", time.Since(killed))
			// A parent that lives finishes where the others do not.
			eventually(t, "the application to be resumed", func() bool { return strings.Contains(read(t, log), "resume\n") })
			s.free(t)
			stdin.Close()
			leavesNone(t, p.parent, p.holder, p.guard)
			if got := read(t, log); got != "quiesce\nresume\n" {
				t.Errorf("the commands were:\n%s", got)
			}
		})
	}
}

// shortLimit is for pauses that are to reach it. A freeze counts towards it, and
// on a busy machine takes some tenths of a second.
const shortLimit = 3 * time.Second

// shortTime is for steps that never end. Others have to, in it.
const shortTime = time.Second

// A pause that ends by itself is told as broken, whatever ended it.
func TestBroken(t *testing.T) {
	for name, c := range map[string]struct {
		limit  time.Duration
		harm   func(t *testing.T, s *stage, h *Hold, guard int)
		told   string
		awaits bool // the end, before it asks for it
	}{
		"limit":            {shortLimit, func(*testing.T, *stage, *Hold, int) {}, shortLimit.String(), true},
		"asked to end":     {patience, func(t *testing.T, _ *stage, h *Hold, _ int) { kill(t, h.cmd.Process.Pid, syscall.SIGTERM) }, "signal: terminated", true},
		"hung up":          {patience, func(t *testing.T, _ *stage, h *Hold, _ int) { kill(t, h.cmd.Process.Pid, syscall.SIGHUP) }, "signal: hangup", true},
		"holder killed":    {patience, func(t *testing.T, _ *stage, h *Hold, _ int) { kill(t, h.cmd.Process.Pid, syscall.SIGKILL) }, "killed", true},
		"guard killed":     {patience, func(t *testing.T, _ *stage, _ *Hold, guard int) { kill(t, guard, syscall.SIGKILL) }, "guard", true},
		"holder stopped":   {shortLimit, func(t *testing.T, _ *stage, h *Hold, _ int) { stop(t, h.cmd.Process.Pid) }, "said nothing", true},
		"thawed by others": {patience, func(t *testing.T, s *stage, _ *Hold, _ int) { s.thawAll() }, "somebody else", false},
		"both stopped": {shortLimit, func(t *testing.T, _ *stage, h *Hold, guard int) {
			stop(t, guard)
			t.Cleanup(func() { kill(t, guard, syscall.SIGKILL) })
			stop(t, h.cmd.Process.Pid)
		}, "guard does nothing", true},
		"guard stopped, holder killed": {patience, func(t *testing.T, _ *stage, h *Hold, guard int) {
			stop(t, guard)
			t.Cleanup(func() { kill(t, guard, syscall.SIGKILL) })
			kill(t, h.cmd.Process.Pid, syscall.SIGKILL)
		}, "guard does nothing", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, "ext4")
			p := s.plan()
			p.Limit = c.limit
			h := begin(t, p)
			guard := h.guard(t)
			w := s.write(t)
			w.let.Store(true)
			c.harm(t, s, h, guard)
			if c.awaits {
				select {
				case <-h.Ended():
				case <-time.After(patience):
					t.Error("it does not end by itself")
				}
			}
			pause, err := h.End()
			if !errors.Is(err, ErrBroken) || !strings.Contains(fmt.Sprint(err), c.told) {
				t.Errorf("end: %v, want %v with %q", err, ErrBroken, c.told)
			}
			if pause.Overdue != (name == "limit") || pause.Length() <= 0 {
				t.Errorf("told %+v", pause)
			}
			w.goesOn(t)
			s.free(t)
			leavesNone(t, h.cmd.Process.Pid)
		})
	}
}

// A freeze that is not ours is not ours to end.
func TestFrozenAlready(t *testing.T) {
	s := newStage(t, "ext4")
	if err := s.request(fiFreeze); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "log")
	p := s.plan()
	p.OnQuiesce, p.OnResume = "echo quiesce >>"+log, "echo resume >>"+log
	_, err := p.Begin(t.Context())
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "frozen already") || refused.Next == "" {
		t.Errorf("begin: %v", err)
	}
	if got := read(t, log); got != "quiesce\nresume\n" {
		t.Errorf("the commands were:\n%s", got)
	}
	if err := s.request(fiThaw); err != nil {
		t.Errorf("it was thawed by who did not freeze it: %v", err)
	}
}

// A file system whose device does not answer is not waited for, and not left
// frozen when it answers again.
func TestStuck(t *testing.T) {
	outer := newStage(t, "xfs")
	image, dir := filepath.Join(outer.dir, "inner.img"), t.TempDir()
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4")
	}
	for _, args := range [][]string{{mkfs, "-q", "-F", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
	}
	inner := &stage{dir: dir}
	inner.device = "/dev/" + thisHost.Name(inner.mount(t).Dev)
	t.Cleanup(func() {
		outer.thawAll()
		inner.thawAll()
		eventually(t, "the inner file system to be unmounted", func() bool { return unix.Unmount(dir, 0) == nil })
	})
	for name, prepare := range map[string]func(p *Plan){
		"writing out": func(p *Plan) {},
		// Nothing is dirty until the command has run, and then it is frozen below.
		"freezing": func(p *Plan) { p.OnQuiesce = "true" },
	} {
		t.Run(name, func(t *testing.T) {
			p := inner.plan()
			p.Timeout = shortTime
			prepare(&p)
			if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := outer.request(fiFreeze); err != nil {
				t.Fatal(err)
			}
			h, err := p.Begin(t.Context())
			if err == nil {
				t.Error("it began")
				_, _ = h.End()
			} else if !strings.Contains(err.Error(), "not done within "+shortTime.String()) {
				t.Errorf("begin: %v", err)
			}
			outer.thawAll()
			inner.free(t)
		})
	}
	t.Run("freeze itself", func(t *testing.T) {
		// The step alone, for what is dirty is written out before it is taken.
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p := inner.plan()
		p.Timeout = shortTime
		told := make(chan word, 16)
		step := pause{plan: p, mount: d, tell: func(w word) { told <- w }}
		if err := os.WriteFile(filepath.Join(dir, "x"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := outer.request(fiFreeze); err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- step.freeze() }()
		for w := range told {
			if w.Stuck {
				break
			}
		}
		outer.thawAll()
		if err := <-result; err == nil || !strings.Contains(err.Error(), "not done within "+shortTime.String()) {
			t.Errorf("freeze: %v", err)
		}
		step.finish()
		inner.free(t)
	})
}

func TestCancelled(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p := Plan{Device: volumeFile(t), OnQuiesce: "echo quiesce >>" + log + "; sleep 60", OnResume: "echo resume >>" + log}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for !strings.Contains(read(t, log), "quiesce") && ctx.Err() == nil {
			<-time.After(time.Millisecond)
		}
	}()
	if _, err := p.Begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("begin: %v", err)
	}
	if got := read(t, log); got != "quiesce\nresume\n" {
		t.Errorf("the commands were:\n%s", got)
	}
}
