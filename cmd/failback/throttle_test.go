package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// throttleStage is a device that is written by somebody who keeps to the io.max of
// a control group, as the kernel would have him do. The group is made up.
type throttleStage struct {
	*trackStage
	dir, group, target string
	disk               string // number of the device
	full               float64
	end                func()
}

// newThrottleStage begins to write so many bytes a second.
func newThrottleStage(t *testing.T, full float64, former string) *throttleStage {
	t.Helper()
	s := &throttleStage{trackStage: newTrackStage(t), dir: t.TempDir(), full: full}
	s.group, s.target = filepath.Join(s.dir, "group"), filepath.Join(s.dir, "target.img")
	var st unix.Stat_t
	if err := errors.Join(unix.Stat(s.device, &st), os.Mkdir(s.group, 0o700)); err != nil {
		t.Fatal(err)
	}
	s.disk = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	write(t, s.target, make([]byte, 8<<20))
	if former != "" {
		former = s.disk + " rbps=max wbps=" + former + " riops=max wiops=max\n"
	}
	for name, text := range map[string]string{"cgroup.controllers": "cpu io memory\n", "cgroup.type": "domain\n", "io.max": former} {
		write(t, filepath.Join(s.group, name), []byte(text))
	}
	var all sync.WaitGroup
	stop := make(chan struct{})
	s.end = sync.OnceFunc(func() { close(stop); all.Wait() })
	t.Cleanup(s.end)
	all.Go(func() {
		if err := s.writes(stop); err != nil {
			t.Error(err)
		}
	})
	return s
}

var wbps = regexp.MustCompile(`^(\d+:\d+).* wbps=(\w+)`)

// limit is what io.max holds: "max" or a number.
func (s *throttleStage) limit(t *testing.T) string {
	t.Helper()
	m := wbps.FindSubmatch(read(t, filepath.Join(s.group, "io.max")))
	if m == nil || string(m[1]) != s.disk {
		return "max"
	}
	return string(m[2])
}

// atOnce is how much is written at a time, bytes.
const atOnce = 32 << 10

