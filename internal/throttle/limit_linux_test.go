package throttle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLimit: a limit comes, changes, is lifted for a while, and is gone.
func TestLimit(t *testing.T) {
	dir := madeUp(t, "8:0 rbps=max wbps=77 riops=max wiops=max\n7:33 rbps=1 wbps=5 riops=max wiops=max\n")
	g := claimed(t, dir)
	l := beginOf(t, g)
	before := limitIn(t, dir)
	set(t, l, 1000, 1000)
	want(t, dir, "7:3 wbps=1000")
	set(t, l, 500, 500)
	want(t, dir, "7:3 wbps=500")
	l.Lift()
	set(t, l, 400, 400) // after the lift, whatever that took
	want(t, dir, "7:3 wbps=400")
	l.Lift()
	eventually(t, "it to be lifted", func() bool { return limitIn(t, dir) == "7:3 wbps=max" })
	if _, err := l.Set(t.Context(), 0); err == nil {
		t.Error("a limit of 0 was taken")
	}
	set(t, l, 300, 300)
	end(t, l)
	want(t, dir, "7:3 wbps=max")
	if _, err := l.Set(t.Context(), 100); err == nil {
		t.Error("it was set after the end")
	}
	l.Lift()
	end(t, l)
	want(t, dir, "7:3 wbps=max")
	if !ended(l.cmd.Process.Pid) {
		t.Error("its keeper is left")
	}
	if err := g.Release(); err != nil {
		t.Error(err)
	}
	noClaims(t, dir)
	// One that was never set touches nothing.
	files(t, dir, map[string]string{"io.max": before})
	end(t, begin(t, dir))
	want(t, dir, before)
}

// TestLimitFormer: what there was before holds where it is lower, and comes back.
func TestLimitFormer(t *testing.T) {
	dir := madeUp(t, "7:3 rbps=9 wbps=700 riops=max wiops=5\n")
	l := begin(t, dir)
	set(t, l, 1000, 700)
	set(t, l, 500, 500)
	want(t, dir, "7:3 wbps=500")
	set(t, l, 2000, 700)
	end(t, l)
	want(t, dir, "7:3 wbps=700")
}

// TestLimitOfOthers: what somebody else sets meanwhile is what is there afterwards.
func TestLimitOfOthers(t *testing.T) {
	dir := madeUp(t, "")
	g := claimed(t, dir)
	l := beginOf(t, g)
	set(t, l, 1000, 1000)
	files(t, dir, map[string]string{"io.max": "7:3 rbps=max wbps=600 riops=max wiops=max"})
	set(t, l, 800, 600)
	set(t, l, 500, 500)
	files(t, dir, map[string]string{"io.max": "7:3 wbps=max"})
	set(t, l, 500, 500) // as it is called again and again
	want(t, dir, "7:3 wbps=500")
	files(t, dir, map[string]string{"io.max": "7:3 wbps=600"})
	end(t, l)
	want(t, dir, "7:3 wbps=600")
	if err := g.Release(); err != nil {
		t.Error(err)
	}

	l = begin(t, dir)
	set(t, l, 400, 400)
	files(t, dir, map[string]string{"io.max": "7:3 wbps=999"})
	end(t, l)
	want(t, dir, "7:3 wbps=999")
}

// TestLimitParentKilled: kill -9 of who wanted the limit ends it; so does a signal to
// the keeper. Neither of the two is reached by what kills failback by name.
func TestLimitParentKilled(t *testing.T) {
	for _, former := range []string{"", "7:3 rbps=max wbps=2000000 riops=max wiops=max"} {
		dir := madeUp(t, former)
		c, keeper := startParent(t, dir, "7:3", claimsIn(dir))
		want(t, dir, "7:3 wbps=1000000")
		says, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", keeper))
		comm, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/comm", keeper))
		if err != nil || err2 != nil || string(bytes.TrimSpace(comm)) != keeperName || !bytes.HasPrefix(says, []byte(keeperName+"\x00")) {
			t.Errorf("process %d is %q, %q: %v, %v", keeper, says, comm, err, err2)
		}
		t.Run("not for its memory", func(t *testing.T) {
			if !mayResource(t) {
				t.Skip("needs CAP_SYS_RESOURCE")
			}
			if adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", keeper)); string(adj) != "-1000\n" {
				t.Errorf("it may be killed for its memory: %q, %v", adj, err)
			}
		})
		if pid, _, e := syscall.Syscall(syscall.SYS_GETSID, uintptr(keeper), 0, 0); e != 0 || int(pid) != keeper {
			t.Errorf("its session is %d of %d, %v", pid, keeper, e)
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		after := "7:3 wbps=max"
		if former != "" {
			after = "7:3 wbps=2000000"
		}
		eventually(t, "the limit to be what it was", func() bool { return limitIn(t, dir) == after })
		eventually(t, "the keeper to end", func() bool { return ended(keeper) })
		noClaims(t, dir)
	}
}

