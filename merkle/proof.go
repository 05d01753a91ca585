package merkle

import (
	"context"
	"errors"
	"fmt"
)

// ErrProof says that a proof does not prove what it is held against: the root,
// the leaves or the range are others, or it was altered.
var ErrProof = errors.New("proof refused")

// Proof proves that the leaves of a range have certain hashes in the tree of a
// certain root: of one leaf, or of many. It holds, level by level from the
// leaves up, the nodes that complete the first and the last group of the range:
// those to the left, then those to the right, in ascending order.
//
//	level 0   [ s s L L | L L L L | L s s s ]    L: the range, s: siblings
//	level 1   [ s s N N N s ]                    N: computed from below
//
// There is one proof for a range and a tree, and no other is accepted.
type Proof struct {
	Shape    Shape
	Range    Range // leaves
	Siblings []Hash
}

// maxSiblings is the most siblings of a proof: 15 on each side of each level.
const maxSiblings = 2 * (FanOut - 1) * maxLevels

// Prove makes a proof for a range of leaves. It reads at most 30 nodes of each
// level, one request a level.
func Prove(ctx context.Context, r NodeReader, leaves Range) (*Proof, error) {
	p := &Proof{Shape: r.Shape(), Range: leaves}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("prove leaves %v: %w", leaves, err)
	}
	for level := range p.Shape.Levels() {
		left, right := siblings(leaves, p.Shape.Width(level))
		var spans []Range
		for _, s := range []Range{left, right} {
			if s.Len() > 0 {
				spans = append(spans, s)
			}
		}
		if len(spans) > 0 {
			err := r.ReadNodes(ctx, level, spans, func(_ int64, nodes []Hash) error {
				if len(p.Siblings)+len(nodes) > maxSiblings {
					return &CorruptError{Offset: -1, Level: level, Index: left.First, Err: errOrder}
				}
				p.Siblings = append(p.Siblings, nodes...)
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("prove leaves %v: %w", leaves, err)
			}
		}
		leaves = Range{leaves.First / FanOut, parents(leaves.End)}
	}
	if len(p.Siblings) != p.count() {
		return nil, fmt.Errorf("prove leaves %v: %w: reader answered with %d nodes, not %d", p.Range, ErrCorrupt, len(p.Siblings), p.count())
	}
	return p, nil
}

// siblings returns what completes the groups of r, to the left and to the right.
func siblings(r Range, width int64) (left, right Range) {
	return Range{groupStart(r.First), r.First}, Range{r.End, groupEnd(r.End, width)}
}

// check returns an error unless p has a shape and a range inside of it.
func (p *Proof) check() error {
	if err := p.Shape.Validate(); err != nil {
		return err
	}
	if p.Range.First < 0 || p.Range.First >= p.Range.End || p.Range.End > p.Shape.Leaves() {
		return fmt.Errorf("%w: leaves %v of a volume of %d leaves", ErrShape, p.Range, p.Shape.Leaves())
	}
	return nil
}

// count returns the siblings that a proof of this shape and range has.
func (p *Proof) count() int {
	n, r := int64(0), p.Range
	for level := range p.Shape.Levels() {
		left, right := siblings(r, p.Shape.Width(level))
		n += left.Len() + right.Len()
		r = Range{r.First / FanOut, parents(r.End)}
	}
	return int(n)
}

// Check returns nil if the tree with this root has these hashes in the range of
// the proof, and an error that is [ErrProof] else. It trusts nothing in p: the
// root alone says what is true. It hashes 1/15 of the range and at most two
// groups more a level, and allocates as much as the leaves.
func (p *Proof) Check(root Hash, leaves []Hash) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	if int64(len(leaves)) != p.Range.Len() {
		return fmt.Errorf("%w: %d leaf hashes for leaves %v", ErrProof, len(leaves), p.Range)
	}
	if len(p.Siblings) != p.count() {
		return fmt.Errorf("%w: %d siblings, leaves %v take %d", ErrProof, len(p.Siblings), p.Range, p.count())
	}
	h, r, rest := newNodeHasher(p.Shape), p.Range, p.Siblings
	nodes := leaves
	for level := range p.Shape.Levels() {
		left, right := siblings(r, p.Shape.Width(level))
		all := make([]Hash, 0, left.Len()+r.Len()+right.Len())
		all = append(all, rest[:left.Len()]...)
		all = append(all, nodes...)
		all = append(all, rest[left.Len():left.Len()+right.Len()]...)
		rest = rest[left.Len()+right.Len():]
		if level == p.Shape.Levels()-1 {
			nodes = all // the top
			break
		}
		nodes = hashGroups(h, level+1, all, make([]Hash, 0, len(all)/FanOut+1))
		r = Range{r.First / FanOut, parents(r.End)}
	}
	if got := h.Root(nodes[0]); got != root {
		return fmt.Errorf("%w: leaves %v lead to root %v, not %v", ErrProof, p.Range, got, root)
	}
	return nil
}

// CheckData is Check for the bytes of the range, as they lie on the volume. It
// hashes them.
func (p *Proof) CheckData(root Hash, data []byte) error {
	if err := p.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	last := p.Shape.LeafExtent(p.Range.End - 1)
	if want := last.End - p.Range.First*p.Shape.Leaf; int64(len(data)) != want {
		return fmt.Errorf("%w: %d bytes for leaves %v, which have %d", ErrProof, len(data), p.Range, want)
	}
	return p.Check(root, hashLeaves(newHasher(p.Shape), data, make([]Hash, 0, p.Range.Len())))
}
