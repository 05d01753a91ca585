package failback

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
)

// An UndoLog is a file of what a [Sync] found at its target before it overwrote
// it (Side.Undo). [UndoLog.Restore] puts that back, bit for bit.
type UndoLog struct {
	Path           string
	Target, Source string // names of the two volumes, as the sync knew them
	TargetIdentity string
	TargetSize     int64 // bytes
	Session        string
	Made           time.Time
	Records        int
	Saved          int64    // bytes of the target that were saved
	Stored         int64    // bytes of the file
	Whole          bool     // the sync came to its end
	Torn           int64    // bytes at the end that a crash left; what they stand for was not overwritten
	Gaps           []string // why, from some moment on, no more was saved

	// Inconsistent says that the target was not whole when the sync began: an
	// earlier one onto it had been interrupted. Restore puts that back, and the mark stays.
	Inconsistent bool

	// AllowGaps has Restore and Export go on with a log that has gaps: what was
	// overwritten without being saved stays as the sync left it.
	AllowGaps bool
	// AllowInconsistent has Restore go on though another sync onto the target was
	// interrupted since; the mark of that stays.
	AllowInconsistent bool
	// Journal is the path of the target's resume journal, empty for none: it marks
	// the target inconsistent while it is restored, and is removed afterwards.
	Journal string

	f     *os.File
	index *undoIndex
}

// OpenUndo opens an undo log and looks at the head of every record. Memory: 8
// bytes for each, which stands for up to 1 MiB.
func OpenUndo(path string) (*UndoLog, error) {
	// Without waiting for whoever is to write into a pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, undoFailure(path, undoOpening, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNotUndo
	}
	var x *undoIndex
	if err == nil {
		x, err = indexUndo(f, info.Size())
	}
	if err != nil {
		return nil, errors.Join(undoFailure(path, undoReading, err), f.Close())
	}
	return &UndoLog{
		Path: path, Target: cleanText(x.h.target.Name), Source: cleanText(x.h.source.Name), TargetIdentity: cleanText(x.h.target.Identity),
		TargetSize: x.h.target.Size, Session: hex.EncodeToString(x.h.session[:]), Made: x.h.time(),
		Records: len(x.at), Saved: x.bytes, Stored: info.Size(), Whole: x.whole, Torn: x.torn, Gaps: x.gaps, Inconsistent: x.h.inconsistent, f: f, index: x,
	}, nil
}

// Close closes the file.
func (u *UndoLog) Close() error { return u.f.Close() }

// Extents lists what was saved, in order. Where there is too much to list, the
// list covers it and is coarse.
func (u *UndoLog) Extents() (list []cbt.Extent, coarse bool, err error) {
	var found extentList
	err = u.index.spans(func(spans []cbt.Extent) {
		for _, x := range spans {
			found.add(x)
		}
	})
	if err != nil {
		return nil, false, undoFailure(u.Path, undoReading, err)
	}
	list, coarse = found.result()
	return list, coarse, nil
}

// Verify reads the whole log: every checksum, every body decompressed. progress,
// which may be nil, is told how many of Saved bytes are done.
func (u *UndoLog) Verify(ctx context.Context, progress func(done int64)) error {
	done := int64(0)
	err := u.index.each(func(r *undoRecord, _ []byte) error {
		for _, x := range r.spans {
			done += x.Len()
		}
		if progress != nil {
			progress(done)
		}
		return ctx.Err()
	})
	return undoFailure(u.Path, undoReading, err)
}

