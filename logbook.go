package failback

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/transport/message"
)

// How a session goes about one that was interrupted. The numbers are on the wire.
const (
	resumeNot        uint8 = 0 // begin anew
	resumeMust       uint8 = 1 // go on with it, or refuse
	resumeIfPossible uint8 = 2
)

// A logbook is the resume journal of a target in one session: what an
// interrupted one left, and what this one leaves. Without a path it keeps none.
//
//	look ─▶ accept ─▶ touch ─▶ reach … ─▶ complete ─▶ gone
//	                                └────────┴─▶ leave: it ends before that
type logbook struct {
	path  string // "": none is kept
	files journal.Files
	name  string          // of the volume, for messages
	found *journal.Record // what this session may go on with; nil: nothing

	there     bool     // some journal lies at path
	marked    bool     // and says that a sync onto the target was interrupted
	markedBy  [16]byte // the session of that one; zeroes: not known
	spent     bool     // the target was written since its tree was made, as far as anybody knows
	doubt     bool     // nothing vouches for what it holds
	unwatched bool     // with found: nothing says whether the target was written since
	kept      bool     // nobody has written the target since the session that the source is after
	staged    bool     // the session is staged: it goes on with nothing
	redone    bool     // what another one had staged was just applied

	redoneAfter [16]byte // but for that, the target is as this session left it; zeroes: not known

	mu      sync.Mutex
	file    *journal.File // nil until something is recorded
	removed bool          // the session is over for both sides
	failed  bool          // what is on the medium is not known
	rec     journal.Record
	touched atomic.Bool // the record on the medium says that the target was written
}

// look reads what an interrupted session left at the target. Whether it is used
// is for the source to decide; here it is only made sure that it is theirs.
func (b *logbook) look(start *message.Start, mine message.VolumeInfo, vol *meter) error {
	b.spent = start.Resume != resumeNot // by the session that this one goes on with
	if b.path == "" {
		if start.Resume == resumeMust {
			return &RefusedError{Volume: b.name, Reason: "no journal is kept for it, so there is nothing to go on with",
				Next: "sync without --resume: both sides will be compared"}
		}
		return b.after(nil, start, vol)
	}
	rec, err := journal.Read(b.files, b.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		rec = nil
	case errors.Is(err, journal.ErrNotJournal):
		return &RefusedError{Volume: b.name, cause: err,
			Reason: fmt.Sprintf("%s is where its resume journal belongs and is something else", b.path),
			Next:   "move that file away, or keep journals elsewhere (--state DIR)"}
	case errors.Is(err, journal.ErrCorrupt) && start.Resume != resumeMust:
		rec = nil // it will be replaced; both sides are compared
	case err != nil:
		return err
	}
	b.there = err == nil || errors.Is(err, journal.ErrCorrupt)
	if err := b.after(rec, start, vol); err != nil {
		return err
	}
	changed, err := b.weigh(rec, start, vol)
	if err != nil || start.Resume == resumeNot {
		return err
	}
	why := "there is no journal of an interrupted sync at " + b.path
	if rec != nil {
		if why = strange(rec, start, mine); why == "" {
			why = changed
		}
	}
	switch {
	case b.staged:
	case why == "":
		b.found = rec
	case start.Resume == resumeMust && !b.redone:
		return &RefusedError{Volume: b.name, Reason: why, Next: "sync without --resume: both sides will be compared"}
	}
	return nil
}

// weigh settles what the journal, nil if it is damaged or there is none, leaves of
// what the target is believed to hold (L1). It says why the target may have been
// written since, so that nothing recorded holds, or "".
func (b *logbook) weigh(rec *journal.Record, start *message.Start, vol *meter) (string, error) {
	if rec == nil {
		b.marked, b.doubt = b.there, b.there
		return "", nil
	}
	b.spent, b.marked = rec.Touched || b.redone, rec.Touched && !rec.Complete
	if b.marked {
		b.markedBy = rec.Run
	}
	// A map that vouches for this pair knows nothing of what came from elsewhere.
	elsewhere := rec.Run != start.Session && (rec.Source.Identity == "" || rec.Source.Identity != start.Volume.Identity)
	b.doubt = rec.Suspect || rec.Touched && elsewhere
	if rec.Left == "" {
		if rec.Complete {
			rec.Done = 0 // it may be of long ago: a power cut has brought it back
		}
		b.unwatched = rec.Done > 0
		return "", nil
	}
	now, err := vol.stamp()
	if err != nil || now == rec.Left {
		return "", err
	}
	b.doubt = true
	if rec.Done == 0 {
		return "", nil // there is nothing to hold
	}
	if now == "" {
		now = "nothing that tells"
	}
	return fmt.Sprintf("it may have been written since the interrupted sync ended (%s, now %s)", rec.Left, now), nil
}

