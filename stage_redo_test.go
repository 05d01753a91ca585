package failback

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
	fault "github.com/failback/failback/internal/faulty"
)

// hooked is a target that tells before each write, and may be called otherwise than
// its volume.
type hooked struct {
	matrixTarget
	write func(p []byte, off int64) error // nil: nothing
	id    string
}

func (v *hooked) WriteAt(p []byte, off int64) (int, error) {
	if v.write != nil {
		if err := v.write(p, off); err != nil {
			return 0, err
		}
	}
	return v.matrixTarget.WriteAt(p, off)
}

func (v *hooked) Identity() string {
	if v.id != "" {
		return v.id
	}
	return v.matrixTarget.Identity()
}

// halfApplied is a bench whose process was killed when the first of what was staged
// lay in the target.
func halfApplied(t *testing.T, undo bool) *stageBench {
	t.Helper()
	b := newStageBench(512<<10, undo)
	b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Cut, After: true})
	if _, err := b.sync(t); !errors.Is(err, fault.ErrPower) {
		t.Fatal(err)
	}
	left := b.restart(0)
	if rec := left.journal(t); rec == nil || rec.Stage == "" || rec.Left != "" {
		t.Fatalf("the journal is %+v", rec)
	}
	return left
}

// failedApply is a bench whose target could not be written further when a part of what
// was staged lay in it; the session has recorded how it was left.
func failedApply(t *testing.T, undo bool) *stageBench {
	t.Helper()
	b := newStageBench(512<<10, undo)
	b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 3, Kind: fault.Fail})
	if _, err := b.sync(t); err == nil {
		t.Fatal("it went well")
	}
	if rec := b.journal(t); rec == nil || rec.Stage == "" || rec.Left == "" {
		t.Fatalf("the journal is %+v", rec)
	}
	return b
}

// TestStageOld (L1): while a stage waits to be finished, somebody whom the mark does
// not hold off syncs its target to something newer. What is staged is older then; so
// whoever finishes it vouches for nothing, and what is compared is all of the target,
// whatever map there is.
func TestStageOld(t *testing.T) {
	for i, apply := range []bool{false, true, false, true} {
		b := halfApplied(t, false)
		side := b.anyhow()
		if i > 1 {
			side.Volume = b.dst // it has no stamp, before and after
		}
		newer := randomVolume(7, len(b.old))
		if _, err := b.dst.WriteAt(newer.b, 0); err != nil {
			t.Fatal(err)
		}
		clear(newer.b[200<<10 : 204<<10]) // known by a map
		if apply {
			r, err := side.ApplyStage(t.Context(), Options{}, false)
			if err != nil || r.Doubt == "" || r.Equal() {
				t.Fatalf("%v: %+v", err, r)
			}
			if err := refuseInconsistent(side); err == nil {
				t.Error("L5: taken as a source, without a word")
			}
		}
		a := Side{Volume: newer, Name: "source", Dirty: dirtyMap(t, newer.Size(), []cbt.Extent{{Off: 200 << 10, End: 204 << 10}})}
		if _, err := Sync(t.Context(), a, side, Options{Workers: 1}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.dst.Bytes(), newer.b) || b.journal(t) != nil {
			t.Errorf("%d, applied first %v: the target is not the source", i, apply)
		}
	}
}

// TestStageOverWrites (L4, L3): who only finishes a stage does not lay it over what
// somebody has written since, or may have, unless he is told to; it is said before the
// first byte is written. A second one who failed records how he left the target.
func TestStageOverWrites(t *testing.T) {
	for name, c := range map[string]struct {
		bench   func(*testing.T, bool) *stageBench
		written bool
		refused bool
	}{
		"nobody":             {failedApply, false, false},
		"somebody":           {failedApply, true, true},
		"nothing tells":      {halfApplied, false, true},
		"nothing tells, and": {halfApplied, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.bench(t, false)
			if c.written {
				if _, err := b.dst.WriteAt([]byte("a failover"), 1<<10); err != nil {
					t.Fatal(err)
				}
			}
			before, was := b.dst.Bytes(), b.journal(t)
			var refused *RefusedError
			if c.refused {
				_, err := b.target().ApplyStage(t.Context(), Options{}, false)
				if !errors.As(err, &refused) || !strings.Contains(refused.Next, "--though-written") {
					t.Fatalf("got %v", err)
				}
				if now := b.journal(t); !bytes.Equal(b.dst.Bytes(), before) || *now != *was {
					t.Errorf("refused, and something was touched: %+v", now)
				}
			}
			var said atomic.Bool
			o := Options{Events: Events{Note: func(s string) { said.Store(said.Load() || strings.Contains(s, "is lost")) }}}
			side, failed := b.anyhow(), errors.New("it fails")
			side.Volume = &hooked{matrixTarget: matrixTarget{b.dst}, write: func([]byte, int64) error {
				if said.Load() != c.refused {
					t.Errorf("what is lost was told before the first byte: %v", said.Load())
				}
				return failed
			}}
			if _, err := side.ApplyStage(t.Context(), o, false); !errors.Is(err, failed) {
				t.Fatalf("got %v", err)
			}
			r, err := b.target().ApplyStage(t.Context(), Options{}, false)
			if err != nil || (r.Doubt != "") != c.refused || !bytes.Equal(b.dst.Bytes(), b.src.b) == !c.written {
				t.Errorf("%v: %+v", err, r)
			}
		})
	}
}

