package failback

import (
	"bytes"
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
)

// A comparison walks a layout on the source's side. Its own digests and the
// target's meet in a table by unit, whichever comes first; what differs goes on
// to a sink.
//
//	scan (workers) ──own digests──▶ ┐
//	                                ├─ meet ─equal──────────────────────▶ finished
//	target ────────its digests────▶ ┘    │
//	                                     ├─ pieces differ ──▶ sink ──────▶ finished
//	                                     └─ leaves differ ──▶ ask ─┐
//	target ────────its pieces────────────────────────────────▶ sink ─▶ finished
//
// Memory is bounded by slots: a unit under way holds one, with its content.
// Digests of units not yet scanned are bounded by the lookahead the target must
// keep to. Whatever the target sends, deliver and deliverPieces return at once,
// so that the goroutine that reads the link never waits for one that writes it.
type comparison struct {
	layout *layout
	size   int  // bytes of a digest
	blind  bool // everything differs: nothing is compared
	silent bool // the target sends no digests: the scan brings them
	every  bool // sinks get equal units too
	// ask requests the pieces of differing leaves; nil: leaves are fine enough.
	ask func(unit int64, leaves uint64) error
	// release tells the target that units below low are finished with.
	release func(low int64) error
	// settled is told the bytes of each unit that is finished.
	settled func(bytes int64)
	// mark is called at intervals of pace, every sink flushed; 0: never.
	mark func(ctx context.Context) error
	pace time.Duration

	slots chan struct{}
	// ahead holds an element for each unit handed out since the last release,
	// where the target sends nothing that would keep the source back; else nil.
	ahead chan struct{}
	jobs  chan *entry
	asks  chan *entry
	freed chan struct{} // cap 1: low has moved
	over  chan struct{} // closed when the last unit is finished

	mu        sync.Mutex
	table     map[int64]*entry
	open      int64           // units handed out and not finished
	next      int64           // number of the first unit not handed out
	exhausted bool            // there is none
	low       int64           // every unit below is finished
	finished  map[int64]int64 // units at or above low, with the offset each ends at
	end       int64           // offset; every candidate below is finished
	closed    bool
}

// lookahead is how many units the target may be ahead of what is finished.
const lookahead = 256

// releaseEvery is how many units may be finished before the target is told.
const releaseEvery = lookahead / 4

// An entry is a unit under way.
type entry struct {
	unit    unit
	buf     *buffer // its content, nil if it was not kept
	own     scanned
	remote  []byte // the target's digests
	scanned bool
	asked   bool
	leaves  uint64 // of a comparison by leaf: those that differ
	pieces  []tag  // the target's, of the pieces of those leaves
}

// A sink takes the units that differ. It serves one goroutine.
type sink interface {
	// differ is given a unit that differs; it may not keep it.
	differ(ctx context.Context, e *entry) error
	// flush is called once, when no more will come.
	flush(ctx context.Context) error
	// close gives back what the sink holds. It is called however it ended.
	close()
}

// A scanFunc makes a unit's own digests, and keeps its content in e.buf if that
// may be sent later.
type scanFunc func(ctx context.Context, e *entry) error

func newComparison(l *layout, digest int, slots int) *comparison {
	return &comparison{
		layout: l, size: digest,
		slots: make(chan struct{}, slots), jobs: make(chan *entry, slots), asks: make(chan *entry, slots),
		freed: make(chan struct{}, 1), over: make(chan struct{}),
		table: make(map[int64]*entry), finished: make(map[int64]int64),
	}
}

// run walks the layout, one goroutine for each scan and each sink. It returns
// when every unit is finished and every sink flushed, or at the first error.
func (c *comparison) run(ctx context.Context, scans []scanFunc, sinks []sink) error {
	w := c.layout.walk()
	g, ctx := errgroup.WithContext(ctx)
	for _, scan := range scans {
		g.Go(func() error { return c.scan(ctx, w, scan) })
	}
	flushes := make([]chan chan<- struct{}, len(sinks))
	for i, s := range sinks {
		flushes[i] = make(chan chan<- struct{})
		g.Go(func() error { return c.drain(ctx, s, flushes[i]) })
	}
	if c.pace > 0 {
		g.Go(func() error { return c.keepPace(ctx, flushes) })
	}
	g.Go(func() error { return c.talk(ctx) })
	err := g.Wait()
	return c.giveUp(err)
}

