package failback

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
)

// The matrix: each step of a session that lasts, on a machine or over the link,
// × the step did not happen, or it did and the answer was lost × the source's
// end dies there, the target's end does, the link does × ways to run it. Then
// the power of the target fails too, and what is left must be as the laws say:
//
//	L5   a target that is neither what it was nor what the source is is marked
//	L2   what was acknowledged, and what the journal says is done, is equal and durable
//	     and what was overwritten can be put back, if it is saved
//	L10  nothing was acknowledged that the journal does not say
//	L1   the dirty map still covers every difference, and its file is as it was
//
// and a new Sync, by the code that every Sync runs, makes both sides equal and
// sends nothing twice.

var matrixWays = []matrixWay{
	{name: "push", dst: true, deaths: []string{"source", "target", "link"}},
	{name: "pull", src: true, deaths: []string{"source", "target", "link"}},
	{name: "local", deaths: []string{"source", "target"}, every: 2},
	{name: "push-silent", dst: true, silent: true, deaths: []string{"link"}, every: 2},
	{name: "pull-silent", src: true, silent: true, deaths: []string{"link"}, every: 2},
	{name: "push-retry", dst: true, deaths: []string{"link"}, every: 2, o: Options{RetryFor: time.Minute}},
	{name: "pull-retry", src: true, deaths: []string{"link"}, every: 2, o: Options{RetryFor: time.Minute}},
	{name: "push-silent-retry", dst: true, silent: true, deaths: []string{"link"}, every: 3, o: Options{RetryFor: time.Minute}},
	{name: "push-3-streams", dst: true, deaths: []string{"source", "target", "link"}, every: 5, o: Options{Streams: 3}},
	{name: "pull-3-streams", src: true, deaths: []string{"source", "target", "link"}, every: 5, o: Options{Streams: 3}},
	{name: "push-full", dst: true, deaths: []string{"source", "target", "link"}, every: 6, o: Options{Verify: VerifyFull}},
	{name: "pull-seal", src: true, deaths: []string{"source", "target", "link"}, every: 6, o: Options{Seal: merkle.BLAKE3}},
	{name: "push-undo", dst: true, undo: true, deaths: []string{"target", "link"}, every: 3},
	{name: "pull-undo", src: true, undo: true, deaths: []string{"target", "source"}, every: 3},
}

// A matrixStep is a place at which a session may be hit.
type matrixStep struct {
	name  string
	rule  fault.Rule     // on the target's machine, if Op is set
	frame fault.LinkRule // else over the link
}

// matrixSteps runs a session without faults and returns the steps it took. Of
// many of one kind the first, the middle and the last stand for all.
func matrixSteps(t *testing.T, way *matrixWay) []matrixStep {
	t.Helper()
	e, d := newMatrixEnds(t, way), &fault.Dialer{}
	if _, err := e.sync(t, d, Options{}); err != nil {
		t.Fatal(err)
	}
	e.equal(t)
	var steps []matrixStep
	for _, ev := range e.b.Log() {
		if name := matrixName(ev); name != "" {
			steps = append(steps, matrixStep{name: name, rule: fault.Rule{Op: ev.Op, On: ev.On, N: ev.N}})
		}
	}
	if links := d.Links(); len(links) > 0 {
		for _, f := range links[0].Frames() {
			if name := matrixFrame(f); name != "" {
				steps = append(steps, matrixStep{name: name, frame: fault.LinkRule{Way: f.Way, Frame: f.Kind, Nth: f.Nth}})
			}
		}
	}
	counts, seen := map[string]int{}, map[string]int{}
	for _, s := range steps {
		counts[s.name]++
	}
	steps = slices.DeleteFunc(steps, func(s matrixStep) bool {
		seen[s.name]++
		n, of := seen[s.name], counts[s.name]
		return n != 1 && n != (of+1)/2 && n != of
	})
	clear(seen)
	for i, s := range steps {
		seen[s.name]++
		steps[i].name = fmt.Sprintf("%s#%d", s.name, seen[s.name])
	}
	return steps
}

// matrixName is what a step of the target's machine is called, or "".
func matrixName(e fault.Event) string {
	switch {
	case e.On == "target" && (e.Op == fault.Write || e.Op == fault.Zero || e.Op == fault.Sync):
		return "volume-" + string(e.Op)
	case e.On == "target" && e.Op == fault.ReadMedium:
		return "read-back"
	case e.On == "target" || !e.Op.Durable():
		return ""
	case e.On == matrixUndo:
		return "undo-" + string(e.Op)
	case e.Op == fault.SyncDir && strings.HasPrefix(e.On, "/"):
		return "undo-sync-directory"
	case strings.HasSuffix(e.On, ".tmp"):
		return "journal-create-" + string(e.Op)
	case e.Op == fault.SyncDir:
		return "journal-create-sync-directory"
	}
	return "journal-" + string(e.Op)
}

// matrixFrame is what a frame is called that changes what an end knows, or "".
func matrixFrame(f fault.Frame) string {
	name := map[transport.Kind]string{
		kindPlan: "plan", kindAgree: "agree", kindData: "data", kindZero: "zero", kindBarrier: "barrier", kindAck: "ack",
		kindPass: "pass", kindSeal: "seal", kindSealed: "sealed", kindReport: "report", kindBye: "bye",
	}[transport.Kind(f.Kind)]
	if name == "bye" {
		name += "-" + string(f.Way)
	}
	return name
}

