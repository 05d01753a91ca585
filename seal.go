package failback

import (
	"context"
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// A sealer makes the tree of one side while its volume is read whole. Without
// an algorithm it does nothing.
type sealer struct {
	layout  *layout
	builder *merkle.Builder
}

// newSealer begins a tree of the layout's volume. What lies outside the
// candidates is known to be zero.
func newSealer(l *layout, a merkle.Algorithm) (*sealer, error) {
	if a == 0 {
		return &sealer{}, nil
	}
	b, err := merkle.Create("", merkle.Shape{Size: l.size, Leaf: l.leaf, Algorithm: a}, merkle.Options{Temporary: true})
	if err != nil {
		return nil, fmt.Errorf("begin tree: %w", err)
	}
	t := &sealer{layout: l, builder: b}
	if err := setZeroOutside(b, l); err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

// setZeroOutside tells a tree that everything outside the layout's candidates is zero.
func setZeroOutside(b *merkle.Builder, l *layout) error {
	for _, x := range cbt.Subtract(wholeOf(l.size), l.candidates) {
		r := merkle.Range{First: x.Off / l.leaf, End: (x.End + l.leaf - 1) / l.leaf}
		if err := b.SetZero(r); err != nil {
			return fmt.Errorf("keep hashes of %v: %w", x, err)
		}
	}
	return nil
}

// add takes the digests of a unit; safe for concurrent use.
func (t *sealer) add(u *unit, digests []byte) error {
	if t.builder == nil {
		return nil
	}
	return setLeaves(t.builder, u, t.layout.leaf, digests)
}

// root finishes the tree and returns its root, or a zero hash if there is none.
func (t *sealer) root(ctx context.Context) (merkle.Hash, error) {
	if t.builder == nil {
		return merkle.Hash{}, nil
	}
	f, err := t.builder.Seal(ctx)
	if err != nil {
		return merkle.Hash{}, fmt.Errorf("finish tree: %w", err)
	}
	t.builder = nil
	h, err := f.Root(ctx)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return h, err
}

func (t *sealer) discard() {
	if t == nil {
		return
	}
	if t.builder != nil {
		// A temporary tree is gone with its descriptor.
		_ = t.builder.Discard()
	}
}