// TestStageRedoWrong (L5): where what is finished is not what the medium holds then, the
// mark stays, and the stage, whoever tried it; the next one finishes it.
func TestStageRedoWrong(t *testing.T) {
	for _, apply := range []bool{false, true} {
		b := halfApplied(t, false)
		b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Flip})
		_, err := b.sync(t)
		if !isWrong(err) {
			t.Fatalf("got %v", err)
		}
		if rec := b.journal(t); rec == nil || rec.Stage == "" || !rec.Suspect || !rec.Touched {
			t.Fatalf("the journal is %+v", rec)
		}
		if apply {
			if r, err := b.anyhow().ApplyStage(t.Context(), Options{}, false); err != nil || r.Doubt == "" {
				t.Fatalf("%v: %+v", err, r)
			}
		}
		b.again(t, "after it was wrong", stageTestDir)
	}
}

// TestStageJournalDamaged: a journal that tells nothing does not tell that nothing was
// being applied.
func TestStageJournalDamaged(t *testing.T) {
	b := halfApplied(t, false)
	content, err := b.dir.ReadFile(stageTestJournal)
	if err != nil {
		t.Fatal(err)
	}
	content[100] ^= 1
	content[len(content)/2+100] ^= 1
	b.dir.WriteFile(stageTestJournal, content)
	_, err = b.target().ApplyStage(t.Context(), Options{}, false)
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "nothing tells") || strings.Contains(refused.Next, "was not applied") {
		t.Errorf("got %v", err)
	}
	b.again(t, "with its journal damaged", "")
}

// TestStageNoMark: a staged sync whose mark cannot be made is not told to do without.
func TestStageNoMark(t *testing.T) {
	b := newStageBench(512<<10, false)
	b.power.Add(fault.Rule{Op: fault.Create, On: stageTestJournal + ".tmp", Kind: fault.NoSpace})
	_, err := b.sync(t)
	var refused *RefusedError
	if !errors.As(err, &refused) || strings.Contains(refused.Next, "--no-journal") || !bytes.Equal(b.dst.Bytes(), b.old) {
		t.Errorf("got %v, to do: %+v", err, refused)
	}
}

// TestStageTold: before a byte of the target is written it is told that a stage is
// applied, also that of an earlier session, and wherever both sides are.
func TestStageTold(t *testing.T) {
	for i, p := range topologies[:4] {
		t.Run(p.name, func(t *testing.T) {
			b := halfApplied(t, false)
			var told, planned atomic.Bool
			o := Options{Workers: 1}
			o.Events.Plan = func(Plan) { planned.Store(true) }
			o.Events.Progress = func(p Progress) { told.Store(told.Load() || p.Phase == phaseApply) }
			failed := errors.New("it fails at once")
			side := b.target()
			side.Volume = &hooked{matrixTarget: matrixTarget{b.dst}, write: func([]byte, int64) error {
				if !p.targetServed && !told.Load() {
					t.Error("the target is written, and nobody was told")
				}
				return failed
			}}
			near, far, wait := pipes(t.Context(), i, b.source(), side)
			if _, err := Sync(t.Context(), near, far, o); err == nil || !strings.Contains(err.Error(), failed.Error()) {
				t.Errorf("got %v", err)
			}
			wait()
			if !told.Load() || planned.Load() {
				t.Errorf("told %v, planned %v", told.Load(), planned.Load())
			}
		})
	}
}

// TestStageLateRefusal (L4): a refusal says that nothing was touched. One that comes
// when the target was, because a stage was finished first, is another error.
func TestStageLateRefusal(t *testing.T) {
	for i, p := range topologies[:4] {
		t.Run(p.name, func(t *testing.T) {
			b := halfApplied(t, true) // with an undo log, which is in the way of another
			near, far, wait := pipes(t.Context(), i, b.source(), b.target())
			_, err := Sync(t.Context(), near, far, Options{Workers: 1, Undo: p.targetServed})
			wait()
			var refused *RefusedError
			if err == nil || errors.As(err, &refused) || !strings.Contains(err.Error(), stageTestUndo) || !strings.Contains(err.Error(), "is finished first") {
				t.Errorf("got %v", err)
			}
			if !bytes.Equal(b.dst.Bytes(), b.src.b) {
				t.Error("the stage is not applied")
			}
		})
	}
}

// TestStageOtherJournal: a stage that a journal elsewhere names stays as it is: only
// that one knows whether it is of use.
func TestStageOtherJournal(t *testing.T) {
	b := halfApplied(t, false)
	side := b.target()
	side.Journal = "/elsewhere/t.fbj"
	if _, err := Sync(t.Context(), b.source(), side, Options{Workers: 1}); err != nil {
		t.Fatal(err)
	}
	r, err := b.anyhow().ApplyStage(t.Context(), Options{}, false)
	if err != nil || r.Doubt == "" {
		t.Errorf("%v: %+v", err, r)
	}
	unnamed := undoVolume{Size: 4096, Name: "disk"}
	if stagePath("/st", unnamed, "/a.fbj") == stagePath("/st", unnamed, "/b.fbj") {
		t.Error("two volumes of one name, and without identity, have one stage")
	}
}

