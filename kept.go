package failback

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A kept is a side's kept tree, and what makes it believable: a map of what was
// written since, or the caller's word that nothing was.
type kept struct {
	file   *merkle.File
	facts  treeFacts
	vol    *meter // reads what is dirty; nil: nothing may be
	mapped bool
	dirty  []cbt.Extent // normal
	epoch  cbt.Epoch
}

// openKept opens the tree of a side, or returns nil if it has none. It refuses
// a tree that nobody vouches for: a stale tree takes different blocks for equal.
func openKept(ctx context.Context, s Side, vol *meter) (*kept, error) {
	if s.Tree == "" {
		return nil, nil
	}
	if s.Dirty == nil && !s.TrustTree && vol != nil {
		return nil, &RefusedError{Volume: s.label(),
			Reason: fmt.Sprintf("nothing says what was written since its tree %s was made", s.Tree),
			Next:   "give the dirty map since then, or say that the tree is current (--trust-tree)"}
	}
	f, err := merkle.Open(s.Tree)
	if err != nil {
		return nil, fmt.Errorf("open tree of %s: %w", s.label(), err)
	}
	k := &kept{file: f, vol: vol}
	sh := f.Shape()
	root, err := f.Root(ctx)
	if err == nil && vol != nil && sh.Size != vol.v.Size() {
		err = &RefusedError{Volume: s.label(),
			Reason: fmt.Sprintf("its tree %s is of a volume of %d bytes, it has %d", s.Tree, sh.Size, vol.v.Size()),
			Next:   "make the tree again (failback digest)"}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	k.facts = treeFacts{size: sh.Size, algorithm: sh.Algorithm, leaf: sh.Leaf, root: root}
	if s.Dirty != nil {
		k.mapped, k.epoch = true, s.Dirty.Epoch
		k.dirty = cbt.Intersect(s.Dirty.Extents(), wholeOf(sh.Size))
	}
	return k, nil
}

// allocated returns the leaves that are not all zero. A tree knows them without
// its volume: it is compared with the tree of zeroes. Cost: nodes in proportion to the answer.
func (k *kept) allocated(ctx context.Context) ([]cbt.Extent, error) {
	h, err := merkle.NewHasher(k.file.Shape())
	if err != nil {
		return nil, err
	}
	var x []cbt.Extent
	_, err = merkle.DiffEach(ctx, k.file, zeroTree{h}, func(r merkle.Range) error {
		if len(x) == 2*maxCandidates {
			x = cbt.Coarsen(cbt.Normalize(x), maxCandidates)
		}
		x = append(x, cbt.Extent{Off: r.First * k.facts.leaf, End: min(r.End*k.facts.leaf, k.facts.size)})
		return nil
	})
	return cbt.Union(cbt.Normalize(x), k.dirty), err
}

// A zeroTree is the tree of a volume of zeroes.
type zeroTree struct{ h *merkle.Hasher }

var _ merkle.NodeReader = zeroTree{}

func (z zeroTree) Shape() merkle.Shape { return z.h.Shape() }

func (z zeroTree) Root(context.Context) (merkle.Hash, error) {
	return z.h.Root(z.h.Zero(z.Shape().Levels()-1, 0)), nil
}

// ReadNodes implements merkle.NodeReader.
func (z zeroTree) ReadNodes(ctx context.Context, level int, spans []merkle.Range, yield func(int64, []merkle.Hash) error) error {
	var nodes [256]merkle.Hash
	for _, x := range spans {
		for first := x.First; first < x.End; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(x.End-first, int64(len(nodes)))
			for i := range n {
				nodes[i] = z.h.Zero(level, first+i)
			}
			if err := yield(first, nodes[:n]); err != nil {
				return err
			}
			first += n
		}
	}
	return nil
}

func (k *kept) close() error {
	if k == nil {
		return nil
	}
	return k.file.Close()
}

// digests returns the digests of a unit of whole leaves: from the tree, and for
// leaves that are dirty from the volume. Without a volume to read them, dirty
// leaves get a digest that is equal to none.
func (k *kept) digests(ctx context.Context, u *unit, sc *scanner) ([]byte, error) {
	out := make([]byte, 0, u.count(k.facts.leaf)*len(merkle.Hash{}))
	var hashes [maxUnitLeaves]merkle.Hash
	for _, x := range u.exts {
		first := x.Off / k.facts.leaf
		n := int((x.End+k.facts.leaf-1)/k.facts.leaf - first)
		got, err := k.file.Leaves(ctx, first, hashes[:n])
		if err != nil {
			return nil, err
		}
		if got != n {
			return nil, fmt.Errorf("read tree %s: %d of %d leaves from %d", k.file.Path(), got, n, first)
		}
		if err := k.renew(hashes[:n], x, sc); err != nil {
			return nil, err
		}
		for _, h := range hashes[:n] {
			out = append(out, h[:]...)
		}
	}
	return out, nil
}

