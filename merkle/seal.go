package merkle

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

var errSealed = errors.New("tree is sealed")

// Seal computes the levels above the leaves and makes the file whole and
// durable. All leaves must be set; if one is not, the error says which, and
// more may be set. It reads n·16/15 nodes and hashes n/15 groups, on all
// workers, but for chunks of zero leaves, of which it reads and hashes nothing.
//
// The order, and what a crash after each step leaves:
//
//  1. upper levels written          path.part building: its chunks are taken up, this is done again
//  2. file synced                   the same
//  3. header complete, synced       path.part complete: a resumed Builder goes on with 4
//  4. progress table, if there is one, cut, synced    the same
//  5. renamed to path               path is the earlier file or this one, each whole
//  6. folder synced                 path is this one
//
// A header torn in step 3 has a wrong checksum, and the build starts anew. A
// temporary tree needs none of this and only does step 1.
func (b *Builder) Seal(ctx context.Context) (*File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over != nil {
		return nil, b.over
	}
	for r := range b.Missing() {
		return nil, fmt.Errorf("seal %s: %w: leaves %v", b.st.path, errUnset, r)
	}
	if !b.sealed {
		if err := b.raiseAll(ctx); err != nil {
			return nil, fmt.Errorf("seal %s: %w", b.st.path, err)
		}
	}
	f, err := b.finish(ctx)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", b.st.path, err)
	}
	b.over = errSealed
	return f, nil
}

// raiseAll writes every level above the leaves, three at a time. What an earlier
// Seal that failed wrote there is wiped: leaves may have changed since, and
// nothing is written above those that are all zero now.
func (b *Builder) raiseAll(ctx context.Context) error {
	if b.raised {
		if err := b.wipeUpper(); err != nil {
			return err
		}
	}
	b.raised = true
	for level := 0; level < b.st.lay.top(); level += 3 {
		if err := b.raise(ctx, level); err != nil {
			return err
		}
	}
	return nil
}

// raise writes the three levels above level, those that there are. Each worker
// takes a stretch of 4096 nodes at a time: 16³, so that all nodes above it, up
// to three levels, are above no other stretch.
func (b *Builder) raise(ctx context.Context, level int) error {
	width := b.st.lay.width[level]
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(int64(b.o.Workers), (width-1)/blockNodes+1) {
		h, buf := b.st.hasher.Clone(), make([]Hash, blockNodes)
		g.Go(func() error {
			for first := next.Add(blockNodes) - blockNodes; first < width; first = next.Add(blockNodes) - blockNodes {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := b.raiseBlock(h, level, first, buf[:min(blockNodes, width-first)]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// raiseBlock writes the nodes of up to three levels above a stretch. A hole
// has only zeroes above it, which is what is there already.
func (b *Builder) raiseBlock(h *Hasher, level int, first int64, buf []Hash) error {
	off := b.st.lay.place(level, first)
	if b.st.m.nextData(off) >= off+int64(len(buf))*HashSize {
		return nil
	}
	if err := b.st.load(level, first, buf); err != nil {
		return err
	}
	below := buf
	for up := level + 1; up <= min(level+3, b.st.lay.top()); up++ {
		first /= FanOut
		above := hashGroups(h, up, below, make([]Hash, 0, parents(int64(len(below)))))
		stored := append([]Hash(nil), above...)
		b.st.toDisk(up, first, stored)
		if err := b.st.write(up, first, stored); err != nil {
			return err
		}
		below = above
	}
	return nil
}

// cutTable is step 4 of Seal.
func (b *Builder) cutTable() error {
	if !b.tabled {
		return nil
	}
	return errors.Join(b.st.m.Truncate(b.st.lay.size), b.st.m.Sync())
}

// finish is steps 2 to 6 of Seal.
func (b *Builder) finish(ctx context.Context) (*File, error) {
	var top [1]Hash
	if err := b.st.load(b.st.lay.top(), 0, top[:]); err != nil {
		return nil, err
	}
	hdr := header{
		state: stateComplete, shape: b.st.shape, epoch: b.o.Epoch,
		identity: b.o.Identity, root: b.st.hasher.Clone().Root(top[0]),
	}
	f := &File{d: b.o.disk, st: b.st, hdr: hdr, write: true}
	if b.o.Temporary {
		return f, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	steps := []func() error{
		b.st.m.Sync,
		func() error { b.sealed = true; return nil },
		func() error { return b.writeHeader(stateComplete, hdr.root) },
		b.st.m.Sync,
		b.cutTable,
		func() error { return b.o.disk.rename(b.st.path, b.path) },
		func() error { return b.o.disk.syncDir(b.path) },
		func() error { return b.st.m.lock(false) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	f.kept, f.st.path = true, b.path
	return f, nil
}
