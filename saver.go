package failback

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/failback/failback/transport/message"
)

// A saver keeps what a target held before it was overwritten.
type saver interface {
	// save returns when what vol holds in spans is durable elsewhere. It is safe
	// for concurrent use. With best effort it may be false: it is not, and the
	// session goes on.
	save(ctx context.Context, vol *meter, spans []message.Extent) (bool, error)
	// finish says, durably, that nothing more comes.
	finish() error
	// size is how many bytes of the log are durable.
	size() int64
	close() error
}

// A savePlace is where a target's side has undo logs kept.
type savePlace struct {
	path string // a file to be made, or a directory; "": none
	best bool   // go on without when that is no longer possible
	// onDemand is a server's: only for peers that ask, who also say whether to go
	// on without.
	onDemand bool
	files    undoFiles // nil: on this machine
}

func (p savePlace) on() undoFiles {
	if p.files == nil {
		return undoDisk{}
	}
	return p.files
}

// openUndo begins or goes on with the undo log of a session that writes.
func (t *target) openUndo() error {
	run := t.log.rec.Run
	if t.log.path == "" {
		run = t.start.Session
	}
	path := t.saveTo.path
	if t.saveTo.onDemand && t.start.Undo == 0 {
		path = ""
	}
	if path != "" {
		var err error
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
	}
	switch chain := t.log.found; {
	case chain != nil && chain.Undo != "":
		// What was begun is not left half done. Where that is, the user says: whoever
		// can write the journal could name any file.
		if path == "" || path != chain.Undo && filepath.Dir(chain.Undo) != path {
			return &RefusedError{Volume: t.name, Reason: "the interrupted sync kept an undo log, " + chain.Undo,
				Next: "resume with it (--undo " + chain.Undo + "; where the target is served, --undo-served), or sync without --resume"}
		}
		path = chain.Undo
	case path == "" && t.start.Undo != 0:
		return &RefusedError{Volume: t.name, Reason: "undo was asked for and its server keeps no undo logs",
			Next: "have it keep them (failback serve --undo DIR), or sync without"}
	case path == "":
		return t.recordable()
	case chain != nil && chain.Touched && !t.log.redone: // what that one has overwritten is over
		return &RefusedError{Volume: t.name, Reason: "what the interrupted sync has overwritten was not saved, so it cannot be undone as a whole",
			Next: "resume without an undo log, or begin anew with one"}
	default:
		path = undoPath(path, t.name, run)
	}
	t.log.rec.Undo = path
	if err := t.recordable(); err != nil {
		return err
	}
	w, err := t.undoWriter(path, run)
	if err != nil {
		return t.withoutUndo(err)
	}
	w.note = t.o.Events.Note
	t.undo, t.blank = w, w.count == 0
	return nil
}

// withoutUndo is what becomes of a session whose undo log cannot be made. Nothing
// is touched yet.
func (t *target) withoutUndo(err error) error {
	var mine *undoError
	if !errors.As(err, &mine) || t.log.found != nil && t.log.found.Undo != "" {
		return err
	}
	if t.saveTo.best || t.saveTo.onDemand && t.start.Undo == undoBest {
		t.log.rec.Undo = ""
		t.undo = noSaver{}
		if t.o.Events.Note != nil {
			t.o.Events.Note(fmt.Sprintf("%v: going on without; this sync cannot be undone", err))
		}
		return nil
	}
	return &RefusedError{Volume: t.name, cause: err, Reason: fmt.Sprintf("what it overwrites cannot be saved (%v)", err), Next: mine.Next()}
}

// noSaver saves nothing, as best effort allows.
type noSaver struct{}

func (noSaver) save(context.Context, *meter, []message.Extent) (bool, error) { return false, nil }
func (noSaver) finish() error                                                { return nil }
func (noSaver) size() int64                                                  { return 0 }
func (noSaver) close() error                                                 { return nil }

func (t *target) undoWriter(path string, run [16]byte) (*undoWriter, error) {
	f := undoFacts{
		Target:  undoVolume{Size: t.vol.v.Size(), Identity: clip(t.vol.identity()), Name: clip(t.name)},
		Source:  undoVolume{Size: t.start.Volume.Size, Identity: t.start.Volume.Identity, Name: t.start.Volume.Name},
		Session: run, BestEffort: t.saveTo.best || t.saveTo.onDemand && t.start.Undo == undoBest,
		Inconsistent: t.log.marked, Before: t.log.markedBy,
	}
	if chain := t.log.found; chain != nil && chain.Undo != "" {
		f.Known, f.Saved = true, chain.Saved
	}
	files := t.saveTo.on()
	if t.start.Resume != resumeNot {
		w, err := resumeUndo(files, path, f)
		if f.Known || !errors.Is(err, fs.ErrNotExist) {
			return w, err
		}
	}
	return createUndo(files, path, f)
}

// Ways a source asks for an undo log. The numbers are on the wire.
const (
	undoMust uint8 = 1
	undoBest uint8 = 2
)

// undoPath is the name of a session's undo log: path, or one in it if that is a directory.
func undoPath(path, volume string, run [16]byte) string {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return path
	}
	word := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || r == '/' {
			return '_'
		}
		return r
	}, strings.TrimLeft(volume, "/"))
	return filepath.Join(path, fmt.Sprintf("%.100s-%s.fbu", word, hex.EncodeToString(run[:4])))
}

func (t *target) closeUndo() error {
	if t.undo == nil {
		return nil
	}
	return t.undo.close()
}
