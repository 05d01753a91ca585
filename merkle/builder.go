package merkle

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"sync"
)

// chunkLeaves is the leaves whose progress is kept together: one node of level
// 3, 128 KiB of the file, 256 MiB of a volume in leaves of 64 KiB. It is on
// disk in the progress table.
const chunkLeaves = FanOut * FanOut * FanOut

// partSuffix is what the name of an unfinished file has more than the finished
// one. The name without it never stands for less than a whole tree.
const partSuffix = ".part"

// Builder makes a tree file from leaf hashes that come in any order, from many
// goroutines. Memory: 16 bytes for every 4096 leaves, and 512 bytes more for
// each such chunk that is partly set; nothing else grows with the volume.
//
// The life of the file, and what a crash after each step leaves:
//
//	create    path.part, state building: an earlier finished path stays as it is
//	SetLeaf   leaf hashes in path.part, not yet synced
//	Checkpoint  the progress table says which chunks are whole, by checksum, and
//	          the file is synced: Resume takes up those that match
//	Seal      see there; path is replaced by rename, whole or not at all
type Builder struct {
	o      Options
	path   string // of the finished file; empty if temporary
	st     store  // of the unfinished one
	mu     sync.RWMutex
	over   error // closed, or the File has it
	raised bool  // a Seal may have written upper levels
	sealed bool  // the header may say complete: only the last steps of Seal are left

	saving sync.Mutex // held by the one Checkpoint that runs
	tabled bool       // the file has a progress table

	locks  [64]sync.Mutex // of chunk i: i modulo their number
	chunks []chunk
}

// chunk is what is known of chunkLeaves leaves.
type chunk struct {
	bits  *[chunkLeaves / 64]uint64 // leaves set; nil if none or all are
	set   int32                     // number of leaves set
	saved bool                      // its checksum is in the progress table
}

var errUnset = errors.New("not all leaves are set")

// Create begins a tree file that will stand at path once it is sealed. With
// [Options].Resume it goes on with one that an earlier Builder left; what is
// still to set is in [Builder.Missing].
func Create(path string, s Shape, o Options) (*Builder, error) {
	o, err := o.withDefaults(s)
	if err != nil {
		return nil, fmt.Errorf("create tree file: %w", err)
	}
	b := &Builder{o: o, path: path, chunks: make([]chunk, (s.Leaves()-1)/chunkLeaves+1)}
	h := newHasher(s)
	if o.Temporary {
		m, err := osDisk{}.temp(path)
		if err != nil {
			return nil, err
		}
		b.path, b.st = "", newStore("(temporary)", m, h)
		return b, b.orClose(m.Truncate(b.st.lay.size))
	}
	m, err := o.disk.open(path+partSuffix, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	fresh := err == nil
	if errors.Is(err, fs.ErrExist) {
		m, err = o.disk.open(path+partSuffix, os.O_RDWR)
	}
	if err != nil {
		return nil, fmt.Errorf("create tree file: %w", err)
	}
	b.st = newStore(path+partSuffix, m, h)
	return b, b.orClose(b.begin(fresh))
}

// orClose closes the file if there is an error, and returns that.
func (b *Builder) orClose(err error) error {
	if err == nil {
		return nil
	}
	return errors.Join(err, b.st.m.Close())
}

// begin takes up a file that was there, or makes it new.
//
// What was there is emptied, and that is made durable before a leaf is set: a
// crash later cannot bring an earlier build's leaves back under this one's name.
// A fresh file has nothing to bring back.
func (b *Builder) begin(fresh bool) error {
	if err := b.st.m.lock(true); err != nil {
		return err
	}
	if b.o.Resume && !fresh {
		ok, err := b.takeUp()
		if ok || err != nil {
			return err
		}
	}
	if err := b.st.m.Truncate(0); err != nil {
		return fmt.Errorf("empty %s: %w", b.st.path, err)
	}
	if err := b.st.m.Truncate(b.st.lay.size); err != nil {
		return fmt.Errorf("extend %s: %w", b.st.path, err)
	}
	if err := b.writeHeader(stateBuilding, Hash{}); err != nil || fresh {
		return err
	}
	if err := b.st.m.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", b.st.path, err)
	}
	return nil
}

func (b *Builder) writeHeader(st state, root Hash) error {
	h := header{state: st, shape: b.st.shape, epoch: b.o.Epoch, root: root, identity: b.o.Identity}
	if _, err := b.st.m.WriteAt(h.encode(), 0); err != nil {
		return fmt.Errorf("write header of %s: %w", b.st.path, err)
	}
	return nil
}

// Hasher returns a Hasher for the tree that is being built.
func (b *Builder) Hasher() *Hasher { return b.st.hasher.Clone() }

// chunkCount returns the number of chunks.
func (b *Builder) chunkCount() int64 { return int64(len(b.chunks)) }

// chunkRange returns the leaves of chunk c.
func (b *Builder) chunkRange(c int64) Range {
	return Range{c * chunkLeaves, min((c+1)*chunkLeaves, b.st.lay.width[0])}
}

// SetLeaf sets the hash of leaf i. A leaf may be set again; the last one counts.
func (b *Builder) SetLeaf(i int64, h Hash) error { return b.SetLeaves(i, []Hash{h}) }

