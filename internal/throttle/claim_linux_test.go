package throttle

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// noClaims fails if the file of a claim is left.
func noClaims(t *testing.T, dir string) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(claimsIn(dir), "*")); err != nil || len(left) > 0 {
		t.Errorf("claims are left: %v, %v", left, err)
	}
}

// refused fails unless somebody else has the claim.
func refused(t *testing.T, g *Group) {
	t.Helper()
	var r *RefusedError
	if _, err := g.Claim(); !errors.As(err, &r) || !strings.Contains(err.Error(), "another failback slows down") {
		t.Errorf("claim: %v", err)
	}
	if _, err := g.Begin(); err == nil {
		t.Error("it was begun without a claim")
	}
}

// TestClaim: there is one at a time for a group and a disk. Without that the second
// would take the limit of the first for what was there before, and leave it.
func TestClaim(t *testing.T) {
	dir := madeUp(t, "")
	a, b := claimed(t, dir), groupOf(dir)
	refused(t, b)
	other := groupOf(dir)
	other.Disk = "8:0"
	if _, err := other.Claim(); err != nil {
		t.Errorf("for another disk: %v", err)
	}
	l := beginOf(t, a)
	set(t, l, 5000, 5000)
	refused(t, b)
	end(t, l)
	refused(t, b) // it is the caller who gives it up, not the keeper
	if err := errors.Join(a.Release(), a.Release(), other.Release()); err != nil {
		t.Error(err)
	}
	noClaims(t, dir)
	b = claimed(t, dir)
	refused(t, a)
	if err := b.Release(); err != nil {
		t.Error(err)
	}
	want(t, dir, "7:3 wbps=max")
}

// TestClaimRaces: whoever removes the file, one at a time has the claim.
func TestClaimRaces(t *testing.T) {
	dir := madeUp(t, "")
	var one sync.Mutex
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 300 {
				g := groupOf(dir)
				if _, err := g.Claim(); err != nil {
					continue
				}
				if !one.TryLock() {
					t.Error("two have it")
					return
				}
				if !g.claim.there() {
					t.Error("who has it has a file that was removed")
				}
				one.Unlock()
				if err := g.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	noClaims(t, dir)
}

// kill kills a process with SIGKILL, and waits until that has happened.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it to be killed", func() bool { return ended(pid) })
}

// TestClaimBothKilled: what is left of a process that was killed with its keeper is
// taken away by who comes next, unless somebody has changed it since.
func TestClaimBothKilled(t *testing.T) {
	for _, c := range []struct {
		former, now, after string
		undone             int64
	}{
		{"", "", "7:3 wbps=max", parentRate},
		{"7:3 wbps=2000000\n", "", "7:3 wbps=2000000", parentRate},
		{"", "7:3 wbps=777", "7:3 wbps=777", 0},
		{"7:3 wbps=2000000\n", "7:3 wbps=2000000", "7:3 wbps=2000000", 0},
	} {
		dir := madeUp(t, c.former)
		p, keeper := startParent(t, dir, "7:3", claimsIn(dir))
		if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitStopped(t, keeper)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the parent to end", func() bool { return ended(p.Process.Pid) })
		g := groupOf(dir)
		refused(t, g) // one of the two is there yet
		kill(t, keeper)
		want(t, dir, "7:3 wbps=1000000")
		if c.now != "" {
			files(t, dir, map[string]string{"io.max": c.now})
		}
		eventually(t, "the lock to be free", func() bool { // it is a moment after the process is seen to have ended
			var r *RefusedError
			undone, err := g.Claim()
			if errors.As(err, &r) {
				return false
			}
			if undone != c.undone || err != nil {
				t.Errorf("claimed: %d, %v, want %d", undone, err, c.undone)
			}
			return true
		})
		want(t, dir, c.after)
		if err := g.Release(); err != nil {
			t.Error(err)
		}
		noClaims(t, dir)
	}
}

