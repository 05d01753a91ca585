package failback

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A stagePlace is where a target's side has sessions staged.
type stagePlace struct {
	dir      string     // "": nowhere
	onDemand bool       // a server's: only for peers that ask
	files    stageFiles // nil: on this machine
}

func (p stagePlace) on() stageFiles {
	if p.files == nil {
		return stageDisk{}
	}
	return p.files
}

// stageProgress is how far a stage is applied. Bytes of the target.
type stageProgress struct {
	began, ended   atomic.Int64 // unix nanoseconds; 0: not yet
	total          atomic.Int64
	written, right atomic.Int64
	before         atomic.Int64 // done before the first byte is written: read, saved
}

func (p *stageProgress) looked(n int64) { p.before.Add(n) }
func (p *stageProgress) laid(n int64)   { p.written.Add(n) }
func (p *stageProgress) proved(n int64) { p.right.Add(n) }

// moved changes when anything gets done.
func (p *stageProgress) moved() int64 { return p.before.Load() + p.written.Load() + p.right.Load() }

// nanoseconds is how long it took.
func (p *stageProgress) nanoseconds() int64 { return max(0, p.ended.Load()-p.began.Load()) }

// staging is what a target knows of its session's stage.
type staging struct {
	stageAt stagePlace
	stage   *stage        // nil: what comes is written to the volume
	base    *meter        // the volume under the stage
	applied stageProgress // of it
	marked  atomic.Bool   // the journal says, or may say, that it is being applied
	told    atomic.Bool   // the source was told that it is
	dropped bool          // the stage is applied and removed; before told
	blank   bool          // the undo log was empty when the session began
	saved   int64         // bytes of the undo log that hold all that is going to be overwritten
	wrote   string        // what the volume had counted of writes when the session began; "": it does not count
	sums    *passSums     // of a pass over the stage; nil: there was none
	redoing stageProgress // of one that an interrupted session has left

	ends    <-chan struct{} // closed when whoever runs the target stops; nil: never
	applies func()          // is told before a stage is applied; may be nil
	commit  commitFunc      // decides whether it is; nil: it is
}

// look looks at what earlier sessions have left, and finishes one that was
// interrupted while it was applied.
func (t *target) look(ctx context.Context) error {
	staged, err := t.toStage()
	if err == nil && t.writes() {
		err = t.redo(ctx)
	}
	if err != nil {
		return err
	}
	t.log.staged = staged
	if err := t.log.look(&t.start, volumeInfo(t.facts, t.vol), t.vol); err != nil || !staged {
		return err
	}
	return t.openStage()
}

// keepers are what is told of writes before they are made: of those to a stage
// nobody is.
func (t *target) keepers() (*logbook, saver) {
	if t.stage != nil {
		return nil, nil
	}
	return &t.log, t.undo
}

// gone ends the journal of a session that both sides know to be over.
func (t *target) gone() error {
	if t.stage != nil && !t.told.Load() {
		return protocolf("good-bye before the end of a session that is being applied")
	}
	return t.log.gone()
}

// evidence is what is known of the session beside its source's report.
func (t *target) evidence() evidence {
	return evidence{start: &t.start, plan: &t.plan, size: t.vol.v.Size(), target: t.vol, name: t.name, staged: &t.applied, root: t.root}
}

// leave ends what is left of a session that has ended with err.
func (t *target) leave(err error) error {
	switch {
	case !t.writes():
		return nil
	case t.stage == nil:
		return t.log.leave(t.vol, err)
	case t.marked.Load():
		return errors.Join(t.log.leave(t.base, err), t.leaveStage(err))
	}
	return errors.Join(t.unsave(err), t.leaveStage(err))
}

// unsave removes the undo log of a session that has overwritten nothing: it would be
// in the way of the next. One that had something in it before is that of an attempt of
// the same session which was cut while it was applied.
func (t *target) unsave(err error) error {
	w, ours := t.undo.(*undoWriter)
	if err == nil || !ours || !t.blank {
		return nil
	}
	t.undo = nil
	return errors.Join(w.close(), t.saveTo.on().remove(w.path))
}

// toStage reports whether the session is to be staged, and refuses one that cannot be.
func (t *target) toStage() (bool, error) {
	dir := t.stageAt.dir
	if t.stageAt.onDemand && !t.start.Stage {
		dir = ""
	}
	switch {
	case !t.writes():
		return false, nil
	case dir == "" && t.start.Stage:
		return false, &RefusedError{Volume: t.name, Reason: "a staged sync was asked for and its server has no place for stages",
			Next: "have it have one (failback serve --stage DIR), or sync without"}
	case dir == "":
		return false, nil
	case t.log.path == "":
		return false, &RefusedError{Volume: t.name, Reason: "a staged sync needs its resume journal, which says what is to be finished after a crash, and none is kept",
			Next: "keep one, or sync without a stage"}
	case t.start.Resume == resumeMust:
		return false, &RefusedError{Volume: t.name, Reason: "a staged sync is not gone on with: it leaves the target as it was, or is finished from its stage",
			Next: "sync without --resume, or without --stage: that makes the target equal in place"}
	}
	return true, nil
}

