package failback

import (
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// chunkBytes is how much is read at once: small enough to be hashed while it is
// still in the processor's cache, large enough for a disk.
const chunkBytes = 256 << 10

// A scanner reads units of one side and makes their digests. It serves one
// goroutine; the volume behind it is shared.
type scanner struct {
	vol    *meter
	layout *layout
	tagger *tagger
	hasher *merkle.Hasher // with a kept algorithm, else nil
	medium bool           // read past the caches
}

// scanned is what a scanner found in a unit.
type scanned struct {
	digests []byte // one after another: of leaves, or of pieces
	tags    []tag  // of the pieces, when the session's own hash was used
}

// newScanner returns a scanner for one more goroutine of the same work.
func newScanner(vol *meter, l *layout, key [32]byte, a merkle.Algorithm) (*scanner, error) {
	t, err := newTagger(key)
	if err != nil {
		return nil, err
	}
	s := &scanner{vol: vol, layout: l, tagger: t}
	if a != 0 {
		if s.hasher, err = merkle.NewHasher(merkle.Shape{Size: l.size, Leaf: l.leaf, Algorithm: a}); err != nil {
			return nil, fmt.Errorf("hash %s: %w", vol.name, err)
		}
	}
	return s, nil
}

// unit reads u and makes its digests. With dst at least u.bytes long its
// content is left there, extent after extent; a shorter dst, of a chunk or a
// leaf, is used over and over.
func (s *scanner) unit(u *unit, dst []byte) (scanned, error) {
	out := scanned{}
	if s.hasher == nil {
		out.tags = make([]tag, 0, u.count(pieceSize))
	}
	keep := int64(len(dst)) >= u.bytes
	chunk := max(chunkBytes, s.layout.leaf)
	pos := int64(0)
	for _, e := range u.exts {
		for off := e.Off; off < e.End; {
			end := min(e.End, off+chunk-off%chunk)
			b := dst[:end-off]
			if keep {
				b = dst[pos : pos+end-off]
			}
			if err := s.read(b, off); err != nil {
				return out, err
			}
			s.digest(&out, b, off)
			pos += end - off
			off = end
		}
	}
	if s.hasher == nil {
		out.digests = s.fold(u, out.tags)
	}
	return out, nil
}

func (s *scanner) read(b []byte, off int64) error {
	if s.medium {
		return s.vol.readMedium(b, off)
	}
	return s.vol.readAt(b, off)
}

// digest adds what b, read at off, comes to.
func (s *scanner) digest(out *scanned, b []byte, off int64) {
	if s.hasher == nil {
		out.tags = s.appendTags(out.tags, b, off)
		return
	}
	for len(b) > 0 {
		n := min(int64(len(b)), s.layout.leaf)
		h := s.hasher.Leaf(b[:n])
		out.digests = append(out.digests, h[:]...)
		b = b[n:]
	}
}

// appendTags appends the tags of the pieces in b, which lies at off.
func (s *scanner) appendTags(tags []tag, b []byte, off int64) []tag {
	for len(b) > 0 {
		n := min(len(b), pieceSize)
		tags = append(tags, s.tagger.piece(off, b[:n]))
		b, off = b[n:], off+int64(n)
	}
	return tags
}

// fold makes the digests of a unit from the tags of its pieces.
func (s *scanner) fold(u *unit, tags []tag) []byte {
	out := make([]byte, 0, u.count(s.layout.grain())*len(tag{}))
	if s.layout.leaf == 0 {
		for _, t := range tags {
			out = append(out, t[:]...)
		}
		return out
	}
	u.grains(s.layout.leaf, func(_ int, e cbt.Extent) {
		n := pieces(e)
		t := s.tagger.leaf(e.Off, tags[:n])
		out = append(out, t[:]...)
		tags = tags[n:]
	})
	return out
}

// pieces is how many pieces lie in e.
func pieces(e cbt.Extent) int {
	return int((e.End+pieceSize-1)/pieceSize - e.Off/pieceSize)
}

// digestSize is the bytes of one digest of a.
func digestSize(a merkle.Algorithm) int {
	if a == 0 {
		return len(tag{})
	}
	return len(merkle.Hash{})
}
