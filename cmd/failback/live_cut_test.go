//go:build live

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// cutter is a link to a socket that can be cut, or become slow.
type cutter struct {
	socket, to string
	slow       atomic.Bool
	mu         sync.Mutex
	open       []net.Conn
}

// slowly reads 1 KiB at a time, 20 times a second, once its link is slow.
type slowly struct {
	net.Conn
	link *cutter
}

func (s slowly) Read(p []byte) (int, error) {
	if s.link.slow.Load() {
		p = p[:min(len(p), 1<<10)]
		<-time.After(50 * time.Millisecond)
	}
	return s.Conn.Read(p)
}

func newCutter(t *testing.T, socket, to string) *cutter {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{socket: socket, to: to}
	var g sync.WaitGroup
	g.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return // closed
			}
			b, err := net.Dial("unix", to)
			if err != nil {
				a.Close()
				continue
			}
			c.mu.Lock()
			c.open = append(c.open, a, b)
			c.mu.Unlock()
			for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
				g.Go(func() {
					_, _ = io.Copy(struct{ io.Writer }{way[0]}, slowly{way[1], c}) // that it ends is what is wanted
					way[0].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		c.cut()
		g.Wait()
	})
	return c
}

// cut ends every connection there is.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.open {
		x.Close()
	}
	c.open = nil
}

// liveCut loses the target in the middle of live syncs: its link is cut, its
// server killed or stopped. Nobody stays at rest for that, and the next one, or
// the same where it is to try again, ends well.
func liveCut(t *testing.T, bin string) {
	s := newLiveStage(t, liveKinds[0], bin)
	far := newFarTarget(t, s)
	s.live(t, s.byHooks())
	cut, lost := func(*testing.T) { far.link.cut() }, []string{"connection", "EOF"}
	for i, c := range []struct {
		name    string
		rest    bool // it happens in the pause
		patient bool
		happen  func(*testing.T)
		words   []string
	}{
		{"link cut", false, false, cut, lost},
		{"link cut in the pause", true, true, cut, nil},
		{"server killed in the pause", true, false, far.kill, lost},
		{"server stopped in the pause", true, false, far.stop, []string{"did not stay at rest", "silent"}},
		{"link cut in the pause, and that is it", true, false, cut, lost},
		{"server killed", false, false, far.kill, lost},
		{"server killed in the pause, and back", true, true, far.kill, nil},
	} {
		if i >= 4 && liveTimes(t, 0) == 0 || i >= 2 && testing.Short() {
			continue
		}
		t.Run(c.name, func(t *testing.T) { far.lose(t, c.rest, c.patient, c.happen, c.words) })
	}
	s.live(t, s.byHooks())
	s.same(t)
	s.sound(t)
}

// farTarget is a target behind a server and a link.
type farTarget struct {
	*liveStage
	test   *testing.T // the server lives as long as it
	d      *rand.Rand
	link   *cutter
	server *process
}

func newFarTarget(t *testing.T, s *liveStage) *farTarget {
	t.Helper()
	f := &farTarget{liveStage: s, test: t, d: dice(t)}
	f.serve()
	f.link = newCutter(t, s.path("relay.sock"), s.path("serve.sock"))
	return f
}

func (f *farTarget) serve() {
	f.test.Helper()
	f.server = serve(f.test, f.bin, f.path("serve.sock"), "--grace", "0s", "--state", f.state, "--volume", "b="+f.target+",rw")
	f.at = "unix://" + f.path("relay.sock") + "?volume=b"
}

func (f *farTarget) kill(t *testing.T) {
	f.server.signal(t, syscall.SIGKILL)
	f.server.wait(t)
}

// stop has the server say nothing more, and not end either.
func (f *farTarget) stop(t *testing.T) { f.server.signal(t, syscall.SIGSTOP) }

// mend brings back what is gone.
func (f *farTarget) mend(t *testing.T) {
	t.Helper()
	f.server.signal(t, syscall.SIGCONT)
	select {
	case <-f.server.ended:
		f.serve()
	default:
	}
}

// lose lets something happen to the target in a live sync.
func (f *farTarget) lose(t *testing.T, rest, patient bool, happen func(*testing.T), words []string) {
	t.Helper()
	_ = os.Remove(f.path(rested)) // it may not be there
	retry, moment := "0", time.Duration(f.d.Int64N(int64(700*time.Millisecond)))
	if patient {
		retry = "1m"
	}
	p := start(t, f.bin, f.args(f.byFreeze(), "--codec", "none", "--limit", "16MiB/s", "--pause", "3s", "--pause-limit", "3s", "--timeout", "2s", "--retry-for", retry)...)
	if rest {
		f.resting(t, p)
		moment = time.Duration(f.d.Int64N(int64(100 * time.Millisecond)))
	}
	select {
	case <-time.After(moment):
	case <-p.ended:
	}
	happen(t)
	f.goOn(t)
	if patient {
		f.mend(t)
	}
	code := p.wait(t)
	t.Logf("after %v: exit code %d", moment.Round(time.Millisecond), code)
	switch {
	case code == 0: // it was quicker, or has tried again
	case code == 3 && !patient:
		f := toldBy(t, p)
		known := false
		for _, w := range words {
			known = known || strings.Contains(f.Error, w)
		}
		if f.Result != "failed" || !known || f.State == "" || f.Next == "" {
			t.Errorf("told %+v, want one of %q", f, words)
		}
	default:
		t.Errorf("exit code %d; it said:\n%s", code, p.said.String())
	}
	f.goOn(t)
	eventually(t, "the holders to be gone", func() bool { return len(f.others(t)) == 0 })
	if f.thaw(t) {
		t.Error("the file system was left frozen (L6)")
	}
	f.mend(t)
	f.covered(t)
	f.live(t, f.byHooks())
	f.same(t)
}

// others are the processes of the program besides the server.
func (f *farTarget) others(t *testing.T) []int {
	t.Helper()
	return slices.DeleteFunc(holders(t, f.bin), func(pid int) bool { return pid == f.server.cmd.Process.Pid })
}

// liveOverdue: when the longest pause is over the writers go on, whatever the last
// round is at, and the target is not called equal.
func liveOverdue(t *testing.T, bin string) {
	s := newLiveStage(t, liveKinds[0], bin)
	far := newFarTarget(t, s)
	s.live(t, s.byHooks())
	for _, w := range s.works {
		w.longest()
	}
	_ = os.Remove(s.path(rested))
	// What comes out with the hook is enough for a minute over the link as it is then.
	hook := fmt.Sprintf("touch %s; until test -e %s; do sleep 0.01; done; dd if=/dev/urandom of=%s/cache bs=64k count=16 conv=fsync status=none",
		s.path(rested), s.path("slow"), s.mount)
	p := start(t, s.bin, s.args([]string{"--freeze", s.mount, "--on-quiesce", hook}, "--pause", "3s", "--pause-limit", "3s", "--retry-for", "0")...)
	s.resting(t, p)
	far.link.slow.Store(true)
	write(t, s.path("slow"), nil)
	f := ends(t, p, 3, "failed", "did not stay at rest")
	if !strings.Contains(f.Error, "it had lasted for 3s, the longest that it may") || strings.Count(f.Error, "longest that it may") > 1 || f.State == "" || f.Next == "" {
		t.Errorf("told %+v", f)
	}
	for _, w := range s.works {
		if d := w.longest(); d > 6*time.Second {
			t.Errorf("%s waited for %v", w.name, d)
		}
	}
	far.link.slow.Store(false)
	s.goOn(t)
	s.covered(t)
	s.marked(t)
	s.live(t, s.byHooks())
	s.same(t)
}