// TestStageRenumbered: after a reboot the device that an image lies on may have
// another number. The stage is its stage yet, where its journal is at its place; a
// clone of the file system, at another, is another volume (L4).
func TestStageRenumbered(t *testing.T) {
	const was = "file:dev=8:17,ino=12,born=1.000000002,size=524288"
	for _, c := range []struct {
		name, was, is, journal string
		ok                     bool
	}{
		{"the same", was, was, stageTestJournal, true},
		{"another number", was, strings.Replace(was, "8:17", "0:42", 1), stageTestJournal, true},
		{"a clone", was, strings.Replace(was, "8:17", "0:42", 1), "/mnt/state/t.fbj", false},
		{"its journal moved", was, was, "/mnt/state/t.fbj", true},
		{"another file", was, strings.Replace(was, "ino=12", "ino=13", 1), stageTestJournal, false},
		{"made at another time", was, strings.Replace(was, "born=1", "born=2", 1), stageTestJournal, false},
		{"not known when made", "file:dev=8:17,ino=12,size=524288", "file:dev=0:42,ino=12,size=524288", stageTestJournal, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newStageBench(512<<10, false)
			b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Cut, After: true})
			side := b.target()
			side.Volume = &hooked{matrixTarget: matrixTarget{b.dst}, id: c.was}
			if _, err := Sync(t.Context(), b.source(), side, Options{Workers: 1}); !errors.Is(err, fault.ErrPower) {
				t.Fatal(err)
			}
			left := b.restart(0)
			side = left.anyhow()
			side.Volume = &hooked{matrixTarget: matrixTarget{left.dst}, id: c.is}
			if side.Journal = c.journal; c.journal != stageTestJournal {
				content, err := left.dir.ReadFile(stageTestJournal)
				if err != nil {
					t.Fatal(err)
				}
				left.dir.WriteFile(c.journal, content)
			}
			before := left.dst.Bytes()
			_, err := side.ApplyStage(t.Context(), Options{}, false)
			var refused *RefusedError
			switch {
			case c.ok && (err != nil || !bytes.Equal(left.dst.Bytes(), left.src.b)):
				t.Errorf("not applied: %v", err)
			case !c.ok && (!errors.As(err, &refused) || !bytes.Equal(left.dst.Bytes(), before)):
				t.Errorf("not refused: %v", err)
			}
		})
	}
}

// TestStageNoRoomInJournal: paths that the journal cannot hold are refused before
// anything is gathered for nothing.
func TestStageNoRoomInJournal(t *testing.T) {
	b := newStageBench(512<<10, true)
	side := b.target()
	side.Stage, side.Undo = "/"+strings.Repeat("s", 2000), "/"+strings.Repeat("u", 2000)
	_, err := Sync(t.Context(), b.source(), side, Options{Workers: 1})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "shorter paths") {
		t.Errorf("got %v", err)
	}
	if left := b.dir.Names(); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestStageDiscarded: what is given up has its undo log whole; a sync that goes on with
// it, and one that comes after a stage was finished, in doubt or not, keep one of their
// own.
func TestStageDiscarded(t *testing.T) {
	for i, discard := range []bool{true, false, false} {
		b := halfApplied(t, true)
		if i == 2 {
			b = failedApply(t, true)
		}
		side := b.target()
		side.Stage = ""
		if discard {
			if _, err := b.target().ApplyStage(t.Context(), Options{}, true); err != nil {
				t.Fatal(err)
			}
		} else {
			side.Undo = "/state/second.fbu"
			b.src.b[77] ^= 1
		}
		if _, err := Sync(t.Context(), b.source(), side, Options{Workers: 1, Resume: true}); err != nil {
			t.Errorf("discarded %v: %v", discard, err)
		}
		if !bytes.Equal(b.dst.Bytes(), b.src.b) {
			t.Errorf("discarded %v: the target is not the source", discard)
		}
		log, err := b.dir.ReadFile(stageTestUndo)
		if err != nil {
			t.Fatal(err)
		}
		got := b.dst.Bytes()
		if !discard {
			if second, err := b.dir.ReadFile(side.Undo); err != nil {
				t.Error(err)
			} else if got, err = restored(t, second, namedVolume("target", &memory{b: got})); err != nil {
				t.Error(err)
			}
		}
		got, err = restored(t, log, namedVolume("target", &memory{b: got}))
		if err != nil || !bytes.Equal(got, b.old) {
			t.Errorf("discarded %v: undone, the target is not what it was (%v)", discard, err)
		}
	}
}

// once calls f the first time; others do not wait for that.
func once(f func()) func([]byte, int64) error {
	var done atomic.Bool
	return func([]byte, int64) error {
		if !done.Swap(true) {
			f()
		}
		return nil
	}
}