// after settles whether the target is as the session left it that the source is
// after: by that one's journal if it did not come to its end, else by its stamp.
func (b *logbook) after(rec *journal.Record, start *message.Start, vol *meter) error {
	if b.redone && b.redoneAfter == start.After && start.After != [16]byte{} {
		b.kept = true
		return nil
	}
	left, known := start.Left, !b.there
	if rec != nil {
		// A staged one may have come to its end without its source, which then holds for
		// dirty all that it has staged.
		left, known = rec.Left, rec.Run == start.After || rec.Complete && rec.After == start.After
	}
	if start.After == [16]byte{} || left == "" || !known {
		return nil
	}
	now, err := vol.stamp()
	b.kept = err == nil && now == left
	return err
}

// strange says why a journal is not that of these two volumes, or "".
func strange(rec *journal.Record, start *message.Start, mine message.VolumeInfo) string {
	for _, x := range []struct {
		side string
		was  journal.Volume
		is   message.VolumeInfo
	}{{"source", rec.Source, start.Volume}, {"target", rec.Target, mine}} {
		switch {
		case x.was.Size != x.is.Size:
			return fmt.Sprintf("its journal is of a sync whose %s had %d bytes, this one has %d", x.side, x.was.Size, x.is.Size)
		case x.was.Identity != x.is.Identity:
			return fmt.Sprintf("its journal is of a sync with the %s %s (%q), this one is %q", x.side, x.was.Name, x.was.Identity, x.is.Identity)
		case x.is.Identity == "" && rec.Run != start.Session:
			return fmt.Sprintf("the %s has no identity, so nothing says that the journal is of it", x.side)
		}
	}
	return ""
}

// offer tells the source what there is to go on with.
func (b *logbook) offer(m *message.Info) {
	m.Spent, m.Doubt, m.Kept = b.spent, b.doubt, b.kept && !b.doubt
	if b.found != nil {
		m.Journal, m.Done, m.Basis, m.Stamp = true, b.found.Done, b.found.Basis, b.found.Stamp
		m.Unwatched = b.unwatched
	}
}

// accept takes the source's plan: from here on it is known what is recorded.
func (b *logbook) accept(start *message.Start, plan *message.Plan, mine message.VolumeInfo) error {
	if plan.Resume > 0 && (b.found == nil || plan.Resume > b.found.Done || plan.Basis != b.found.Basis) {
		return protocolf("a session resumed at %d, for which there is no journal", plan.Resume)
	}
	b.rec = journal.Record{
		Run: start.Session, Done: plan.Resume, Basis: plan.Basis, Stamp: start.Stamp, Started: time.Now(),
		Source: journal.Volume{Size: start.Volume.Size, Identity: start.Volume.Identity, Name: start.Volume.Name},
		Target: journal.Volume{Size: mine.Size, Identity: mine.Identity, Name: mine.Name},
	}
	// A doubt stays until a session in doubt has come to its end.
	b.rec.Suspect, b.rec.Touched = b.doubt, b.marked
	if f := b.found; f != nil {
		b.rec.Run, b.rec.Started, b.rec.Written = f.Run, f.Started, f.Written
		b.rec.Touched, b.rec.Undo, b.rec.Saved = f.Touched, f.Undo, f.Saved
	}
	return nil
}

// touch records, before the first byte is overwritten, that the target is
// inconsistent from now on. It is durable when touch returns. Nil is of a session
// that is staged.
func (b *logbook) touch() error {
	if b == nil || b.touched.Load() {
		return nil
	}
	return b.note(func(r *journal.Record) bool {
		r.Touched = true
		return !b.touched.Load()
	})
}

// enact records that the target is being made equal to the stage at path: it is
// inconsistent from now on, and whoever comes next finishes that. after is the session
// as which's end the target was found. saved is how much of an undo log is durable.
func (b *logbook) enact(path string, after [16]byte, saved int64) error {
	return b.note(func(r *journal.Record) bool {
		r.Touched, r.Stage, r.After, r.Saved = true, path, after, saved
		return true
	})
}

// reach records that everything below done is equal and durable, and how many
// bytes this session has written. saved is how much of an undo log is durable.
func (b *logbook) reach(done, written, saved int64) error {
	return b.note(func(r *journal.Record) bool {
		if done <= r.Done {
			return false
		}
		r.Done = done
		if b.found != nil {
			written += b.found.Written
		}
		r.Written, r.Saved = written, saved
		return true
	})
}

// complete records that the session has come to its end: both sides are equal. A
// doubt ends with it: the plan of a session in doubt covers everything (covered).
// The journal stays until the source has heard that (gone).
func (b *logbook) complete(size int64) error {
	return b.note(func(r *journal.Record) bool {
		r.Complete, r.Suspect, r.Done, r.Stage = true, false, size, ""
		// What left no trace needs no end, unless an older session did.
		return b.file != nil || b.there
	})
}

