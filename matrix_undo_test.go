package failback

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/failback/failback/cbt"
	fault "github.com/failback/failback/internal/faulty"
)

const matrixUndo = "/state/t.fbu"

// matrixUndoFiles keeps undo logs on a file system that loses power.
type matrixUndoFiles struct{ *fault.Dir }

func (d matrixUndoFiles) create(path string) (undoStore, error) {
	f, err := d.Dir.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d matrixUndoFiles) open(path string) (undoStore, int64, error) {
	f, err := d.Dir.Open(path, os.O_RDWR)
	if err != nil {
		return nil, 0, err
	}
	return f, f.Size(), nil
}

func (d matrixUndoFiles) remove(path string) error { return d.Remove(path) }

func (d matrixUndoFiles) syncDir(dir string) error { return d.SyncDir(dir) }

// undoable says that what was saved puts back what the target held at first,
// bit for bit, and, once the session is over, that the log is whole.
func (e *matrixEnds) undoable(t *testing.T, over bool) {
	t.Helper()
	if !e.way.undo {
		return
	}
	content := e.dst.Durable()
	f, err := e.dir.Open(matrixUndo, os.O_RDONLY)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) || !bytes.Equal(content, e.before) {
			t.Errorf("the target was written, and its undo log: %v", err)
		}
		return
	}
	defer f.Close()
	if f.Size() < undoHeaderBytes && bytes.Equal(content, e.before) {
		return // its making was cut off
	}
	x, err := indexUndo(f, f.Size())
	if err != nil {
		if !bytes.Equal(content, e.before) {
			t.Errorf("the target was written, and its undo log: %v", err)
		}
		return
	}
	if rec := e.journal(t); !x.whole && (over || rec != nil && rec.Complete) {
		t.Error("the session is over, and its undo log is not whole")
	}
	u := &UndoLog{Path: matrixUndo, index: x}
	err = u.lay(t.Context(), func(int64) {}, func(_ context.Context, x cbt.Extent, b []byte) error {
		clear(content[x.Off:x.End])
		copy(content[x.Off:x.End], b)
		return nil
	})
	if err != nil || !bytes.Equal(content, e.before) {
		t.Errorf("undone, the target is not what it was (%v)", err)
	}
}

// dropUndo removes the log of a session that has overwritten nothing: it would be
// in the way of the next. It reports whether that session was over instead.
func (e *matrixEnds) dropUndo(t *testing.T) bool {
	t.Helper()
	if e.way.undo && bytes.Equal(e.dst.Durable(), e.after) {
		e.equal(t)
		return true
	}
	if err := e.dir.Remove(matrixUndo); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	return false
}
