//go:build live

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Live syncs of real file systems under load, by the program as it is shipped.

// liveTimes is how often a live sync is repeated: a few times, or as
// FAILBACK_LIVE says.
func liveTimes(t *testing.T, few int) int {
	t.Helper()
	if text := os.Getenv("FAILBACK_LIVE"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("FAILBACK_LIVE: %v", err)
		}
		return n
	}
	return few
}

// TestLive has each of the stories below; they share the program.
func TestLive(t *testing.T) {
	needLive(t)
	bin := build(t)
	for _, kind := range liveKinds {
		t.Run(kind.name, func(t *testing.T) {
			if testing.Short() && kind.name != "ext4" {
				t.Skip("not in short mode")
			}
			liveRow(t, kind, bin)
		})
	}
	for name, test := range map[string]func(*testing.T, string){
		"killed": liveKilled, "cut": liveCut, "does not converge": liveDoesNotConverge, "overdue": liveOverdue, "refuses": liveRefuses,
	} {
		t.Run(name, func(t *testing.T) { test(t, bin) })
	}
}

// liveRow: after each of several live syncs in a row the target is what the
// source was in the pause, byte for byte where that was copied, and a file system
// with all that was acknowledged before. The first compares both sides, the next
// look at what was written since, until somebody else has written to the target.
func liveRow(t *testing.T, kind liveKind, bin string) {
	s := newLiveStage(t, kind, bin)
	for i := range liveTimes(t, 2) {
		s.once(t, i)
	}
	s.foreign(t)
	if kind.name == "ext4" {
		s.alone(t)
	}
}

// once does the i-th live sync.
func (s *liveStage) once(t *testing.T, i int) {
	t.Helper()
	how := s.byHooks()
	if i%2 == 1 {
		how = s.byFreeze()
	}
	r := s.live(t, how)
	if i%2 == 0 {
		s.same(t)
	}
	if i == 0 && (r.Rung != "merkle" || !strings.Contains(r.Reason, "it was not tracked until now")) {
		t.Errorf("the first time: rung %s: %s", r.Rung, r.Reason)
	}
	if i > 0 && (r.Rung != "exact" || r.Candidates > s.size/2) {
		t.Errorf("again: rung %s: %s; %d candidate bytes", r.Rung, r.Reason, r.Candidates)
	}
	s.sound(t)
	s.goOn(t)
	s.covered(t)
}

// foreign writes to the target: nothing says any more what differs.
func (s *liveStage) foreign(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(s.target, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("somebody else was here"), s.size/2+12345); err != nil {
		t.Fatal(err)
	}
	r := s.live(t, s.byHooks())
	if r.Rung != "merkle" || !strings.Contains(r.Reason, "nothing says that the target was not written since") {
		t.Errorf("after a write to the target: rung %s: %s", r.Rung, r.Reason)
	}
	s.same(t)
	s.sound(t)
	if r := s.live(t, s.byFreeze()); r.Rung != "exact" {
		t.Errorf("after that: rung %s: %s", r.Rung, r.Reason)
	}
	s.sound(t)
}

// alone: a tracker that was started for one sync ends with it.
func (s *liveStage) alone(t *testing.T) {
	t.Helper()
	finish(t, 0, s.bin, "track", "stop", s.device.Path, "--state", s.state)
	for range 2 {
		if r := s.live(t, s.byHooks(), "--keep-tracking=false"); r.Rung != "merkle" {
			t.Errorf("rung %s: %s", r.Rung, r.Reason)
		}
		s.same(t)
		if s.tracked(t) {
			t.Error("the source is still tracked")
		}
	}
}

// liveKilled ends live syncs by signals at moments of chance, some of them in
// the pause. The writers go on, the tracker has all that differs, the target says
// what it is, and the next live sync makes it equal.
func liveKilled(t *testing.T, bin string) {
	s := newLiveStage(t, liveKinds[0], bin)
	begin := time.Now()
	s.live(t, s.byHooks()) // from here on the tracker is to know everything
	usual := time.Since(begin)
	d := dice(t)
	few := 4
	if testing.Short() {
		few = 2
	}
	for i := range liveTimes(t, few) {
		sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, syscall.SIGINT}[i/2%4]
		in, moment := i%2 == 0, time.Duration(d.Int64N(int64(usual)))
		if in {
			moment = time.Duration(d.Int64N(int64(150 * time.Millisecond)))
		}
		_ = os.Remove(s.path(rested)) // it may not be there
		before := s.stamp(t)
		more := []string{"--codec", "none", "--limit", "16MiB/s"} // most of the time goes by while data travels
		p := start(t, s.bin, s.args(s.byFreeze(), more...)...)
		if in {
			s.resting(t, p)
		}
		select {
		case <-time.After(moment):
		case <-p.ended:
		}
		s.stopped(t, p, sig)
		t.Logf("%v after %v, in the pause: %v; exit code %d", sig, moment.Round(time.Millisecond), in, p.cmd.ProcessState.ExitCode())
		s.aftermath(t, p, before)
		s.live(t, s.byHooks())
		s.same(t)
	}
	s.sound(t)
}

// stamp tells whether the target was written.
func (s *liveStage) stamp(t *testing.T) string {
	t.Helper()
	info, err := os.Stat(s.target)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime().String()
}

// resting waits until the pause of a sync begins, or it ends.
func (s *liveStage) resting(t *testing.T, p *process) {
	t.Helper()
	eventually(t, "the writers to be brought to rest", func() bool {
		select {
		case <-p.ended:
			return true
		default:
		}
		_, err := os.Stat(s.path(rested))
		return err == nil
	})
}

