package failback

import (
	"github.com/failback/failback/cbt"
)

// A piece is a part of a unit that differs. data is valid until the next one.
type piece struct {
	off  int64
	data []byte
	tag  tag
}

func (p piece) extent() cbt.Extent { return cbt.Extent{Off: p.off, End: p.off + int64(len(p.data))} }

// A finder turns a unit that differs into the pieces that do. It serves one goroutine.
type finder struct {
	scan  *scanner // reads and tags what the comparison did not keep
	grain int64
	leaf  bool    // digests are of leaves
	blind bool    // everything differs
	buf   *buffer // a leaf's content, when the comparison kept none
}

// newFinder returns a finder for entries of l. The scanner is used for its
// volume and its session hash only.
func newFinder(s *scanner, l *layout, blind bool) *finder {
	return &finder{scan: s, grain: l.grain(), leaf: l.leaf > 0, blind: blind}
}

func (f *finder) close() {
	if f.buf != nil {
		f.buf.put()
		f.buf = nil
	}
}

// each calls yield for every piece of e that differs, in order. Leaves whose
// digests are equal are passed over unread.
func (f *finder) each(e *entry, yield func(piece) error) error {
	pos, own, theirs := int64(0), 0, 0
	var err error
	e.unit.grains(f.grain, func(i int, x cbt.Extent) {
		n := pieces(x)
		at, first := pos, own
		pos, own = pos+x.Len(), own+n
		if err != nil || (f.leaf && !f.blind && e.leaves&(1<<i) == 0) {
			return
		}
		var data []byte
		if data, err = f.content(e, x, at); err != nil {
			return
		}
		tags := f.tags(e, data, x.Off, first, n)
		remote := f.remote(e, i, theirs, n)
		theirs += n
		err = eachDiffering(x.Off, data, tags, remote, yield)
	})
	return err
}

// eachDiffering yields the pieces of data, which lies at off, whose tags are not those of remote.
func eachDiffering(off int64, data []byte, own, remote []tag, yield func(piece) error) error {
	for k, t := range own {
		n := min(len(data), pieceSize)
		if remote == nil || remote[k] != t {
			if err := yield(piece{off: off, data: data[:n], tag: t}); err != nil {
				return err
			}
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// content returns what lies at x, which begins at byte at of the unit.
func (f *finder) content(e *entry, x cbt.Extent, at int64) ([]byte, error) {
	if e.buf != nil {
		return e.buf.b[at : at+x.Len()], nil
	}
	if f.buf == nil {
		f.buf = getBuf(int(f.grain))
	}
	b := f.buf.b[:x.Len()]
	return b, f.scan.vol.readAt(b, x.Off)
}

// tags returns the session tags of n pieces, the first of which is number first of the unit.
func (f *finder) tags(e *entry, data []byte, off int64, first, n int) []tag {
	if e.own.tags != nil {
		return e.own.tags[first : first+n]
	}
	return f.scan.appendTags(nil, data, off)
}

// remote returns the target's tags for grain i, nil if there are none.
func (f *finder) remote(e *entry, i, theirs, n int) []tag {
	switch {
	case f.blind:
		return nil
	case f.leaf:
		return e.pieces[theirs : theirs+n]
	}
	return []tag{tag(e.remote[i*len(tag{}):])}
}