// TestClaimUndoFails: what cannot be undone stays noted, and nobody goes on.
func TestClaimUndoFails(t *testing.T) {
	dir := madeUp(t, "")
	g := claimed(t, dir)
	path := g.claim.path
	if err := g.claim.write(&note{Group: dir, Former: math.MaxInt64, Ours: []int64{9}}); err != nil {
		t.Fatal(err)
	}
	if err := g.Release(); err != nil {
		t.Fatal(err)
	}
	files(t, dir, map[string]string{"io.max": "7:3 wbps=fast"})
	if _, err := g.Claim(); err == nil || g.claim != nil {
		t.Errorf("claimed: %v", err)
	}
	files(t, dir, map[string]string{"io.max": "7:3 wbps=9"})
	if undone, err := g.Claim(); undone != 9 || err != nil {
		t.Errorf("claimed: %d, %v", undone, err)
	}
	want(t, dir, "7:3 wbps=max")
	if err := g.Release(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"x", "x\n", "{}\n", `{"former":5}`} {
		files(t, filepath.Dir(path), map[string]string{filepath.Base(path): text})
		if _, err := g.Claim(); err == nil || !strings.Contains(err.Error(), "does not tell what there is to undo") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestLimitParentKilledLater: where nobody is left to be told that the limit cannot be
// taken away, the keeper tries on.
func TestLimitParentKilledLater(t *testing.T) {
	dir := madeUp(t, "7:3 wbps=3000000\n")
	p, keeper := startParent(t, dir, "7:3", claimsIn(dir))
	file := filepath.Join(dir, "io.max")
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700), p.Process.Kill()); err != nil { // it cannot be read as a file
		t.Fatal(err)
	}
	<-time.After(500 * time.Millisecond) // five times as long as it tries for one who waits
	if ended(keeper) {
		t.Fatal("it has given up")
	}
	next := filepath.Join(dir, "next")
	if err := errors.Join(os.WriteFile(next, []byte("7:3 wbps=1000000"), 0o600), os.Remove(file), os.Rename(next, file)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the keeper to end", func() bool { return ended(keeper) })
	want(t, dir, "7:3 wbps=3000000")
	noClaims(t, dir)
}

// TestLimitRestoredLater: one failure is no reason to leave the limit.
func TestLimitRestoredLater(t *testing.T) {
	dir := madeUp(t, "")
	l := begin(t, dir)
	set(t, l, 1000, 1000)
	files(t, dir, map[string]string{"io.max": "7:3 wbps=fast"})
	done := make(chan error, 1)
	go func() { done <- l.End() }()
	select {
	case err := <-done:
		t.Fatalf("it has given up: %v", err)
	case <-time.After(4 * restorePause):
	}
	files(t, dir, map[string]string{"io.max": "7:3 wbps=1000"})
	if err := <-done; err != nil {
		t.Error(err)
	}
	want(t, dir, "7:3 wbps=max")
}

// TestLimitLiftedThenKilled: what was answered is not taken for ours again.
func TestLimitLiftedThenKilled(t *testing.T) {
	for _, others := range []string{"7:3 wbps=max", "7:3 wbps=1000"} {
		dir := madeUp(t, "7:3 wbps=5000")
		l := begin(t, dir)
		set(t, l, 1000, 1000)
		l.Lift()
		eventually(t, "it to be lifted", func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.done == 2
		})
		files(t, dir, map[string]string{"io.max": others})
		kill(t, l.cmd.Process.Pid)
		<-l.over
		want(t, dir, others)
		end(t, l)
	}
}

// TestLimitKilledBeforeLift: to lift a limit is to make it what it was, so none at all
// is somebody else's wish.
func TestLimitKilledBeforeLift(t *testing.T) {
	dir := madeUp(t, "7:3 wbps=5000")
	l := begin(t, dir)
	set(t, l, 1000, 1000)
	keeper := l.cmd.Process.Pid
	if err := syscall.Kill(keeper, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, keeper)
	l.Lift()
	files(t, dir, map[string]string{"io.max": "7:3 wbps=max"})
	kill(t, keeper)
	<-l.over
	want(t, dir, "7:3 wbps=max")
	end(t, l)
}

// TestLimitSetAndLift: the answer to an order that was overtaken by another is one, too.
func TestLimitSetAndLift(t *testing.T) {
	defer func(p time.Duration) { patience = p }(patience)
	l := begin(t, madeUp(t, ""))
	for i := range 300 {
		var lifted sync.WaitGroup
		lifted.Go(l.Lift)
		if _, err := l.Set(t.Context(), int64(1000+i)); err != nil {
			t.Fatal(err)
		}
		lifted.Wait()
	}
	end(t, l)
}

// TestLimitKeeperSilent: a program that says nothing is not waited for.
func TestLimitKeeperSilent(t *testing.T) {
	defer func(p time.Duration) { patience = p }(patience)
	patience = 100 * time.Millisecond
	dir := madeUp(t, "")
	g := claimed(t, dir)
	g.Program = filepath.Join(t.TempDir(), "silent")
	if err := os.WriteFile(g.Program, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := g.Begin(); !errors.Is(err, ErrGone) || time.Since(began) > enough {
		t.Errorf("begin: %v after %v", err, time.Since(began))
	}
}

// TestNote: the note is one line, whatever was there before.
func TestNote(t *testing.T) {
	g := claimed(t, madeUp(t, ""))
	for _, group := range []string{"a", strings.Repeat("b", 4000), "c"} {
		if err := g.claim.write(&note{Group: group, Former: 7, Ours: []int64{1, 2}}); err != nil {
			t.Fatal(err)
		}
		if n, err := g.claim.read(); err != nil || n == nil || n.Group != group || n.Former != 7 || len(n.Ours) != 2 {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if err := g.claim.write(nil); err != nil {
		t.Fatal(err)
	}
	if n, err := g.claim.read(); n != nil || err != nil {
		t.Errorf("%+v, %v", n, err)
	}
	if b, err := os.ReadFile(g.claim.path); err != nil || !bytes.Equal(b, nil) {
		t.Errorf("%q, %v", b, err)
	}
}
