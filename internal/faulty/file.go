package faulty

import (
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
)

// File is an open file of a [Dir], or one by itself. Its content has a cache
// that a power cut loses, and a size that may survive without it.
type File struct {
	name   string
	n      *node
	faults *Faults
	write  bool
	closed atomic.Bool
	held   hold // under node.mu
}

// hold is how an opening has locked its file.
type hold uint8

const (
	free hold = iota
	shared
	exclusive
)

// node is a file whatever its names are.
type node struct {
	*image
	readers int // that hold it shared; under image.mu, as the next
	writer  bool
}

// NewFile returns a file that is in no folder and holds a copy of content,
// durable. f may be nil.
func NewFile(name string, content []byte, f *Faults) *File {
	return &File{name: name, n: &node{image: newImage(content)}, faults: f, write: true}
}

// Name returns the path it was opened with.
func (f *File) Name() string { return f.name }

// Size returns its size in bytes.
func (f *File) Size() int64 { return f.n.size() }

func (f *File) run(e Event, effect func(alteration) error) error {
	if e.Off < 0 {
		return &fs.PathError{Op: string(e.Op), Path: f.name, Err: syscall.EINVAL}
	}
	if f.closed.Load() {
		return &fs.PathError{Op: string(e.Op), Path: f.name, Err: os.ErrClosed}
	}
	if !f.write && (e.Op == Write || e.Op == Truncate || e.Op == Zero) {
		return &fs.PathError{Op: string(e.Op), Path: f.name, Err: syscall.EBADF}
	}
	e.On = f.name
	return f.faults.run(e, effect)
}

// ReadAt reads through the cache. At the end of the file the error is io.EOF.
func (f *File) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.run(Event{Op: Read, Off: off, Len: int64(len(p))}, func(how alteration) error {
		if n, err = f.n.read(p, off, how); err == io.EOF {
			return nil
		}
		return err
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes to the cache, past the end too.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.run(Event{Op: Write, Off: off, Len: int64(len(p))}, func(how alteration) error {
		n, err = f.n.write(p, off, how)
		return err
	})
	return answered(n, err), err
}

// ReadMediumAt reads from the device, past the cache of the machine.
func (f *File) ReadMediumAt(p []byte, off int64) (n int, err error) {
	err = f.run(Event{Op: ReadMedium, Off: off, Len: int64(len(p))}, func(how alteration) error {
		n, err = f.n.readMedium(p, off, how)
		return err
	})
	return n, err
}

// ZeroAt makes n bytes at off zero, as far as the file goes.
func (f *File) ZeroAt(off, n int64) error {
	return f.run(Event{Op: Zero, Off: off, Len: n}, func(how alteration) error {
		if n = min(n, f.Size()-off); n <= 0 {
			return nil
		}
		_, err := f.n.image.write(make([]byte, n), off, how)
		return err
	})
}

// Truncate sets the size; what is new reads as zeroes.
func (f *File) Truncate(size int64) error {
	return f.run(Event{Op: Truncate, Off: size}, func(alteration) error {
		f.n.truncate(size)
		return nil
	})
}

// Sync makes content and size durable, not the name: see [Dir.SyncDir].
func (f *File) Sync() error {
	if f.closed.Load() {
		return &fs.PathError{Op: string(Sync), Path: f.name, Err: os.ErrClosed}
	}
	return syncImage(f.faults, Event{Op: Sync, On: f.name}, f.n.image)
}

// NextData returns the first offset from off on that lies in a page with other
// bytes than zeroes, or the size of the file if there is none.
func (f *File) NextData(off int64) int64 {
	f.n.mu.RLock()
	defer f.n.mu.RUnlock()
	for size := int64(len(f.n.cache)); off < size; {
		end := min((off/page+1)*page, size)
		for _, b := range f.n.cache[off:end] {
			if b != 0 {
				return off
			}
		}
		off = end
	}
	return off
}

// Lock takes the file for this opening alone, or for reading with others, as
// flock does. It does not wait: the error is EWOULDBLOCK, and then what was held
// before is gone. A power cut and Close let go.
func (f *File) Lock(alone bool) error {
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.unlock()
	if f.n.writer || (alone && f.n.readers > 0) {
		return &fs.PathError{Op: "lock", Path: f.name, Err: syscall.EWOULDBLOCK}
	}
	if alone {
		f.held, f.n.writer = exclusive, true
	} else {
		f.held = shared
		f.n.readers++
	}
	return nil
}

func (f *File) unlock() {
	switch f.held {
	case shared:
		f.n.readers--
	case exclusive:
		f.n.writer = false
	}
	f.held = free
}

// Close ends this opening. It syncs nothing. A second Close is os.ErrClosed.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return &fs.PathError{Op: "close", Path: f.name, Err: os.ErrClosed}
	}
	f.n.mu.Lock()
	defer f.n.mu.Unlock()
	f.unlock()
	return nil
}

// Bytes returns a copy of what the running system sees.
func (f *File) Bytes() []byte { return f.n.cached() }

// Durable returns a copy of what survives every power cut, once the file's name
// is durable.
func (f *File) Durable() []byte { return f.n.durable() }

// Crash returns the file as a power cut now leaves it, open, on no machine. For
// a file of a Dir use [Dir.Crash]: whether it has its name then is part of it.
func (f *File) Crash(seed uint64) *File {
	return &File{name: f.name, n: &node{image: f.n.crash(newRand(seed))}, write: true}
}
