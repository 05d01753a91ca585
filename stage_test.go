package failback

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	fault "github.com/failback/failback/internal/faulty"
)

// stagedSides are two image files that differ, and where the target keeps things.
func stagedSides(t *testing.T, size int) (src *memory, dst *Disk, side Side, dir string) {
	t.Helper()
	dir = t.TempDir()
	src = randomVolume(1, size)
	old := clone(src)
	scatter(old, 3, 200)
	clear(old.b[size/2 : size/2+200<<10])
	clear(src.b[size/4 : size/4+300<<10])
	path := filepath.Join(dir, "target.img")
	if err := os.WriteFile(path, old.b, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path, OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	stages := filepath.Join(dir, "stages")
	if err := os.Mkdir(stages, 0o700); err != nil {
		t.Fatal(err)
	}
	return src, d, Side{Volume: d, Name: "target", Journal: path + ".fbj", Stage: stages}, stages
}

// TestStagedSync: both sides are equal afterwards, in every topology, and nothing
// is left.
func TestStagedSync(t *testing.T) {
	for i, p := range topologies {
		t.Run(p.name, func(t *testing.T) {
			src, dst, side, dir := stagedSides(t, 8<<20)
			a, b := arrange(t, i, Side{Volume: src, Name: "source"}, side)
			o := Options{Streams: p.streams, Stage: p.targetServed}
			r, err := Sync(t.Context(), a, b, o)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dst.path)
			if err != nil || !bytes.Equal(got, src.b) {
				t.Errorf("the target is not the source (%v)", err)
			}
			if r.StagedBytes < r.DivergentBytes || r.DivergentBytes == 0 || r.Seconds.Apply <= 0 || r.TargetWrittenBytes > r.StagedBytes {
				t.Errorf("staged %d of %d divergent, wrote %d, applied in %gs", r.StagedBytes, r.DivergentBytes, r.TargetWrittenBytes, r.Seconds.Apply)
			}
			wantEmpty(t, dir)
			if _, err := os.Stat(side.Journal); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the journal is left: %v", err)
			}
		})
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind in %s: %v (%v)", dir, left, err)
	}
}

// TestStageNeeds: what a staged sync cannot do without, and what does not go with it,
// is refused before anything is made.
func TestStageNeeds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Side)
		o      Options
	}{
		"a journal":         {func(s *Side) { s.Journal = "" }, Options{}},
		"to begin anew":     {func(*Side) {}, Options{Resume: true}},
		"a place for it":    {func(s *Side) { s.Stage = "" }, Options{Stage: true}},
		"a place there is":  {func(s *Side) { s.Stage = filepath.Join(s.Stage, "none") }, Options{}},
		"a place, not file": {func(s *Side) { s.Stage = s.Journal }, Options{}},
	} {
		src, dst, side, dir := stagedSides(t, 1<<20)
		c.change(&side)
		before, err := os.ReadFile(dst.path)
		if err != nil {
			t.Fatal(err)
		}
		var refused *RefusedError
		if _, err := Sync(t.Context(), Side{Volume: src}, side, c.o); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
		if after, err := os.ReadFile(dst.path); err != nil || !bytes.Equal(after, before) {
			t.Errorf("%s: the target was written (%v)", name, err)
		}
		wantEmpty(t, dir)
	}
}

// TestStageWrittenBetween (L1): what somebody writes to a target between a session
// that could not be applied and who finishes it may lie anywhere: it is finished, and
// the doubt stays until all of it is compared.
func TestStageWrittenBetween(t *testing.T) {
	for _, written := range []bool{false, true} {
		b := failedApply(t, false)
		if written {
			if _, err := b.dst.WriteAt(make([]byte, 4096), 400<<10); err != nil {
				t.Fatal(err)
			}
		}
		r, err := b.anyhow().ApplyStage(t.Context(), Options{}, false)
		if err != nil {
			t.Fatal(err)
		}
		rec := b.journal(t)
		if doubt := rec != nil && rec.Suspect && rec.Stage == ""; doubt != written || written != (r.Doubt != "") || written == r.Equal() {
			t.Errorf("written %v: in doubt for %q, the journal is %+v", written, r.Doubt, rec)
		}
		var told Plan
		o := Options{Workers: 1, Events: Events{Plan: func(p Plan) { told = p }}}
		src := b.source()
		src.Dirty = dirtyMap(t, b.src.Size(), nil) // it would hide what was written
		if _, err := Sync(t.Context(), src, b.target(), o); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.dst.Bytes(), b.src.b) {
			t.Errorf("written %v: the target is not the source, by rung %v", written, told.Rung)
		}
	}
}

// TestStageProven (L7): what the target's medium does not hold after all, where every
// cache says that it does, is found before the source hears that both are equal; the
// target is in doubt then, and the next sync mends it.
func TestStageProven(t *testing.T) {
	b := newStageBench(512<<10, false)
	b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 2, Kind: fault.Flip, Bit: 77})
	_, err := b.sync(t)
	var wrong *VerifyError
	if !errors.As(err, &wrong) || wrong.Volume != "target" {
		t.Fatalf("got %v", err)
	}
	if rec := b.journal(t); rec == nil || !rec.Suspect || rec.Stage == "" || rec.Complete {
		t.Errorf("the journal is %+v", rec)
	}
	if _, err := b.sync(t); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.dst.Durable(), b.src.b) || b.journal(t) != nil {
		t.Error("the next sync did not mend it")
	}
}
