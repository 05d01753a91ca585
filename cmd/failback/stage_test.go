package main

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stagedPair is a source, a target that differs all over, and a place for stages, as
// the program that is shipped finds them.
type stagedPair struct {
	bin, source, target, stages string
	old, new                    []byte
}

const stagedSize = 24 << 20

func newStagedPair(t *testing.T) *stagedPair {
	t.Helper()
	dir := t.TempDir()
	p := &stagedPair{bin: build(t), source: filepath.Join(dir, "a.img"), target: filepath.Join(dir, "b.img"), stages: filepath.Join(dir, "stages")}
	p.old, p.new = make([]byte, stagedSize), make([]byte, stagedSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p.old)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(p.new)
	if err := os.WriteFile(p.source, p.new, 0o600); err != nil {
		t.Fatal(err)
	}
	p.reset(t)
	return p
}

func (p *stagedPair) reset(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(p.target, p.old, 0o600); err != nil {
		t.Fatal(err)
	}
}

// state is what the target is now: "old", "new", or "marked" where its journal names
// a stage. Anything else breaks L5.
func (p *stagedPair) state(t *testing.T) string {
	t.Helper()
	got, err := os.ReadFile(p.target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.target + ".fbj"); err == nil {
		q := start(t, p.bin, "resume-info", p.target+".fbj")
		if q.wait(t); strings.Contains(q.stdout.String(), "while a stage was applied") {
			return "marked"
		}
	}
	switch {
	case bytes.Equal(got, p.old):
		return "old"
	case bytes.Equal(got, p.new):
		return "new"
	}
	t.Fatal("L5: the target is neither old nor new, and its journal names no stage")
	return ""
}

func (p *stagedPair) equal(t *testing.T) {
	t.Helper()
	if got := p.state(t); got != "new" {
		t.Fatalf("the target is %s", got)
	}
	if _, err := os.Stat(p.target + ".fbj"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("its journal is left (%v)", err)
	}
}

// TestKillStaged kills either side of a staged sync while it gathers and while it is
// applied. The target is what it was, or is finished from the stage: by apply, by the
// next sync, also by one without a stage.
func TestKillStaged(t *testing.T) {
	p := newStagedPair(t)
	dice := dice(t)
	moments := 18
	if testing.Short() {
		moments = 6
	}
	seen := map[string]int{}
	for i := range moments {
		p.reset(t)
		state := p.kill(t, i, dice)
		seen[state]++
		switch {
		case state == "marked" && i%3 == 0:
			finish(t, 4, p.bin, "apply", "-q", p.target, p.stages)
			finish(t, 1, p.bin, "apply", "-q", "--though-written", p.target, p.stages) // in doubt, for it was killed
			if got := p.state(t); got != "new" {
				t.Fatalf("applied, the target is %s", got)
			}
		case state == "marked" && i%3 == 1:
			finish(t, 0, p.bin, "sync", "-q", p.source, p.target)
			p.equal(t)
		}
		finish(t, 0, p.bin, "sync", "-q", "--stage", p.stages, p.source, p.target)
		p.equal(t)
		if left, err := os.ReadDir(p.stages); err != nil || len(left) > 0 {
			t.Fatalf("left behind: %v (%v)", left, err)
		}
	}
	t.Logf("killed: %v", seen)
	if seen["old"] == 0 || seen["marked"] == 0 {
		t.Errorf("killed: %v; one of the phases was never hit", seen)
	}
}

// kill kills a sync, or the server of its target, and returns what the target is.
func (p *stagedPair) kill(t *testing.T, i int, dice *rand.Rand) string {
	t.Helper()
	args := []string{"sync", "-q", "--codec", "none", "--retry-for", "0"}
	applying := i%2 == 1
	if !applying {
		args = append(args, "--limit", "40MiB/s")
	}
	var victim *process
	if i/2%2 == 1 {
		socket := filepath.Join(t.TempDir(), "s")
		victim = start(t, p.bin, "serve", "-q", "--listen", "unix://"+socket, "--volume", "b="+p.target+",rw", "--stage", p.stages)
		eventually(t, "the server", func() bool { _, err := os.Stat(socket); return err == nil })
		args = append(args, "--stage-served", p.source, "unix://"+socket+"?volume=b")
	} else {
		args = append(args, "--stage", p.stages, p.source, p.target)
	}
	q := start(t, p.bin, args...)
	if victim == nil {
		victim = q
	}
	wait := time.Duration(dice.Int64N(int64(500 * time.Millisecond)))
	if applying {
		p.marked(t, q)
		wait = time.Duration(dice.Int64N(int64(40 * time.Millisecond)))
	}
	select {
	case <-time.After(wait):
	case <-q.ended:
	}
	victim.signal(t, syscall.SIGKILL)
	victim.wait(t)
	if q != victim {
		if code := q.wait(t); code != 0 && code != 3 {
			t.Fatalf("exit code %d; it said:\n%s", code, q.said.String())
		}
		p.told(t, q)
	}
	return p.state(t)
}

