package merkle

import (
	"context"
	"fmt"
)

// Tree is a tree in memory, for volumes of up to some GiB: 512 KiB of nodes for
// each GiB in leaves of 64 KiB. It does not change; all its methods may be
// called by many goroutines.
type Tree struct {
	shape  Shape
	root   Hash
	levels [][]Hash
}

// NewTree makes a tree over the hashes of all leaves, which it keeps and which
// must not change. It hashes n/15 nodes.
func NewTree(s Shape, leaves []Hash) (*Tree, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if int64(len(leaves)) != s.Leaves() {
		return nil, fmt.Errorf("%w: %d leaf hashes for a volume of %d leaves", ErrShape, len(leaves), s.Leaves())
	}
	t := &Tree{shape: s, levels: [][]Hash{leaves}}
	h := newNodeHasher(s)
	for below := leaves; len(below) > 1; {
		above := hashGroups(h, len(t.levels), below, make([]Hash, 0, parents(int64(len(below)))))
		t.levels = append(t.levels, above)
		below = above
	}
	t.root = h.Root(t.levels[len(t.levels)-1][0])
	return t, nil
}

// hashGroups appends to dst the nodes of a level over nodes of the level below
// that begin with a group.
func hashGroups(h *Hasher, level int, below, dst []Hash) []Hash {
	for ; len(below) > FanOut; below = below[FanOut:] {
		dst = append(dst, h.Node(level, below[:FanOut]))
	}
	return append(dst, h.Node(level, below))
}

// Shape returns what the tree is over.
func (t *Tree) Shape() Shape { return t.shape }

// Root returns the root.
func (t *Tree) Root(context.Context) (Hash, error) { return t.root, nil }

// ReadNodes is that of [NodeReader].
func (t *Tree) ReadNodes(ctx context.Context, level int, spans []Range, yield func(first int64, nodes []Hash) error) error {
	if err := checkSpans(t.shape, level, spans); err != nil {
		return err
	}
	for _, r := range spans {
		for at := r.First; at < r.End; {
			if err := ctx.Err(); err != nil {
				return err
			}
			end := min(r.End, at+blockNodes)
			if err := yield(at, t.levels[level][at:end]); err != nil {
				return err
			}
			at = end
		}
	}
	return nil
}
