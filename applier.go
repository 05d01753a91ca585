package failback

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// An applier writes what arrives at the target and makes it durable.
//
// Frames belong to a generation: all that came on a stream between two
// barriers. A generation is complete when its closing barrier has come on every
// stream and all of its frames are written. Then, in this order (L10):
//
//  1. sync the volume: the data is on the medium, nobody has been told
//  2. read it back from the medium and hold it against the source's digests (L7)
//  3. record in the journal how far the source had come: a session that goes on
//     with this one begins there
//  4. acknowledge: only now may the source forget these blocks (L2)
//
// A crash between any two repeats work at the next session and loses none.
// Before a frame is written, the journal says that the target is inconsistent,
// and what lies there is in the undo log, both durable.
type applier struct {
	vol     *meter
	layout  *layout
	key     [32]byte
	conn    *transport.Conn // acknowledgements and credit go here
	writers int
	sparing bool     // nobody knows whether something lies there: zeroes are always punched
	log     *logbook // nil: the volume is not touched by what is written
	undo    saver    // nil: what is overwritten is not saved
	span    int64    // bytes the session is about
	done    int64    // what the journal says is finished with; commit's alone
	goesOn  bool     // the session is not over with the final generation

	jobs  chan writeJob
	turns chan *generation // in order
	over  chan struct{}    // closed when the final generation is done

	kept     atomic.Int64 // bytes of records that are remembered
	covered  atomic.Int64 // bytes written and zeroed
	most     int64        // bytes of the candidates
	settled  atomic.Bool  // the final generation is durable and read back
	received atomic.Int64 // stored bytes of bodies, for progress

	mu      sync.Mutex
	streams []inflow
	newest  *generation
	acked   uint64 // id of the last generation that is acknowledged
	taken   int64  // cost of what the source has sent and was not given back
	window  int64
}

// inflow is what the applier knows of one stream.
type inflow struct {
	gen    *generation
	frames uint64
	closed uint64 // frames before the last barrier
	final  bool
}

// A generation is what is made durable by one sync.
type generation struct {
	id       uint64
	final    bool
	done     int64 // bytes; below it the source is finished with everything
	next     *generation
	mu       sync.Mutex
	pending  int // frames not yet written, and barriers not yet come
	records  []record
	kept     int // bytes of records
	complete chan struct{}
}

// A record is one frame's part of what is to be read back.
type record struct {
	spans []message.Extent
	sums  []byte // 16 bytes a piece; nil: zeroes
}

// maxJobs is how many frames wait for a writer. A compressed frame takes little
// of the window and up to 1.2 MiB of memory: the window alone does not bound it.
const maxJobs = 16

// maxKept bounds what is remembered of all generations that are not yet
// acknowledged, bytes. A source that sets its barriers in time stays below it
// even with every piece in a frame of its own.
const maxKept = 96 << 20

// kept is what a record takes of maxKept.
func (r *record) kept() int { return 96 + 16*len(r.spans) + len(r.sums) }

type writeJob struct {
	frame *transport.Frame
	gen   *generation
}

func newApplier(streams int) *applier {
	a := &applier{jobs: make(chan writeJob, maxJobs), turns: make(chan *generation, maxUnacked), over: make(chan struct{})}
	a.newest = newGeneration(1, streams)
	a.streams = make([]inflow, streams)
	for i := range a.streams {
		a.streams[i].gen = a.newest
	}
	return a
}

func newGeneration(id uint64, streams int) *generation {
	return &generation{id: id, pending: streams, complete: make(chan struct{})}
}

// settle takes one off what the generation waits for.
func (g *generation) settle() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending--; g.pending == 0 {
		close(g.complete)
	}
}

// keep notes what is to be read back, and holds the session to what it may write:
// no candidate twice.
func (a *applier) keep(g *generation, r *record) error {
	n := int64(0)
	for _, x := range r.spans {
		n += x.End - x.Off
	}
	if a.covered.Add(n) > a.most {
		return protocolf("more data than the %d bytes of the candidates", a.most)
	}
	if a.kept.Add(int64(r.kept())) > maxKept {
		return protocolf("more than %d bytes to remember of what is not acknowledged", int64(maxKept))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kept += r.kept()
	g.records = append(g.records, *r)
	return nil
}

// run writes, syncs and acknowledges until the final generation is done.
func (a *applier) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range a.writers {
		g.Go(func() error { return a.write(ctx) })
	}
	g.Go(func() error { return a.commit(ctx) })
	return g.Wait()
}

