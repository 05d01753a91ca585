package merkle

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// Update sets the hashes of some leaves, given in ascending order of their
// index, and the nodes above them, and makes epoch the tree's. It returns the
// new root. For k leaves that change it reads and hashes the groups on their
// paths, at most k·(Levels()-1) of them and fewer where paths meet, once to
// check them and once anew, and writes what changed twice. Memory is one group
// for each level.
//
// A crash leaves the old tree or the new one. The order, and what a crash after
// each step means:
//
//  1. changes in path.journal, synced, folder synced   header complete: the old tree; the journal is ignored
//  2. header updating, names the new root, synced      Open: ErrUpdating; OpenUpdate does 3 to 5 from the journal
//  3. changes in the tree, synced                      the same, which changes nothing more
//  4. header complete with the new root, synced        the new tree; the journal is ignored
//  5. journal removed                                  the new tree
//
// It needs the file for itself: while another process or another File reads it,
// the error is [ErrInUse] and nothing happened.
//
// An error or the end of ctx in step 1 leaves the old tree in use. From step 2
// on ctx is not looked at. After an error from there on, f is not usable, and
// OpenUpdate finishes the update. If the header is torn in step 2 or 4, Open
// says [ErrCorrupt], and the tree must be rebuilt.
func (f *File) Update(ctx context.Context, epoch Epoch, leaves iter.Seq2[int64, Hash]) (Hash, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.beginUpdate(); err != nil {
		return Hash{}, fmt.Errorf("update %s: %w", f.Path(), err)
	}
	root, err := f.update(ctx, epoch, leaves)
	if err != nil {
		err = fmt.Errorf("update %s: %w", f.st.path, err)
	}
	return root, errors.Join(err, f.st.m.lock(false))
}

func (f *File) beginUpdate() error {
	switch {
	case f.broken != nil:
		return f.broken
	case !f.write:
		return ErrReadOnly
	case !f.kept:
		return errors.New("a temporary tree is not updated")
	}
	if err := f.st.m.lock(true); err != nil {
		return errors.Join(err, f.st.m.lock(false)) // a lock that could not grow may be gone
	}
	return nil
}

func (f *File) update(ctx context.Context, epoch Epoch, leaves iter.Seq2[int64, Hash]) (Hash, error) {
	path := f.st.path + journalSuffix
	j, err := newJournalWriter(f.d, path)
	if err != nil {
		return Hash{}, err
	}
	end, err := f.plan(ctx, j, leaves)
	if err == nil {
		end.epoch = epoch
		err = j.end(end)
	}
	if err = errors.Join(err, j.m.Close()); err == nil {
		err = f.d.syncDir(path)
	}
	if err != nil {
		return Hash{}, errors.Join(err, f.d.remove(path))
	}
	if end.new == end.old { // only the epoch changes: one sector, in one write
		f.hdr.epoch = epoch
		return end.new, errors.Join(f.putHeader(f.hdr), f.d.remove(path))
	}
	f.hdr.state, f.hdr.next = stateUpdating, end.new
	if err := f.putHeader(f.hdr); err != nil {
		return Hash{}, err
	}
	if err := f.recover(); err != nil {
		f.broken = fmt.Errorf("update did not come to its end: %w: %w", ErrUpdating, err)
		return Hash{}, f.broken
	}
	return end.new, nil
}

// putHeader writes and syncs the header. After an error nobody knows which
// header is on disk, so f is not usable.
func (f *File) putHeader(h header) error {
	if _, err := f.st.m.WriteAt(h.encode(), 0); err != nil {
		f.broken = fmt.Errorf("write tree header: %w", err)
		return f.broken
	}
	if err := f.st.m.Sync(); err != nil {
		f.broken = fmt.Errorf("sync tree header: %w", err)
		return f.broken
	}
	return nil
}