// A matrixCell is one session that is hit.
type matrixCell struct {
	way   *matrixWay
	step  matrixStep
	lost  bool   // the step happens, and its answer does not come
	death string // whose
	seed  uint64

	fired atomic.Int64
}

func (c *matrixCell) String() string {
	answer := map[bool]string{false: "not-done", true: "lost-answer"}[c.lost]
	return fmt.Sprintf("%s/%s/%s/%s", c.way.name, c.step.name, answer, c.death)
}

// arm sets what hits a session. It returns the way to the peer.
func (c *matrixCell) arm(e *matrixEnds) *fault.Dialer {
	d := &fault.Dialer{}
	die := func() {
		c.fired.Add(1)
		switch c.death {
		case "source":
			e.a.Cut()
		case "target":
			e.b.Cut()
		}
		for _, l := range d.Links() {
			if c.way.silent {
				l.Silence()
			} else {
				l.Reset()
			}
		}
	}
	if c.step.rule.Op == "" {
		r := c.step.frame
		r.Past, r.Do = c.lost, die
		d.Calls = []fault.Call{{Rules: []fault.LinkRule{r}}}
		return d
	}
	r := c.step.rule
	r.After, r.Do = c.lost, die
	if c.death == "target" {
		r.Kind = fault.Cut
	}
	e.b.Add(r)
	return d
}

// TestMatrix is the matrix. Its cells are named
// push/journal-sync#2/lost-answer/target.
func TestMatrix(t *testing.T) {
	for w := range matrixWays {
		way := &matrixWays[w]
		var steps []matrixStep
		within(t, func(t *testing.T) { steps = matrixSteps(t, way) })
		n := 0
		for i := range steps {
			for k := range 2 * len(way.deaths) {
				c := &matrixCell{way: way, step: steps[i], lost: k%2 == 1, death: way.deaths[k/2], seed: uint64(n)}
				if n++; !matrixRuns(n, way) {
					continue
				}
				t.Run(c.String(), func(t *testing.T) {
					within(t, c.run)
				})
			}
		}
	}
}

// matrixRuns reports whether cell n of a way is run. With the race detector, which
// takes ten times as long, and with -short only each fifth of those are, and
// which ones is said by their names.
func matrixRuns(n int, way *matrixWay) bool {
	every := max(1, way.every)
	if sparing() {
		every *= 5
	}
	return (n-1)%every == 0
}

// sparing reports whether a test that tries everything takes a sample instead:
// with the race detector, which takes ten times as long, and with -short.
func sparing() bool { return raceBuild || testing.Short() }

func (c *matrixCell) run(t *testing.T) {
	e, err := c.attempt(t)
	for range 3 {
		if c.fired.Load() > 0 {
			break
		}
		// Two runs are not alike to the last barrier: it comes to the one before.
		c.step.rule.N, c.step.frame.Nth = max(1, c.step.rule.N-1), max(1, c.step.frame.Nth-1)
		e, err = c.attempt(t)
	}
	if c.fired.Load() == 0 {
		t.Fatal("it was not hit")
	}
	c.ended(t, e, err)
	e.laws(t, c.seed)
	// The processes are gone. The power may fail then, or be there all the time.
	if n := e.replug(t); c.death != "target" && c.seed%2 == 0 {
		n.finish(t)
	} else {
		n.restart(t, c.seed).finish(t)
	}
}

// attempt runs the session that is to be hit.
func (c *matrixCell) attempt(t *testing.T) (*matrixEnds, error) {
	t.Helper()
	e := newMatrixEnds(t, c.way)
	o := Options{RetryFor: c.way.o.RetryFor}
	var done int64 // by the journal, when the connection was lost
	o.Events.Retry = func(error, time.Duration) {
		if rec := e.journal(t); rec != nil {
			done = rec.Done
		}
	}
	report, err := e.sync(t, c.arm(e), o)
	t.Logf("the session that was to be hit: %v", err)
	if err == nil && done > 0 && report.ResumedFrom < done {
		t.Errorf("lost at %d of %d bytes, resumed from %d", done, matrixSize, report.ResumedFrom)
	}
	return e, err
}

// ended holds the end of a session that was hit against what it may say: it is
// over and equal, or why not.
func (c *matrixCell) ended(t *testing.T, e *matrixEnds, err error) {
	t.Helper()
	var refused *RefusedError
	switch {
	case err == nil:
		if !bytes.Equal(e.after, e.dst.Durable()) {
			t.Error("it ended well, and the volumes differ")
		}
	case c.death == "link" && !retryable(err):
		t.Errorf("a lost connection is not told as one: %v", err)
	case errors.As(err, &refused) && !errors.Is(err, fault.ErrPower):
		t.Errorf("refused: %v", err)
	case !errors.Is(err, fault.ErrPower) && !strings.Contains(err.Error(), fault.ErrPower.Error()) && !retryable(err):
		t.Errorf("neither the power nor the connection is why: %v", err)
	}
	if c.way.o.RetryFor == 0 || err == nil {
		return
	}
	// Both ends live. The session goes on by itself, unless it was over for one of
	// them, or had not come to its plan: a peer is not tried again before that.
	name := c.step.name
	over := strings.HasPrefix(name, "bye") || strings.HasPrefix(name, "report") || strings.HasPrefix(name, "journal-remove")
	if !over && !(strings.HasPrefix(name, "plan") && !c.lost) {
		t.Errorf("it did not go on: %v", err)
	}
}
