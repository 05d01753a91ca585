package faulty

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Dir is a file system in memory. A name that was made, changed or removed is
// so for the running system at once, and for the next one only after SyncDir of
// its folder; until then a power cut may take back the last changes of names,
// never one before another. A rename may leave the file under both names, not
// under none. Folders need not be made. All methods are safe for concurrent use.
type Dir struct {
	faults  *Faults
	mu      sync.Mutex
	names   map[string]*node // as the running system sees them
	durable map[string]*node // as the medium has them
	changes []renaming       // not yet durable, in order
	opened  []*File
}

// renaming is that name stands for node from now on, or for nothing.
type renaming struct {
	name string
	node *node
}

// NewDir returns an empty file system of a machine f, which may be nil.
func NewDir(f *Faults) *Dir {
	return &Dir{faults: f, names: map[string]*node{}, durable: map[string]*node{}}
}

// Plug makes the file system part of another machine, or of none. Files that are
// open stay with the old one.
func (d *Dir) Plug(f *Faults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

func (d *Dir) run(e Event, effect func() error) error {
	d.mu.Lock()
	f := d.faults
	d.mu.Unlock()
	return f.run(e, func(alteration) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return effect()
	})
}

// Open opens or creates the file at path. Of the flags it knows O_RDONLY, O_RDWR,
// O_WRONLY, O_CREATE, O_EXCL and O_TRUNC, which is a Truncate of its own. Errors
// are as those of os.OpenFile.
func (d *Dir) Open(path string, flag int) (*File, error) {
	path = filepath.Clean(path)
	n, err := d.find(path, flag)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	f := &File{name: path, n: n, faults: d.faults, write: flag&(os.O_RDWR|os.O_WRONLY) != 0}
	d.opened = append(d.opened, f)
	d.mu.Unlock()
	if flag&os.O_TRUNC != 0 && f.Size() > 0 {
		if err := f.Truncate(0); err != nil {
			_ = f.Close() // the first error is the one to report
			return nil, err
		}
	}
	return f, nil
}

// find returns the file of that name, and makes one where the flags say so.
func (d *Dir) find(path string, flag int) (n *node, err error) {
	d.mu.Lock()
	n = d.names[path]
	d.mu.Unlock()
	switch {
	case n != nil && flag&(os.O_CREATE|os.O_EXCL) == os.O_CREATE|os.O_EXCL:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrExist}
	case n != nil:
		return n, d.run(Event{Op: Open, On: path}, func() error { return nil })
	case flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	err = d.run(Event{Op: Create, On: path}, func() error {
		if n = d.names[path]; n == nil { // else another was faster
			n = &node{image: newImage(nil)}
			d.change(renaming{path, n})
		}
		return nil
	})
	return n, err
}

// change changes names for the running system. The caller holds d.mu.
func (d *Dir) change(changes ...renaming) {
	for _, c := range changes {
		c.apply(d.names)
	}
	d.changes = append(d.changes, changes...)
}

func (c renaming) apply(names map[string]*node) {
	if c.node == nil {
		delete(names, c.name)
	} else {
		names[c.name] = c.node
	}
}

// Rename gives the file at from the name to, in place of one that has it.
func (d *Dir) Rename(from, to string) error {
	from, to = filepath.Clean(from), filepath.Clean(to)
	return d.run(Event{Op: Rename, On: from, To: to}, func() error {
		n := d.names[from]
		if n == nil {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrNotExist}
		}
		if from != to {
			d.change(renaming{to, n}, renaming{from, nil})
		}
		return nil
	})
}

// Remove takes the name away. Who has the file open keeps it.
func (d *Dir) Remove(path string) error {
	path = filepath.Clean(path)
	return d.run(Event{Op: Remove, On: path}, func() error {
		if d.names[path] == nil {
			return &fs.PathError{Op: "remove", Path: path, Err: fs.ErrNotExist}
		}
		d.change(renaming{path, nil})
		return nil
	})
}

// Place makes the file at path hold content, whole or not at all, and durable, by
// the steps of a journal: write another file beside it, always of the same name,
// sync that, rename it, sync the folder. The other file is removed if a step fails.
func (d *Dir) Place(path string, content []byte) error {
	temp := path + ".tmp"
	if err := d.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := d.Open(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, d.Remove(temp))
	}
	return d.SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable, not what is in the files.
func (d *Dir) SyncDir(folder string) error {
	folder = filepath.Clean(folder)
	return d.run(Event{Op: SyncDir, On: folder}, func() error {
		d.changes = slices.DeleteFunc(d.changes, func(c renaming) bool {
			if filepath.Dir(c.name) != folder {
				return false
			}
			c.apply(d.durable)
			return true
		})
		return nil
	})
}

// WriteFile puts a file there, durable, as it was before the test. No rule and
// no log sees it.
func (d *Dir) WriteFile(path string, content []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path = filepath.Clean(path)
	n := &node{image: newImage(content)}
	d.names[path], d.durable[path] = n, n
}

// ReadFile returns what a file holds for the running system. No rule sees it.
func (d *Dir) ReadFile(path string) ([]byte, error) {
	d.mu.Lock()
	n := d.names[filepath.Clean(path)]
	d.mu.Unlock()
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return n.cached(), nil
}

// Names returns the paths of all files, sorted.
func (d *Dir) Names() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.names))
}

// Unclosed returns the paths of the files that are still open.
func (d *Dir) Unclosed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var open []string
	for _, f := range d.opened {
		if !f.closed.Load() {
			open = append(open, f.name)
		}
	}
	return open
}

// Crash returns the file system as a power cut now leaves it, on no machine. The
// same seed leaves the same of the same operations. d is as it was.
func (d *Dir) Crash(seed uint64) *Dir {
	d.mu.Lock()
	defer d.mu.Unlock()
	rng := newRand(seed)
	names := maps.Clone(d.durable)
	for _, c := range d.changes[:rng.IntN(len(d.changes)+1)] {
		c.apply(names)
	}
	next := NewDir(nil)
	copies := map[*node]*node{} // a file under two names stays one
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if copies[n] == nil {
			copies[n] = &node{image: n.crash(rng)}
		}
		next.names[name], next.durable[name] = copies[n], copies[n]
	}
	return next
}

// Export writes all files into a real folder, for code that opens by path.
func (d *Dir) Export(folder string) error {
	for _, name := range d.Names() {
		content, err := d.ReadFile(name)
		if err != nil {
			return err
		}
		to := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
