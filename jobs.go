package failback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
)

// Sync makes target equal to source and proves it. Only what differs is sent.
//
// A [RefusedError] means nothing was touched; a [VerifyError] that the target's
// medium does not hold what was written; any other error that the target may
// hold a part of the change: run Sync again.
func Sync(ctx context.Context, source, target Side, o Options) (*Report, error) {
	for _, s := range []Side{source, target} {
		if s.treeOnly() {
			return nil, usagef("%s is a digest: there is nothing in it to copy, and nowhere to copy to", s.Tree)
		}
	}
	return between(ctx, modeSync, source, target, o)
}

// Compare finds out whether a and b are equal and where they are not
// (Report.Extents). Either may have a Tree and no volume: then it stands for
// the volume it was made of, to the leaf. Nothing is written.
func Compare(ctx context.Context, a, b Side, o Options) (*Report, error) {
	switch {
	case a.treeOnly() && b.treeOnly():
		return compareTrees(ctx, a, b)
	case b.treeOnly():
		// The side that is read answers; which one is the source does not matter.
		a, b = b, a
	}
	return between(ctx, modeCompare, a, b, o)
}

func (s Side) treeOnly() bool { return s.Volume == nil && s.Dial == nil && s.Tree != "" }

func (s Side) check() error {
	switch {
	case s.Volume != nil && s.Dial != nil:
		return usagef("%s: a volume at hand and one at a peer cannot be the same side", s.label())
	case s.Volume == nil && s.Dial == nil && s.Tree == "":
		return usagef("%s: neither a volume, nor a way to reach one, nor a tree", s.label())
	case s.Volume != nil && (s.Volume.Size() <= 0 || s.Volume.Size()%512 != 0):
		return usagef("%s has %d bytes: a volume is a positive multiple of 512", s.label(), s.Volume.Size())
	case s.Dial != nil && s.Tree != "" && s.Dirty == nil && !s.TrustTree:
		return &RefusedError{Volume: s.label(),
			Reason: fmt.Sprintf("nothing says what was written since its tree %s was made", s.Tree),
			Next:   "give the dirty map since then, or say that the tree is current (--trust-tree)"}
	}
	return nil
}

// between runs a session of two sides, wherever they are.
func between(ctx context.Context, m mode, a, b Side, o Options) (*Report, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(a.check(), b.check(), o.Live.fits(m, a)); err != nil {
		return nil, err
	}
	j := job{mode: m, o: o}
	if o.Resume {
		j.resume = resumeMust
	}
	if _, err := rand.Read(j.session[:]); err != nil {
		return nil, err
	}
	if m == modeSync && !o.DryRun {
		return j.persist(ctx, a, b)
	}
	return j.once(ctx, a, b)
}

// once runs one session.
func (j *job) once(ctx context.Context, a, b Side) (*Report, error) {
	switch {
	case a.Dial == nil && b.Dial == nil:
		return j.local(ctx, a, b)
	case a.Dial == nil:
		return j.push(ctx, a, b)
	case b.Dial == nil:
		return j.pull(ctx, a, b)
	}
	return j.relay(ctx, a, b)
}

// A job is what the initiator of one session needs.
type job struct {
	mode    mode
	session [16]byte
	o       Options
	resume  uint8
	medium  bool // compare with the target's medium
}

// local joins both roles by a pipe: the session is the same as between machines.
func (j *job) local(ctx context.Context, a, b Side) (*Report, error) {
	if j.o.Codec == "auto" {
		j.o.Codec = "none" // nothing crosses a link
	}
	near, far := transport.Pipe()
	t, err := newTarget(ctx, b, j.o, far, j.writes())
	if err != nil {
		return nil, err
	}
	// Both ends are this process: the plan and progress are told by the source.
	t.o.Events = Events{Note: j.o.Events.Note}
	if tell := j.o.Events.Progress; tell != nil {
		t.applies = func() { tell(Progress{Phase: phaseApply}) }
	}
	s, err := j.source(ctx, a, b, []io.ReadWriteCloser{near})
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	s.near = true
	report, err := j.both(ctx, s, t)
	return report, errors.Join(err, s.close(), t.close())
}

