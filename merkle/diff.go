package merkle

import (
	"bytes"
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// MaxBatches is the most requests that [Diff] makes to each side, for any
// volume. With the message that carries the root, which costs none, a remote
// comparison is five round trips.
const MaxBatches = 4

// DiffStats says what a comparison cost.
type DiffStats struct {
	Batches int   // requests to each side
	Nodes   int64 // nodes read of each side, 32 bytes each
	Leaves  int64 // leaves that differ
}

// Diff returns the ranges of leaves in which a and b differ, ascending, disjoint
// and with gaps between. See [DiffEach], of which it collects the result: 16
// bytes for each range.
func Diff(ctx context.Context, a, b NodeReader) ([]Range, DiffStats, error) {
	var ranges []Range
	stats, err := DiffEach(ctx, a, b, func(r Range) error {
		ranges = append(ranges, r)
		return nil
	})
	if err != nil {
		return nil, stats, err
	}
	return ranges, stats, nil
}

// DiffEach calls emit for each range of leaves in which a and b differ, in
// ascending order. An error of emit ends it and is returned.
//
// It compares the roots and then descends, both sides at once. Where levels
// outnumber the requests that are left, one request skips levels: for each node
// that differs it asks for all 256 (or 4096, near the top) below it. So with k
// leaves that differ it reads at most about 300·k nodes of each side, 9 KiB for
// a leaf, and never more than the tree; with many, the leaf level and 1/15.
//
// Requests stream, and more than a million spans in one are merged where the
// gaps are smallest. So memory is bounded, by some 100 MiB in the worst case:
// every other leaf of a large volume differs.
//
// A reader whose nodes differ where no child does, or that answers other than
// it was asked, is [ErrCorrupt]. That finds accidents, not lies: whoever trusts
// the result to a peer compares the root again after the transfer.
func DiffEach(ctx context.Context, a, b NodeReader, emit func(Range) error) (DiffStats, error) {
	var stats DiffStats
	s := a.Shape()
	if err := s.Validate(); err != nil {
		return stats, err
	}
	if b.Shape() != s {
		return stats, fmt.Errorf("compare trees: %w: %+v against %+v", ErrShape, s, b.Shape())
	}
	rootA, err := a.Root(ctx)
	if err != nil {
		return stats, fmt.Errorf("compare trees: read root: %w", err)
	}
	rootB, err := b.Root(ctx)
	if err != nil {
		return stats, fmt.Errorf("compare trees: read root: %w", err)
	}
	if rootA == rootB {
		return stats, nil
	}
	d := &differ{a: a, b: b, shape: s, emit: emit, stats: &stats}
	if err := d.descend(ctx); err != nil {
		return stats, fmt.Errorf("compare trees: %w", err)
	}
	return stats, nil
}

// differ is one descent.
type differ struct {
	a, b  NodeReader
	shape Shape
	emit  func(Range) error
	stats *DiffStats
}

func (d *differ) descend(ctx context.Context) error {
	level := d.shape.Levels() - 1
	found := spanList{limit: maxSpans}
	found.add(Range{0, 1})
	if level == 0 { // one leaf, and the roots differ
		d.stats.Leaves = 1
		return d.emit(Range{0, 1})
	}
	for level > 0 {
		step := stride(d.shape, level, MaxBatches-d.stats.Batches, found.total())
		next, err := d.batch(ctx, level, step, &found)
		if err != nil {
			return err
		}
		level, found = level-step, next
	}
	return nil
}

// batch compares what is step levels below the spans of found, which it uses
// up, and returns the spans there that differ; leaves it emits instead.
func (d *differ) batch(ctx context.Context, level, step int, found *spanList) (spanList, error) {
	d.stats.Batches++
	below := level - step
	scale := int64(1) << (4 * step)
	ask := found.spans // in place: the list may be long and is not needed again
	for i, r := range ask {
		ask[i] = Range{r.First * scale, min(r.End*scale, d.shape.Width(below))}
	}
	next := spanList{limit: maxSpans}
	if below == 0 {
		next.limit, next.full = leafSpans, d.emitAll
	}
	m := &matcher{level: level, scale: scale, exact: found.exact(), out: &next}
	g, gctx := errgroup.WithContext(ctx)
	sideA, sideB := newSide(ask), newSide(ask)
	g.Go(func() error { return sideA.run(gctx, d.a, below) })
	g.Go(func() error { return sideB.run(gctx, d.b, below) })
	g.Go(func() error { return m.compare(gctx, ask, sideA, sideB) })
	if err := g.Wait(); err != nil {
		return next, err
	}
	d.stats.Nodes += m.nodes
	if below == 0 {
		return next, d.emitAll(&next)
	}
	return next, nil
}

// emitAll hands over the ranges of leaves that were found and empties the list.
func (d *differ) emitAll(l *spanList) error {
	for _, r := range l.spans {
		d.stats.Leaves += r.Len()
		if err := d.emit(r); err != nil {
			return err
		}
	}
	l.spans = l.spans[:0]
	return nil
}

// matcher compares the answers of both sides.
type matcher struct {
	level int   // of the nodes that were found to differ
	scale int64 // nodes below one of them
	exact bool  // all of them differ: each must have a difference below it
	out   *spanList

	nodes  int64 // compared
	parent int64 // the node above the one compared last
	hit    bool  // a difference was seen below parent
}

func (m *matcher) compare(ctx context.Context, ask []Range, a, b *side) error {
	for _, r := range ask {
		m.parent, m.hit = r.First/m.scale, false
		for at := r.First; at < r.End; {
			na, err := a.peek(ctx)
			if err != nil {
				return err
			}
			nb, err := b.peek(ctx)
			if err != nil {
				return err
			}
			n := min(len(na), len(nb))
			if err := m.stretch(at, na[:n], nb[:n]); err != nil {
				return err
			}
			a.skip(n)
			b.skip(n)
			at += int64(n)
		}
		if err := m.leave(); err != nil {
			return err
		}
		m.nodes += r.Len()
	}
	return nil
}

// stretch compares nodes from index first on.
func (m *matcher) stretch(first int64, a, b []Hash) error {
	for len(a) > 0 {
		up := first / m.scale
		if up != m.parent {
			if err := m.leave(); err != nil {
				return err
			}
			m.parent, m.hit = up, false
		}
		n := int(min(int64(len(a)), (up+1)*m.scale-first))
		if err := m.family(first, a[:n], b[:n]); err != nil {
			return err
		}
		first, a, b = first+int64(n), a[n:], b[n:]
	}
	return nil
}

// family compares nodes that are all below one parent.
func (m *matcher) family(first int64, a, b []Hash) error {
	if bytes.Equal(hashBytes(a), hashBytes(b)) {
		return nil
	}
	m.hit = true
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		at := first + int64(i)
		if err := m.out.add(Range{at, at + 1}); err != nil {
			return err
		}
	}
	return nil
}

// leave is called after the last node below a parent.
func (m *matcher) leave() error {
	if m.exact && !m.hit {
		return &CorruptError{Offset: -1, Level: m.level, Index: m.parent, Err: errSilent}
	}
	return nil
}