// recover is steps 3 to 5 of Update, for one that goes on and for one that was
// cut off. f.hdr is that of step 2.
func (f *File) recover() error {
	if err := f.st.m.lock(true); err != nil {
		return err
	}
	path := f.st.path + journalSuffix
	end, err := readJournal(f.d, path, &f.st.lay, f.st.write)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUpdating, err)
	}
	if end.old != f.hdr.root || end.new != f.hdr.next {
		return fmt.Errorf("%w: %s is of another update", ErrUpdating, path)
	}
	if err := f.st.m.Sync(); err != nil {
		return fmt.Errorf("sync tree nodes: %w", err)
	}
	c := newChecker(f.st, end.new)
	if _, err := c.nodes(f.st.lay.top(), 0, 1); err != nil {
		return err
	}
	next := f.hdr
	next.state, next.root, next.next, next.epoch = stateComplete, end.new, Hash{}, end.epoch
	if err := f.putHeader(next); err != nil {
		return err
	}
	f.hdr = next
	if err := f.d.remove(path); err != nil {
		return fmt.Errorf("remove update journal: %w", err)
	}
	return f.st.m.lock(false)
}

// plan writes to the journal what the leaves change, in one ascending walk, and
// returns the old and the new root.
func (f *File) plan(ctx context.Context, j *journalWriter, leaves iter.Seq2[int64, Hash]) (journalEnd, error) {
	p := &planner{old: f.checker(), j: j}
	defer f.checkers.Put(p.old)
	end := journalEnd{old: f.hdr.root, new: f.hdr.root}
	last := int64(-1)
	for i, h := range leaves {
		switch {
		case i <= last || i >= f.st.lay.width[0]:
			return end, fmt.Errorf("leaf %d of %d after leaf %d: %w", i, f.st.lay.width[0], last, ErrShape)
		case h == Hash{}:
			return end, fmt.Errorf("leaf %d: the zero value is not a hash", i)
		}
		last = i
		if err := ctx.Err(); err != nil {
			return end, err
		}
		if err := p.leaf(i, h); err != nil {
			return end, err
		}
	}
	top := f.st.lay.top()
	for level := range top + 1 {
		if err := p.flush(level); err != nil {
			return end, err
		}
	}
	if g := &p.open[top]; g.touched {
		end.new = p.old.hash.Root(g.nodes[0])
	}
	return end, nil
}

// planner holds the group that is being changed at each level.
type planner struct {
	old    *checker
	j      *journalWriter
	open   [maxLevels]openGroup
	stored [FanOut]Hash // what is being written
}

// openGroup is a group with some of its nodes changed.
type openGroup struct {
	touched  bool
	first    int64 // of the group
	count    int64 // of nodes in it
	from, to int64 // the changed nodes lie in [from, to) of it
	nodes    [FanOut]Hash
}

// leaf changes a leaf. Calls come in ascending order. The open groups that are
// not above this leaf are done with, and are flushed before anything on its
// path is read: so the checker still holds theirs, and reads each group once.
func (p *planner) leaf(index int64, h Hash) error {
	at := index
	for level := range p.old.lay.levels {
		if g := &p.open[level]; g.touched && g.first == groupStart(at) {
			break
		}
		if err := p.flush(level); err != nil {
			return err
		}
		at /= FanOut
	}
	return p.set(0, index, h)
}

// set changes a node of a level, whose group is open or has none before it to flush.
func (p *planner) set(level int, index int64, h Hash) error {
	g := &p.open[level]
	if first := groupStart(index); !g.touched || g.first != first {
		end := groupEnd(index+1, p.old.lay.width[level])
		nodes, err := p.old.nodes(level, first, end)
		if err != nil {
			return err
		}
		*g = openGroup{touched: true, first: first, count: end - first}
		copy(g.nodes[:], nodes)
	}
	i := index - g.first
	if g.nodes[i] == h {
		return nil
	}
	if g.from == g.to {
		g.from = i
	}
	g.nodes[i], g.to = h, i+1
	return nil
}

// flush writes the changes of the open group of a level and changes its parent.
// The group stays as it is, for the leaves of it still to come and for the root.
func (p *planner) flush(level int) error {
	g := &p.open[level]
	if g.from == g.to {
		return nil
	}
	stored := p.stored[:copy(p.stored[:], g.nodes[g.from:g.to])]
	first := g.first + g.from
	p.old.toDisk(level, first, stored)
	if err := p.j.record(level, first, stored); err != nil {
		return err
	}
	g.from, g.to = 0, 0
	if level == p.old.lay.top() {
		return nil
	}
	return p.set(level+1, g.first/FanOut, p.old.hash.Node(level+1, g.nodes[:g.count]))
}