// openStage has what the session writes staged from now on.
func (t *target) openStage() error {
	stamp, err := t.vol.stamp()
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(t.stageAt.dir)
	if err != nil {
		return err
	}
	place, err := filepath.Abs(t.log.path)
	if err != nil {
		return err
	}
	if t.wrote, err = t.vol.writes(); err != nil {
		return err
	}
	f := stageFacts{
		journal: place,
		target:  undoVolume{Size: t.vol.v.Size(), Identity: clip(t.vol.identity()), Name: clip(t.name)},
		source:  undoVolume{Size: t.start.Volume.Size, Identity: t.start.Volume.Identity, Name: t.start.Volume.Name},
		session: t.start.Session, stamp: stamp,
	}
	if t.log.kept {
		f.after = t.start.After
	}
	s, err := beginStage(t.stageAt.on(), stagePath(dir, f.target, place), t.vol, f)
	if err != nil {
		return t.stageRefused(err)
	}
	t.stage, t.base = s, t.vol
	t.vol = &meter{v: s, name: "stage " + s.path}
	return nil
}

// recordable refuses paths that the journal has no room for: it would be too late when
// everything is gathered.
func (t *target) recordable() error {
	if t.stage == nil {
		return nil
	}
	rec := t.log.rec
	rec.Stage = t.stage.path
	if err := rec.Fits(); err != nil {
		return &RefusedError{Volume: t.name, cause: err, Reason: fmt.Sprintf("its resume journal has no room for what it has to name (%v)", err),
			Next: "give shorter paths (--stage DIR, --undo FILE)"}
	}
	return nil
}

// stageRefused makes a refusal of a stage that cannot be made: nothing is touched.
func (t *target) stageRefused(err error) error {
	var mine *stageError
	if !errors.As(err, &mine) {
		return err
	}
	return &RefusedError{Volume: t.name, cause: err, Reason: fmt.Sprintf("what comes cannot be staged (%v)", err), Next: mine.Next()}
}

// allocated is what the target may hold, with what is staged of it already.
func (t *target) allocated(ctx context.Context) ([]cbt.Extent, bool, error) {
	if t.stage == nil {
		return t.vol.allocated(ctx)
	}
	x, known, err := t.base.allocated(ctx)
	if err == nil && known {
		x, err = t.stage.allocated(ctx, x)
	}
	return x, known, err
}

// sealStaged ends a session that was staged: it applies the stage, if both sides
// have the same, and only then tells the source. The source is read meanwhile.
func (t *target) sealStaged(ctx context.Context, g *errgroup.Group, out message.Sealed, equal bool) error {
	if !t.apply.Load().settled.Load() {
		return protocolf("the end of a session whose data is not all acknowledged")
	}
	g.Go(func() error {
		if equal {
			on, done := t.outlive(ctx)
			err := lively(ctx, t.link, &t.applied, func() error { return t.enact(ctx, on) })
			done()
			if err != nil {
				return err
			}
		}
		stamp, err := t.base.stamp()
		if err != nil {
			return err
		}
		if equal {
			t.dropStage()
		}
		out.Stamp = clip(stamp)
		out.Stats = append(stats(t.vol), message.Stat{ID: statStaged, Value: uint64(t.applied.total.Load())},
			message.Stat{ID: statApplying, Value: uint64(t.applied.nanoseconds())})
		t.told.Store(true)
		return t.link.Send(kindSealed, out.Append(nil))
	})
	return nil
}

