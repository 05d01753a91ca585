package failback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/failback/failback/internal/journal"
)

// A redo finishes what a crash has interrupted: a stage that was being applied.
type redo struct {
	name    string
	journal string
	place   string // of the journal, an absolute path
	logs    journal.Files
	stages  stageFiles
	note    func(string) // may be nil
	p       *stageProgress
	rec     journal.Record // as the journal has it
	staged  *stage
	anyhow  bool   // the target is going to be overwritten or compared as a whole, or whoever finishes it accepts what is lost
	written string // why somebody may have written the target since; "": nobody has
	doubt   string // why nothing vouches for what lies beside what is staged; "": it does
	// after is the session as which's end the target was found when the one that was
	// interrupted began; zeroes unless nobody else can have written it since. What that
	// one has staged its source holds for dirty until it hears of its end.
	after [16]byte
}

// pendingStage returns what is to be finished at a target, nil if nothing is.
func pendingStage(files journal.Files, path string) (*journal.Record, error) {
	if path == "" {
		return nil, nil
	}
	rec, err := journal.Read(files, path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, journal.ErrNotJournal), errors.Is(err, journal.ErrCorrupt):
		return nil, nil // whoever syncs says what is to be said of that
	case err != nil:
		return nil, err
	case rec.Stage == "" || !rec.Touched || rec.Complete:
		return nil, nil
	}
	return rec, nil
}

// redo finishes what was interrupted onto the target, before anything else is
// looked at.
func (t *target) redo(ctx context.Context) error {
	rec, err := pendingStage(t.log.files, t.log.path)
	if rec == nil || err != nil {
		return err
	}
	r, err := newRedo(t.name, t.log.path, t.log.files, rec)
	if err != nil {
		return err
	}
	r.stages, r.note, r.p, r.anyhow = t.stageAt.on(), t.o.Events.Note, &t.redoing, true
	on, done := t.outlive(ctx)
	defer done()
	t.tell()
	err = lively(ctx, t.link, &t.redoing, func() error { return r.run(on, t.vol.v) })
	t.log.redone, t.log.redoneAfter = true, r.after
	t.lines.redone.Store(err == nil)
	return err
}

func newRedo(name, path string, logs journal.Files, rec *journal.Record) (*redo, error) {
	place, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return &redo{name: name, journal: path, place: place, logs: logs, rec: *rec}, nil
}

// run goes on with [target.enact], at its fourth step. What it did before the crash
// it does again.
//
//  1. read the whole stage, from its medium: a damaged one touches nothing more
//  2. refuse, or tell, that what somebody has written to the target since may be lost
//  3. replace the journal by one that says the same: what is read of it may never
//     have become durable
//  4. write what is staged to the target, sync that, read it back from the medium
//  5. record that it is complete, or that it is in doubt: see vouch
//  6. remove the stage
//
// A crash before 5 leaves the mark, and all of it is done again; an error likewise, and
// the target's stamp. No peer is needed for it: it goes on without, until ctx ends,
// which is that of whoever runs it.
func (r *redo) run(ctx context.Context, target Volume) (err error) {
	vol := &meter{v: target, name: r.name}
	if r.staged, err = r.whole(ctx, vol); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return r.refuse(err)
	}
	r.p.total.Store(r.staged.staged())
	r.p.began.Store(time.Now().UnixNano())
	if err = r.vouch(vol); err == nil {
		err = r.admit()
	}
	if err == nil {
		err = r.apply(ctx, vol)
	}
	if err = errors.Join(err, r.staged.close()); err != nil {
		return err
	}
	r.p.ended.Store(time.Now().UnixNano())
	failed := removeStage(r.stages, r.rec.Stage)
	if r.note == nil {
		return nil
	}
	text := fmt.Sprintf("%s: a staged sync from %s, interrupted at %s while it was applied, is finished from its stage %s",
		r.name, cleanText(r.rec.Source.Name), r.rec.Updated.Format(time.DateTime), r.rec.Stage)
	if r.doubt != "" {
		text += "; it is in doubt: " + r.doubt
	}
	r.note(text)
	if failed != nil {
		r.note(fmt.Sprintf("%v: it is of no use any more, and the next staged sync drops it", failed))
	}
	return nil
}