// renew replaces the hashes of the dirty leaves of x.
func (k *kept) renew(hashes []merkle.Hash, x cbt.Extent, sc *scanner) error {
	dirty := cbt.Align(cbt.Intersect(k.dirty, []cbt.Extent{x}), k.facts.leaf, k.facts.size)
	if len(dirty) == 0 {
		return nil
	}
	if sc == nil || k.vol == nil {
		for _, d := range dirty {
			for off := d.Off; off < d.End; off += k.facts.leaf {
				hashes[(off-x.Off)/k.facts.leaf] = merkle.Hash{}
			}
		}
		return nil
	}
	buf := getBuf(int(k.facts.leaf))
	defer buf.put()
	for _, d := range dirty {
		for off := d.Off; off < d.End; off += k.facts.leaf {
			b := buf.b[:min(k.facts.leaf, k.facts.size-off)]
			if err := k.vol.readAt(b, off); err != nil {
				return err
			}
			hashes[(off-x.Off)/k.facts.leaf] = sc.hasher.Leaf(b)
		}
	}
	return nil
}

// A remoteTree reads the target's kept tree over the link.
type remoteTree struct {
	s     *source
	facts treeFacts
	id    uint32
}

var _ merkle.NodeReader = (*remoteTree)(nil)

func (r *remoteTree) Shape() merkle.Shape { return r.facts.shape() }

func (r *remoteTree) Root(context.Context) (merkle.Hash, error) { return r.facts.root, nil }

// ReadNodes implements merkle.NodeReader. However many spans there are, it is
// one round trip: the requests are not held back for the answers.
func (r *remoteTree) ReadNodes(ctx context.Context, level int, spans []merkle.Range, yield func(int64, []merkle.Hash) error) error {
	first := r.id + 1
	parts := slices.Collect(slices.Chunk(spans, message.MaxRanges))
	r.id += uint32(len(parts))
	r.s.report.RoundTrips++
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for i, part := range parts {
			m := message.Nodes{ID: first + uint32(i), Level: uint8(level)}
			for _, x := range part {
				m.Ranges = append(m.Ranges, message.NodeRange(x))
			}
			if err := r.s.send(m); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		for i, part := range parts {
			if err := r.answer(ctx, first+uint32(i), part, yield); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// answer takes the hashes of one request.
func (r *remoteTree) answer(ctx context.Context, id uint32, spans []merkle.Range, yield func(int64, []merkle.Hash) error) error {
	at := spanCursor{spans: spans}
	for {
		p, err := r.s.expect(ctx, kindNodeHashes)
		if err != nil {
			return err
		}
		var a message.NodeHashes
		if err := a.Decode(p); err != nil {
			return err
		}
		if a.ID != id {
			return protocolf("tree nodes for request %d, not %d", a.ID, id)
		}
		if len(a.Hashes) == 0 && !a.Last {
			return protocolf("answer that goes on with no tree nodes in it")
		}
		hashes := make([]merkle.Hash, len(a.Hashes)/len(merkle.Hash{}))
		for i := range hashes {
			hashes[i] = merkle.Hash(a.Hashes[i*len(merkle.Hash{}):])
		}
		if err := at.give(hashes, yield); err != nil {
			return err
		}
		if a.Last {
			return at.end()
		}
	}
}

// A spanCursor hands hashes that arrive in order to the spans they were asked for.
type spanCursor struct {
	spans []merkle.Range
	done  int64 // of the first span
}

func (c *spanCursor) give(hashes []merkle.Hash, yield func(int64, []merkle.Hash) error) error {
	for len(hashes) > 0 {
		if len(c.spans) == 0 {
			return protocolf("more tree nodes than were asked for")
		}
		x := c.spans[0]
		n := min(int64(len(hashes)), x.Len()-c.done)
		if err := yield(x.First+c.done, hashes[:n]); err != nil {
			return err
		}
		hashes = hashes[n:]
		if c.done += n; c.done == x.Len() {
			c.spans, c.done = c.spans[1:], 0
		}
	}
	return nil
}

func (c *spanCursor) end() error {
	if len(c.spans) > 0 {
		return protocolf("fewer tree nodes than were asked for")
	}
	return nil
}

// serveNodes answers a request for nodes of a kept tree.
func serveNodes(ctx context.Context, c *transport.Conn, k *kept, m message.Nodes) error {
	spans := make([]merkle.Range, len(m.Ranges))
	for i, x := range m.Ranges {
		spans[i] = merkle.Range(x)
	}
	out := message.NodeHashes{ID: m.ID}
	flush := func(last bool) error {
		out.Last = last
		err := c.Send(kindNodeHashes, out.Append(nil))
		out.Hashes = out.Hashes[:0]
		return err
	}
	err := k.file.ReadNodes(ctx, int(m.Level), spans, func(_ int64, nodes []merkle.Hash) error {
		for _, h := range nodes {
			if len(out.Hashes) == message.MaxHashes*len(h) {
				if err := flush(false); err != nil {
					return err
				}
			}
			out.Hashes = append(out.Hashes, h[:]...)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read tree %s: %w", k.file.Path(), err)
	}
	return flush(true)
}