// aftermath requires that a sync that was ended has left nobody at rest, and no
// difference that nobody knows of.
func (s *liveStage) aftermath(t *testing.T, p *process, before string) {
	t.Helper()
	s.goOn(t)
	eventually(t, "the holders to be gone", func() bool { return len(holders(t, s.bin)) == 0 })
	if s.thaw(t) {
		t.Error("the file system was left frozen (L6)")
	}
	n := s.covered(t)
	if p.cmd.ProcessState.ExitCode() != 0 && s.stamp(t) != before {
		t.Logf("%d pieces differ", n)
		s.marked(t)
	}
}

// liveDoesNotConverge: what is written faster than it can be copied is not
// paused for; the user is told the figures and what there is to choose from.
func liveDoesNotConverge(t *testing.T, bin string) {
	s := newLiveStage(t, liveKinds[0], bin)
	s.live(t, s.byHooks())
	_ = os.Remove(s.path(rested))
	s.works[0].every.Store(0)
	p := start(t, s.bin, s.args(s.byFreeze(), "--pause", "300ms", "--codec", "none", "--limit", "2MiB/s")...)
	select {
	case <-p.ended:
	case <-time.After(2 * time.Minute):
		t.Fatalf("it goes on and on:\n%s", p.said.String())
	}
	f := ends(t, p, 3, "failed", "do not get small enough")
	for _, word := range []string{"dirty again after", "/s dirtied and", "/s copied; the pause would take", "allowed are 300ms"} {
		if !strings.Contains(f.Error, word) {
			t.Errorf("told %q, want %q in it", f.Error, word)
		}
	}
	// What is left for later because it is dirty again is not copied.
	var copied float64
	if _, rest, _ := strings.Cut(f.Error, "dirtied and "); true {
		if _, err := fmt.Sscanf(rest, "%f MiB/s copied", &copied); err != nil || copied > 3 {
			t.Errorf("told %q: %.1f MiB/s, over a link of 2 (%v)", f.Error, copied, err)
		}
	}
	for _, word := range []string{"--pause", "come back when less is written", "slow the writers down", "marked inconsistent"} {
		if !strings.Contains(f.Next, word) {
			t.Errorf("next: %q, want %q in it", f.Next, word)
		}
	}
	if _, err := os.Stat(s.path(rested)); err == nil {
		t.Error("the writers were brought to rest (L6)")
	}
	s.goOn(t)
	s.covered(t)
	s.marked(t)
	s.rate(10 * time.Millisecond)
	// The tracker has all that differs, and the target is as that one left it.
	if r := s.live(t, s.byHooks()); r.Rung != "exact" {
		t.Errorf("after that: rung %s: %s", r.Rung, r.Reason)
	}
	s.same(t)
}

// liveRefuses: where the source cannot be tracked it says why, and syncs it
// at rest only where it is told to.
func liveRefuses(t *testing.T, bin string) {
	needLive(t, "setpriv")
	s := newLiveStage(t, liveKinds[0], bin)
	fails := func(p *process, words ...string) {
		t.Helper()
		if code := p.wait(t); code != 4 {
			t.Fatalf("exit code %d, want 4; it said:\n%s", code, p.said.String())
		}
		for _, w := range words {
			if !strings.Contains(p.said.String(), w) {
				t.Errorf("it said:\n%swant %q in it", p.said.String(), w)
			}
		}
	}
	before := s.stamp(t)
	fails(start(t, s.bin, "sync", "--live", "--state", s.state, "--freeze", s.mount, s.image, s.target),
		"the writes of others to a file are not seen", "losetup --find --show "+s.image)
	fails(start(t, s.bin, "sync", "--live", "--state", s.state, "--freeze", t.TempDir(), s.device.Path, s.target), "is not a mount point")
	fails(start(t, s.bin, "sync", "--live", "--state", s.state, "--freeze", s.mount, s.device.Path, "--undo", filepath.Join(s.mount, "undo"), s.target),
		"lies on the file system", "each would wait for the other")
	fails(start(t, s.bin, "sync", "--live", "--state", s.state, "--freeze", s.mount, "--trust-tracker", s.device.Path, s.target),
		"was not tracked until now")
	// Who may use the device, and not track it. The hooks of the test do what they
	// do as somebody else, so the freeze is asked of the test.
	unable := []string{"--bounding-set=-sys_admin,-bpf,-perfmon", "--inh-caps=-all", s.bin}
	ask := []string{
		"--on-quiesce", fmt.Sprintf("touch %s; until test -e %s; do sleep 0.01; done", s.path("ask"), s.path(paused)),
		"--on-resume", "rm -f " + s.path("ask"),
	}
	fails(start(t, "setpriv", append(slices.Clone(unable), s.args(ask)...)...), "it cannot be tracked", "--or-at-rest")
	if s.stamp(t) != before {
		t.Error("the target was written (L4)")
	}
	if _, err := os.Stat(s.path("ask")); err == nil {
		t.Error("the writers were brought to rest (L6)")
	}
	p := start(t, "setpriv", append(slices.Clone(unable), s.args(ask, "--or-at-rest")...)...)
	asked := func() bool { _, err := os.Stat(s.path("ask")); return err == nil }
	eventually(t, "the sync to ask for rest", asked)
	tool(t, "fsfreeze", "--freeze", s.mount)
	tool(t, "cp", "--sparse=always", s.image, s.path(paused))
	eventually(t, "the sync to be over", func() bool { return !asked() })
	tool(t, "fsfreeze", "--unfreeze", s.mount)
	if code := p.wait(t); code != 0 {
		t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
	}
	if r := toldBy(t, p); r.Result != "equal" || r.Live.Pause <= 0 || len(r.Live.Rounds) != 0 || !strings.Contains(p.said.String(), "its writers rest all the time") {
		t.Errorf("told %+v; it said:\n%s", r, p.said.String())
	}
	s.same(t)
}
