package failback

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	fault "github.com/failback/failback/internal/faulty"
)

// TestStageCrash (L5, L10): whatever step the power or the process ends at, the
// step done or not, the target is wholly what it was or wholly what it is to be once
// what was begun is finished: by the next sync with a stage, by one without, or by
// itself.
func TestStageCrash(t *testing.T) {
	for _, undo := range []bool{false, true} {
		t.Run(fmt.Sprintf("undo=%v", undo), func(t *testing.T) {
			first := newStageBench(512<<10, undo)
			if _, err := first.sync(t); err != nil {
				t.Fatal(err)
			}
			steps := first.power.Steps()
			redone, kept := 0, 0
			for i := range steps {
				for _, after := range []bool{false, true} {
					if sparing() && i%5 != 0 && steps[i].On != "target" {
						continue
					}
					a, b := crashStage(t, undo, i+1, after)
					redone, kept = redone+a, kept+b
				}
			}
			t.Logf("%d steps: %d times finished from the stage, %d times as it was", len(steps), redone, kept)
			if redone == 0 || kept == 0 {
				t.Error("one of the two ways was never taken")
			}
		})
	}
}

// crashStage cuts the power at a step and holds what is left against the laws.
func crashStage(t *testing.T, undo bool, step int, after bool) (redone, kept int) {
	t.Helper()
	b := newStageBench(512<<10, undo)
	b.power.Add(fault.Rule{Op: fault.Step, N: step, Kind: fault.Cut, After: after})
	if _, err := b.sync(t); err == nil {
		return 0, 0 // the order of steps is not always the same
	}
	for _, seed := range []uint64{1, 2, 3, 0} { // the last one goes on with what the others look at
		name := fmt.Sprintf("step %d, after %v, seed %d", step, after, seed)
		left := b.restart(seed)
		new := left.wholly(t)
		pending, err := pendingStage(matrixFiles{left.dir}, stageTestJournal)
		if err != nil {
			t.Fatal(name, err)
		}
		switch {
		case pending != nil && seed%2 == 1:
			// By itself: what it was going to be, before anybody syncs.
			r, err := left.anyhow().ApplyStage(t.Context(), Options{}, false)
			if err != nil {
				t.Fatal(name, err)
			}
			if !left.wholly(t) {
				t.Fatal(name, "applied, the target is not what it was going to be")
			}
			// Nobody has seen to it since the power went.
			if rec := left.journal(t); r.Doubt == "" || r.Equal() || rec == nil || !rec.Suspect || rec.Touched || rec.Stage != "" {
				t.Fatalf("%s: applied, in doubt for %q, the journal is %+v", name, r.Doubt, rec)
			}
			redone++
		case pending != nil && seed == 0:
			left = left.twice(t, name)
			redone++
		case pending != nil:
			redone++
		case !new:
			kept++
		}
		if undo {
			left.undone(t, name)
		}
		left.undo = false // its log is of the session that was cut
		if seed >= 2 {
			left.again(t, name, stageTestDir)
			continue
		}
		left.again(t, name, "")
	}
	return redone, kept
}

// again syncs once more and requires that all is well then.
func (b *stageBench) again(t *testing.T, name, stage string) {
	t.Helper()
	side := b.target()
	side.Stage = stage
	if _, err := Sync(t.Context(), b.source(), side, Options{Workers: 1}); err != nil {
		t.Fatalf("%s: synced again: %v", name, err)
	}
	if !bytes.Equal(b.dst.Durable(), b.src.b) {
		t.Fatalf("%s: synced again, the target is not the source", name)
	}
	if rec := b.journal(t); rec != nil {
		t.Fatalf("%s: synced again, the journal is %+v", name, rec)
	}
	if stage != "" {
		for _, left := range b.dir.Names() {
			if left != stageTestUndo && left != stageTestJournal {
				t.Errorf("%s: left behind: %s", name, left)
			}
		}
	}
}

// undone requires that what the target held comes back, if it was written.
func (b *stageBench) undone(t *testing.T, name string) {
	t.Helper()
	if bytes.Equal(b.dst.Durable(), b.old) {
		return
	}
	log, err := b.dir.ReadFile(stageTestUndo)
	if err != nil {
		t.Fatalf("%s: the target was written, and its undo log: %v", name, err)
	}
	got, err := restored(t, log, namedVolume("target", &memory{b: b.dst.Durable()}))
	if err != nil || !bytes.Equal(got, b.old) {
		t.Fatalf("%s: undone, the target is not what it was (%v)", name, err)
	}
}

