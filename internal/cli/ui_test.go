package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/failback/failback"
)

var halfWay = failback.Progress{
	Phase: "transfer", Done: 256 << 20, Total: 512 << 20, Divergent: 10 << 20, Raw: 10 << 20, Wire: 4 << 20, Elapsed: 2 * time.Second,
}

func TestProgressLine(t *testing.T) {
	want := "transfer  50%  256 MiB/512 MiB  128 MiB/s  ETA 2s  x2.5  differ 10.0 MiB  sent 4.0 MiB"
	if got := progressLine(halfWay, 128<<20); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := progressLine(failback.Progress{Phase: "plan"}, 0); got != "plan     100%  0 B/0 B" {
		t.Errorf("nothing to do: %q", got)
	}
}

// TestProgressOnTerminal: one line, within the width, gone at the end.
func TestProgressOnTerminal(t *testing.T) {
	var out bytes.Buffer
	u := &ui{w: &out, width: func() int { return 40 }}
	u.progress(failback.Progress{Phase: "transfer", Total: 512 << 20})
	u.progress(halfWay)
	u.plan(failback.Plan{Rung: failback.RungMerkle, Reason: "why", Volume: 1 << 20, Candidates: 4096})
	u.progress(halfWay)
	u.done()
	u.done()
	s := out.String()
	if n := strings.Count(s, "\n"); n != 1 {
		t.Errorf("%d line ends, want that of the plan only: %q", n, s)
	}
	for _, part := range strings.Split(s, "\r") {
		if visible := strings.TrimSuffix(part, "\x1b[K"); !strings.Contains(part, "plan: ") && len(visible) > 39 {
			t.Errorf("%q is wider than the terminal", visible)
		}
	}
	if !strings.HasSuffix(s, "\r\x1b[K") {
		t.Errorf("the line is not removed: %q", s)
	}
	if !u.started() {
		t.Error("the plan was told, but the session has not started")
	}
}

func TestProgressInPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := &app{stderr: w}
	u := a.ui(outputFlags{})
	u.progress(halfWay)
	u.done()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(r); err != nil || got.Len() > 0 {
		t.Errorf("a pipe got %q, %v", got.String(), err)
	}
}

func TestRateLooksBackAWhile(t *testing.T) {
	u := &ui{}
	for i := range 100 {
		p := failback.Progress{Phase: "transfer", Elapsed: time.Duration(i) * time.Second, Done: int64(i) * 10}
		if i >= 90 {
			p.Done = 900 + int64(i-90)*100 // faster at last
		}
		u.progress(p)
	}
	if got := u.rate(); got < 99 || got > 101 {
		t.Errorf("rate %.1f, want that of the last seconds, 100", got)
	}
	u.progress(failback.Progress{Phase: "verify", Elapsed: 100 * time.Second})
	if got := u.rate(); got != 0 {
		t.Errorf("rate %.1f at the beginning of a phase, want 0: not known", got)
	}
}
