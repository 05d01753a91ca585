package merkle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// File is a finished tree on disk, read as it is asked and never loaded. It
// believes no node that does not hash to the root. Its methods may be called by
// many goroutines; Update waits for readers and they for it.
type File struct {
	mu       sync.RWMutex
	d        disk
	st       store
	hdr      header
	write    bool
	kept     bool // false for a temporary tree
	broken   error
	checkers sync.Pool
}

// Open opens a finished tree file for reading. It reads the header and the top
// node, however large the tree is. Errors: [ErrNotTree], [ErrVersion],
// [ErrCorrupt] with the place, [ErrBuilding], [ErrUpdating], [ErrInUse].
func Open(path string) (*File, error) { return openFile(osDisk{}, path, false) }

// OpenUpdate is Open for a File that is to be updated. If an update was cut off
// and its journal is whole, OpenUpdate finishes it first: see [File.Update].
func OpenUpdate(path string) (*File, error) { return openFile(osDisk{}, path, true) }

func openFile(d disk, path string, write bool) (*File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	m, err := d.open(path, flag)
	if err != nil {
		return nil, fmt.Errorf("open tree file: %w", err)
	}
	f, err := newFile(d, path, m, write)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return f, nil
}

func newFile(d disk, path string, m media, write bool) (*File, error) {
	if err := m.lock(false); err != nil {
		return nil, err
	}
	hdr, err := readHeader(path, m)
	if err != nil {
		return nil, err
	}
	if hdr.state == stateBuilding {
		return nil, fmt.Errorf("open %s: %w", path, ErrBuilding)
	}
	if err := checkSize(path, m, hdr.shape); err != nil {
		return nil, err
	}
	f := &File{d: d, st: newStore(path, m, newHasher(hdr.shape)), hdr: hdr, write: write, kept: true}
	if hdr.state == stateUpdating {
		if !write {
			return nil, fmt.Errorf("open %s: %w", path, ErrUpdating)
		}
		// What we read may be in a cache only, left by a process that was killed
		// before its header was durable. It has to be on the medium before nodes are.
		if err := m.Sync(); err != nil {
			return nil, fmt.Errorf("sync tree header: %w", err)
		}
		if err := f.recover(); err != nil {
			return nil, err
		}
	}
	c := f.checker()
	defer f.checkers.Put(c)
	if _, err = c.nodes(f.st.lay.top(), 0, 1); err != nil {
		return f, err
	}
	return f, c.padding()
}

// checkSize returns an error unless the file is as long as its shape says.
func checkSize(path string, m media, s Shape) error {
	size, err := m.size()
	if err != nil {
		return fmt.Errorf("size of tree file %s: %w", path, err)
	}
	want := s.FileSize()
	switch {
	case size < want:
		return &CorruptError{Path: path, Offset: size, Level: -1, Err: io.ErrUnexpectedEOF}
	case size > want:
		return &CorruptError{Path: path, Offset: want, Level: -1, Err: errTrailing}
	}
	return nil
}

// checker returns one with nothing verified. The caller holds mu and puts it back.
func (f *File) checker() *checker {
	if c, ok := f.checkers.Get().(*checker); ok {
		c.reset(f.hdr.root)
		return c
	}
	return newChecker(f.st, f.hdr.root)
}

// Close releases the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken == nil {
		f.broken = fmt.Errorf("tree file %s: %w", f.st.path, os.ErrClosed)
	}
	return f.st.m.Close()
}

// Path returns the name of the file; a temporary tree has none.
func (f *File) Path() string {
	if !f.kept {
		return ""
	}
	return f.st.path
}

// Shape returns what the tree is over.
func (f *File) Shape() Shape { return f.st.shape }

// Identity returns the identity of the volume, as it was given to the builder.
func (f *File) Identity() string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.hdr.identity
}

// Epoch returns the epoch of the volume that the tree describes.
func (f *File) Epoch() Epoch {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.hdr.epoch
}

// Root returns the root, which was held against the top node when the file was
// opened. It reads nothing.
func (f *File) Root(context.Context) (Hash, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.hdr.root, f.broken
}

// ReadNodes is that of [NodeReader]. For k nodes in scattered places it reads
// and hashes at most k·(Levels()-1) groups, for a whole level that level and
// 1/15 of it more. yield must not call Update.
func (f *File) ReadNodes(ctx context.Context, level int, spans []Range, yield func(first int64, nodes []Hash) error) error {
	if err := checkSpans(f.st.shape, level, spans); err != nil {
		return err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.broken != nil {
		return f.broken
	}
	c := f.checker()
	defer f.checkers.Put(c)
	for _, r := range spans {
		if err := c.each(ctx, level, r, yield); err != nil {
			return err
		}
	}
	return nil
}

// Leaves fills buf with the hashes of the leaves from first on and returns how
// many there were: fewer than len(buf) at the end of the volume, then 0. Call
// it with a buffer of some thousands to stream the leaf level.
func (f *File) Leaves(ctx context.Context, first int64, buf []Hash) (int, error) {
	end := min(first+int64(len(buf)), f.st.shape.Leaves())
	if first < 0 || end <= first {
		return 0, nil
	}
	n := 0
	err := f.ReadNodes(ctx, 0, []Range{{first, end}}, func(_ int64, nodes []Hash) error {
		n += copy(buf[n:], nodes)
		return nil
	})
	return n, err
}

// Verify holds every node against its parent up to the root, and looks at what
// lies between the levels. It reads the whole file but for holes, in order.
func (f *File) Verify(ctx context.Context) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.broken != nil {
		return f.broken
	}
	c := f.checker()
	defer f.checkers.Put(c)
	return c.verifyAll(ctx)
}
