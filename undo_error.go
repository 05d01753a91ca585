package failback

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// What can be wrong with an undo file, and with keeping one.
var (
	errNotUndo     = errors.New("not an undo file")
	errUndoVersion = errors.New("undo file version not supported")
	errUndoCorrupt = errors.New("corrupt undo file")
	errUndoGaps    = errors.New("undo file with gaps")
	errUndoFull    = errors.New("the disk of the undo file is full")

	// errUndoBody is a body that is not what was written, as a crash may leave
	// one that was not durable.
	errUndoBody = fmt.Errorf("%w: content does not match its checksum", errUndoCorrupt)
)

// undoFault is an error with its place in the file.
type undoFault struct {
	off int64 // bytes, of the first byte of what is wrong
	err error
}

func (e undoFault) Error() string { return fmt.Sprintf("at %#x: %v", e.off, e.err) }
func (e undoFault) Unwrap() error { return e.err }

func undoCorrupt(off int64, format string, args ...any) error {
	return undoFault{off, fmt.Errorf("%w: "+format, append([]any{errUndoCorrupt}, args...)...)}
}

func undoCut(off int64, inside string) error {
	return undoFault{off, fmt.Errorf("%w: the file ends inside its %s: %w", errUndoCorrupt, inside, io.ErrUnexpectedEOF)}
}

// undoError is an error of an undo file: which one, what, and what to do.
type undoError struct {
	path string
	what string // verb: "open", "save to", ...
	err  error
}

func (e *undoError) Error() string {
	return fmt.Sprintf("%s undo file %s: %v", e.what, e.path, e.err)
}

func (e *undoError) Unwrap() error { return e.err }

// Class says in a few words what kind of error it is.
func (e *undoError) Class() string {
	for _, known := range []error{errNotUndo, errUndoVersion, errUndoCorrupt, errUndoGaps, errUndoFull} {
		if errors.Is(e.err, known) {
			return known.Error()
		}
	}
	return "undo file: " + e.what + " it went wrong"
}

// Next is what to do about it, empty where the cause says it.
func (e *undoError) Next() string {
	switch {
	case errors.Is(e.err, errNotUndo):
		return "name a file that was made with sync --undo"
	case errors.Is(e.err, errUndoVersion):
		return "use the failback that made it"
	case errors.Is(e.err, errUndoCorrupt):
		return "take another copy of the file if there is one: from this one the old content cannot be put back as a whole"
	case errors.Is(e.err, errUndoFull) && e.what == undoMaking:
		return "make room beside the undo file and sync again; or go on without what cannot be saved: --undo-best-effort"
	case errors.Is(e.err, errUndoFull):
		return "make room beside the undo file, then go on with --resume; or go on without what cannot be saved: --undo-best-effort"
	case e.what == undoSaving:
		return "see to the disk of the undo file, then go on with --resume; or go on without what cannot be saved: --undo-best-effort"
	}
	return ""
}

// What was tried, in the words of an undoError.
const (
	undoMaking  = "make"
	undoOpening = "open"
	undoReading = "read"
	undoSaving  = "save to"
)

// undoFailure puts the class of a disk that is full before what the system says.
func undoFailure(path, what string, err error) error {
	var have *undoError
	if err == nil || errors.As(err, &have) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		err = fmt.Errorf("%w: %w", errUndoFull, err)
	}
	return &undoError{path: path, what: what, err: err}
}