// vouch settles whether the target is what the session was going to make it once what
// is staged lies in it. That says nothing of the rest, and of what was written there
// since by somebody whom the mark did not hold off; and where he had synced the target
// to something newer, what is staged is old. Only the target's stamp tells that nobody
// has. A session that was killed, or lost power, left none: then all of the target is
// to be compared, past every map (L1).
func (r *redo) vouch(vol *meter) error {
	now, err := vol.stamp()
	if err != nil {
		return err
	}
	switch left := r.rec.Left; {
	case left == "":
		r.written = "nothing tells whether somebody has written it since, for the sync was killed or lost power"
	case now != left:
		r.written = fmt.Sprintf("it, or what else lies on its disk, was written since (%s, now %s)", left, cmp.Or(now, "nothing that tells"))
	}
	r.doubt = r.written
	if r.rec.Suspect {
		r.doubt = "its medium did not hold what it should, or it was in doubt before"
	}
	if r.doubt == "" {
		r.after = r.staged.h.after
	}
	r.rec.Suspect, r.rec.Left = r.doubt != "", ""
	return nil
}

// admit refuses to lay what is staged over what somebody may have written since (L4),
// or tells before the first byte that this is lost (L3). A sync makes all of the target
// what its source is; who only finishes a stage has to have been told to.
func (r *redo) admit() error {
	switch {
	case r.written == "":
	case !r.anyhow:
		return &RefusedError{Volume: r.name, Reason: fmt.Sprintf("what is staged for it, %d bytes, would be laid over what may have been written there since a staged sync from %s was interrupted: %s",
			r.staged.staged(), cleanText(r.rec.Source.Name), r.written),
			Next: "if nothing has written it, or what has may be lost: --though-written; otherwise save what it holds first, or give the stage up (--discard)"}
	case r.note != nil:
		r.note(fmt.Sprintf("%s: what is staged for it, %d bytes, is laid over it, and what somebody has written there since is lost: %s", r.name, r.staged.staged(), r.written))
	}
	return nil
}

func (r *redo) apply(ctx context.Context, vol *meter) error {
	j, err := journal.Begin(r.logs, r.journal, r.rec)
	if err != nil {
		return err
	}
	end := r.rec
	if err = r.staged.apply(ctx, vol, r.p); err == nil {
		end.Stage, end.Undo, end.Saved, end.Updated = "", "", 0, time.Now()
		if end.Suspect {
			end.Touched, end.Done = false, 0
		} else {
			end.Complete, end.Done = true, min(end.Source.Size, end.Target.Size)
		}
		err = j.Commit(end)
	} else {
		err = errors.Join(err, r.leave(vol, j, err))
	}
	return errors.Join(err, j.Close())
}

// leave records how a target is left that could not be finished, because of err:
// whoever comes next sees whether somebody has written it since (see [logbook.leave]).
func (r *redo) leave(vol *meter, j *journal.File, err error) error {
	var lost *syncError
	var failed error
	end := r.rec
	if end.Updated = time.Now(); isWrong(err) {
		end.Suspect, end.Done = true, 0
	}
	if !errors.As(err, &lost) {
		if failed = vol.sync(); failed == nil {
			end.Left, failed = vol.stamp()
		}
	}
	if end.Left == "" && !end.Suspect {
		return failed
	}
	return errors.Join(failed, j.Commit(end))
}

// refuse says what to do about a stage that is gone or damaged.
func (r *redo) refuse(err error) error {
	return &RefusedError{Volume: r.name, cause: err,
		Reason: fmt.Sprintf("a staged sync from %s was being applied to it when it was interrupted, and it cannot be finished (%v)", cleanText(r.rec.Source.Name), err),
		Next:   fmt.Sprintf("bring the stage back as it was; or give it up (failback apply --discard TARGET %s) and sync anew", filepath.Dir(r.rec.Stage))}
}

