package merkle

import (
	"fmt"
	"io"
)

// Tree file, format version 1, little endian. Each level is an array of nodes
// of 32 bytes, and begins at a multiple of 4096; the top comes first.
//
//	off            size             what
//	0              4096             header, see header.go
//	4096           32               top level: one node
//	next multiple  32 · width       the level below, and so on
//	of 4096
//	last           32 · leaves      level 0, the leaves; the file ends with them
//
// All bytes between the levels are zero. A node whose subtree covers only zero
// bytes is stored as 32 zero bytes, never as its hash: a tree of an empty
// volume is one hole. That is sound because every group of children is held
// against its parent, and the top against the root in the checksummed header:
// zeroes that were not written by us do not hash to what is above them.
const (
	headerSize = 4096
	pageSize   = 4096 // alignment of each level and of direct I/O
)

// layout is the place of each level in the file.
type layout struct {
	levels int
	width  [maxLevels]int64 // nodes
	off    [maxLevels]int64 // bytes
	size   int64            // bytes of the finished file
}

func (s Shape) layout() layout {
	var l layout
	l.levels = s.Levels()
	w := s.Leaves()
	for level := range l.levels {
		l.width[level] = w
		w = parents(w)
	}
	l.size = headerSize
	for level := l.levels - 1; level >= 0; level-- {
		l.off[level] = roundUp(l.size, pageSize)
		l.size = l.off[level] + l.width[level]*HashSize
	}
	return l
}

// place returns the offset of a node.
func (l *layout) place(level int, index int64) int64 { return l.off[level] + index*HashSize }

// top returns the highest level.
func (l *layout) top() int { return l.levels - 1 }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// store is a tree file's nodes, in the form they have on disk on one side and
// as hashes on the other. It checks nothing against parents: see checker.
type store struct {
	path   string
	m      media
	shape  Shape
	lay    layout
	hasher *Hasher // for Clone and Zero only
}

func newStore(path string, m media, h *Hasher) store {
	return store{path: path, m: m, shape: h.shape, lay: h.shape.layout(), hasher: h}
}

// corrupt returns the error for a node that is not proven.
func (s *store) corrupt(level int, index int64, err error) error {
	return &CorruptError{Path: s.path, Offset: s.lay.place(level, index), Level: level, Index: index, Err: err}
}

// load reads len(dst) nodes from first on. Stretches of a page and more ask for
// holes before they read, so that a sparse file stays out of the page cache.
func (s *store) load(level int, first int64, dst []Hash) error {
	raw := hashBytes(dst)
	off := s.lay.place(level, first)
	if len(raw) >= pageSize && s.m.nextData(off) >= off+int64(len(raw)) {
		clear(dst)
	} else if err := readFull(s.m, raw, off); err != nil {
		if err == io.ErrUnexpectedEOF {
			return s.corrupt(level, first, err)
		}
		return fmt.Errorf("read tree file %s at %d: %w", s.path, off, err)
	}
	return s.fromDisk(level, first, dst)
}

// fromDisk replaces stored zeroes by the hashes they stand for.
func (s *store) fromDisk(level int, first int64, nodes []Hash) error {
	for i := range nodes {
		z := s.hasher.zeros.ref(level, first+int64(i))
		if nodes[i] == (Hash{}) {
			nodes[i] = *z
		} else if nodes[i] == *z {
			return s.corrupt(level, first+int64(i), errNotCanonical)
		}
	}
	return nil
}

// toDisk replaces the hashes of zero subtrees by stored zeroes, and reports
// whether nothing else is left.
func (s *store) toDisk(level int, first int64, nodes []Hash) (allZero bool) {
	allZero = true
	for i := range nodes {
		switch nodes[i] {
		case *s.hasher.zeros.ref(level, first+int64(i)):
			nodes[i] = Hash{}
		case Hash{}:
		default:
			allZero = false
		}
	}
	return allZero
}

// write writes nodes in their form on disk.
func (s *store) write(level int, first int64, stored []Hash) error {
	off := s.lay.place(level, first)
	if _, err := s.m.WriteAt(hashBytes(stored), off); err != nil {
		return fmt.Errorf("write tree file %s at %d: %w", s.path, off, err)
	}
	return nil
}

// readFull reads len(p) bytes at off; an early end is io.ErrUnexpectedEOF.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}
