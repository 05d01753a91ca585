package failback

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"

	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/internal/journal"
)

// faultyStages keeps stages on a file system that loses power.
type faultyStages struct{ *fault.Dir }

func (d faultyStages) head(path string) (b []byte, err error) {
	f, err := d.Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b = make([]byte, stageHeadBytes+1)
	n, err := f.ReadMediumAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

func (d faultyStages) place(path string, content []byte) error {
	return d.Place(path, content)
}

func (d faultyStages) create(path string, size int64) error {
	f, err := d.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (d faultyStages) data(path string) (stageData, error) {
	f, err := d.Open(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := f.Lock(true); err != nil {
		return nil, errors.Join(&RefusedError{Volume: path, Reason: "in use", busy: true}, f.Close())
	}
	return f, nil
}

func (d faultyStages) index(path string) (stageIndex, error) {
	f, err := d.Open(path, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d faultyStages) remove(path string) error { return d.Remove(path) }
func (d faultyStages) syncDir(dir string) error { return d.SyncDir(dir) }

const (
	stageTestDir     = "/stages"
	stageTestJournal = "/state/t.fbj"
	stageTestUndo    = "/state/t.fbu"
)

// stageBench is a target on a machine that loses power, with all that lies beside
// it, and a source on another.
type stageBench struct {
	src   *memory
	old   []byte // what the target held at first
	dst   *fault.Volume
	dir   *fault.Dir
	power *fault.Faults
	undo  bool
}

func newStageBench(size int, undo bool) *stageBench {
	b := &stageBench{src: randomVolume(1, size), undo: undo, power: fault.New()}
	dst := clone(b.src)
	scatter(dst, 2, 12)
	clear(b.src.b[96<<10 : 192<<10]) // zeroes
	b.old = bytes.Clone(dst.b)
	b.dst = fault.NewVolume("target", b.old, b.power)
	b.dir = fault.NewDir(b.power)
	return b
}

func (b *stageBench) target() Side {
	s := Side{Volume: matrixTarget{b.dst}, Name: "target", Journal: stageTestJournal, Stage: stageTestDir,
		files: matrixFiles{b.dir}, undoAt: matrixUndoFiles{b.dir}, stageAt: faultyStages{b.dir}}
	if b.undo {
		s.Undo = stageTestUndo
	}
	return s
}

// anyhow is the target as one is finished that may have been written since.
func (b *stageBench) anyhow() Side {
	s := b.target()
	s.ThoughWritten = true
	return s
}

func (b *stageBench) source() Side {
	return Side{Volume: namedVolume("source", b.src), Name: "source"}
}

func (b *stageBench) sync(t *testing.T) (*Report, error) {
	return Sync(t.Context(), b.source(), b.target(), Options{Workers: 1})
}

// restart is the bench as a power cut by a seed leaves it; 0: only the process went,
// and all that is in caches is still there.
func (b *stageBench) restart(seed uint64) *stageBench {
	n := *b
	n.power = fault.New()
	if seed > 0 {
		n.dst, n.dir = b.dst.Crash(seed), b.dir.Crash(seed)
	}
	n.dst.Plug(n.power)
	n.dir.Plug(n.power)
	return &n
}

func (b *stageBench) journal(t *testing.T) *journal.Record {
	t.Helper()
	rec, err := journal.Read(matrixFiles{b.dir}, stageTestJournal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal cannot be read: %v", err)
	}
	return rec
}

// wholly requires that the target is what it was, or what it is to be, or says that
// it is being made so (L5). It reports whether it is what it is to be.
func (b *stageBench) wholly(t *testing.T) (after bool) {
	t.Helper()
	rec := b.journal(t)
	marked := rec != nil && rec.Touched && !rec.Complete
	switch got := b.dst.Durable(); {
	case bytes.Equal(got, b.src.b):
		return true
	case bytes.Equal(got, b.old):
		return false
	case !marked || rec.Stage == "":
		t.Fatalf("L5: the target is neither old nor new, and the journal is %+v", rec)
	}
	return false
}