// enact makes of the target what is staged. The order is (L10):
//
//  1. sync what is staged, and its index; read all of it from the medium; say in its
//     head that it is whole, and read that back. Whoever owns the target decides here (Side.Commit)
//  2. save what the target holds there, and end the undo log, if there is one; see that
//     nobody has written the target meanwhile, and that it has room
//  3. record in the journal that the target is being made equal to this stage: from
//     here on it will be, whatever happens (redo does the rest)
//  4. write it to the target, sync that, read it back from the medium (L7); all of the
//     target, where all of it was asked to be proven
//  5. record in the journal that the session is complete: the target is consistent
//  6. remove the stage
//
// Up to 3 the session's end ends it, unless the owner has decided. From there on no
// peer is needed for it, and none that is lost stops it: only the end of on does, which
// is that of whoever runs the target, and is like a crash.
//
// The source hears of it after 5 (L2). A crash before 3 leaves the target as it was,
// consistent, and a stage that nobody applies: somebody else may write the target
// then, and only the journal, which all who write it have to look at, could tell. One
// between 3 and 5 leaves the mark; who comes next goes on at 4. One after 5 leaves a
// stage that is of no use. The next session drops what is of no use.
func (t *target) enact(ctx, on context.Context) error {
	s, p := t.stage, &t.applied
	p.total.Store(s.staged())
	p.began.Store(time.Now().UnixNano())
	out := &meter{v: t.base.v, name: t.base.name}
	t.tell()
	whole := []func() error{
		func() error { return s.settle(stageKept) },
		func() error { return s.check(ctx, p.looked) },
		func() error { return s.declare(stageWhole) },
	}
	empty := p.total.Load() == 0
	if empty {
		// What was found equal may have been written by a session that was cut.
		whole = []func() error{out.sync}
	}
	if err := inTurn(whole); err != nil {
		return err
	}
	err := t.decide(ctx, on, func(until, on context.Context) error {
		steps := []func() error{
			func() error { return t.saveStaged(until, out) },
			func() error { return t.alone() },
			func() error { return t.room(until) },
			func() error { return t.mark(until) },
			func() error { return s.apply(on, out, p) },
			func() error { return t.provePass(on, out) },
			func() error { return t.log.complete(t.span()) },
		}
		if empty {
			steps = append(steps[:2:2], steps[6])
		}
		return inTurn(steps)
	})
	if err != nil {
		return err
	}
	p.ended.Store(time.Now().UnixNano())
	t.vol.written.Store(out.written.Load())
	t.vol.zeroed.Store(out.zeroed.Load())
	t.vol.saved.Store(out.saved.Load())
	t.vol.unsaved.Store(out.unsaved.Load())
	t.vol.verified.Add(out.verified.Load())
	return nil
}

// inTurn takes steps until one goes wrong.
func inTurn(steps []func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// mark records that the target is being written, unless ctx has ended.
// Whether that got there or not, from here on nothing of the session is taken back.
func (t *target) mark(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.marked.Store(true)
	return t.log.enact(t.stage.path, t.stage.h.after, t.saved)
}

// undoBatch is how much is saved between two syncs of the undo log.
const undoBatch = 64 << 20

// saveStaged saves what the target holds where something is staged.
func (t *target) saveStaged(ctx context.Context, out *meter) error {
	if t.undo == nil {
		return nil
	}
	var batch []message.Extent
	n := int64(0)
	flush := func() error {
		if n == 0 {
			return nil
		}
		saved, err := t.undo.save(ctx, out, batch)
		t.applied.looked(n)
		if saved {
			out.saved.Add(n)
		} else {
			out.unsaved.Add(n)
		}
		batch, n = batch[:0], 0
		return err
	}
	err := t.stage.chunks(func(c stageChunk) error {
		batch, n = append(batch, message.Extent(c.Extent)), n+c.Len()
		if n < undoBatch {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	t.saved = t.undo.size() // who goes on with the log begins by taking its end away
	return t.undo.finish()
}

// leaveStage ends what is staged, when the session has ended with err and nobody of
// it writes any more.
func (t *target) leaveStage(err error) error {
	s := t.stage
	var failed error
	switch {
	case s == nil, t.dropped:
		return nil
	case t.marked.Load():
		return s.close() // it is to be applied
	case retryable(err):
		// The peer may come again, and what has come need not travel twice.
		failed = s.settle(stageKept)
	}
	failed = errors.Join(failed, s.close())
	if failed != nil || !retryable(err) {
		failed = errors.Join(failed, removeStage(s.files, s.path))
	}
	return failed
}

// dropStage removes a stage that is applied. What goes wrong with that is no error
// of the session: both sides are equal.
func (t *target) dropStage() {
	t.dropped = true
	err := errors.Join(t.stage.close(), removeStage(t.stage.files, t.stage.path))
	if err != nil && t.o.Events.Note != nil {
		t.o.Events.Note(fmt.Sprintf("%v: it is of no use any more, and the next staged sync drops it", err))
	}
}

// tell has it known at once that the target is going to be written.
func (t *target) tell() {
	switch {
	case t.o.Events.Progress != nil:
		p := t.progress()
		p.Phase = phaseApply
		t.o.Events.Progress(p)
	case t.applies != nil:
		t.applies()
	}
}

// lively says on c how far p is while f runs, at once and then every second in which
// anything got done: a source that hears nothing but keep-alive gives up in time.
func lively(ctx context.Context, c *transport.Conn, p *stageProgress, f func() error) error {
	// Where it does not get there the link is gone, and its reader says so.
	say := func() {
		_ = c.Send(kindAck, message.Ack{Written: p.written.Load(), Verified: p.right.Load()}.Append(nil))
	}
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		say()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		moved := p.moved()
		for {
			select {
			case <-tick.C:
				if now := p.moved(); now != moved {
					moved = now
					say()
				}
			case <-over:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() {
		close(over)
		<-done
	}()
	return f()
}
