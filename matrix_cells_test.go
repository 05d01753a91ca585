package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	fault "github.com/failback/failback/internal/faulty"
)

// TestMatrixTwice: the session that goes on with one that was hit loses power
// too, at each of its own steps in turn, and whoever comes third makes both
// sides equal. Every other one begins anew instead of going on.
func TestMatrixTwice(t *testing.T) {
	for w := range 2 {
		way := &matrixWays[w]
		for _, first := range []string{"volume-sync#2", "journal-sync#2"} {
			var left *matrixEnds
			var steps int
			within(t, func(t *testing.T) {
				all := matrixSteps(t, way)
				i := slices.IndexFunc(all, func(s matrixStep) bool { return s.name == first })
				c := &matrixCell{way: way, step: all[i], lost: true, death: "target"}
				left, _ = c.attempt(t)
				e := left.restart(t, 1)
				e.pace(false)
				e.finish(t)
				steps = len(e.b.Steps())
			})
			hits := 0
			for k := range 2 * steps {
				seed := uint64(k)
				if !matrixRuns(k+1, way) {
					continue
				}
				name := fmt.Sprintf("%s/%s/then-step-%d/%s", way.name, first, k/2+1, []string{"not-done", "lost-answer"}[k%2])
				t.Run(name, func(t *testing.T) {
					within(t, func(t *testing.T) {
						e := *left
						e.placeMap(t)
						if matrixAgain(t, e.restart(t, seed), 1+k/2, seed) {
							hits++
						}
					})
				})
			}
			if n := 2 * steps; !sparing() && hits < n/2 {
				t.Errorf("%s/%s: %d of %d cells were hit", way.name, first, hits, n)
			}
		}
	}
}

// matrixAgain cuts the power at a step of the session that goes on with what is
// left, and reports whether it came to that.
func matrixAgain(t *testing.T, e *matrixEnds, step int, seed uint64) bool {
	t.Helper()
	e.pace(false)
	d, hit := &fault.Dialer{}, false
	e.b.Add(fault.Rule{Op: fault.Step, N: step, Kind: fault.Cut, After: seed%2 == 1, Do: func() {
		hit = true
		for _, l := range d.Links() {
			l.Reset()
		}
	}})
	rec := e.journal(t)
	_, err := e.sync(t, d, Options{Resume: rec != nil && seed/2%2 == 0})
	if !hit {
		t.Logf("it has fewer steps this time: %v", err)
		return false
	}
	if err == nil && !bytes.Equal(e.after, e.dst.Durable()) {
		t.Error("it ended well, and the volumes differ")
	}
	for s := range uint64(3) {
		e.restart(t, seed+100*s).law(t, e)
	}
	e.restart(t, seed+1000).finish(t)
	return true
}

// matrixFault is something that goes wrong with a device and is told, or found out.
type matrixFault struct {
	name   string
	source bool // on the source's machine
	rule   fault.Rule
	says   string // the error
	wrong  bool   // it is what was read back that is wrong
	clean  bool   // nothing was written, and it is a refusal
}

