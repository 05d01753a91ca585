package merkle

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
)

// crashDisk is a disk in memory that loses power. What was not synced may be
// there afterwards, sector by sector, or not; names may have changed or not, in
// order, until their folder was synced.
type crashDisk struct {
	mu      sync.Mutex
	rng     *rand.Rand
	names   map[string]*inode // as the running system sees them
	durable map[string]*inode // as the disk has them
	changes []nameChange      // of names, not yet durable
	steps   int               // changes made so far
	cutAt   int               // power fails at this step; negative: never
	happens bool              // the step at which power fails is still done
}

type nameChange struct {
	name string
	node *inode // nil: removed
}

type inode struct {
	data, durable []byte
	pending       []change
	shared        int
	exclusive     bool
}

// change is one write, or a truncation if data is nil.
type change struct {
	off  int64
	data []byte
}

var errPower = errors.New("power lost")

func newCrashDisk(seed uint64) *crashDisk {
	return &crashDisk{
		rng: rand.New(rand.NewPCG(seed, 2)), names: map[string]*inode{}, durable: map[string]*inode{}, cutAt: -1,
	}
}

// step counts a change, makes it unless the power fails, and says so.
func (d *crashDisk) step(do func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := d.steps
	d.steps++
	switch {
	case d.cutAt < 0 || at < d.cutAt:
		do()
		return nil
	case at == d.cutAt && d.happens:
		do()
	}
	return errPower
}

// crash returns the disk as it is found when power is back.
func (d *crashDisk) crash() *crashDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := newCrashDisk(d.rng.Uint64())
	names := maps.Clone(d.durable)
	for _, c := range d.changes[:d.rng.IntN(len(d.changes)+1)] {
		setName(names, c)
	}
	copies := map[*inode]*inode{}
	for name, n := range names {
		if copies[n] == nil {
			data := n.survive(d.rng)
			copies[n] = &inode{data: data, durable: bytes.Clone(data)}
		}
		next.names[name], next.durable[name] = copies[n], copies[n]
	}
	return next
}

// survive returns what of a file a power cut leaves.
func (n *inode) survive(rng *rand.Rand) []byte {
	data := bytes.Clone(n.durable)
	share := rng.IntN(5) // none, some, all
	for _, c := range n.pending {
		if c.data == nil {
			if rng.IntN(4) < share {
				data = resize(data, c.off)
			}
			continue
		}
		for i := 0; i < len(c.data); {
			end := min(len(c.data), i+512-int(c.off+int64(i))%512)
			if rng.IntN(4) < share {
				data = put(data, c.off+int64(i), c.data[i:end])
			}
			i = end
		}
	}
	return data
}

func resize(p []byte, n int64) []byte {
	if int64(len(p)) >= n {
		return p[:n:n]
	}
	return append(p, make([]byte, n-int64(len(p)))...)
}

func put(p []byte, off int64, data []byte) []byte {
	if end := off + int64(len(data)); int64(len(p)) < end {
		p = resize(p, end)
	}
	copy(p[off:], data)
	return p
}

func setName(names map[string]*inode, c nameChange) {
	if c.node == nil {
		delete(names, c.name)
	} else {
		names[c.name] = c.node
	}
}

// change makes changes to names, which syncDir makes durable.
func (d *crashDisk) change(changes ...nameChange) {
	for _, c := range changes {
		setName(d.names, c)
	}
	d.changes = append(d.changes, changes...)
}

func (d *crashDisk) open(path string, flag int) (media, error) {
	d.mu.Lock()
	n := d.names[path]
	d.mu.Unlock()
	if n != nil && flag&os.O_EXCL != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrExist}
	}
	if n != nil {
		return &crashFile{d: d, n: n}, nil
	}
	if flag&os.O_CREATE == 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	n = &inode{}
	err := d.step(func() { d.change(nameChange{path, n}) })
	return &crashFile{d: d, n: n}, err
}

func (d *crashDisk) rename(from, to string) error {
	return d.step(func() { d.change(nameChange{to, d.names[from]}, nameChange{from, nil}) })
}

func (d *crashDisk) remove(path string) error {
	return d.step(func() { d.change(nameChange{path, nil}) })
}

func (d *crashDisk) syncDir(string) error {
	return d.step(func() {
		for _, c := range d.changes {
			setName(d.durable, c)
		}
		d.changes = nil
	})
}

// crashFile is one opening of a file.
type crashFile struct {
	d         *crashDisk
	n         *inode
	shared    bool
	exclusive bool
}

func (f *crashFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *crashFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.d.step(func() {
		f.n.data = put(f.n.data, off, p)
		f.n.pending = append(f.n.pending, change{off, bytes.Clone(p)})
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

func (f *crashFile) Sync() error {
	return f.d.step(func() { f.n.durable, f.n.pending = bytes.Clone(f.n.data), nil })
}

func (f *crashFile) Truncate(size int64) error {
	return f.d.step(func() {
		f.n.data = resize(f.n.data, size)
		f.n.pending = append(f.n.pending, change{size, nil})
	})
}

func (f *crashFile) size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return int64(len(f.n.data)), nil
}

// nextData knows no holes but stretches of zero pages.
func (f *crashFile) nextData(off int64) int64 {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for off < int64(len(f.n.data)) {
		end := min(off+pageSize, int64(len(f.n.data)))
		if !IsZero(f.n.data[off:end]) {
			return off
		}
		off = end
	}
	return off
}

func (f *crashFile) zero(off, n int64) error {
	_, err := f.WriteAt(make([]byte, n), off)
	return err
}

func (f *crashFile) lock(exclusive bool) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.unlock()
	if f.n.exclusive || (exclusive && f.n.shared > 0) {
		return ErrInUse
	}
	if exclusive {
		f.exclusive, f.n.exclusive = true, true
	} else {
		f.shared = true
		f.n.shared++
	}
	return nil
}

func (f *crashFile) unlock() {
	if f.exclusive {
		f.exclusive, f.n.exclusive = false, false
	}
	if f.shared {
		f.shared = false
		f.n.shared--
	}
}

func (f *crashFile) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.unlock()
	return nil
}
