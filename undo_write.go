package failback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// undoHands is how many frames' worth of old content is read and compressed at once.
const undoHands = 4

// undoFacts say which session an undo file is of.
type undoFacts struct {
	Target, Source undoVolume
	Session        [16]byte // of the run that began to overwrite
	BestEffort     bool     // go on without when no more can be saved
	Inconsistent   bool     // what the target holds now is what another interrupted sync has left
	Before         [16]byte // the session of that one; zeroes: not known
	Known          bool     // the target's journal names the file
	Saved          int64    // and says that so many bytes of it are durable
}

// An undoStore is an open undo file.
type undoStore interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// undoFiles is where undo files lie; tests put faults there.
type undoFiles interface {
	create(path string) (undoStore, error) // fails if there is one
	open(path string) (undoStore, int64, error)
	remove(path string) error
	syncDir(dir string) error
}

// An undoWriter keeps what a target held before it was overwritten. Where
// records overlap, the first counts: what is saved again was overwritten in
// between. That holds for any order in which frames come, for nothing is
// overwritten before its own record is durable.
//
//	save: read ─▶ compress ─▶ append (one at a time) ─▶ sync (one for all that wait) ─▶ overwrite
type undoWriter struct {
	path string
	h    *undoHeader
	note func(string) // told once that no more can be saved; may be nil

	lost  atomic.Bool   // with best effort: nothing is saved any more
	hands chan struct{} // holds one for each that reads and compresses: 2 MiB each

	mu     sync.Mutex // guards the end of the file
	f      undoStore
	end    int64
	seq    uint64
	count  uint64 // data and zero records
	bytes  uint64 // of the target that they stand for
	failed error

	syncing sync.Mutex
	durable atomic.Int64 // all of the file before it
	durably uint64       // number of the first record behind it
}

// createUndo makes an undo file. It is durable, name and all, when createUndo
// returns. A file that is there is never replaced: it may be all that is left of
// some volume.
func createUndo(files undoFiles, path string, f undoFacts) (*undoWriter, error) {
	s, err := files.create(path)
	if errors.Is(err, fs.ErrExist) {
		s, err = emptyUndo(files, path, f)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil, &RefusedError{Volume: f.Target.Name, cause: err,
			Reason: fmt.Sprintf("its undo file %s is there already: it may be what is left of another sync", path),
			Next:   "name another file; to go on with an interrupted sync and its undo file, add --resume"}
	}
	if err != nil {
		return nil, undoFailure(path, undoMaking, err)
	}
	return startUndo(files, s, path, f)
}

// startUndo makes s, which is empty, an undo file.
func startUndo(files undoFiles, s undoStore, path string, f undoFacts) (*undoWriter, error) {
	h := &undoHeader{block: pieceSize, target: f.Target, source: f.Source, session: f.Session, made: time.Now().Unix(), bestEffort: f.BestEffort, inconsistent: f.Inconsistent, before: f.Before}
	for (h.target.Size-1)/h.block >= cbt.MaxBlocks {
		h.block *= 2
	}
	_, err := rand.Read(h.key[:])
	if err == nil {
		_, err = s.WriteAt(h.encode(), 0)
	}
	if err == nil {
		err = s.Truncate(undoHeaderBytes)
	}
	if err == nil {
		err = s.Sync()
	}
	if err == nil {
		err = files.syncDir(filepath.Dir(path))
	}
	if err != nil {
		// Nothing is saved in it: it would only be in the way.
		return nil, errors.Join(undoFailure(path, undoMaking, err), s.Close(), files.remove(path))
	}
	w := &undoWriter{path: path, h: h, f: s, end: undoHeaderBytes, hands: make(chan struct{}, undoHands)}
	w.durable.Store(w.end)
	return w, nil
}

// emptyUndo opens a file that is there and of which nothing is lost when it is
// begun anew: the undo file of a session onto the same target that was cut
// before it had saved anything. Any other is fs.ErrExist.
func emptyUndo(files undoFiles, path string, f undoFacts) (undoStore, error) {
	s, size, err := files.open(path)
	if err != nil {
		return nil, fs.ErrExist
	}
	x, err := indexUndo(s, size)
	if err != nil || len(x.at) > 0 || len(x.gaps) > 0 || x.torn > 0 || x.h.target.Identity != f.Target.Identity || x.h.target.Size != f.Target.Size {
		return nil, errors.Join(fs.ErrExist, s.Close())
	}
	return s, nil
}