// Restore puts back what target held before the sync. It may be run again, after
// a crash or an error, as often as it takes: the log does not change.
//
//  1. read the whole log: a damaged one touches nothing
//  2. mark the target inconsistent, durably (Journal): from here on it is neither
//     what the sync made of it nor what it was
//  3. write what was saved; of two records of one place the first counts
//  4. sync the target, read everything back from its medium and compare (L7)
//  5. remove the mark: the target is what it was. It stays where that was
//     inconsistent too, and what it says of a doubtful medium stays
//
// A crash before 2 leaves the target as it is, one between 2 and 5 leaves the
// mark and a target that running Restore again makes whole.
func (u *UndoLog) Restore(ctx context.Context, target Volume, progress func(phase string, done int64)) error {
	vol := &meter{v: target, name: Side{Volume: target}.label()}
	if err := u.admit(vol); err != nil {
		return err
	}
	tell := func(phase string) func(int64) {
		return func(done int64) {
			if progress != nil {
				progress(phase, done)
			}
		}
	}
	if err := u.Verify(ctx, tell("check")); err != nil {
		return err
	}
	mark, done, err := u.mark(vol)
	if err != nil {
		return err
	}
	err = u.lay(ctx, tell("restore"), vol.restore)
	if err == nil {
		err = vol.sync()
	}
	if err == nil {
		err = u.prove(ctx, vol, tell("verify"))
	}
	switch {
	case mark == nil:
		return err
	case err != nil:
		return errors.Join(err, mark.Close())
	}
	return done()
}

// Belongs returns a [RefusedError] if target is not the volume of the log.
func (u *UndoLog) Belongs(target Volume) error {
	return u.belongs(&meter{v: target, name: Side{Volume: target}.label()})
}

// admit refuses a volume that the log is not of (L4), and a log with gaps.
func (u *UndoLog) admit(vol *meter) error {
	if err := u.belongs(vol); err != nil {
		return err
	}
	if len(u.Gaps) > 0 && !u.AllowGaps {
		return &RefusedError{Volume: vol.name, Reason: fmt.Sprintf("%s is not the whole of what was overwritten (%s)", u.Path, u.Gaps[0]),
			Next: "put back what there is with --allow-gaps: the rest stays as the sync left it"}
	}
	return nil
}

func (u *UndoLog) belongs(vol *meter) error {
	switch id := clip(vol.identity()); {
	case vol.v.Size() != u.TargetSize:
		return &RefusedError{Volume: vol.name, Reason: fmt.Sprintf("%s was saved from a volume of %d bytes, this one has %d", u.Path, u.TargetSize, vol.v.Size()),
			Next: "name the volume that was the target: " + u.Target}
	case id != u.index.h.target.Identity:
		return &RefusedError{Volume: vol.name, Reason: fmt.Sprintf("%s was saved from %s (%q), this one is %q", u.Path, u.Target, u.TargetIdentity, id),
			Next: "name the volume that was the target"}
	}
	return nil
}

// mark makes the target's journal say that it is inconsistent. done is what is to
// be done with it once everything is put back: the target may be inconsistent
// whatever this log puts back, or its medium in doubt.
func (u *UndoLog) mark(vol *meter) (j *journal.File, done func() error, err error) {
	if u.Journal == "" {
		return nil, nil, nil
	}
	h := u.index.h
	keep := u.Inconsistent
	rec, err := journal.Read(journal.Disk, u.Journal)
	foreign := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, journal.ErrCorrupt):
		foreign = "its resume journal is damaged, so another sync onto it may have been interrupted"
	case err != nil:
		return nil, nil, fmt.Errorf("mark %s inconsistent: %w", vol.name, err)
	case rec.Touched && !rec.Complete && rec.Run != h.session && !(keep && rec.Run == h.before):
		foreign = fmt.Sprintf("another sync onto it, from %s, was interrupted, and what that has overwritten is not in %s", rec.Source.Name, u.Path)
	}
	if foreign != "" {
		if !u.AllowInconsistent {
			return nil, nil, &RefusedError{Volume: vol.name, Reason: foreign,
				Next: "finish or undo that one first; or go on, and the mark stays (--allow-inconsistent)"}
		}
		keep = true
	}
	name := func(v undoVolume) journal.Volume {
		return journal.Volume{Size: max(v.Size, sectorSize), Identity: v.Identity, Name: v.Name}
	}
	now := time.Now()
	r := journal.Record{Touched: true, Run: h.session, Source: name(h.source), Target: name(h.target), Started: now, Updated: now}
	if rec != nil && foreign != "" {
		r = *rec
		// What was equal is not any more, and a stage would be laid over what is put back.
		r.Done, r.Left, r.Stage, r.Updated = 0, "", "", now
	}
	// What is wrong may lie where nothing was saved: putting that back mends it not. And
	// what is put back of an older session no map of a later one knows.
	r.Suspect = foreign != "" || rec != nil && rec.Suspect
	if j, err = journal.Begin(journal.Disk, u.Journal, r); err != nil {
		return nil, nil, fmt.Errorf("mark %s inconsistent: %w", vol.name, err)
	}
	switch {
	case keep && foreign == "" && h.before != [16]byte{}:
		// What stays is the mark of the sync before, so that its log may be put back next.
		return j, func() error {
			r.Run, r.Updated = h.before, time.Now()
			return errors.Join(j.Commit(r), j.Close())
		}, nil
	case keep:
		return j, j.Close, nil
	case r.Suspect:
		r.Touched, r.Updated = false, time.Now()
		return j, func() error { return errors.Join(j.Commit(r), j.Close()) }, nil
	}
	return j, j.Remove, nil
}