// leave records, when a session has ended before its time, with err, and nobody of
// it writes any more, what the next one must know: whether the medium is in doubt,
// and the target's stamp, by which it sees that somebody else has written since.
//
//  1. sync the volume: what a cache passes on later would look like a write
//  2. ask for the stamp
//  3. record both; what was recorded before of a medium in doubt counts no more
//
// A crash before 3 leaves no stamp, and whoever comes next says that nothing tells.
func (b *logbook) leave(vol *meter, err error) error {
	var lost *syncError
	var failed error
	wrong, left := isWrong(err) || errors.As(err, &lost), ""
	begun, broken := b.state()
	switch {
	case broken:
		return nil // and err says why
	case b.rec.Started.IsZero():
		return nil // it ended before it had a record: what lies there is another one's
	}
	if begun && lost == nil {
		if failed = vol.sync(); failed == nil {
			left, failed = vol.stamp()
		}
		wrong = wrong || errors.As(failed, &lost)
	}
	return errors.Join(failed, b.note(func(r *journal.Record) bool {
		r.Left = left
		if wrong {
			r.Suspect, r.Done = true, 0
		}
		return wrong || left != ""
	}))
}

// state reports whether the journal on the medium is this session's, and whether
// it could not be written.
func (b *logbook) state() (begun, broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.file != nil, b.failed
}

// note changes the record and, if change says so, makes it durable.
func (b *logbook) note(change func(*journal.Record) bool) error {
	if b.path == "" {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removed || !change(&b.rec) {
		return nil
	}
	b.rec.Updated = time.Now()
	var err error
	if b.file == nil {
		b.file, err = journal.Begin(b.files, b.path, b.rec)
	} else {
		err = b.file.Commit(b.rec)
	}
	if err != nil {
		b.failed = true
		return b.explain(err)
	}
	b.touched.Store(b.rec.Touched)
	return nil
}

// explain says what to do about a journal that cannot be written: it is what
// the volume is marked inconsistent with, so the session does not do without.
func (b *logbook) explain(err error) error {
	if b.file == nil {
		next := "keep it elsewhere (--state DIR), or do without (--no-journal): then an interrupted sync cannot be resumed"
		if b.staged {
			next = "make room there, or keep it elsewhere (--state DIR): a staged sync does not do without"
		}
		return &RefusedError{Volume: b.name, cause: err, Reason: fmt.Sprintf("its resume journal cannot be kept (%v)", err), Next: next}
	}
	return fmt.Errorf("%w: make room there, or keep it elsewhere (--state DIR), and sync again", err)
}

// gone removes the journal of a session that both sides know to be over.
func (b *logbook) gone() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil || !b.rec.Complete {
		return nil
	}
	f := b.file
	b.file, b.removed = nil, true
	return f.Remove()
}

// close leaves the journal as it is, for whoever goes on.
func (b *logbook) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// refuseInconsistent refuses as a source a volume that a sync has begun to
// overwrite and not finished (L5).
func refuseInconsistent(s Side) error {
	if s.Journal == "" || s.AllowInconsistent {
		return nil
	}
	rec, err := journal.Read(s.journalFiles(), s.Journal)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, journal.ErrNotJournal):
		return nil
	case errors.Is(err, journal.ErrCorrupt), errors.Is(err, journal.ErrVersion):
		return &RefusedError{Volume: s.label(), cause: err,
			Reason: fmt.Sprintf("it has a resume journal that cannot be read (%v), so a sync onto it may not have finished", err),
			Next:   "make it equal to something first, or use it as it is (--allow-inconsistent)"}
	case err != nil:
		return err
	case rec.Complete || !rec.Touched && !rec.Suspect:
		return nil
	case !rec.Touched:
		return &RefusedError{Volume: s.label(),
			Reason: fmt.Sprintf("since a sync from %s onto it, at %s, nothing vouches for what it holds: its medium did not hold what it should, or somebody else may have written it before that was finished (%s)",
				rec.Source.Name, rec.Updated.Format(time.DateTime), s.Journal),
			Next: "sync onto it again, or use it as it is (--allow-inconsistent)"}
	}
	if rec.Stage != "" {
		return &RefusedError{Volume: s.label(),
			Reason: fmt.Sprintf("a staged sync from %s was being applied to it when it was interrupted at %s, so it holds neither its old content nor that one's (%s)",
				rec.Source.Name, rec.Updated.Format(time.DateTime), s.Journal),
			Next: fmt.Sprintf("if nothing has written it since, finish that first: failback apply TARGET %s; or use it as it is (--allow-inconsistent)", filepath.Dir(rec.Stage))}
	}
	return &RefusedError{Volume: s.label(),
		Reason: fmt.Sprintf("a sync from %s onto it was interrupted at %s, so it holds neither its old content nor that one's (%s)",
			rec.Source.Name, rec.Updated.Format(time.DateTime), s.Journal),
		Next: "finish that sync (run it again, with --resume unless it was a live one), or undo it; or use it as it is (--allow-inconsistent)"}
}

// journalFiles is where the side's journal lies.
func (s Side) journalFiles() journal.Files {
	if s.files != nil {
		return s.files
	}
	return journal.Disk
}
