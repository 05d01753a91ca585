package failback

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/journal"
)

// stageSuffix is what the names of stages end in.
const stageSuffix = ".fbs"

// stagePath is the name in dir of the stage of a target whose journal lies at
// journal, an absolute path. The journal says whether a stage is to be applied; so
// who looks at one that another journal may name looks elsewhere.
func stagePath(dir string, target undoVolume, journal string) string {
	who := lasting(target.Identity)
	if who == "" {
		who = target.Name
	}
	return filepath.Join(dir, fmt.Sprintf("%016x%s", xxhash.Sum64String(who+"\x00"+journal), stageSuffix))
}

// lasting is what of an identity holds over a reboot. The device that a file lies on
// may get another number then (btrfs, NFS, overlay, device-mapper, loop); its inode
// and when that was made stay. These alone are no identity: a snapshot or a clone of
// the file system has a file with the same.
func lasting(identity string) string {
	rest, file := strings.CutPrefix(identity, "file:dev=")
	if _, id, more := strings.Cut(rest, ","); file && more && strings.Contains(id, ",born=") {
		return "file:" + id
	}
	return identity
}

// of reports whether the stage at path, whose head h is, is of the target whose
// journal lies at journal. With that at its place a file may have come to lie on a
// device of another number.
func (h *stageHead) of(path string, target undoVolume, journal string) bool {
	return h.target.Size == target.Size && (h.target.Identity == target.Identity ||
		lasting(h.target.Identity) == lasting(target.Identity) && filepath.Base(path) == filepath.Base(stagePath("", target, journal)))
}

// stageData is where the content of what is staged lies: a sparse volume.
type stageData interface {
	Volume
	Zeroer
	MediumReader
	io.Closer
}

// stageIndex is where the index lies.
type stageIndex interface {
	journal.Store
	MediumReader
}

// stageFiles is where stages lie; tests put faults there.
type stageFiles interface {
	// head returns what a head holds on its medium, or a byte more than a head has.
	head(path string) ([]byte, error)
	// place makes the file at path hold content, whole or not at all, and durable.
	place(path string, content []byte) error
	// create makes a file of zeroes; it fails if there is one. Its name is not durable.
	create(path string, size int64) error
	// data opens the content for this process alone.
	data(path string) (stageData, error)
	index(path string) (stageIndex, error)
	remove(path string) error
	syncDir(dir string) error
}

// stageDisk is the file system of this machine.
type stageDisk struct{}

// head does not wait for whoever is to write into a pipe, and follows no link.
func (stageDisk) head(path string) (b []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errNotStage)
	}
	// What is not written yet stays, and so does all where there is no other medium.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, stageHeadBytes+1))
}

func (stageDisk) place(path string, content []byte) error { return journal.Disk.Place(path, content) }

func (stageDisk) create(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (stageDisk) data(path string) (stageData, error) {
	d, err := Open(path, OpenOptions{Write: true})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (stageDisk) index(path string) (stageIndex, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	medium, err := Open(path, OpenOptions{})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &indexFile{f, medium}, nil
}

// indexFile is written through the page cache, for it is written in pieces, and read
// from the medium by another door.
type indexFile struct {
	*os.File
	medium *Disk
}

// ReadMediumAt implements [MediumReader].
func (f *indexFile) ReadMediumAt(p []byte, off int64) (int, error) {
	return f.medium.ReadMediumAt(p, off)
}

func (f *indexFile) Close() error { return errors.Join(f.medium.Close(), f.File.Close()) }

func (stageDisk) remove(path string) error { return os.Remove(path) }

func (stageDisk) syncDir(dir string) error { return undoDisk{}.syncDir(dir) }

// What was tried, in the words of a stageError.
const (
	stageMaking  = "make"
	stageReading = "read"
	stageWriting = "write to"
	stageEnding  = "remove"
)

// stageError is an error of a stage: which one, what, and what to do.
type stageError struct {
	path string
	what string // verb: "make", "write to", ...
	err  error
}

func (e *stageError) Error() string { return fmt.Sprintf("%s stage %s: %v", e.what, e.path, e.err) }
func (e *stageError) Unwrap() error { return e.err }

// full reports whether there is no room left.
func (e *stageError) full() bool {
	return errors.Is(e.err, unix.ENOSPC) || errors.Is(e.err, unix.EDQUOT) || errors.Is(e.err, unix.EFBIG)
}

// Class says in a few words what kind of error it is.
func (e *stageError) Class() string {
	for _, known := range []error{errNotStage, errStageVersion, errStageCorrupt} {
		if errors.Is(e.err, known) {
			return known.Error()
		}
	}
	if e.full() {
		return "the disk of the stage is full"
	}
	return "stage: " + e.what + " it went wrong"
}

// Next is what to do about it, empty where the cause says it.
func (e *stageError) Next() string {
	switch {
	case e.full():
		return "make room beside the stage, or name another directory (--stage DIR), and sync again"
	case errors.Is(e.err, errStageVersion):
		return "use the failback that made it, or name another directory (--stage DIR)"
	case errors.Is(e.err, errStageCorrupt):
		return "check the disk of the stage, then sync again"
	}
	return ""
}

// stageFailure names the stage in an error, once.
func stageFailure(path, what string, err error) error {
	var have *stageError
	if err == nil || errors.As(err, &have) {
		return err
	}
	return &stageError{path: path, what: what, err: err}
}

// removeStage removes the files of a stage, the head last: what has no head was
// not made by us.
func removeStage(files stageFiles, path string) error {
	for _, suffix := range []string{"-data", "-index"} {
		if err := files.remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return stageFailure(path, stageEnding, err)
		}
	}
	if err := files.syncDir(filepath.Dir(path)); err != nil {
		return stageFailure(path, stageEnding, err)
	}
	if err := files.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stageFailure(path, stageEnding, err)
	}
	return nil
}