// lay calls put with what was saved, each place once. A nil content is zeroes.
func (u *UndoLog) lay(ctx context.Context, progress func(int64), put func(ctx context.Context, x cbt.Extent, content []byte) error) error {
	done, laid := int64(0), newBlockSet(u.index.h.block)
	err := u.index.each(func(r *undoRecord, content []byte) error {
		for _, x := range r.spans {
			var part []byte
			if r.kind == undoData {
				part, content = content[:x.Len()], content[x.Len():]
			}
			err := laid.add(x, func(n cbt.Extent) error {
				if part == nil {
					return put(ctx, n, nil)
				}
				return put(ctx, n, part[n.Off-x.Off:n.End-x.Off])
			})
			if err != nil {
				return err
			}
			done += x.Len()
		}
		progress(done)
		return ctx.Err()
	})
	var ours undoFault
	if errors.As(err, &ours) {
		return undoFailure(u.Path, undoReading, err)
	}
	return err
}

// restore puts one range back.
func (m *meter) restore(ctx context.Context, x cbt.Extent, content []byte) error {
	if content == nil {
		for off := x.Off; off < x.End; off += clearStep {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := m.zeroAt(ctx, off, min(clearStep, x.End-off)); err != nil {
				return err
			}
		}
		return nil
	}
	return m.writeAt(content, x.Off)
}

// prove reads everything back from the medium and compares it with the log (L7).
func (u *UndoLog) prove(ctx context.Context, vol *meter, progress func(int64)) error {
	buf := getBuf(maxUndoRaw)
	defer buf.put()
	var wrong extentList
	err := u.lay(ctx, progress, func(ctx context.Context, x cbt.Extent, content []byte) error {
		for off := x.Off; off < x.End; {
			if err := ctx.Err(); err != nil {
				return err // zeroes may be as long as the volume
			}
			b := buf.b[:min(int64(len(buf.b)), x.End-off)]
			if err := vol.readMedium(b, off); err != nil {
				return err
			}
			if !holds(b, content, off-x.Off) {
				wrong.add(cbt.Extent{Off: off, End: off + int64(len(b))})
			}
			off += int64(len(b))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if x := cbt.Normalize(wrong.list); len(x) > 0 {
		return &VerifyError{Volume: vol.name, Extent: x[0], Bytes: cbt.Total(x)}
	}
	return nil
}

// holds reports whether b is what lies at off of content; a nil content is zeroes.
func holds(b, content []byte, off int64) bool {
	if content == nil {
		return allZero(b)
	}
	return string(b) == string(content[off:off+int64(len(b))])
}