// TestStagedPeerKilled kills the side of the source while the stage is applied: the
// server of the target finishes that by itself, also one that ssh has started, whose
// standard error nobody reads any more.
func TestStagedPeerKilled(t *testing.T) {
	p := newStagedPair(t)
	dir := t.TempDir()
	socket, ssh := filepath.Join(dir, "s"), filepath.Join(dir, "ssh")
	script := "#!/bin/sh\nfor last; do :; done\nexec sh -c \"exec $last\"\n"
	if err := os.WriteFile(ssh, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	server := start(t, p.bin, "serve", "-q", "--listen", "unix://"+socket, "--volume", "b="+p.target+",rw", "--stage", p.stages)
	eventually(t, "the server", func() bool { _, err := os.Stat(socket); return err == nil })
	for name, args := range map[string][]string{
		"served": {"--stage-served", p.source, "unix://" + socket + "?volume=b"},
		"ssh":    {"--ssh", ssh, "--remote-failback", p.bin, "--stage", p.stages, p.source, "ssh://home" + p.target},
	} {
		p.reset(t)
		q := start(t, p.bin, append([]string{"sync", "-q", "--codec", "none", "--retry-for", "0"}, args...)...)
		p.marked(t, q)
		q.signal(t, syscall.SIGKILL)
		if code := q.wait(t); code != -1 {
			t.Fatalf("%s: it ended with %d:\n%s", name, code, q.said.String())
		}
		eventually(t, name+": the target is what it was going to be", func() bool {
			r := start(t, p.bin, "resume-info", p.target+".fbj")
			r.wait(t)
			return strings.Contains(r.stdout.String(), "complete") || strings.Contains(r.said.String(), "no such file")
		})
		if got := p.state(t); got != "new" {
			t.Errorf("%s: the target is %s", name, got)
		}
		eventually(t, name+": nobody holds the target", func() bool {
			r := start(t, p.bin, "sync", "-q", p.source, p.target)
			return r.wait(t) == 0
		})
		p.equal(t)
	}
	server.signal(t, syscall.SIGINT)
	if code := server.wait(t); code != 0 {
		t.Errorf("the server ended with %d:\n%s", code, server.said.String())
	}
}

// TestStdioUnheard: a server on standard input and output whose peer is lost has
// nobody to read its standard error, and does not end for that.
func TestStdioUnheard(t *testing.T) {
	p := newStagedPair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	c := exec.Command(p.bin, "serve", "--stdio", "--only", p.target)
	c.Stderr = w
	if err := c.Run(); c.ProcessState.ExitCode() != 3 {
		t.Errorf("it ended with %v", err)
	}
}

// marked waits for the journal of what is applied.
func (p *stagedPair) marked(t *testing.T, q *process) {
	t.Helper()
	late := time.After(patience)
	for {
		if _, err := os.Stat(p.target + ".fbj"); err == nil {
			return
		}
		select {
		case <-q.ended:
			return
		case <-late:
			t.Fatal("waited in vain for the stage to be applied")
		default:
		}
	}
}

// told requires that what a sync says of its target is so.
func (p *stagedPair) told(t *testing.T, q *process) {
	t.Helper()
	said := q.said.String()
	if strings.Contains(said, "only staged") && p.state(t) != "old" {
		t.Errorf("the target is %s, and it said:\n%s", p.state(t), said)
	}
}

// small mounts a file system of 8 MiB, which remount makes larger.
func small(t *testing.T, dir string) (remount func()) {
	t.Helper()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("needs tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return func() {
		if err := unix.Mount("small", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStageTargetFull (L5): a sparse target that has no room for what is staged is found
// to be so before it is touched.
func TestStageTargetFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to mount a small file system")
	}
	p := newStagedPair(t)
	dir := t.TempDir()
	remount := small(t, dir)
	p.target, p.old = filepath.Join(dir, "b.img"), make([]byte, stagedSize)
	if err := os.WriteFile(p.target, []byte("some"), 0o600); err != nil {
		t.Fatal(err)
	}
	copy(p.old, "some")
	if err := os.Truncate(p.target, stagedSize); err != nil {
		t.Fatal(err)
	}
	q := finish(t, 4, p.bin, "sync", "--stage", p.stages, p.source, p.target)
	if !strings.Contains(q.said.String(), "no room where it lies") {
		t.Errorf("it said:\n%s", q.said.String())
	}
	if got := p.state(t); got != "old" {
		t.Errorf("the target is %s", got)
	}
	remount()
	finish(t, 0, p.bin, "sync", "-q", "--stage", p.stages, p.source, p.target)
	p.equal(t)
}

// TestStageDiskFull: where what differs does not fit beside the target, the sync ends
// with the reason and the target is as it was; with room made it ends well.
func TestStageDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root (CAP_SYS_ADMIN) to mount a small file system")
	}
	p := newStagedPair(t)
	if err := os.Mkdir(p.stages, 0o700); err != nil {
		t.Fatal(err)
	}
	remount := small(t, p.stages)
	q := finish(t, 3, p.bin, "sync", "--stage", p.stages, p.source, p.target)
	for _, want := range []string{"no space left", "only staged", "make room beside the stage"} {
		if !strings.Contains(q.said.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, q.said.String())
		}
	}
	if got := p.state(t); got != "old" {
		t.Errorf("the target is %s", got)
	}
	if left, err := os.ReadDir(p.stages); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	remount()
	finish(t, 0, p.bin, "sync", "-q", "--stage", p.stages, p.source, p.target)
	p.equal(t)
}
