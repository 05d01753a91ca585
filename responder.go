package failback

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A responder walks a layout on the target's side: it sends the digests of each
// unit and keeps the tags of its pieces until the source is finished with it,
// so that nothing is read twice.
//
// It never runs more than lookahead units ahead of what the source has
// released: that bounds what both sides hold.
type responder struct {
	layout *layout
	conn   *transport.Conn
	vol    *meter
	tree   *kept // with from == fromTree
	key    [32]byte
	digest merkle.Algorithm
	from   origin
	medium bool
	seal   *sealer   // takes the digests too; nil: none
	sums   *passSums // so do these
	scans  int       // goroutines that read and hash

	wants  chan message.Want
	walker *walker

	mu      sync.Mutex
	moved   *sync.Cond // low or stopped has changed
	low     int64      // every unit below is released
	walked  int64      // units handed to scanners
	made    int64      // units whose digests are made, and in the tree of a sealer
	held    map[int64]*held
	stopped bool
}

// A held is a unit whose digests are with the source.
type held struct {
	unit  unit
	tags  []tag // of its pieces; nil: to be read when wanted
	asked bool
}

func (r *responder) prepare() {
	r.moved = sync.NewCond(&r.mu)
	r.held = make(map[int64]*held)
	r.wants = make(chan message.Want, lookahead)
	r.walker = r.layout.walk()
}

// run sends every digest and answers what is wanted until stop is called.
func (r *responder) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	wake := context.AfterFunc(ctx, func() {
		// With the lock: else it could come between a look at ctx and the wait.
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moved.Broadcast()
	})
	defer wake()
	if r.from != fromPeer {
		for range r.scans {
			g.Go(func() error { return r.scan(ctx) })
		}
	}
	for range 2 {
		g.Go(func() error { return r.answer(ctx) })
	}
	return g.Wait()
}

func (r *responder) scan(ctx context.Context) error {
	sc, err := newScanner(r.vol, r.layout, r.key, r.digest)
	if err != nil {
		return err
	}
	sc.medium = r.medium
	buf := getBuf(int(max(chunkBytes, r.layout.leaf)))
	defer buf.put()
	var payload []byte
	for {
		h, ok, err := r.next(ctx)
		if !ok || err != nil {
			return err
		}
		got, err := r.digests(ctx, sc, h, buf.b)
		if err != nil {
			return err
		}
		if r.seal != nil {
			if err := r.seal.add(&h.unit, got.digests); err != nil {
				return err
			}
		}
		r.sums.add(&h.unit, got.digests)
		r.mu.Lock()
		r.made++
		r.mu.Unlock()
		m := message.Digests{Unit: uint64(h.unit.index), Size: uint8(digestSize(r.digest)), Sums: got.digests}
		payload = m.Append(payload[:0])
		if err := r.conn.Send(kindDigests, payload); err != nil {
			return err
		}
	}
}

// next waits until the source has room for another unit and takes it.
func (r *responder) next(ctx context.Context) (*held, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.walked >= r.low+lookahead && !r.stopped {
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		r.moved.Wait()
	}
	if err := ctx.Err(); err != nil || r.stopped {
		return nil, false, err
	}
	h := r.hold()
	return h, h != nil, nil
}

// hold takes the next unit, nil if there is none. r.mu is held.
func (r *responder) hold() *held {
	u, ok := r.walker.take()
	if !ok {
		return nil
	}
	r.walked++
	h := &held{unit: u}
	r.held[u.index] = h
	return h
}

// reach holds the units below end where no scan does, because the source has
// their digests. r.mu is held.
func (r *responder) reach(end int64) {
	for r.from == fromPeer && r.walked < min(end, r.low+lookahead) && r.hold() != nil {
	}
}

// complete reports whether the digests of every unit are made: nothing comes
// after. It may be asked of a responder that scans.
func (r *responder) complete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.made < r.walked {
		return false
	}
	_, more := r.walker.take()
	return !more
}

func (r *responder) digests(ctx context.Context, sc *scanner, h *held, buf []byte) (scanned, error) {
	if r.from == fromTree {
		d, err := r.tree.digests(ctx, &h.unit, sc)
		return scanned{digests: d}, err
	}
	got, err := sc.unit(&h.unit, buf)
	if err == nil && r.layout.leaf > 0 && got.tags != nil {
		r.mu.Lock()
		h.tags = got.tags
		r.mu.Unlock()
	}
	return got, err
}

// release notes that the source is finished with every unit below low.
func (r *responder) release(low int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reach(low)
	if low <= r.low || low > r.walked {
		return protocolf("release of units below %d, of %d sent and %d released", low, r.walked, r.low)
	}
	for i := r.low; i < low; i++ {
		delete(r.held, i)
	}
	r.low = low
	r.moved.Broadcast()
	return nil
}

// want takes a request for pieces. Each unit may be asked for once, so the
// queue has room for all that are held.
func (r *responder) want(m message.Want) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	unit := int64(min(m.Unit, 1<<62))
	r.reach(unit + 1)
	h := r.held[unit]
	if h == nil || h.asked || r.stopped || r.layout.leaf == 0 || m.Leaves == 0 {
		return protocolf("request for pieces of unit %d, which is not open to one", m.Unit)
	}
	if n := h.unit.count(r.layout.leaf); n < 64 && m.Leaves>>n != 0 {
		return protocolf("request for leaf %d and more of unit %d, which has %d", n, m.Unit, n)
	}
	h.asked = true
	r.wants <- m
	return nil
}

// stop ends answering: the source has all it wanted.
func (r *responder) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.stopped {
		r.stopped = true
		close(r.wants)
		r.moved.Broadcast()
	}
}

func (r *responder) answer(ctx context.Context) error {
	sc, err := newScanner(r.vol, r.layout, r.key, 0)
	if err != nil {
		return err
	}
	sc.medium = r.medium
	for {
		select {
		case m, ok := <-r.wants:
			if !ok {
				return nil
			}
			if err := r.pieces(sc, m); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *responder) pieces(sc *scanner, m message.Want) error {
	r.mu.Lock()
	h := r.held[int64(m.Unit)]
	var known []tag // a source that asks before it has the digests comes while they are made
	if h != nil {
		known = h.tags
	}
	r.mu.Unlock()
	if h == nil {
		return protocolf("unit %d released while its pieces were wanted", m.Unit)
	}
	out := message.Pieces{Unit: m.Unit, Leaves: m.Leaves}
	buf := getBuf(int(r.layout.leaf))
	defer buf.put()
	first := 0
	var err error
	h.unit.grains(r.layout.leaf, func(i int, x cbt.Extent) {
		n := pieces(x)
		from := first
		first += n
		if err != nil || m.Leaves&(1<<i) == 0 {
			return
		}
		var tags []tag
		if known != nil {
			tags = known[from : from+n]
		} else {
			b := buf.b[:x.Len()]
			if err = sc.read(b, x.Off); err != nil {
				return
			}
			tags = sc.appendTags(nil, b, x.Off)
		}
		for _, t := range tags {
			out.Sums = append(out.Sums, t[:]...)
		}
	})
	if err != nil {
		return err
	}
	return r.conn.Send(kindPieces, out.Append(nil))
}

// progress returns how many bytes the source is finished with, to the unit, and
// how many there are.
func (r *responder) progress() (done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	total = cbt.Total(r.layout.candidates)
	return min(r.low*r.layout.maxUnit(), total), total
}