// ApplyStage finishes what a crash has interrupted: it makes the volume, which was
// the target of a staged [Sync], what it was going to be. The next Sync onto it does
// so by itself. Where nothing tells that nobody has written the volume since the
// crash it is a [RefusedError], for that would be lost; with Side.ThoughWritten it goes
// on, says so first (Events.Note), Report.Doubt says why, Result is not equal, and the
// volume stays in doubt until a Sync onto it has compared all of it. It is a
// RefusedError, too, if nothing is to be finished, or not from where Stage says. With discard the stage is given up and removed instead: the
// volume stays as the crash has left it, marked inconsistent.
func (s Side) ApplyStage(ctx context.Context, o Options, discard bool) (*Report, error) {
	if s.Volume == nil || s.Journal == "" || s.Stage == "" {
		return nil, usagef("%s: a stage is applied to a volume at hand, with its journal and the directory of its stage", s.label())
	}
	began := time.Now()
	rec, err := pendingStage(s.journalFiles(), s.Journal)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, s.nothingPending()
	}
	dir, err := filepath.Abs(s.Stage)
	if err != nil {
		return nil, err
	}
	if dir != filepath.Dir(rec.Stage) {
		return nil, &RefusedError{Volume: s.label(), Reason: fmt.Sprintf("what is to be applied to it is staged as %s, which is not in %s", rec.Stage, dir),
			Next: "name the directory " + filepath.Dir(rec.Stage)}
	}
	var p stageProgress
	r, err := newRedo(s.label(), s.Journal, s.journalFiles(), rec)
	if err != nil {
		return nil, err
	}
	r.stages, r.note, r.p, r.anyhow = stagePlace{files: s.stageAt}.on(), o.Events.Note, &p, s.ThoughWritten
	if discard {
		return nil, r.discard()
	}
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		ticking(ctx, stop, o.Events.Progress, func() Progress { return p.progress(began) })
	}()
	err = r.run(ctx, s.Volume)
	close(stop)
	<-ended
	if err == nil {
		err = r.over()
	}
	if err != nil {
		return nil, err
	}
	n, result := p.total.Load(), ResultEqual
	if r.doubt != "" {
		result = resultDoubt
	}
	return &Report{Schema: schemaSync, Result: result, Doubt: r.doubt, Rung: "", Source: cleanText(rec.Source.Name), Target: s.label(), VolumeBytes: min(rec.Source.Size, rec.Target.Size),
		Verified: VerifyChanged.String(), Codec: map[string]int64{}, StagedBytes: n, TargetWrittenBytes: p.written.Load(), TargetVerifiedBytes: p.right.Load(),
		Seconds: Seconds{Apply: float64(p.nanoseconds()) / 1e9, Total: since(began)}}, nil
}

// nothingPending refuses to finish what no journal tells of.
func (s Side) nothingPending() error {
	if _, err := journal.Read(s.journalFiles(), s.Journal); errors.Is(err, journal.ErrCorrupt) {
		return &RefusedError{Volume: s.label(), cause: err,
			Reason: fmt.Sprintf("its resume journal is damaged (%v): whether a staged sync onto it was interrupted while it was applied, and left it half written, nothing tells", err),
			Next:   "sync onto it again: all of it is compared"}
	}
	return &RefusedError{Volume: s.label(), Reason: "no staged sync onto it was interrupted while it was applied",
		Next: "sync again: what was only staged was not applied, and is dropped then"}
}

// over removes the journal, unless it says something yet.
func (r *redo) over() error {
	if r.rec.Suspect {
		return nil
	}
	if err := r.logs.Remove(r.journal); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove resume journal %s: %w", r.journal, err)
	}
	return nil
}

// discard gives a stage up. The mark stays; only what is of the session it names goes.
func (r *redo) discard() error {
	h, err := readStageHead(r.stages, r.rec.Stage)
	ours := err == nil && h.session == r.rec.Run && strings.HasSuffix(r.rec.Stage, stageSuffix)
	rec := r.rec
	rec.Stage, rec.Updated = "", time.Now()
	j, err := journal.Begin(r.logs, r.journal, rec)
	if err != nil {
		return err
	}
	if err := j.Close(); err != nil || !ours {
		return err
	}
	return removeStage(r.stages, r.rec.Stage)
}

// progress is how far p is, of what began then.
func (p *stageProgress) progress(began time.Time) Progress {
	return Progress{Phase: phaseApply, Done: (p.written.Load() + p.right.Load()) / 2, Total: p.total.Load(), Elapsed: time.Since(began)}
}

// phaseApply is the phase of a session in which a stage is applied.
const phaseApply = "apply"