// resumeUndo goes on with the undo file of an interrupted session. What was not
// durable when that ended is dropped: it was not overwritten either.
func resumeUndo(files undoFiles, path string, f undoFacts) (*undoWriter, error) {
	s, size, err := files.open(path)
	if f.Known && (errors.Is(err, fs.ErrNotExist) || err == nil && size < max(f.Saved, undoHeaderBytes)) {
		if err == nil {
			err = s.Close()
		}
		return nil, &RefusedError{Volume: f.Target.Name, cause: err,
			Reason: fmt.Sprintf("%s, where the interrupted sync saved what it has overwritten, is gone or cut short", path),
			Next:   "bring it back; or sync without --resume: what was overwritten cannot be put back then"}
	}
	if err != nil {
		return nil, undoFailure(path, undoOpening, err)
	}
	if blankUndo(s, size) {
		return startUndo(files, s, path, f)
	}
	w, err := adoptUndo(s, size, path, f)
	if err != nil {
		return nil, errors.Join(undoFailure(path, undoOpening, err), s.Close())
	}
	return w, nil
}

// blankUndo reports whether a crash came between making a file and its header.
func blankUndo(s undoStore, size int64) bool {
	if size > undoHeaderBytes {
		return false
	}
	b := make([]byte, size)
	return readAtFull(s, b, 0) == nil && allZero(b)
}

func adoptUndo(s undoStore, size int64, path string, f undoFacts) (*undoWriter, error) {
	x, err := indexUndo(s, size)
	if err != nil {
		return nil, err
	}
	switch {
	case x.h.session != f.Session:
		err = errors.New("it is of another session")
	case x.end < f.Saved:
		err = fmt.Errorf("%d bytes of it were durable, and only %d are whole", f.Saved, x.end)
	case x.h.target.Size != f.Target.Size || x.h.target.Identity != f.Target.Identity:
		err = fmt.Errorf("it is of the target %s (%q, %d bytes)", x.h.target.Name, x.h.target.Identity, x.h.target.Size)
	}
	if err != nil {
		return nil, &RefusedError{Volume: f.Target.Name, cause: err,
			Reason: fmt.Sprintf("%s is not the undo file of the interrupted sync: %v", path, err), Next: "name the right one, or sync without --resume"}
	}
	w := &undoWriter{path: path, h: x.h, f: s, hands: make(chan struct{}, undoHands), end: x.end, seq: x.nextSeq, count: x.count, bytes: uint64(x.bytes)}
	w.h.bestEffort = f.BestEffort
	w.lost.Store(len(x.gaps) > 0)
	if err := s.Truncate(x.end); err != nil {
		return nil, err
	}
	// What we have read may never have become durable.
	if err := s.Sync(); err != nil {
		return nil, err
	}
	w.durable.Store(w.end)
	w.durably = w.seq
	return w, nil
}

// save implements saver.
func (w *undoWriter) save(ctx context.Context, vol *meter, spans []message.Extent) (bool, error) {
	if w.lost.Load() {
		return false, nil
	}
	list := make([]cbt.Extent, len(spans))
	for i, x := range spans {
		list[i] = cbt.Extent(x)
	}
	end, err := w.saveAll(ctx, vol, cbt.Align(cbt.Normalize(list), w.h.block, w.h.target.Size))
	if err == nil {
		err = w.syncTo(end)
	}
	var mine *undoError
	if errors.As(err, &mine) && w.h.bestEffort {
		return false, w.giveUp(err)
	}
	// Another one may have given up and cut ours off meanwhile.
	return err == nil && !w.lost.Load(), err
}

// saveAll appends records for every span and returns where the last one ends.
func (w *undoWriter) saveAll(ctx context.Context, vol *meter, spans []cbt.Extent) (end int64, err error) {
	select {
	case w.hands <- struct{}{}:
		defer func() { <-w.hands }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	buf := getBuf(maxUndoRaw)
	defer buf.put()
	var batch []cbt.Extent // what buf holds
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		at, err := w.put(batch, buf.b[:n])
		batch, n, end = batch[:0], 0, max(end, at)
		return err
	}
	for _, x := range spans {
		for off := x.Off; off < x.End; {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			if n+int(w.h.block) > maxUndoRaw || len(batch) == maxUndoSpans {
				if err := flush(); err != nil {
					return 0, err
				}
			}
			// Whole blocks, but for the volume's last.
			part := cbt.Extent{Off: off, End: min(x.End, off+int64(maxUndoRaw-n)/w.h.block*w.h.block)}
			if err := vol.readAt(buf.b[n:n+int(part.Len())], off); err != nil {
				return 0, err
			}
			batch, n, off = append(batch, part), n+int(part.Len()), part.End
		}
	}
	if err := flush(); err != nil {
		return 0, err
	}
	return end, nil
}

// maxUndoCompressed is the room that compressing a record takes.
var maxUndoCompressed = s2.MaxEncodedLen(maxUndoRaw)

