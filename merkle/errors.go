package merkle

import (
	"errors"
	"fmt"
)

// What can be wrong with a tree file. Each is tested for with [errors.Is].
var (
	// ErrNotTree says that a file does not begin like a tree file.
	ErrNotTree = errors.New("not a tree file")

	// ErrVersion says that a tree file is of a format version this package does not read.
	ErrVersion = errors.New("tree file version not supported")

	// ErrCorrupt says that bytes are not what was written. Every error that is
	// ErrCorrupt is a [*CorruptError] with the place. The tree must be rebuilt.
	ErrCorrupt = errors.New("tree file corrupt")

	// ErrBuilding says that a tree file was never finished. [Build] with
	// [Options].Resume goes on with it.
	ErrBuilding = errors.New("tree file unfinished: its build was interrupted; resume the build or start it again")

	// ErrUpdating says that an update was cut off between its two headers.
	// [OpenUpdate] finishes it if its journal is whole; else the tree must be rebuilt.
	ErrUpdating = errors.New("tree file in the middle of an update; open it for updating to finish that, or rebuild it")

	// ErrInUse says that another process, or another File of this one, holds
	// the tree file in a way that forbids what was asked.
	ErrInUse = errors.New("tree file in use")

	// ErrReadOnly says that a File from [Open] was asked to change.
	ErrReadOnly = errors.New("tree file open for reading only")
)

// CorruptError says where a tree file, or what a [NodeReader] told, is wrong.
type CorruptError struct {
	Path   string // the file; empty for what is not a file
	Offset int64  // bytes from the start of the file; -1 for what is not a file
	Level  int    // level of the node, -1 if it is not about a node
	Index  int64  // index in its level of the first node that is not proven
	Err    error  // what is wrong there
}

// Error returns the place and what is wrong there.
func (e *CorruptError) Error() string {
	where := ""
	if e.Level >= 0 {
		where = fmt.Sprintf(" (level %d, node %d)", e.Level, e.Index)
	}
	if e.Path == "" {
		return fmt.Sprintf("tree%s: %v", where, e.Err)
	}
	return fmt.Sprintf("tree file %s at offset %d%s: %v", e.Path, e.Offset, where, e.Err)
}

// Unwrap makes a CorruptError both [ErrCorrupt] and what is wrong.
func (e *CorruptError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// Reasons, in words, that a CorruptError wraps.
var (
	errChecksum     = errors.New("header checksum does not match")
	errHeaderField  = errors.New("header field out of bounds")
	errPadding      = errors.New("padding is not zero")
	errTrailing     = errors.New("data after the end of the tree")
	errParent       = errors.New("group of children does not hash to its parent; rebuild the tree")
	errTop          = errors.New("top node does not hash to the root; rebuild the tree")
	errNotCanonical = errors.New("hash of an all-zero subtree is written out")
	errZeroParent   = errors.New("nodes below an all-zero subtree are not zero; rebuild the tree")
	errSilent       = errors.New("nodes differ but none of their children do")
	errOrder        = errors.New("nodes came that were not asked for")
	errJournal      = errors.New("update journal is not whole")
)