// twice has the process that finishes what another began lose power, too: what it
// has read may never have become durable.
func (b *stageBench) twice(t *testing.T, name string) *stageBench {
	t.Helper()
	b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Cut, After: true})
	if _, err := b.anyhow().ApplyStage(t.Context(), Options{}, false); !errors.Is(err, fault.ErrPower) {
		t.Fatalf("%s: %v", name, err)
	}
	for seed := range uint64(8) {
		left := b.restart(100 + seed)
		left.wholly(t)
	}
	return b.restart(100)
}

// TestStageMedium (L7, L5): what a disk has kept otherwise than it said, of the content,
// the index or the head, while a cache has it right, is found before the target is
// marked: after a power cut nobody could finish it.
func TestStageMedium(t *testing.T) {
	clean := newStageBench(512<<10, false)
	if _, err := clean.sync(t); err != nil {
		t.Fatal(err)
	}
	writes := map[string][]fault.Event{}
	for _, e := range clean.power.Steps() {
		if _, file, ok := strings.Cut(e.On, stageSuffix); ok && e.Op == fault.Write {
			writes[file] = append(writes[file], e)
		}
	}
	for file, list := range writes { // content, index, and the head before it gets its name
		for _, e := range []fault.Event{list[0], list[len(list)-1]} {
			if file == ".tmp" && e.N == 1 {
				continue // it is of a stage that is filling, and another one follows
			}
			for _, kind := range []fault.Kind{fault.Lost, fault.Flip} {
				b := newStageBench(512<<10, false)
				b.power.Add(fault.Rule{Op: fault.Write, On: e.On, N: e.N, Kind: kind})
				_, err := b.sync(t)
				if !errors.Is(err, errStageCorrupt) && !isWrong(err) || !bytes.Equal(b.dst.Bytes(), b.old) || b.journal(t) != nil {
					t.Errorf("%s: write %d to %s: %v, the journal is %+v", kind, e.N, file, err, b.journal(t))
				}
			}
		}
	}
	if len(writes) != 3 {
		t.Errorf("written: %d files", len(writes))
	}
}

// TestStageFlips (L9): a bit that flips in what is staged, before it is applied or
// before that is finished, is found and told with its place, and is not applied.
func TestStageFlips(t *testing.T) {
	for _, suffix := range []string{"-data", "-index", ""} {
		t.Run("stage"+suffix, func(t *testing.T) {
			b := newStageBench(512<<10, false)
			// The power goes when the first block lies in the target.
			b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 1, Kind: fault.Cut, After: true})
			if _, err := b.sync(t); !errors.Is(err, fault.ErrPower) {
				t.Fatal(err)
			}
			left := b.restart(1)
			rec := left.journal(t)
			if rec == nil || rec.Stage == "" {
				t.Fatalf("journal %+v", rec)
			}
			content, err := left.dir.ReadFile(rec.Stage + suffix)
			if err != nil {
				t.Fatal(err)
			}
			before := left.dst.Durable()
			h, err := readStageHead(faultyStages{left.dir}, rec.Stage)
			if err != nil {
				t.Fatal(err)
			}
			s, err := openStage(faultyStages{left.dir}, rec.Stage, h, &meter{v: left.dst, name: "target"})
			if err != nil {
				t.Fatal(err)
			}
			var at int64 = -1
			for r := range s.m.Runs() {
				if e, _ := s.run(r.Off, r.End); e == 1 { // data
					at = r.Off
					break
				}
			}
			s.close()
			place := fmt.Sprintf("[%#x,", at)
			switch suffix {
			case "-data":
				content[at+17] ^= 4
			case "-index":
				content[100] ^= 4
				place = "at 0x0"
			default:
				content[70] ^= 4
				place = "checksum of its head"
			}
			left.dir.WriteFile(rec.Stage+suffix, content)
			for _, try := range []func() error{
				func() error { _, err := left.sync(t); return err },
				func() error { _, err := left.anyhow().ApplyStage(t.Context(), Options{}, false); return err },
			} {
				err := try()
				var refused *RefusedError
				if !errors.As(err, &refused) || !errors.Is(err, errStageCorrupt) || !bytes.Contains([]byte(err.Error()), []byte(place)) || refused.Next == "" {
					t.Errorf("got %v, want a refusal that names %q", err, place)
				}
			}
			if !bytes.Equal(left.dst.Durable(), before) {
				t.Error("the target was written from a damaged stage")
			}
			// Given up, the target is like that of any sync that was interrupted.
			if _, err := left.anyhow().ApplyStage(t.Context(), Options{}, true); err != nil {
				t.Fatal(err)
			}
			if rec := left.journal(t); rec == nil || !rec.Touched || rec.Complete || rec.Stage != "" {
				t.Errorf("given up, the journal is %+v", rec)
			}
			left.again(t, "given up", stageTestDir)
		})
	}
}