// put appends one record and returns where it ends. It is not durable yet.
func (w *undoWriter) put(spans []cbt.Extent, raw []byte) (int64, error) {
	r := undoRecord{kind: undoData, spans: spans, raw: len(raw)}
	body := raw
	switch {
	case allZero(raw):
		r.kind, r.raw, body = undoZero, 0, nil
	default:
		room := getBuf(maxUndoCompressed)
		defer room.put()
		if c := s2.Encode(room.b, raw); len(c) < len(raw)-len(raw)/16 {
			r.codec, body = undoS2, c
		}
	}
	r.stored, r.body = len(body), xxhash.Sum64(body)
	total := int64(0)
	for _, x := range spans {
		total += x.Len()
	}
	return w.append(&r, body, total)
}

// append writes a record at the end of the file.
func (w *undoWriter) append(r *undoRecord, body []byte, stands int64) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return 0, w.failed
	}
	r.at, r.durable, r.seq = w.end, w.durable.Load(), w.seq
	head := r.appendHead(make([]byte, 0, undoRecordBytes+undoSpanBytes*len(r.spans)), &w.h.key)
	_, err := w.f.WriteAt(head, r.at)
	if err == nil && len(body) > 0 {
		_, err = w.f.WriteAt(body, r.at+int64(len(head)))
	}
	if err != nil {
		w.failed = undoFailure(w.path, undoSaving, err)
		return 0, w.failed
	}
	w.end += int64(len(head) + len(body))
	w.seq++
	if r.kind == undoData || r.kind == undoZero {
		w.count++
		w.bytes += uint64(stands)
	}
	return w.end, nil
}

// syncTo returns when the file is durable up to end. Whoever comes while another
// syncs waits for that and mostly finds its own done.
func (w *undoWriter) syncTo(end int64) error {
	w.syncing.Lock()
	defer w.syncing.Unlock()
	if w.durable.Load() >= end {
		return nil
	}
	w.mu.Lock()
	upto, seq, err := w.end, w.seq, w.failed
	w.mu.Unlock()
	if err == nil {
		err = undoFailure(w.path, undoSaving, w.f.Sync())
	}
	if err != nil {
		// After a sync that failed the kernel may have dropped what it did not write.
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = err
		return err
	}
	w.durable.Store(upto)
	w.durably = seq
	return nil
}

// giveUp says in the file that what comes is not saved, and goes on. It returns
// nil only when that is durable, to everybody: a log with a gap that nothing
// tells of would be put back as if it was whole.
func (w *undoWriter) giveUp(why error) error {
	w.syncing.Lock()
	defer w.syncing.Unlock()
	if w.lost.Load() {
		return nil
	}
	if err := w.gap(why.Error()); err != nil {
		return undoFailure(w.path, undoSaving, fmt.Errorf("%w; nor can a gap be noted in it: %w", why, err))
	}
	w.lost.Store(true)
	w.tell(why)
	return nil
}

// gap puts a gap behind what is durable. The caller holds w.syncing.
func (w *undoWriter) gap(why string) error {
	w.mu.Lock()
	w.failed = nil
	w.end, w.seq = w.durable.Load(), w.durably
	err := w.f.Truncate(w.end) // makes room for a few bytes, where the disk is full
	w.mu.Unlock()
	why = why[:min(len(why), maxUndoReason)]
	if err == nil {
		_, err = w.append(&undoRecord{kind: undoGap, raw: len(why), stored: len(why), body: xxhash.Sum64String(why)}, []byte(why), 0)
	}
	if err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.failed = undoFailure(w.path, undoSaving, err)
	}
	return err
}

func (w *undoWriter) tell(why error) {
	if w.note != nil {
		w.note(fmt.Sprintf("%v: going on without; this sync cannot be undone as a whole", why))
	}
}

// finish implements saver: an end that says how much there is.
func (w *undoWriter) finish() error {
	if w.lost.Load() {
		return nil // the gap is the end
	}
	w.mu.Lock()
	end := w.end
	w.mu.Unlock()
	err := w.syncTo(end) // an end says that all before it was durable
	if err == nil {
		end, err = w.append(w.endRecord())
	}
	if err == nil {
		err = w.syncTo(end)
	}
	var mine *undoError
	if errors.As(err, &mine) && w.h.bestEffort {
		// All is there, only nobody can tell.
		w.tell(errors.Join(err, w.giveUp(err)))
		return nil
	}
	return err
}

func (w *undoWriter) endRecord() (*undoRecord, []byte, int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body := undoEndBody(w.count, w.bytes)
	return &undoRecord{kind: undoEnd, raw: undoEndBytes, stored: undoEndBytes, body: xxhash.Sum64(body)}, body, 0
}

// size implements saver.
func (w *undoWriter) size() int64 { return w.durable.Load() }

// close implements saver.
func (w *undoWriter) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	if err != nil {
		return undoFailure(w.path, undoSaving, err)
	}
	return nil
}

// undoDisk is the file system of this machine.
type undoDisk struct{}

func (undoDisk) create(path string) (undoStore, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (undoDisk) open(path string) (undoStore, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (undoDisk) remove(path string) error { return os.Remove(path) }

func (undoDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
