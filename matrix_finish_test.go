package failback

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/internal/journal"
)

// finish runs a new process on what is there, which must make both sides equal
// and do nothing twice.
func (e *matrixEnds) finish(t *testing.T) {
	t.Helper()
	rec, done, reads := e.journal(t), int64(0), len(e.a.Log())
	if rec != nil && e.goesOn(rec) {
		done = rec.Done
	}
	raw, zero := e.differing(done)
	if rec == nil && e.dropUndo(t) {
		return
	}
	report, err := e.sync(t, &fault.Dialer{}, Options{Resume: rec != nil})
	if err != nil {
		t.Fatalf("the sync after it, journal %+v: %v", rec, err)
	}
	e.equal(t)
	if report.ResumedFrom != done || report.RawBytes != raw || report.ZeroBytes != zero {
		t.Errorf("resumed from %d of %d, %d+%d bytes sent of %d+%d that differed", report.ResumedFrom, done,
			report.RawBytes, report.ZeroBytes, raw, zero)
	}
	if e.way.src || e.way.dst {
		if n := e.sent(); n < raw || n > raw+raw/50 {
			t.Errorf("%d bytes on the links for %d that differed", n, raw)
		}
	}
	e.untouched(t, done)
	for _, ev := range e.a.Log()[reads:] {
		if ev.Op == fault.Read && ev.Off < done && e.way.o.Verify != VerifyFull && e.way.o.Seal == 0 {
			t.Errorf("%d bytes of the source at %d were read again, %d are done", ev.Len, ev.Off, done)
		}
	}
}

// goesOn reports whether what the journal says is done counts: what it says is
// complete does only where the target tells that nobody has written it since.
func (e *matrixEnds) goesOn(rec *journal.Record) bool { return !rec.Complete || rec.Left != "" }

// untouched says that this attempt has not written below done.
func (e *matrixEnds) untouched(t *testing.T, done int64) {
	t.Helper()
	for _, ev := range e.b.Log() {
		if ev.On == "target" && (ev.Op == fault.Write || ev.Op == fault.Zero) && ev.Off < done {
			t.Errorf("%d bytes at %d were sent again, %d are done", ev.Len, ev.Off, done)
		}
	}
}

// differing is how many bytes from off on are to be sent, and to be made zero.
func (e *matrixEnds) differing(off int64) (raw, zero int64) {
	src, dst := e.after, e.dst.Bytes()
	for ; off < matrixSize; off += pieceSize {
		switch a, b := src[off:off+pieceSize], dst[off:off+pieceSize]; {
		case bytes.Equal(a, b):
		case allZero(a):
			zero += pieceSize
		default:
			raw += pieceSize
		}
	}
	return raw, zero
}

// equal says that the session is over: equal, durable, and nothing is left.
func (e *matrixEnds) equal(t *testing.T) {
	t.Helper()
	if !bytes.Equal(e.after, e.dst.Durable()) {
		t.Error("the volumes differ")
	}
	if again, err := os.ReadFile(e.mapPath); err != nil || !bytes.Equal(again, matrixMap) {
		t.Errorf("L2: the dirty map's file is not as it was (%v)", err)
	}
	e.undoable(t, true)
	names := slices.DeleteFunc(e.dir.Names(), func(n string) bool { return strings.HasSuffix(n, ".tmp") || n == matrixUndo })
	if open := e.dir.Unclosed(); len(names)+len(open) > 0 {
		t.Errorf("left behind: %v, open: %v", names, open)
	}
}
