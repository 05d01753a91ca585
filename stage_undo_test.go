package failback

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/internal/journal"
)

// TestStageUndone (L5): an older undo log that is put back while a stage waits leaves
// the mark, and nobody lays the stage over it.
func TestStageUndone(t *testing.T) {
	src, dst, side, _ := stagedSides(t, 1<<20)
	side.Stage, side.Undo = "", filepath.Join(t.TempDir(), "u.fbu")
	before := bytes.Clone(src.b)
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); err != nil {
		t.Fatal(err)
	}
	scatter(src, 9, 40)
	staged := side
	full := &failing{Disk: dst}
	full.left.Store(2)
	staged.Undo, staged.Stage, staged.Volume = "", t.TempDir(), full
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, staged, Options{}); err == nil {
		t.Fatal("it went well")
	}
	log, err := OpenUndo(side.Undo)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	log.Journal = side.Journal
	var refused *RefusedError
	if err := log.Restore(t.Context(), dst, nil); !errors.As(err, &refused) {
		t.Fatalf("undone: %v", err)
	}
	log.AllowInconsistent = true
	if err := log.Restore(t.Context(), dst, nil); err != nil {
		t.Fatal(err)
	}
	if rec, err := journal.Read(journal.Disk, side.Journal); err != nil || !rec.Touched || !rec.Suspect || rec.Stage != "" {
		t.Errorf("%v: the journal is %+v", err, rec)
	}
	staged.Volume = dst
	if _, err := staged.ApplyStage(t.Context(), Options{}, false); !errors.As(err, &refused) {
		t.Errorf("applied: %v", err)
	}
	// What was put back no map knows.
	a := Side{Volume: src, Name: "source", Dirty: dirtyMap(t, src.Size(), nil)}
	if _, err := Sync(t.Context(), a, staged, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dst.path); err != nil || !bytes.Equal(got, src.b) || bytes.Equal(got, before) {
		t.Errorf("the target is not the source (%v)", err)
	}
}

// failing is a volume that fails at a write.
type failing struct {
	*Disk
	left atomic.Int64 // writes that go well
}

func (v *failing) WriteAt(p []byte, off int64) (int, error) {
	if v.left.Add(-1) < 0 {
		return 0, errors.New("no more")
	}
	return v.Disk.WriteAt(p, off)
}