// SetLeaves sets the hashes of the leaves from first on. It costs one write
// for each 4096 leaves it touches, so a caller who has several in a row gives
// them together.
func (b *Builder) SetLeaves(first int64, hashes []Hash) error {
	r := Range{first, first + int64(len(hashes))}
	for i := range hashes {
		if hashes[i] == (Hash{}) {
			return fmt.Errorf("set leaf %d of %s: the zero value is not a hash", first+int64(i), b.st.path)
		}
	}
	return b.set(r, func(part Range) error {
		stored := make([]Hash, part.Len()) // toDisk changes what it is given
		copy(stored, hashes[part.First-first:])
		if b.st.toDisk(0, part.First, stored) && !b.anySet(part) {
			return nil // unset leaves are zeroes on disk already
		}
		return b.st.write(0, part.First, stored)
	})
}

// SetZero says that all bytes of the leaves of r are zero. It hashes nothing,
// and writes nothing unless some of them were set before.
func (b *Builder) SetZero(r Range) error {
	return b.set(r, func(part Range) error {
		if !b.anySet(part) {
			return nil
		}
		return b.st.write(0, part.First, make([]Hash, part.Len()))
	})
}

// set calls write for the part of r in each chunk, under the chunk's lock, and
// then marks it as set.
func (b *Builder) set(r Range, write func(part Range) error) error {
	if r.First < 0 || r.End < r.First || r.End > b.st.lay.width[0] {
		return fmt.Errorf("set leaves %v of a tree of %d: %w", r, b.st.lay.width[0], ErrShape)
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.over != nil {
		return b.over
	}
	if b.sealed {
		return errSealed
	}
	for r.First < r.End {
		c := r.First / chunkLeaves
		part := Range{r.First, min(r.End, (c+1)*chunkLeaves)}
		if err := b.setInChunk(c, part, write); err != nil {
			return err
		}
		r.First = part.End
	}
	return nil
}

func (b *Builder) setInChunk(c int64, part Range, write func(Range) error) error {
	lock := &b.locks[c%int64(len(b.locks))]
	lock.Lock()
	defer lock.Unlock()
	if err := write(part); err != nil {
		return err
	}
	ch, all := &b.chunks[c], b.chunkRange(c)
	ch.saved = false
	if part == all {
		ch.bits, ch.set = nil, int32(all.Len())
	}
	if int64(ch.set) == all.Len() {
		return nil
	}
	if ch.bits == nil {
		ch.bits = new([chunkLeaves / 64]uint64)
	}
	for i := part.First - all.First; i < part.End-all.First; i++ {
		if bit := uint64(1) << (i % 64); ch.bits[i/64]&bit == 0 {
			ch.bits[i/64] |= bit
			ch.set++
		}
	}
	if int64(ch.set) == all.Len() {
		ch.bits = nil
	}
	return nil
}

// has reports whether leaf i of the chunk, counted from its first, is set.
func (ch *chunk) has(i int64) bool {
	if ch.bits == nil {
		return ch.set > 0
	}
	return ch.bits[i/64]>>(i%64)&1 == 1
}

// anySet reports whether a leaf of part, inside one chunk, is set. The caller
// holds the chunk's lock.
func (b *Builder) anySet(part Range) bool {
	ch := &b.chunks[part.First/chunkLeaves]
	if ch.set == 0 {
		return false
	}
	for i := part.First; i < part.End; i++ {
		if ch.has(i % chunkLeaves) {
			return true
		}
	}
	return false
}

// Missing returns the ranges of leaves that are not set, ascending. It sees
// each chunk at a moment of its own.
func (b *Builder) Missing() iter.Seq[Range] {
	return func(yield func(Range) bool) {
		var open Range
		for c := range b.chunkCount() {
			for _, r := range b.missingIn(c) {
				if open.Len() > 0 && r.First == open.End {
					open.End = r.End
					continue
				}
				if open.Len() > 0 && !yield(open) {
					return
				}
				open = r
			}
		}
		if open.Len() > 0 {
			yield(open)
		}
	}
}

// missingIn returns the leaves of chunk c that are not set.
func (b *Builder) missingIn(c int64) []Range {
	lock := &b.locks[c%int64(len(b.locks))]
	lock.Lock()
	defer lock.Unlock()
	ch, all := &b.chunks[c], b.chunkRange(c)
	switch int64(ch.set) {
	case 0:
		return []Range{all}
	case all.Len():
		return nil
	}
	var missing []Range
	for i := all.First; i < all.End; i++ {
		if ch.has(i - all.First) {
			continue
		}
		if n := len(missing); n > 0 && missing[n-1].End == i {
			missing[n-1].End++
		} else {
			missing = append(missing, Range{i, i + 1})
		}
	}
	return missing
}

// Close ends the Builder without a tree. What Checkpoint made durable stays
// for Resume. After Seal it does nothing.
func (b *Builder) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over != nil {
		return nil
	}
	b.over = fmt.Errorf("tree builder of %s: %w", b.st.path, os.ErrClosed)
	return b.st.m.Close()
}

// Discard is Close that leaves no file for Resume either.
func (b *Builder) Discard() error {
	err := b.Close()
	if b.path == "" || errors.Is(b.over, errSealed) {
		return err
	}
	return errors.Join(err, b.o.disk.remove(b.st.path), b.o.disk.syncDir(b.st.path))
}