// add takes a data, zero or discard frame of a stream. It may wait for the writers.
func (a *applier) add(ctx context.Context, stream int, f *transport.Frame) error {
	a.mu.Lock()
	in := &a.streams[stream]
	if in.final {
		a.mu.Unlock()
		return protocolf("data after the final barrier")
	}
	in.frames++
	gen := in.gen
	a.taken += cost(f)
	over := a.taken > a.window
	a.mu.Unlock()
	if over {
		return protocolf("more data than the window of %d bytes allows", a.window)
	}
	gen.mu.Lock()
	gen.pending++
	gen.mu.Unlock()
	select {
	case a.jobs <- writeJob{f, gen}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// cost is what a frame takes of the window.
func cost(f *transport.Frame) int64 { return int64(len(f.Head)+len(f.Body)) + frameCost }

// barrier ends a stream's part of a generation.
func (a *applier) barrier(stream int, m message.Barrier) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	in := &a.streams[stream]
	gen := in.gen
	if in.final || m.ID != gen.id || m.Frames != in.frames {
		return protocolf("barrier %d after %d frames, where %d after %d belongs", m.ID, m.Frames, gen.id, in.frames)
	}
	if gen.next == nil {
		// The first stream to get here says whether the generation is the last.
		gen.final, gen.done = m.Final, m.Done
		if m.Done > a.span {
			return protocolf("barrier %d says %d of %d bytes are finished with", m.ID, m.Done, a.span)
		}
		gen.next = newGeneration(gen.id+1, len(a.streams))
		a.newest = gen.next
		select {
		case a.turns <- gen:
		default:
			return protocolf("barrier %d, though none of the last %d is acknowledged", m.ID, cap(a.turns))
		}
	} else if gen.final != m.Final || gen.done != m.Done {
		return protocolf("barrier %d says one thing on one stream and another on the next", m.ID)
	}
	in.gen, in.closed, in.final = gen.next, in.frames, m.Final
	gen.settle()
	return nil
}

func (a *applier) write(ctx context.Context) error {
	w := writer{a: a}
	defer w.close()
	for {
		select {
		case <-a.over:
			return nil // complete generations have no jobs left
		case j := <-a.jobs:
			c := cost(j.frame)
			r, err := w.apply(ctx, j.frame)
			j.frame.Release()
			if err == nil {
				err = a.keep(j.gen, r)
			}
			if err != nil {
				return err
			}
			// Credit first: with the last frame settled the session may be over.
			if err := a.giveBack(c); err != nil {
				return err
			}
			j.gen.settle()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *applier) giveBack(n int64) error {
	a.mu.Lock()
	a.taken -= n
	a.mu.Unlock()
	return a.conn.Send(kindCredit, message.Credit{Bytes: uint32(n)}.Append(nil))
}

// commit makes generations durable, in order.
func (a *applier) commit(ctx context.Context) error {
	for {
		var gen *generation
		select {
		case gen = <-a.turns:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-gen.complete:
		case <-ctx.Done():
			return ctx.Err()
		}
		// The last time also with nothing written: what was found equal may have
		// been written by a session that was cut before it came to this.
		if len(gen.records) > 0 || gen.final || gen.done > a.done {
			if err := a.vol.sync(); err != nil {
				return err
			}
		}
		if x, twice := overlap(gen.records); twice {
			return protocolf("data for %v twice before barrier %d", x, gen.id)
		}
		if err := a.verify(ctx, gen); err != nil {
			return err
		}
		gen.records = nil
		a.kept.Add(-int64(gen.kept))
		if err := a.record(gen); err != nil {
			return err
		}
		if gen.final {
			a.settled.Store(true)
		}
		a.mu.Lock()
		a.acked = gen.id
		a.mu.Unlock()
		ack := message.Ack{ID: gen.id, Written: a.vol.written.Load(), Verified: a.vol.verified.Load()}
		if err := a.conn.Send(kindAck, ack.Append(nil)); err != nil {
			return err
		}
		if gen.final {
			close(a.over)
			return nil
		}
	}
}

// record notes in the journal what the source is finished with. After the final
// generation of a session with nothing more to do the journal is ended anyway.
func (a *applier) record(gen *generation) error {
	if a.log == nil || gen.done <= a.done || gen.final && !a.goesOn {
		return nil
	}
	a.done = gen.done
	saved := int64(0)
	if a.undo != nil {
		saved = a.undo.size()
	}
	return a.log.reach(gen.done, a.vol.written.Load(), saved)
}

// verify reads a generation back from the medium.
func (a *applier) verify(ctx context.Context, gen *generation) error {
	var next atomic.Int64
	var wrong extentList
	g, ctx := errgroup.WithContext(ctx)
	for range min(a.writers, len(gen.records)) {
		g.Go(func() error {
			t, err := newTagger(a.key)
			if err != nil {
				return err
			}
			buf := getBuf(chunkBytes)
			defer buf.put()
			for i := next.Add(1) - 1; i < int64(len(gen.records)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if err := a.verifyRecord(ctx, t, &gen.records[i], buf.b, &wrong); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if x := cbt.Normalize(wrong.list); len(x) > 0 {
		return &VerifyError{Volume: a.vol.name, Extent: x[0], Bytes: cbt.Total(x)}
	}
	return nil
}

func (a *applier) verifyRecord(ctx context.Context, t *tagger, r *record, buf []byte, wrong *extentList) error {
	sums := r.sums
	for _, span := range r.spans {
		for off := span.Off; off < span.End; {
			if err := ctx.Err(); err != nil {
				return err // a span of zeroes may be as long as the volume
			}
			b := buf[:min(int64(len(buf)), span.End-off)]
			if err := a.vol.readMedium(b, off); err != nil {
				return err
			}
			for len(b) > 0 {
				n := min(len(b), pieceSize)
				want := tag{}
				if r.sums != nil {
					want, sums = tag(sums), sums[len(tag{}):]
				}
				if t.piece(off, b[:n]) != want {
					wrong.add(cbt.Extent{Off: off, End: off + int64(n)})
				}
				b, off = b[n:], off+int64(n)
			}
		}
	}
	return nil
}

// ready makes what must be durable before spans are overwritten.
func (a *applier) ready(ctx context.Context, spans []message.Extent) error {
	if err := a.log.touch(); err != nil {
		return err
	}
	if a.undo == nil {
		return nil
	}
	saved, err := a.undo.save(ctx, a.vol, spans)
	if err != nil {
		return err
	}
	count := &a.vol.unsaved
	if saved {
		count = &a.vol.saved
	}
	for _, x := range spans {
		count.Add(x.End - x.Off)
	}
	return nil
}

// A writer applies frames; it serves one goroutine.
type writer struct {
	a    *applier
	data message.Data
	zero message.Zero
	buf  *buffer
}

func (w *writer) close() {
	if w.buf != nil {
		w.buf.put()
	}
}

func (w *writer) apply(ctx context.Context, f *transport.Frame) (*record, error) {
	if f.Kind == kindData {
		return w.applyData(ctx, f)
	}
	// A discard is a promise that the content does not matter any more; what
	// counts here is that it reads as zeroes on both sides, so it is a zero.
	if err := w.zero.Decode(f.Payload()); err != nil {
		return nil, err
	}
	for _, x := range w.zero.Spans {
		if !w.a.layout.contains(x.Off, x.End-x.Off) {
			return nil, protocolf("zeroes for %v, which is not among the candidates", cbt.Extent(x))
		}
	}
	if err := w.a.ready(ctx, w.zero.Spans); err != nil {
		return nil, err
	}
	for _, x := range w.zero.Spans {
		if err := w.clear(ctx, x); err != nil {
			return nil, err
		}
	}
	return &record{spans: append([]message.Extent(nil), w.zero.Spans...)}, nil
}

// punchBytes is the shortest range worth giving back to the file system. A hole
// costs it a journal entry and a split extent; what is shorter is overwritten
// with zeroes, which takes no new space where something else lay before.
const punchBytes = 64 << 10

// clearStep is how much is zeroed between two looks at whether to go on.
const clearStep = 1 << 30

func (w *writer) clear(ctx context.Context, x message.Extent) error {
	n := x.End - x.Off
	if n < punchBytes && !w.a.sparing {
		return w.a.vol.writeAt(zeroes()[:n], x.Off)
	}
	for off := x.Off; off < x.End; off += clearStep {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.a.vol.zeroAt(ctx, off, min(clearStep, x.End-off)); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) applyData(ctx context.Context, f *transport.Frame) (*record, error) {
	if err := w.data.Decode(f.Head); err != nil {
		return nil, err
	}
	total := int64(0)
	for _, x := range w.data.Spans {
		if x.Off%pieceSize != 0 || !w.a.layout.contains(x.Off, x.End-x.Off) {
			return nil, protocolf("data for %v, which is not among the candidates", cbt.Extent(x))
		}
		total += x.End - x.Off
	}
	if total != int64(f.Raw) {
		return nil, protocolf("%d bytes of data for %d bytes of volume", f.Raw, total)
	}
	if w.buf == nil && f.Codec != transport.None {
		w.buf = getBuf(transport.MaxRaw)
	}
	var room []byte
	if w.buf != nil {
		room = w.buf.b
	}
	body, err := transport.Decode(f, room)
	if err != nil {
		return nil, err
	}
	if err := w.a.ready(ctx, w.data.Spans); err != nil {
		return nil, err
	}
	for _, x := range w.data.Spans {
		n := x.End - x.Off
		if err := w.a.vol.writeAt(body[:n], x.Off); err != nil {
			return nil, err
		}
		body = body[n:]
	}
	w.a.received.Add(total)
	return &record{
		spans: append([]message.Extent(nil), w.data.Spans...),
		sums:  append([]byte(nil), w.data.Sums...),
	}, nil
}
