package merkle

import "context"

// blockNodes is the nodes read and checked at once: 128 KiB.
const blockNodes = 4096

// checker reads nodes of a store and believes none that does not hash, through
// its ancestors, to the root. It keeps the last verified run of each level, so
// that an ascending walk reads each ancestor about once. It belongs to one
// goroutine, and must be reset when the store has changed.
type checker struct {
	store
	root   Hash
	hash   *Hasher
	runs   [maxLevels]run
	strict bool // read below all-zero nodes too, where nothing but zeroes may be
}

// run is the verified nodes [first, first+len(nodes)) of a level.
type run struct {
	first int64
	nodes []Hash
}

func newChecker(s store, root Hash) *checker {
	return &checker{store: s, root: root, hash: s.hasher.Clone()}
}

// reset forgets what was verified.
func (c *checker) reset(root Hash) {
	c.root, c.strict = root, false
	for i := range c.runs {
		c.runs[i].nodes = c.runs[i].nodes[:0]
	}
}

// nodes returns the nodes [first, end) of a level, at most blockNodes of them.
// The result is good until the next call. Cost: their groups and those
// ancestors that are not kept from the call before, each read and hashed once.
func (c *checker) nodes(level int, first, end int64) ([]Hash, error) {
	r := &c.runs[level]
	if first >= r.first && end <= r.first+int64(len(r.nodes)) {
		return r.nodes[first-r.first : end-r.first], nil
	}
	from, to := groupStart(first), groupEnd(end, c.lay.width[level])
	r.first, r.nodes = from, r.nodes[:0] // nothing is verified until all is
	if int64(cap(r.nodes)) < to-from {
		r.nodes = make([]Hash, 0, to-from)
	}
	nodes := r.nodes[:to-from]
	var err error
	if level == c.lay.top() {
		err = c.verifyTop(nodes)
	} else {
		err = c.verifyGroups(level, from, nodes)
	}
	if err != nil {
		return nil, err
	}
	r.nodes = nodes
	return nodes[first-from : end-from], nil
}

// verifyTop reads the top node and holds it against the root.
func (c *checker) verifyTop(nodes []Hash) error {
	top := c.lay.top()
	if err := c.load(top, 0, nodes); err != nil {
		return err
	}
	if c.hash.Root(nodes[0]) != c.root {
		return c.corrupt(top, 0, errTop)
	}
	return nil
}

// verifyGroups reads whole groups of a level and holds each against its parent.
func (c *checker) verifyGroups(level int, from int64, nodes []Hash) error {
	up := from / FanOut
	above, err := c.nodes(level+1, up, parents(from+int64(len(nodes))))
	if err != nil {
		return err
	}
	zero := c.hasher.zeros
	allZero := true
	for i := range above {
		allZero = allZero && above[i] == *zero.ref(level+1, up+int64(i))
	}
	if allZero && !c.strict {
		for i := range nodes {
			nodes[i] = *zero.ref(level, from+int64(i))
		}
		return nil
	}
	if err := c.load(level, from, nodes); err != nil {
		return err
	}
	for i := range above {
		g := int64(i) * FanOut
		group := nodes[g:min(g+FanOut, int64(len(nodes)))]
		if above[i] == *zero.ref(level+1, up+int64(i)) {
			if at := c.notZero(level, from+g, group); at >= 0 {
				return c.corrupt(level, at, errZeroParent)
			}
		} else if c.hash.Node(level+1, group) != above[i] {
			return c.corrupt(level, from+g, errParent)
		}
	}
	return nil
}

// notZero returns the first node of a group that is no zero subtree, or -1.
func (c *checker) notZero(level int, first int64, group []Hash) int64 {
	for i := range group {
		if group[i] != *c.hasher.zeros.ref(level, first+int64(i)) {
			return first + int64(i)
		}
	}
	return -1
}

// each calls yield with the verified nodes of r in blocks, ascending.
func (c *checker) each(ctx context.Context, level int, r Range, yield func(first int64, nodes []Hash) error) error {
	for at := r.First; at < r.End; {
		if err := ctx.Err(); err != nil {
			return err
		}
		end := min(r.End, groupStart(at)+blockNodes)
		nodes, err := c.nodes(level, at, end)
		if err != nil {
			return err
		}
		if err := yield(at, nodes); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// verifyAll holds every node of the file against its parent, and looks at the
// padding. What is a hole below an all-zero node is not read.
func (c *checker) verifyAll(ctx context.Context) error {
	c.strict = true
	err := c.each(ctx, 0, Range{0, c.lay.width[0]}, func(int64, []Hash) error { return nil })
	if err != nil {
		return err
	}
	return c.padding()
}

// padding refuses anything but zeroes between the levels: less than a page each.
func (c *checker) padding() error {
	var pad [pageSize]byte
	for level := c.lay.top(); level > 0; level-- {
		from, to := c.lay.place(level, c.lay.width[level]), c.lay.off[level-1]
		if err := readFull(c.m, pad[:to-from], from); err != nil {
			return &CorruptError{Path: c.path, Offset: from, Level: -1, Err: err}
		}
		if !IsZero(pad[:to-from]) {
			return &CorruptError{Path: c.path, Offset: from, Level: -1, Err: errPadding}
		}
	}
	return nil
}
