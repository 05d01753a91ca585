package failback

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	power "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/transport/message"
)

// oneUndoFile is an undo file that can be cut off from power.
type oneUndoFile struct{ file *power.File }

func (o *oneUndoFile) create(path string) (undoStore, error) {
	if o.file != nil {
		return nil, os.ErrExist
	}
	o.file = power.NewFile(path, nil, nil)
	return o.file, nil
}

func (o *oneUndoFile) open(string) (undoStore, int64, error) {
	if o.file == nil {
		return nil, 0, os.ErrNotExist
	}
	return o.file, o.file.Size(), nil
}

func (o *oneUndoFile) remove(string) error { return nil }

func (o *oneUndoFile) syncDir(string) error { return nil }

// holdingUndo is a file with this content, as an earlier process has left it.
func holdingUndo(content []byte) *oneUndoFile {
	return &oneUndoFile{power.NewFile("undo", bytes.Clone(content), nil)}
}

// undoStage is a target that is overwritten, frame by frame, with an undo file.
type undoStage struct {
	t     testing.TB
	old   []byte // what the target held
	vol   *named
	files *oneUndoFile
	w     *undoWriter
}

func undoFactsOf(vol *named, best bool) undoFacts {
	return undoFacts{
		Target:  undoVolume{Size: vol.Size(), Identity: vol.id, Name: "target"},
		Source:  undoVolume{Size: vol.Size(), Identity: "from", Name: "source"},
		Session: [16]byte{1, 2, 3}, BestEffort: best,
	}
}

func newUndoStage(t testing.TB, old []byte, best bool) *undoStage {
	t.Helper()
	s := &undoStage{t: t, old: bytes.Clone(old), vol: namedVolume("to", &memory{b: bytes.Clone(old)}), files: &oneUndoFile{}}
	w, err := createUndo(s.files, "undo", undoFactsOf(s.vol, best))
	if err != nil {
		t.Fatal(err)
	}
	s.w = w
	return s
}

func (s *undoStage) meter() *meter { return &meter{v: s.vol, name: "target"} }

// overwrite saves spans and puts other bytes there, as an applier does.
func (s *undoStage) overwrite(seed uint64, spans ...message.Extent) {
	s.t.Helper()
	if _, err := s.w.save(s.t.Context(), s.meter(), spans); err != nil {
		s.t.Fatal(err)
	}
	for i, x := range spans {
		copy(s.vol.b[x.Off:x.End], randomBytes(seed+uint64(i), int(x.End-x.Off)))
	}
}

func (s *undoStage) finish() {
	s.t.Helper()
	if err := s.w.finish(); err != nil {
		s.t.Fatal(err)
	}
}

// extentAt is n bytes at off.
func extentAt(off, n int64) message.Extent { return message.Extent{Off: off, End: off + n} }

// openUndoBytes opens an undo file with this content.
func openUndoBytes(t testing.TB, content []byte) (*UndoLog, error) {
	t.Helper()
	path := filepath.Join(undoDir(t), "x.fbu")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := OpenUndo(path)
	if err == nil {
		t.Cleanup(func() { u.Close() })
	}
	return u, err
}

var undoDirs = map[testing.TB]string{}

// undoDir is one directory of a test, in memory where there is such a place:
// thousands of files are written there.
func undoDir(t testing.TB) string {
	if undoDirs[t] == "" {
		undoDirs[t] = scratch(t)
		t.Cleanup(func() { delete(undoDirs, t) })
	}
	return undoDirs[t]
}

// restored is what volume holds after the log of this content was put back.
func restored(t testing.TB, content []byte, volume *named) ([]byte, error) {
	t.Helper()
	u, err := openUndoBytes(t, content)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	v := namedVolume(volume.id, clone(volume.memory))
	if err := u.Restore(context.WithoutCancel(t.Context()), v, nil); err != nil {
		return nil, err
	}
	return v.b, nil
}

// wantOld restores and compares with what was there before.
func (s *undoStage) wantOld(what string, content []byte) {
	s.t.Helper()
	got, err := restored(s.t, content, s.vol)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	sameBytes(s.t, what, got, s.old)
}

// oldContent is text, noise and zeroes in turn, so that every kind of record is
// made of it.
func oldContent(n int) []byte {
	b := make([]byte, n)
	for off := 0; off < n; off += pieceSize {
		part := b[off:min(off+pieceSize, n)]
		switch off / pieceSize % 5 {
		case 0, 1:
			copy(part, bytes.Repeat([]byte{byte(off >> 12), 7, 7, 7}, pieceSize/4))
		case 2:
			copy(part, randomBytes(uint64(off), len(part)))
		}
	}
	return b
}

func isUndoError(err error) bool {
	var u *undoError
	return errors.As(err, &u)
}

// resume goes on with the file as another process does.
func (s *undoStage) resume(best bool) {
	s.t.Helper()
	w, err := resumeUndo(s.files, "undo", undoFactsOf(s.vol, best))
	if err != nil {
		s.t.Fatalf("resume: %v", err)
	}
	s.w = w
}
