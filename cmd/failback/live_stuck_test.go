package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stuckStage is a live sync whose target does not come back from a flush: what lies
// two file systems below it is frozen as soon as the writers of the source rest.
type stuckStage struct {
	*trustStage
	dir   string
	hangs string // tells what is under way below the target
	thaw  func()
}

func newStuckStage(t *testing.T, base *trackStage) *stuckStage {
	t.Helper()
	s := &stuckStage{trustStage: newTrustStage(t, base), dir: t.TempDir()}
	below := newSmallFS(t, 48<<20)
	above := newSmallFSIn(t, below.dir, 16<<20)
	s.hangs = "/sys/block/" + filepath.Base(above.device.Path) + "/inflight"
	s.target = loopOver(t, above.path("target.img"), trustSize)
	s.thaw = thawer(t, below)
	s.hook(t, "rest", "date +%s%N >"+s.dir+"/rested && fsfreeze --freeze "+below.dir)
	s.hook(t, "resume", "test -e "+s.dir+"/resumed || date +%s%N >"+s.dir+"/resumed")
	return s
}

func (s *stuckStage) hook(t *testing.T, name, text string) {
	t.Helper()
	write(t, s.dir+"/"+name, []byte("set -e\n"+text+"\n"))
}

// at is when a hook was run.
func (s *stuckStage) at(t *testing.T, name string) time.Time {
	t.Helper()
	var when time.Time
	eventually(t, "the writers to have "+name, func() bool {
		b, err := os.ReadFile(s.dir + "/" + name)
		if err != nil || !strings.HasSuffix(string(b), "\n") {
			return false
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		when = time.Unix(0, n)
		return err == nil
	})
	return when
}

// stuck begins a live sync, and returns when its target hangs in the pause.
func (s *stuckStage) stuck(t *testing.T, limit string) *process {
	t.Helper()
	p := start(t, s.bin, "sync", "--live", "--on-quiesce", "sh "+s.dir+"/rest", "--on-resume", "sh "+s.dir+"/resume",
		"--state", s.state, "--bpffs", s.bpffs, "--keep-tracking", "--json", "--pause", "3s", "--pause-limit", limit, s.device, s.target)
	t.Cleanup(s.thaw) // before it is waited for
	s.at(t, "rested")
	eventually(t, "the target to hang", func() bool {
		f := strings.Fields(string(read(t, s.hangs)))
		return len(f) == 2 && f[1] != "0"
	})
	return p
}

// TestLiveStuck: the writers of a live sync do not wait for a target that hangs, and
// the sync ends as soon as the kernel lets go of it, having said what it waits for
// (L6). Here both sides are in one process, which nothing can take out of the
// kernel.
func TestLiveStuck(t *testing.T) {
	base := newTrackStage(t)
	for _, c := range []struct {
		name, limit string
		signal      syscall.Signal
		within      time.Duration // the writers go on
		code        int
		words       string
	}{
		{"overdue", "3s", 0, 3 * time.Second, 3, "it had lasted for 3s, the longest that it may"},
		{"cancelled", "15s", syscall.SIGTERM, 0, 3, "interrupted"},
		{"killed", "3s", syscall.SIGKILL, 3 * time.Second, -1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStuckStage(t, base)
			p := s.stuck(t, c.limit)
			since := s.at(t, "rested")
			if c.signal != 0 {
				since = time.Now()
				p.signal(t, c.signal)
			}
			if d := s.at(t, "resumed").Sub(since); d > c.within+5*time.Second {
				t.Errorf("the writers went on after %v", d)
			} else {
				t.Logf("the writers went on after %v", d)
			}
			if c.code > 0 {
				eventually(t, "a word about what is waited for", func() bool {
					return strings.Contains(p.said.String(), s.target+": a flush of it has not come back yet, and the session can only end when it has")
				})
			}
			select {
			case <-p.ended:
				t.Errorf("it has ended before its target; it said:\n%s", p.said.String())
			default:
			}
			s.thaw()
			if c.code < 0 {
				if code := p.wait(t); code != c.code {
					t.Errorf("exit code %d; it said:\n%s", code, p.said.String())
				}
			} else if s.heard(t, p, c.code); !strings.Contains(s.told.Error, c.words) || s.told.State == "" || s.told.Next == "" {
				t.Errorf("told %+v", s.told)
			}
			s.sync(t, 0)
			if s.told.Result != "equal" || string(read(t, s.image)) != string(read(t, s.target)) {
				t.Errorf("afterwards: %+v", s.told)
			}
		})
	}
}
