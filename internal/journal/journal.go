// Package journal keeps, in a small file at a target's side, how far a session
// that writes the target has come. It is what a session is resumed from, and the
// mark that says that the volume is inconsistent (L5).
//
// Read it in this order: [Record] (what is said, and its bytes), [File] (how it
// is made durable), [Files] (where it lies; tests put faults there).
package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// A Store is an open journal file.
type Store interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// Files is where journals lie.
type Files interface {
	// Open opens a file that exists for reading and, if write is set, writing.
	Open(path string, write bool) (Store, error)
	// Place makes the file at path hold content, whole or not at all, and durable.
	Place(path string, content []byte) error
	// Remove removes the file at path.
	Remove(path string) error
}

// Disk is the file system of this machine.
var Disk Files = disk{}

// A File is an open journal. Two slots take turns: a write that is torn leaves
// the other, which says less and is as true.
type File struct {
	path  string
	files Files

	mu  sync.Mutex
	f   Store
	seq uint64 // of the newest slot
	rec Record
}

// Read returns what the journal at path says, without changing it.
func Read(files Files, path string) (*Record, error) {
	f, err := files.Open(path, false)
	if err != nil {
		return nil, fmt.Errorf("open resume journal: %w", err)
	}
	r, _, err := load(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("read resume journal %s: %w", path, err)
	}
	return r, nil
}

// load reads both slots and believes the newer one that is whole.
func load(f io.ReaderAt) (*Record, uint64, error) {
	b := make([]byte, fileSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	switch {
	case n < len(magic) || !bytes.HasPrefix(b, []byte(magic)) && !hasMagic(b[:n], slotSize):
		return nil, 0, ErrNotJournal
	case n != fileSize:
		return nil, 0, fmt.Errorf("%w: %d bytes, a whole one has %d", ErrCorrupt, n, fileSize)
	}
	a, aSeq, aErr := decode(b[:slotSize])
	c, cSeq, cErr := decode(b[slotSize:fileSize])
	switch {
	case errors.Is(aErr, ErrVersion) || errors.Is(cErr, ErrVersion):
		return nil, 0, errors.Join(aErr, cErr)
	case aErr != nil && cErr != nil:
		return nil, 0, fmt.Errorf("%w: first slot: %w; second slot: %w", ErrCorrupt, aErr, cErr)
	case aErr != nil || cErr == nil && cSeq > aSeq:
		return c, cSeq, nil
	}
	return a, aSeq, nil
}

func hasMagic(b []byte, off int) bool {
	return len(b) >= off+len(magic) && string(b[off:off+len(magic)]) == magic
}

// Begin makes a journal at path that says r, in place of one that is there. It is
// durable when Begin returns. A file that is no journal is left alone:
// ErrNotJournal. A damaged journal is replaced.
//
// It is always a new file: of one that is there, what we read may be in a cache
// only, name and all, left by a process that was killed before it was durable.
func Begin(files Files, path string, r Record) (*File, error) {
	j := &File{path: path, files: files}
	_, err := Read(files, path)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrCorrupt) {
		err = j.place(r)
	}
	if err != nil {
		return nil, fmt.Errorf("make resume journal %s: %w", path, errors.Join(err, j.Close()))
	}
	return j, nil
}

// place makes a new file, both slots alike.
func (j *File) place(r Record) error {
	first, err := r.encode(1)
	if err != nil {
		return err
	}
	second, err := r.encode(2)
	if err != nil {
		return err
	}
	if err := j.files.Place(j.path, append(first, second...)); err != nil {
		return err
	}
	j.f, err = j.files.Open(j.path, true)
	j.seq, j.rec = 2, r
	return err
}

// Commit makes the journal say r, and durable.
//
//  1. write the slot that is not the newest: the other stands as it was
//  2. sync: from here on r is what a restart reads
//
// A crash before 2 leaves the old word or the new one, both true; a slot that is
// torn is not believed. After an error the newest slot is not known: nothing
// more is written by this File.
func (j *File) Commit(r Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.f == nil {
		return fmt.Errorf("write resume journal %s: %w", j.path, os.ErrClosed)
	}
	seq := j.seq + 1
	b, err := r.encode(seq)
	if err == nil {
		// Slots take turns by the number's lowest bit: number 1 is in the first.
		_, err = j.f.WriteAt(b, int64(1-seq%2)*slotSize)
	}
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write resume journal %s: %w", j.path, errors.Join(err, j.drop()))
	}
	j.seq, j.rec = seq, r
	return nil
}

// Remove removes the journal: nothing is left to go on with.
func (j *File) Remove() error {
	if err := j.Close(); err != nil {
		return err
	}
	if err := j.files.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove resume journal %s: %w", j.path, err)
	}
	return nil
}

// Close closes the file and leaves it as it is. A second Close does nothing.
func (j *File) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.drop(); err != nil {
		return fmt.Errorf("close resume journal %s: %w", j.path, err)
	}
	return nil
}

// drop closes the store. j.mu is held, or nobody else knows j yet.
func (j *File) drop() error {
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// disk implements Files.
type disk struct{}

// Open implements Files.
func (disk) Open(path string, write bool) (Store, error) {
	if !write {
		return os.Open(path)
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// Place implements Files: a new file beside path, synced, renamed, its directory synced.
func (disk) Place(path string, content []byte) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	// Always the same name: what a process that was killed has left goes first, and
	// is not written over. After a power cut it may be the journal itself under two
	// names, where a rename is not one step for the file system. Nobody else is at
	// it, for whoever writes a target holds its lock.
	temp := filepath.Join(dir, name+".tmp")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// Remove implements Files. The removal is not made durable: a journal that
// comes back after a power cut says that its session is complete.
func (disk) Remove(path string) error { return os.Remove(path) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