// TestLimitKeeperEnds: its parent takes the limit away at once, and says why there
// is none any more.
func TestLimitKeeperEnds(t *testing.T) {
	for _, c := range []struct {
		signal syscall.Signal
		says   string
	}{{syscall.SIGKILL, "is gone"}, {syscall.SIGTERM, "signal: terminated"}, {syscall.SIGHUP, "signal: hangup"}} {
		dir := madeUp(t, "7:3 wbps=5000")
		l := begin(t, dir)
		set(t, l, 1000, 1000)
		if err := l.cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the limit to be what it was", func() bool { return limitIn(t, dir) == "7:3 wbps=5000" })
		<-l.over
		if _, err := l.Set(t.Context(), 500); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("after %v: %v", c.signal, err)
		}
		want(t, dir, "7:3 wbps=5000")
		end(t, l)
	}
}

// TestLimitKeeperKilledInOrder: an order of which nobody knows whether it was carried
// out is undone as well.
func TestLimitKeeperKilledInOrder(t *testing.T) {
	dir := madeUp(t, "7:3 wbps=5000")
	l := begin(t, dir)
	set(t, l, 1000, 1000)
	if err := l.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitStopped(t, l.cmd.Process.Pid)
	for _, rate := range []int64{600, 300} {
		if _, err := l.order(rate); err != nil {
			t.Fatal(err)
		}
	}
	files(t, dir, map[string]string{"io.max": "7:3 wbps=600"}) // as if it had come to the first
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-l.over
	want(t, dir, "7:3 wbps=5000")
	end(t, l)
}

// TestLimitKeeperStopped: one that does nothing any more is not waited for.
func TestLimitKeeperStopped(t *testing.T) {
	defer func(p, r time.Duration) { patience, restoreTime = p, r }(patience, restoreTime)
	for _, asked := range []bool{true, false} {
		patience = enough // of which Begin needs some
		dir := madeUp(t, "")
		l := begin(t, dir)
		set(t, l, 1000, 1000)
		if err := l.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitStopped(t, l.cmd.Process.Pid)
		patience, restoreTime = 100*time.Millisecond, 100*time.Millisecond
		l.Lift() // does not wait
		if asked {
			if _, err := l.Set(t.Context(), 500); !errors.Is(err, errKeeperGone) {
				t.Errorf("set: %v", err)
			}
		}
		end(t, l)
		want(t, dir, "7:3 wbps=max")
	}
}

// TestLimitGroupGone: with the group its limit is gone, which is no error at the end.
func TestLimitGroupGone(t *testing.T) {
	dir := madeUp(t, "")
	l := begin(t, dir)
	set(t, l, 1000, 1000)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Set(t.Context(), 500); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "is gone, or its disk is") {
		t.Errorf("set: %v", err)
	}
	// One that is made anew under the name is another.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	files(t, dir, map[string]string{"io.max": "7:3 wbps=1000"})
	end(t, l)
	want(t, dir, "7:3 wbps=1000")
}

// TestLimitLeft: a limit that cannot be taken away is told, with what to do.
func TestLimitLeft(t *testing.T) {
	dir := madeUp(t, "7:3 wbps=4000")
	c := begin(t, dir)
	set(t, c, 1000, 1000)
	file := filepath.Join(dir, "io.max")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil { // it cannot be read as a file
		t.Fatal(err)
	}
	err := c.End()
	var left *LeftError
	if !errors.As(err, &left) || !strings.Contains(err.Error(), `echo "7:3 wbps=4000" > `+file) {
		t.Errorf("end: %v", err)
	}
	if again := c.End(); again != err {
		t.Errorf("and again: %v", again)
	}
}

func TestParseIOMax(t *testing.T) {
	for text, want := range map[string]int64{
		"":                                 noLimit,
		"7:3 rbps=max wbps=max riops=5":    noLimit,
		"7:3 rbps=1 wbps=123 riops=max":    123,
		"7:3 wbps=18446744073709551615":    noLimit,
		"7:33 wbps=1\n17:3 wbps=2\n":       noLimit,
		"8:0 wbps=1\n7:3 wbps=2":           2,
		"7:3 rbps=5":                       noLimit,
		"7:3 wbps=0":                       0,
		"7:3 wbps=-1":                      0,
		"7:3 wbps=99999999999999999999999": 0,
		"7:3 wbps=fast":                    0,
	} {
		dir := madeUp(t, text)
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ioMax{dir: f, disk: "7:3"}.read()
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
		f.Close()
	}
}
