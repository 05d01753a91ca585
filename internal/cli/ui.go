package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/failback/failback"
)

// ui tells a person what a session is doing: the plan as a line, progress as
// one line that is drawn again and again, and only on a terminal.
type ui struct {
	w     io.Writer
	quiet bool
	width func() int // columns of the terminal; nil: not a terminal, no progress

	mu      sync.Mutex
	drawn   bool // a progress line is on the screen
	planned bool // the plan is known: from here on the target may change
	applied bool // a stage was going to be applied: likewise, where there is one
	redone  bool // one was, before the plan: of a sync that was interrupted
	phase   string
	began   time.Time     // of step's work
	drew    time.Duration // since then, when step drew last
	samples []sample      // of the phase, oldest first, spanning rateSpan
}

type sample struct {
	at   time.Duration // since the session began
	done int64         // bytes
}

// rateSpan is how far back the rate shown looks.
const rateSpan = 5 * time.Second

func (a *app) ui(o outputFlags) *ui {
	u := &ui{w: a.stderr, quiet: o.quiet}
	if f, ok := a.stderr.(*os.File); ok && !o.quiet && !o.noProgress {
		u.width = terminalWidth(f)
	}
	return u
}

// terminalWidth is nil if f is no terminal.
func terminalWidth(f *os.File) func() int {
	fd := int(f.Fd())
	if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
		return nil
	}
	return func() int {
		if ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			return int(ws.Col)
		}
		return 80
	}
}

func (u *ui) events() failback.Events {
	return failback.Events{Plan: u.plan, Progress: u.progress, Retry: u.retry, Note: u.note}
}

// retry is called when a sync is begun again.
func (u *ui) retry(err error, pause time.Duration) {
	if pause == 0 {
		u.note(fmt.Sprintf("%v: trying once more, compared with the medium", err))
		return
	}
	u.note(fmt.Sprintf("%v: trying again in %v", err, pause.Round(100*time.Millisecond)))
}

// step draws the progress of work that is no session.
func (u *ui) step(phase string, done, total int64) {
	u.mu.Lock()
	if u.began.IsZero() {
		u.began = time.Now()
	}
	elapsed := time.Since(u.began)
	due := elapsed-u.drew >= 200*time.Millisecond
	if due {
		u.drew = elapsed
	}
	u.mu.Unlock()
	if due {
		u.progress(failback.Progress{Phase: phase, Done: done, Total: total, Elapsed: elapsed})
	}
}

// note prints a line that is no error.
func (u *ui) note(text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.quiet {
		u.erase()
		fmt.Fprintln(u.w, text)
	}
}

// plan is called before a byte moves (L3).
func (u *ui) plan(p failback.Plan) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.planned, u.redone, u.applied = true, u.redone || u.applied, false
	if !u.quiet {
		u.erase()
		fmt.Fprintln(u.w, planLine(p))
	}
}

func planLine(p failback.Plan) string {
	return fmt.Sprintf("plan: rung %v: %s; %s of %s to compare", p.Rung, p.Reason, humanBytes(p.Candidates), humanBytes(p.Volume))
}

func (u *ui) progress(p failback.Progress) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.applied = u.applied || p.Phase == "apply"
	if p.Phase != u.phase {
		u.phase, u.samples = p.Phase, u.samples[:0]
	}
	u.samples = append(u.samples, sample{p.Elapsed, p.Done})
	for len(u.samples) > 2 && p.Elapsed-u.samples[1].at > rateSpan {
		u.samples = u.samples[1:]
	}
	if u.width == nil {
		return
	}
	line := progressLine(p, u.rate())
	if w := u.width() - 1; utf8.RuneCountInString(line) > w && w > 0 {
		line = string([]rune(line)[:w])
	}
	fmt.Fprint(u.w, "\r"+line+"\x1b[K")
	u.drawn = true
}

// rate is bytes a second over the samples, 0 if they cannot tell.
func (u *ui) rate() float64 {
	first, last := u.samples[0], u.samples[len(u.samples)-1]
	if last.at <= first.at {
		return 0
	}
	return float64(last.done-first.done) / (last.at - first.at).Seconds()
}

func progressLine(p failback.Progress, rate float64) string {
	var b strings.Builder
	percent := int64(100)
	if p.Total > 0 {
		percent = int64(float64(p.Done) / float64(p.Total) * 100)
	}
	fmt.Fprintf(&b, "%-8s %3d%%  %s/%s", p.Phase, percent, humanBytes(p.Done), humanBytes(p.Total))
	if rate > 0 {
		fmt.Fprintf(&b, "  %s/s", humanBytes(int64(rate)))
	}
	if left := p.Total - p.Done; rate > 0 && left > 0 {
		eta := time.Duration(min(float64(left)/rate, 1e6) * float64(time.Second))
		fmt.Fprintf(&b, "  ETA %s", eta.Round(time.Second))
	}
	// A narrow terminal cuts the end off: what matters least comes last.
	if p.Raw > 0 && p.Wire > 0 {
		fmt.Fprintf(&b, "  x%.1f", float64(p.Raw)/float64(p.Wire))
	}
	if p.Divergent > 0 {
		fmt.Fprintf(&b, "  differ %s", humanBytes(p.Divergent))
	}
	if p.Wire > 0 {
		fmt.Fprintf(&b, "  sent %s", humanBytes(p.Wire))
	}
	return b.String()
}

// done removes the progress line. Every session calls it at its end.
func (u *ui) done() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.erase()
}

func (u *ui) erase() {
	if u.drawn {
		fmt.Fprint(u.w, "\r\x1b[K")
		u.drawn = false
	}
}

// finished reports whether the session has finished a stage of an interrupted one.
func (u *ui) finished() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.redone
}

// started reports whether the session got as far as its plan.
func (u *ui) started() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.planned
}

// applies reports whether the session got as far as applying a stage.
func (u *ui) applies() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.applied
}