// both runs two roles in this process.
func (j *job) both(ctx context.Context, s *source, t *target) (*Report, error) {
	var report *Report
	var mine, theirs error
	var g errgroup.Group
	g.Go(func() error {
		report, mine = s.run(ctx)
		return nil
	})
	g.Go(func() error {
		_, theirs = t.run(ctx)
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return report, firstHand(mine, theirs)
}

// firstHand returns the error of the side that met it: the other only heard of it.
func firstHand(mine, theirs error) error {
	if theirs != nil && !firsthand(mine) {
		return theirs
	}
	return mine
}

func (j *job) writes() bool { return j.mode == modeSync && !j.o.DryRun }

// push plays the source here; the target is served by a peer.
func (j *job) push(ctx context.Context, a, b Side) (*Report, error) {
	far, err := j.dialAll(ctx, b, roleTarget)
	if err != nil {
		return nil, err
	}
	s, err := j.sourceOver(ctx, a, b, far.conns)
	if err != nil {
		return nil, errors.Join(err, far.close())
	}
	report, err := s.run(ctx)
	return report, errors.Join(err, s.close())
}

// pull plays the target here; the source is served by a peer.
func (j *job) pull(ctx context.Context, a, b Side) (*Report, error) {
	if a.Tree != "" || a.TrustTree {
		return nil, usagef("the tree of a source at a peer belongs beside it: give it to its server")
	}
	far, err := j.dialAll(ctx, a, roleSource)
	if err != nil {
		return nil, err
	}
	t, err := newTargetOver(ctx, b, j.o, far.conns, j.writes())
	if err != nil {
		return nil, errors.Join(err, far.close())
	}
	if err := j.assign(ctx, far, a, Side{}, volumeInfo(position{name: t.name, size: t.vol.v.Size()}, t.vol)); err != nil {
		return nil, errors.Join(err, far.close(), t.close())
	}
	t.session, t.asked = j.session, j
	report, err := t.run(ctx)
	_ = far.close() // also streams that the session never came to
	return report, errors.Join(err, t.close())
}

// source prepares the source's role over raw connections.
func (j *job) source(ctx context.Context, a, b Side, rws []io.ReadWriteCloser) (*source, error) {
	conns := make([]*transport.Conn, len(rws))
	for i, rw := range rws {
		conns[i] = transport.New(rw, j.o.transport())
	}
	return j.sourceOver(ctx, a, b, conns)
}

// sourceOver prepares the source's role over framed connections. b gives the
// target's kept tree, if it lies here.
func (j *job) sourceOver(ctx context.Context, a, b Side, conns []*transport.Conn) (*source, error) {
	chooser, err := transport.NewChooser(j.o.Codec, encoders())
	if err != nil {
		return nil, usagef("codec: %v", err)
	}
	s := &source{
		o: j.o, mode: j.mode, session: j.session, name: a.label(), links: conns, dirty: a.Dirty,
		chooser: chooser, out: newOutlet(conns), resume: j.resume, medium: j.medium,
	}
	s.out.reached = s.reached
	if j.o.Live != nil {
		s.live = newLive(j.o.Live, j.session, a.label(), a.Volume.Size(), j.o.Events)
	}
	if j.o.barrier > 0 {
		s.out.every = j.o.barrier
	}
	if j.mode == modeSync {
		if err := refuseInconsistent(a); err != nil {
			return nil, err
		}
	}
	if a.Volume != nil {
		s.vol = &meter{v: a.Volume, name: a.label()}
	}
	if s.tree, err = openKept(ctx, a, s.vol); err != nil {
		return nil, err
	}
	switch {
	case b.Dial == nil: // it tells us itself
	case b.Tree == "":
		s.peerDirty = b.Dirty
	default:
		s.peer, err = openKept(ctx, Side{Tree: b.Tree, Dirty: b.Dirty, Name: b.Name}, nil)
	}
	if err != nil {
		return nil, errors.Join(err, s.tree.close())
	}
	return s, nil
}

// close gives back what the role holds besides its links.
func (s *source) close() error { return errors.Join(s.tree.close(), s.peer.close()) }

func newTarget(ctx context.Context, b Side, o Options, rw io.ReadWriteCloser, writable bool) (*target, error) {
	return newTargetOver(ctx, b, o, []*transport.Conn{transport.New(rw, o.transport())}, writable)
}

// newTargetOver prepares the target's role. Further connections are its further streams.
func newTargetOver(ctx context.Context, b Side, o Options, conns []*transport.Conn, writable bool) (*target, error) {
	vol := &meter{v: b.Volume, name: b.label()}
	tree, err := openKept(ctx, b, vol)
	if err != nil {
		return nil, err
	}
	join := func(_ context.Context, i int, _ time.Duration) (*transport.Conn, error) {
		if i >= len(conns) {
			return nil, protocolf("stream %d of %d", i, len(conns))
		}
		return conns[i], nil
	}
	t := &target{
		o: o, name: b.label(), link: conns[0], join: join, vol: vol, tree: tree, dirty: b.Dirty, writable: writable,
		log:    logbook{path: b.Journal, files: b.journalFiles(), name: b.label()},
		saveTo: savePlace{path: b.Undo, best: b.UndoBestEffort, files: b.undoAt},
	}
	t.stageAt, t.commit = stagePlace{dir: b.Stage, files: b.stageAt}, b.Commit
	return t, nil
}

func (t *target) close() error { return t.tree.close() }

// encoders is how many goroutines compress.
func encoders() int { return max(2, runtime.GOMAXPROCS(0)) }

// transport is what one of the session's connections gets: its share of the limit.
func (o Options) transport() transport.Options {
	limit := o.Limit
	if limit > 0 {
		limit = max(1, limit/int64(max(1, o.Streams)))
	}
	return transport.Options{Limit: limit, KeepAlive: o.KeepAlive, Timeout: o.Timeout}
}

// compareTrees compares two kept trees, without their volumes.
func compareTrees(ctx context.Context, a, b Side) (*Report, error) {
	x, err := openKept(ctx, a, nil)
	if err != nil {
		return nil, err
	}
	y, err := openKept(ctx, b, nil)
	if err != nil {
		return nil, errors.Join(err, x.close())
	}
	r, err := diffTrees(ctx, x, y)
	if r != nil {
		r.Source, r.Target = a.label(), b.label()
	}
	return r, errors.Join(err, x.close(), y.close())
}

func diffTrees(ctx context.Context, x, y *kept) (*Report, error) {
	var found extentList
	divergent := int64(0)
	_, err := merkle.DiffEach(ctx, x.file, y.file, func(r merkle.Range) error {
		e := x.facts.extent(r)
		divergent += e.Len()
		found.add(e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare trees: %w", err)
	}
	r := &Report{Schema: schemaCompare, Result: ResultEqual, Rung: RungMerkle.String(),
		Reason: "two kept trees: their volumes are not read", VolumeBytes: x.facts.size, Codec: map[string]int64{}}
	list, coarse := found.result()
	// What was written since is equal to nothing: there is no volume to read it from.
	unknown := cbt.Align(cbt.Union(x.dirty, y.dirty), x.facts.leaf, x.facts.size)
	r.DivergentBytes = divergent + cbt.Total(cbt.Subtract(unknown, list))
	r.Extents, r.Coarse = cbt.Coarsen(cbt.Union(list, unknown), maxExtents), coarse
	r.CandidateBytes = x.facts.size
	if r.DivergentBytes > 0 {
		r.Result = ResultDifferent
	}
	return r, nil
}