var matrixFaults = []matrixFault{
	{name: "source-read-error", source: true, says: "input/output error",
		rule: fault.Rule{Op: fault.Read, On: "source", N: 5, Onward: true, Kind: fault.Fail}},
	{name: "source-short-read", source: true, says: "unexpected EOF",
		rule: fault.Rule{Op: fault.Read, On: "source", N: 5, Onward: true, Kind: fault.Short}},
	{name: "target-read-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Read, On: "target", N: 5, Onward: true, Kind: fault.Fail}},
	{name: "target-full", says: "no space left on device",
		rule: fault.Rule{Op: fault.Write, On: "target", N: 2, Onward: true, Kind: fault.NoSpace}},
	{name: "target-write-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Write, On: "target", N: 2, Onward: true, Kind: fault.Fail}},
	{name: "target-short-write", says: "short write",
		rule: fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Short}},
	{name: "target-zero-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Zero, On: "target", N: 1, Kind: fault.Fail}},
	{name: "target-sync-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Sync, On: "target", N: 1, Kind: fault.Fail}},
	{name: "target-second-sync-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Sync, On: "target", N: 2, Kind: fault.Fail}},
	{name: "read-back-error", says: "input/output error",
		rule: fault.Rule{Op: fault.ReadMedium, On: "target", N: 2, Kind: fault.Fail}},
	{name: "flipped-write", wrong: true,
		rule: fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Flip}},
	{name: "lost-write", wrong: true,
		rule: fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Lost}},
	{name: "journal-full", says: "no space left on device", clean: true,
		rule: fault.Rule{Op: fault.Write, On: "t.fbj.tmp", Onward: true, N: 1, Kind: fault.NoSpace}},
	{name: "journal-write-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Write, On: "t.fbj", N: 1, Kind: fault.Fail}},
	{name: "journal-sync-error", says: "input/output error",
		rule: fault.Rule{Op: fault.Sync, On: "t.fbj", N: 2, Kind: fault.Fail}},
}

// TestMatrixDevices: a device fails in the middle and says so, or does not and is
// found out. The caller hears what, of which volume, and where; the machine goes
// on, and so does a new process, once the device is well.
func TestMatrixDevices(t *testing.T) {
	n := 0
	for w := range 3 {
		for _, f := range matrixFaults {
			for _, then := range []string{"resume", "anew", "power-cut"} {
				if n++; sparing() && (n+w)%5 != 0 {
					continue // as matrixRuns has it
				}
				t.Run(matrixWays[w].name+"/"+f.name+"/"+then, func(t *testing.T) {
					within(t, func(t *testing.T) { f.run(t, &matrixWays[w], then) })
				})
			}
		}
	}
}

func (f *matrixFault) run(t *testing.T, way *matrixWay, then string) {
	e := newMatrixEnds(t, way)
	machine := e.b
	if f.source {
		machine = e.a
	}
	at := int64(-1)
	r := f.rule
	r.When = func(ev fault.Event) bool {
		if ev.Op == r.Op && (r.On == "target" || r.On == "source" || ev.On != "target") && ev.N >= r.N && at < 0 {
			at = ev.Off
		}
		return true
	}
	machine.Add(r)
	_, err := e.sync(t, &fault.Dialer{}, Options{})
	t.Logf("the session that was hit, at %#x: %v", at, err)
	if err == nil || at < 0 {
		t.Fatal("it was not hit, or ended well")
	}
	f.told(t, way, at, err)
	if f.clean && !bytes.Equal(e.dst.Bytes(), e.before) {
		t.Error("it was refused, and the target was written")
	}
	e.laws(t, 0)
	e = e.replug(t)
	if then == "power-cut" {
		e = e.restart(t, 5)
	}
	rec := e.journal(t)
	if rec != nil && f.clean {
		t.Errorf("it was refused, and left the journal %+v", rec)
	}
	done := int64(0)
	o := Options{Resume: rec != nil && then != "anew"}
	if o.Resume {
		done = rec.Done
	}
	report, err := e.sync(t, &fault.Dialer{}, o)
	if err != nil {
		t.Fatalf("the sync after it: %v", err)
	}
	e.equal(t)
	e.untouched(t, done)
	if report.ResumedFrom != done {
		t.Errorf("resumed from %d, not %d", report.ResumedFrom, done)
	}
}

// told holds an error against what it is to say. at is where the fault was.
func (f *matrixFault) told(t *testing.T, way *matrixWay, at int64, err error) {
	t.Helper()
	var refused *RefusedError
	if errors.As(err, &refused) != f.clean {
		t.Errorf("a refusal, or none: %v", err)
	}
	says := []string{f.says, map[bool]string{true: "a", false: "b"}[f.source]}
	if strings.Contains(f.name, "journal") {
		says[1] = "journal"
	}
	if f.wrong {
		says[0] = fmt.Sprintf("[%#x,", at)
		if !isWrong(err) {
			t.Errorf("not told as wrong: %v", err)
		}
		var verify *VerifyError
		if errors.As(err, &verify) && (verify.Extent.Off != at || verify.Volume != "b") {
			t.Errorf("%v is wrong of %s, where %#x of b is", verify.Extent, verify.Volume, at)
		}
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in it: %v", s, err)
		}
	}
}

// TestMatrixRepair (L7): what the medium got wrong is sent again once, if that is
// asked for, and nobody has to come again for it.
func TestMatrixRepair(t *testing.T) {
	for w := range 3 {
		for _, f := range matrixFaults {
			if !f.wrong {
				continue
			}
			t.Run(matrixWays[w].name+"/"+f.name, func(t *testing.T) {
				within(t, func(t *testing.T) {
					e := newMatrixEnds(t, &matrixWays[w])
					e.b.Add(f.rule)
					report, err := e.sync(t, &fault.Dialer{}, Options{Repair: true})
					if err != nil || report.Attempts != 2 {
						t.Fatalf("%+v, %v", report, err)
					}
					e.equal(t)
				})
			})
		}
	}
}

// TestMatrixStuck: a device that does not answer any more. Who has it at a peer
// gets out by cancelling; who has it at hand must wait for it, as every system
// call does, and gets out then.
func TestMatrixStuck(t *testing.T) {
	const patience, stuck = 5 * time.Second, 45 * time.Second
	for w := range 3 {
		for _, op := range []fault.Op{fault.Write, fault.Sync, fault.ReadMedium} {
			way := &matrixWays[w]
			t.Run(way.name+"/"+string(op), func(t *testing.T) {
				within(t, func(t *testing.T) {
					e := newMatrixEnds(t, way)
					until, began := make(chan struct{}), time.Now()
					time.AfterFunc(stuck, func() { close(until) })
					e.b.Add(fault.Rule{Op: op, On: "target", N: 2, Kind: fault.Stuck, Until: until})
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					_, err := e.syncUntil(ctx, t, &fault.Dialer{}, Options{})
					t.Logf("after %v: %v", e.over.Sub(began), err)
					if !errors.Is(err, context.DeadlineExceeded) { // whatever the other end, cancelled too, says of it
						t.Errorf("cancelled, and told %v", err)
					}
					most := stuck
					if way.dst {
						most = patience + partingTime
					}
					if took := e.over.Sub(began); took < patience || took > most+time.Second {
						t.Errorf("it took %v", took)
					}
					e.laws(t, 0)
					e.replug(t).finish(t)
				})
			})
		}
	}
}