// writes writes blocks by chance until stop is closed, and rests while there is a
// file of that name.
func (s *throttleStage) writes(stop <-chan struct{}) error {
	f, err := os.OpenFile(s.device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(-1, 0, atOnce, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(p) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	owed, last := 0.0, time.Now()
	for n := uint64(0); ; {
		select {
		case <-stop:
			return nil
		case <-tick.C:
		}
		if _, err := os.Stat(filepath.Join(s.dir, "rest")); err == nil {
			last = time.Now()
			if err := os.WriteFile(filepath.Join(s.dir, "resting"), nil, 0o600); err != nil {
				return err
			}
			continue
		}
		rate := s.full
		text, err := os.ReadFile(filepath.Join(s.group, "io.max"))
		if m := wbps.FindSubmatch(text); err == nil && m != nil {
			if limit, err := strconv.ParseFloat(string(m[2]), 64); err == nil {
				rate = min(rate, limit)
			}
		}
		owed = min(owed+rate*time.Since(last).Seconds(), max(rate/10, atOnce))
		for last = time.Now(); owed >= atOnce; owed -= atOnce {
			n++
			for i := 0; i < atOnce; i += 4096 { // each piece is another
				copy(p[i:], strconv.FormatUint(n, 10))
			}
			if _, err := f.WriteAt(p, rand.Int64N(8<<20/atOnce)*atOnce); err != nil {
				return err
			}
		}
	}
}

// sync begins a live sync that may slow the writers down. They rest when they have
// been told to, and only once the limit is lifted; then the source is copied.
func (s *throttleStage) sync(t *testing.T, throttle string, more ...string) *process {
	t.Helper()
	at := func(name string) string { return filepath.Join(s.dir, name) }
	quiesce := fmt.Sprintf("rm -f %[2]s; touch %[1]s; until [ -e %[2]s ]; do sleep 0.01; done; while grep -q '%[4]s wbps=[0-9]' %[3]s; do sleep 0.01; done; cat %[5]s > %[6]s",
		at("rest"), at("resting"), filepath.Join(s.group, "io.max"), s.disk, s.device, at("paused"))
	args := []string{"sync", "--live", "--on-quiesce", quiesce, "--on-resume", "rm -f " + at("rest"), "--state", s.state, "--bpffs", s.bpffs,
		"--codec", "none", "--pause", "500ms", "--throttle", throttle}
	return start(t, s.bin, append(append(args, more...), s.device, s.target)...)
}

// TestThrottle: writers that are too fast are slowed down until the sync is over; not
// while they come to rest.
func TestThrottle(t *testing.T) {
	s := newThrottleStage(t, 80<<20, "")
	p := s.sync(t, s.group, "--json", "--limit", "12MiB/s")
	if code := p.wait(t); code != 0 {
		t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
	}
	var r struct {
		Live struct {
			Throttle int64
			Rounds   []struct {
				Throttle int64
				Out      float64
			}
		}
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	last := r.Live.Rounds[len(r.Live.Rounds)-1].Throttle
	if r.Live.Throttle == 0 || r.Live.Throttle > 12<<20 || last != r.Live.Throttle || r.Live.Rounds[0].Throttle != 0 {
		t.Errorf("slowed down: %+v", r.Live)
	}
	said := p.said.String()
	if !strings.Contains(said, "what "+s.group+" writes to the disk of the source ("+s.disk+") is slowed down to") {
		t.Errorf("it said:\n%s", said)
	}
	if got := s.limit(t); got != "max" {
		t.Errorf("the limit is %s (L6)", got)
	}
	if !bytes.Equal(read(t, s.target), read(t, filepath.Join(s.dir, "paused"))) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
	if left := holders(t, s.bin); len(left) > 0 {
		t.Errorf("it did not wait for its keeper to end: %v", left)
	}
}

// TestThrottleKilled: kill -9 of failback, or any other end of it, and the limit is
// what it was.
func TestThrottleKilled(t *testing.T) {
	const former = 30 << 20
	s := newThrottleStage(t, 100<<20, strconv.Itoa(former))
	for _, c := range []struct {
		signal syscall.Signal
		code   int
	}{{syscall.SIGKILL, -1}, {syscall.SIGTERM, 3}} {
		// What the rate is to be at first is the user's.
		p := s.sync(t, s.group+"=5MiB/s", "--limit", "8MiB/s")
		eventually(t, "the writers to be slowed down; it said "+p.said.String(), func() bool { return s.limit(t) == strconv.Itoa(5<<20) })
		for _, pid := range holders(t, s.bin) {
			if pid == p.cmd.Process.Pid {
				continue
			}
			says, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			comm, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if err != nil || err2 != nil || bytes.Contains(says, []byte("failback")) || string(comm) != "fbk-slow\n" {
				t.Errorf("process %d is %q, %q: killing failback by name would reach it", pid, says, comm)
			}
		}
		p.signal(t, c.signal)
		if code := p.wait(t); code != c.code {
			t.Errorf("%v: exit code %d; it said:\n%s", c.signal, code, p.said.String())
		}
		eventually(t, "the limit to be what it was", func() bool { return s.limit(t) == strconv.Itoa(former) })
		eventually(t, "the keeper to be gone", func() bool { return len(holders(t, s.bin)) == 0 })
		if c.code < 0 { // nobody else lets them go on
			eventually(t, "the writers to go on", func() bool { return os.RemoveAll(filepath.Join(s.dir, "rest")) == nil })
			continue
		}
		if _, err := os.Stat(filepath.Join(s.dir, "rest")); err == nil {
			t.Error("the writers are still at rest (L6)")
		}
	}
}

// keeper is the process that looks after the limit of a sync.
func (s *throttleStage) keeper(t *testing.T, p *process) int {
	t.Helper()
	for _, pid := range holders(t, s.bin) {
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "fbk-slow\n" && pid != p.cmd.Process.Pid {
			return pid
		}
	}
	t.Fatalf("no process looks after the limit; it said:\n%s", p.said.String())
	return 0
}

// claims are the files that say who limits the group.
func (s *throttleStage) claims(t *testing.T) []string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(s.group, &st); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(fmt.Sprintf("/run/failback/limit-%x-%d-*", st.Dev, st.Ino))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestThrottleKeeperKilled: the limit begins anew, and the user is told.
func TestThrottleKeeperKilled(t *testing.T) {
	s := newThrottleStage(t, 80<<20, "")
	p := s.sync(t, s.group+"=4MiB/s", "--limit", "8MiB/s")
	eventually(t, "the writers to be slowed down; it said "+p.said.String(), func() bool { return s.limit(t) == strconv.Itoa(4<<20) })
	if err := syscall.Kill(s.keeper(t, p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
	}
	if said := p.said.String(); !strings.Contains(said, "the process that looks after it is gone: it begins anew") || strings.Count(said, "is slowed down to 4.0 MiB/s") != 2 || strings.Contains(said, "not slowed down any more") {
		t.Errorf("it said:\n%s", said)
	}
	if got := s.limit(t); got != "max" {
		t.Errorf("the limit is %s (L6)", got)
	}
	if !bytes.Equal(read(t, s.target), read(t, filepath.Join(s.dir, "paused"))) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
}

// TestThrottleBothKilled: a limit that is left where both were killed is taken away by
// the next sync, which does not take it for the user's own. One at a time slows a group
// down.
func TestThrottleBothKilled(t *testing.T) {
	const former = 30 << 20
	s := newThrottleStage(t, 100<<20, strconv.Itoa(former))
	p := s.sync(t, s.group+"=5MiB/s", "--limit", "8MiB/s")
	eventually(t, "the writers to be slowed down; it said "+p.said.String(), func() bool { return s.limit(t) == strconv.Itoa(5<<20) })
	keeper := s.keeper(t, p)
	if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(keeper, syscall.SIGCONT) }) // where the test fails: none is left behind
	target := s.target
	s.target = filepath.Join(s.dir, "another.img")
	write(t, s.target, make([]byte, 8<<20))
	q := s.sync(t, s.group)
	s.target = target
	if code := q.wait(t); code != 4 || !strings.Contains(q.said.String(), "another failback slows down") {
		t.Errorf("exit code %d; it said:\n%s", code, q.said.String())
	}
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper to be gone", func() bool { return len(holders(t, s.bin)) == 0 })
	if err := os.RemoveAll(filepath.Join(s.dir, "rest")); err != nil || s.limit(t) != strconv.Itoa(5<<20) {
		t.Fatalf("the limit is %s, %v", s.limit(t), err)
	}
	p = s.sync(t, s.group, "--limit", "8MiB/s")
	eventually(t, "the limit to be what it was", func() bool { return s.limit(t) == strconv.Itoa(former) })
	p.signal(t, syscall.SIGTERM)
	p.wait(t)
	if said := p.said.String(); !strings.Contains(said, "was still slowed down to 5.0 MiB/s by a sync that was killed: that limit is taken away") {
		t.Errorf("it said:\n%s", said)
	}
	eventually(t, "the limit to be what it was", func() bool { return s.limit(t) == strconv.Itoa(former) })
	if left := s.claims(t); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestThrottleLeft: a sync that was done, and whose limit cannot be taken away, says
// both.
func TestThrottleLeft(t *testing.T) {
	s := newThrottleStage(t, 80<<20, "")
	file := filepath.Join(s.group, "io.max")
	// One that is refused after it was to be the one leaves nothing behind.
	if p := s.sync(t, s.group, "--trust-tracker"); p.wait(t) != 4 || len(s.claims(t)) > 0 {
		t.Errorf("left: %v; it said:\n%s", s.claims(t), p.said.String())
	}
	p := s.sync(t, s.group+"=4MiB/s", "--limit", "8MiB/s", "--json",
		// Not after a pause that was broken off.
		"--on-resume", fmt.Sprintf("if cmp -s %s %s; then rm -f %s; mkdir %[3]s; fi; rm -f %s", s.target, filepath.Join(s.dir, "paused"), file, filepath.Join(s.dir, "rest")))
	code := p.wait(t)
	var r struct {
		State, Next string
		Report      *struct{ Result string }
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &r); err != nil || code != 3 {
		t.Fatalf("exit code %d, %v; it told %s and said:\n%s", code, err, p.stdout.String(), p.said.String())
	}
	if r.Report == nil || r.Report.Result != "equal" || !strings.Contains(r.State, "is equal to") || !strings.Contains(r.State, "still in force") || !strings.Contains(r.Next, "> "+file) {
		t.Errorf("it told %s", p.stdout.String())
	}
	if !bytes.Equal(read(t, s.target), read(t, filepath.Join(s.dir, "paused"))) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
}

// What cannot be slowed down is refused before anything is touched.
func TestThrottleRefuses(t *testing.T) {
	s := newTrackStage(t)
	target, plain := filepath.Join(t.TempDir(), "target"), t.TempDir()
	write(t, target, make([]byte, 8<<20))
	for _, c := range []struct {
		code  int
		group string
		says  string
	}{
		{4, plain, "refused " + plain + ": it is not a control group"},
		{4, plain + "-none", "there is no such control group"},
		{2, plain + "=0", "a rate of 0"},
		{2, plain + "=fast", "not a size"},
		{2, "=1MiB", "names no control group"},
	} {
		p := s.live(t, target, "--throttle", c.group)
		if code := p.wait(t); code != c.code || !strings.Contains(p.said.String(), c.says) {
			t.Errorf("%s: exit code %d; it said %q", c.group, code, p.said.String())
		}
	}
	if p := s.track(t, 0, nil, "status"); p.stdout.String() != "nothing is tracked\n" {
		t.Errorf("it is tracked: %s", p.stdout.String())
	}
	if left, err := filepath.Glob(filepath.Join(s.state, "*")); err != nil || len(left) > 0 {
		t.Errorf("it noted something: %v, %v", left, err)
	}
	p := finish(t, 2, s.bin, "sync", "--throttle", plain, s.device, target)
	if !strings.Contains(p.said.String(), "go with --live") {
		t.Errorf("without --live it said %q", p.said.String())
	}
	// Nobody else is to start a keeper, but who does gets no limit and no panic.
	finish(t, 3, s.bin, "throttle")
	if help := finish(t, 0, s.bin, "--help"); strings.Contains(help.stdout.String(), "throttle") {
		t.Error("the throttle command is offered")
	}
}