func (c *comparison) scan(ctx context.Context, w *walker, scan scanFunc) error {
	for {
		if err := c.room(ctx); err != nil {
			return err
		}
		e := c.issue(w)
		if e == nil {
			<-c.slots
			return nil
		}
		if err := scan(ctx, e); err != nil {
			return err
		}
		if err := c.meet(e, func() { e.scanned = true }); err != nil {
			return err
		}
	}
}

// room waits until one more unit may be under way.
func (c *comparison) room(ctx context.Context) error {
	if c.ahead != nil {
		select {
		case c.ahead <- struct{}{}:
		case <-c.over: // the walk found its end: there is nothing to wait for
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// issue hands out the next unit, nil when there is none.
func (c *comparison) issue(w *walker) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	u, ok := w.take()
	if !ok {
		c.exhausted = true
		c.closeIfDone()
		return nil
	}
	c.open++
	c.next = u.index + 1
	e := c.table[u.index]
	if e == nil {
		e = &entry{}
		c.table[u.index] = e
	}
	e.unit = u
	return e
}

// deliver takes the target's digests of a unit. They are copied.
func (c *comparison) deliver(index int64, digests []byte) error {
	if most := c.layout.maxUnit() / c.layout.grain(); int64(len(digests)) > most*int64(c.size) {
		return protocolf("%d bytes of digests for unit %d, of at most %d digests", len(digests), index, most)
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	e := c.table[index]
	_, finished := c.finished[index]
	if c.silent || index < c.low || index >= c.low+lookahead || finished || (e != nil && e.remote != nil) {
		low := c.low
		c.mu.Unlock()
		return protocolf("digests of unit %d, which were not expected (lowest open unit %d)", index, low)
	}
	if e == nil {
		e = &entry{}
		c.table[index] = e
	}
	c.mu.Unlock()
	return c.meet(e, func() { e.remote = bytes.Clone(digests) })
}

// meet notes that one half of e has come and judges it when both have.
func (c *comparison) meet(e *entry, note func()) error {
	c.mu.Lock()
	note()
	ready := e.scanned && (c.silent || e.remote != nil) && !c.closed
	c.mu.Unlock()
	if !ready {
		return nil
	}
	return c.judge(e)
}

// judge sends e where it belongs. The channels have room: an entry holds a slot.
func (c *comparison) judge(e *entry) error {
	switch {
	case c.blind:
		c.jobs <- e
		return nil
	case len(e.remote) != c.size*e.unit.count(c.layout.grain()):
		return protocolf("%d bytes of digests for unit %d of %d bytes", len(e.remote), e.unit.index, e.unit.bytes)
	case !c.every && bytes.Equal(e.remote, e.own.digests):
		c.finish(e)
		return nil
	}
	if c.layout.leaf > 0 && !c.every {
		e.leaves = differing(e.own.digests, e.remote, c.size)
	}
	if c.layout.leaf > 0 && c.ask != nil {
		// The goroutine that asks sets e.asked, so that no pieces come before.
		c.asks <- e
		return nil
	}
	c.jobs <- e
	return nil
}

// differing returns the set of digests, of size bytes each, that are not the same in a and b.
func differing(a, b []byte, size int) uint64 {
	set := uint64(0)
	for i := 0; i*size < len(a); i++ {
		if !bytes.Equal(a[i*size:(i+1)*size], b[i*size:(i+1)*size]) {
			set |= 1 << i
		}
	}
	return set
}

// deliverPieces takes the target's piece tags of the leaves it was asked for.
func (c *comparison) deliverPieces(index int64, leaves uint64, tags []tag) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	e := c.table[index]
	if e == nil || !e.asked || e.pieces != nil || leaves != e.leaves {
		return protocolf("pieces of unit %d, which were not asked for", index)
	}
	want := 0
	e.unit.grains(c.layout.leaf, func(i int, x cbt.Extent) {
		if leaves&(1<<i) != 0 {
			want += pieces(x)
		}
	})
	if len(tags) != want {
		return protocolf("%d pieces for unit %d, which has %d", len(tags), index, want)
	}
	e.pieces = tags
	c.jobs <- e
	return nil
}

// drain feeds one sink, and flushes it when it is told to.
func (c *comparison) drain(ctx context.Context, s sink, flushes <-chan chan<- struct{}) error {
	defer s.close()
	for {
		select {
		case done := <-flushes:
			if err := s.flush(ctx); err != nil {
				return err
			}
			close(done)
		case e, ok := <-c.jobs:
			if !ok {
				return s.flush(ctx)
			}
			if err := s.differ(ctx, e); err != nil {
				return err
			}
			c.finish(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keepPace has every sink flushed at intervals and then mark called, so that what
// is finished with can be made durable however little of it differs.
func (c *comparison) keepPace(ctx context.Context, flushes []chan chan<- struct{}) error {
	t := time.NewTicker(c.pace)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, flush := range flushes {
			done := make(chan struct{})
			select {
			case flush <- done:
			case <-c.over: // its last flush is its own
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := c.mark(ctx); err != nil {
			return err
		}
	}
}

// reached returns the offset below which every candidate is finished with.
func (c *comparison) reached() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exhausted && c.open == 0 {
		return c.layout.size
	}
	return c.end
}

// finish forgets e and frees its slot.
func (c *comparison) finish(e *entry) {
	if c.settled != nil {
		c.settled(e.unit.bytes)
	}
	c.mu.Lock()
	if e.buf != nil {
		e.buf.put()
		e.buf = nil
	}
	delete(c.table, e.unit.index)
	c.finished[e.unit.index] = e.unit.exts[len(e.unit.exts)-1].End
	before := c.low / releaseEvery
	for end, ok := c.finished[c.low]; ok; end, ok = c.finished[c.low] {
		delete(c.finished, c.low)
		c.end = end
		c.low++
	}
	moved := c.low/releaseEvery != before
	c.open--
	c.closeIfDone()
	c.mu.Unlock()
	<-c.slots
	if moved {
		select {
		case c.freed <- struct{}{}:
		default: // talk has not looked yet and will see this too
		}
	}
}

// closeIfDone ends sinks and talk when the last unit is finished. c.mu is held.
func (c *comparison) closeIfDone() {
	if c.exhausted && c.open == 0 && !c.closed {
		c.closed = true
		close(c.jobs)
		close(c.asks)
		close(c.over)
	}
}

// talk is the only goroutine of the comparison that writes control frames.
func (c *comparison) talk(ctx context.Context) error {
	told := int64(0)
	for {
		select {
		case e, ok := <-c.asks:
			if !ok {
				return nil
			}
			c.mu.Lock()
			e.asked = true
			c.mu.Unlock()
			if err := c.ask(e.unit.index, e.leaves); err != nil {
				return err
			}
		case <-c.freed:
			if c.release == nil {
				continue
			}
			c.mu.Lock()
			low := c.low
			c.mu.Unlock()
			if low == told {
				continue // two notes of the same move
			}
			if err := c.release(low); err != nil {
				return err
			}
			for ; told < low; told++ {
				if c.ahead != nil {
					<-c.ahead
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// giveUp gives back what a comparison that failed still holds.
func (c *comparison) giveUp(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for i, e := range c.table {
		if e.buf != nil {
			e.buf.put()
			e.buf = nil
		}
		if err == nil && i >= c.next {
			err = protocolf("digests of unit %d, of %d there are", i, c.next)
		}
	}
	return err
}
