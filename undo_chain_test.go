package failback

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/internal/journal"
)

// TestUndoChain: a sync was interrupted, another one began anew and came to its
// end; both are undone, the last one first. The mark that is left in between is
// that of the first, so that its log may be put back; after that there is none.
func TestUndoChain(t *testing.T) {
	const size = 8 << 20
	dir := t.TempDir()
	path := filepath.Join(dir, "j")
	src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
	before := bytes.Clone(dst.b)
	sync := func(undo string) error {
		b := Side{Volume: dst, Name: "b", Journal: path, Undo: filepath.Join(dir, undo)}
		_, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, b, Options{Codec: "none", Workers: 1})
		return err
	}
	var n atomic.Int64
	dst.write = func(int64) error {
		if n.Add(1) > 3 {
			return errDied
		}
		return nil
	}
	if err := sync("1.fbu"); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	dst.write = nil
	first, err := journal.Read(journal.Disk, path)
	if err != nil || !first.Touched {
		t.Fatalf("%+v, %v", first, err)
	}
	between := bytes.Clone(dst.b)
	if err := sync("2.fbu"); err != nil {
		t.Fatal(err)
	}
	undo := func(name string) {
		t.Helper()
		u := openUndo(t, filepath.Join(dir, name))
		u.Journal = path
		if err := u.Restore(t.Context(), dst, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // it may be run again, as often as it takes
		undo("2.fbu")
		rec, err := journal.Read(journal.Disk, path)
		if err != nil || !rec.Touched || rec.Run != first.Run || !bytes.Equal(dst.b, between) {
			t.Fatalf("after the last sync is undone the mark is %+v (%v), want that of %x", rec, err, first.Run)
		}
	}
	undo("1.fbu")
	if _, err := journal.Read(journal.Disk, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after both are undone there is a mark: %v", err)
	}
	if !bytes.Equal(dst.b, before) {
		t.Error("the target is not what it was")
	}
}
