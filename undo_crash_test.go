package failback

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// TestUndoPutsBack: whatever is overwritten, in whatever order, in one session or
// in several, comes back bit for bit; the exported image is the same; doing it
// again changes nothing.
func TestUndoPutsBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := 512 * rapid.IntRange(1, 300).Draw(rt, "sectors")
		s := newUndoStage(t, oldContent(size), false)
		for step := range rapid.IntRange(0, 12).Draw(rt, "steps") {
			if rapid.IntRange(0, 5).Draw(rt, "resume") == 0 {
				// As a process that was killed leaves it, or one that came to its end.
				if rapid.Bool().Draw(rt, "ended") {
					s.finish()
				}
				s.resume(false)
			}
			s.overwrite(uint64(100*step), drawSpans(rt, int64(size))...)
		}
		if rapid.Bool().Draw(rt, "finished") {
			s.finish()
		}
		content := s.files.file.Bytes()
		s.wantOld("restored", content)
		u, err := openUndoBytes(t, content)
		if err != nil {
			rt.Fatal(err)
		}
		defer u.Close()
		image := filepath.Join(undoDir(t), "image")
		os.Remove(image)
		if err := u.Export(t.Context(), s.vol, image, nil); err != nil {
			rt.Fatal(err)
		}
		got, err := os.ReadFile(image)
		if err != nil {
			rt.Fatal(err)
		}
		sameBytes(t, "exported", got, s.old)
		for range 2 {
			if err := u.Restore(t.Context(), s.vol, nil); err != nil {
				rt.Fatal(err)
			}
			sameBytes(t, "restored twice", s.vol.b, s.old)
		}
	})
}

func drawSpans(rt *rapid.T, size int64) []message.Extent {
	var spans []message.Extent
	for off := int64(0); ; {
		off += int64(pieceSize * rapid.IntRange(0, 20).Draw(rt, "gap"))
		n := min(int64(pieceSize*rapid.IntRange(1, 10).Draw(rt, "length")), size-off)
		if n <= 0 || len(spans) == 4 {
			return spans
		}
		spans = append(spans, extentAt(off, n))
		off += n
	}
}

// TestUndoManyAtOnce: frames come to many writers at a time, and nothing is
// overwritten before what was there is durable.
func TestUndoManyAtOnce(t *testing.T) {
	s := newUndoStage(t, oldContent(4<<20), false)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 16 {
				x := extentAt(int64(16*j+i)*4*pieceSize, 3*pieceSize)
				if ok, err := s.w.save(t.Context(), s.meter(), []message.Extent{x}); err != nil || !ok {
					t.Error(ok, err)
					return
				}
				if _, err := s.vol.WriteAt(randomBytes(uint64(i), int(x.End-x.Off)), x.Off); err != nil {
					t.Error(err)
				}
				if j == 7 {
					s.wantSaved(s.files.file.Durable(), x)
				}
			}
		})
	}
	wg.Wait()
	s.finish()
	s.wantOld("restored", s.files.file.Bytes())
}

// wantSaved wants x to be in what is durable.
func (s *undoStage) wantSaved(content []byte, x message.Extent) {
	index, err := indexUndo(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		s.t.Error(err)
		return
	}
	found := false
	err = index.each(func(r *undoRecord, _ []byte) error {
		for _, y := range r.spans {
			found = found || y.Off <= x.Off && x.End <= y.End
		}
		return nil
	})
	if err != nil || !found {
		s.t.Errorf("%v: found %v, %v", cbt.Extent(x), found, err)
	}
}

// TestUndoEveryCut cuts a file that was being finished behind each of its bytes.
// What was acknowledged by then is put back, and a session that goes on with the
// file makes it whole.
func TestUndoEveryCut(t *testing.T) {
	s := newUndoStage(t, oldContent(24*pieceSize), false)
	type moment struct {
		size   int64
		volume []byte
	}
	moments := []moment{{s.files.file.Size(), bytes.Clone(s.vol.b)}}
	for i, spans := range [][]message.Extent{
		{extentAt(0, pieceSize)}, {extentAt(3*pieceSize, 2*pieceSize), extentAt(6*pieceSize, pieceSize)},
		{extentAt(8*pieceSize, pieceSize)}, {extentAt(10*pieceSize, 4*pieceSize)},
	} {
		s.overwrite(uint64(i), spans...)
		moments = append(moments, moment{s.files.file.Size(), bytes.Clone(s.vol.b)})
	}
	s.finish()
	content := s.files.file.Bytes()
	for cut := int64(undoHeaderBytes); cut <= int64(len(content)); cut++ {
		m := moments[0]
		for _, later := range moments {
			if later.size <= cut {
				m = later
			}
		}
		if sparing() && cut%37 != 0 && cut != m.size {
			continue
		}
		s.vol.b = bytes.Clone(m.volume)
		s.wantOld(fmt.Sprintf("cut at %d", cut), content[:cut])
		if cut%37 != 0 && cut != m.size {
			continue
		}
		s.files = holdingUndo(content[:cut])
		s.resume(false)
		s.overwrite(99, extentAt(0, 20*pieceSize))
		s.finish()
		s.wantOld(fmt.Sprintf("resumed after a cut at %d", cut), s.files.file.Bytes())
	}
}

// TestUndoPowerCut: of what was not synced a power cut leaves any sectors.
func TestUndoPowerCut(t *testing.T) {
	for seed := range uint64(300) {
		if sparing() && seed%5 != 0 {
			continue
		}
		r := rand.New(rand.NewPCG(seed, 1))
		s := newUndoStage(t, oldContent(64*pieceSize), false)
		for i := range r.IntN(6) {
			s.overwrite(uint64(i), extentAt(int64(r.IntN(60))*pieceSize, int64(1+r.IntN(4))*pieceSize))
		}
		// What follows is under way: written, and not synced.
		for i := range r.IntN(4) {
			x := cbt.Extent{Off: int64(10*i) * pieceSize, End: int64(10*i+3) * pieceSize}
			if _, err := s.w.put([]cbt.Extent{x}, s.vol.b[x.Off:x.End]); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(3) == 0 {
			if err := s.w.syncTo(s.w.end); err != nil {
				t.Fatal(err)
			}
			if _, err := s.w.append(s.w.endRecord()); err != nil {
				t.Fatal(err)
			}
		}
		left := s.files.file.Crash(seed).Bytes()
		s.wantOld(fmt.Sprintf("seed %d", seed), left)
		s.files = holdingUndo(left)
		s.resume(false)
		s.overwrite(7, extentAt(0, 64*pieceSize))
		s.finish()
		s.wantOld(fmt.Sprintf("seed %d, resumed", seed), s.files.file.Bytes())
	}
}

// TestUndoFlips: no flipped bit of a finished file, put back by the real way,
// makes of the target anything but what it was, and every error has its place.
func TestUndoFlips(t *testing.T) {
	s := newUndoStage(t, oldContent(24*pieceSize), false)
	for i := range int64(5) {
		s.overwrite(uint64(i), extentAt(4*i*pieceSize, 3*pieceSize))
	}
	s.finish()
	content := s.files.file.Bytes()
	refused, last := 0, 0
	for at := range content {
		if sparing() && at%37 != 0 {
			continue
		}
		if at < len(content)-undoRecordBytes-undoEndBytes {
			last++
		}
		flipped := bytes.Clone(content)
		flipped[at] ^= 1 << (at % 8)
		got, err := restored(t, flipped, s.vol)
		switch {
		case err == nil:
			sameBytes(t, fmt.Sprintf("byte %d flipped", at), got, s.old)
		case !isUndoError(err) || !strings.Contains(err.Error(), "at 0x"):
			t.Fatalf("byte %d flipped: %v", at, err)
		default:
			refused++
		}
	}
	if refused < last {
		t.Errorf("%d of %d flips before the end record were found", refused, last)
	}
}

// TestUndoLostSector: a sector that was durable and is gone is damage, not a
// torn end.
func TestUndoLostSector(t *testing.T) {
	s := newUndoStage(t, randomBytes(3, 24*pieceSize), false)
	for i := range int64(4) {
		s.overwrite(uint64(i), extentAt(4*i*pieceSize, 2*pieceSize))
	}
	content := s.files.file.Bytes()
	index, err := indexUndo(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(undoHeaderBytes); at+512 <= index.durable; at += 512 {
		lost := bytes.Clone(content)
		clear(lost[at : at+512])
		if _, err := restored(t, lost, s.vol); !errors.Is(err, errUndoCorrupt) {
			t.Fatalf("sector at %#x lost: %v", at, err)
		}
	}
}

// failingStore fails its first writes or syncs, and a write leaves half of itself.
type failingStore struct {
	undoStore
	writes, syncs int // that fail
}

func (f *failingStore) WriteAt(p []byte, off int64) (int, error) {
	if f.writes > 0 {
		f.writes--
		n, _ := f.undoStore.WriteAt(p[:len(p)/2], off)
		return n, &os.PathError{Op: "write", Path: "undo", Err: syscall.ENOSPC}
	}
	return f.undoStore.WriteAt(p, off)
}

func (f *failingStore) Sync() error {
	if f.syncs > 0 {
		f.syncs--
		return &os.PathError{Op: "sync", Path: "undo", Err: syscall.ENOSPC}
	}
	return f.undoStore.Sync()
}

// TestUndoStops: where a record cannot be written or synced, save says so, and
// goes on saying so.
func TestUndoStops(t *testing.T) {
	for name, f := range map[string]failingStore{"write": {writes: 1}, "sync": {syncs: 1}} {
		t.Run(name, func(t *testing.T) {
			s := newUndoStage(t, oldContent(16*pieceSize), false)
			s.overwrite(1, extentAt(0, 2*pieceSize))
			f.undoStore = s.w.f
			s.w.f = &f
			for i := range int64(3) {
				_, err := s.w.save(t.Context(), s.meter(), []message.Extent{extentAt((4+i)*pieceSize, pieceSize)})
				var u *undoError
				if !errors.Is(err, errUndoFull) || !errors.As(err, &u) || u.Next() == "" || u.Class() != errUndoFull.Error() {
					t.Fatalf("save %d: %v", i, err)
				}
			}
			s.wantOld("what was saved before", s.files.file.Bytes())
		})
	}
}

// TestUndoGaps: with best effort the first failure is told once, and written down
// before anything more is overwritten.
func TestUndoGaps(t *testing.T) {
	for name, f := range map[string]failingStore{
		"write": {writes: 1}, "sync": {syncs: 1},
	} {
		for _, resumed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/resumed=%v", name, resumed), func(t *testing.T) { testUndoGaps(t, f, resumed) })
		}
	}
}

func testUndoGaps(t *testing.T, f failingStore, resumed bool) {
	s := newUndoStage(t, oldContent(16*pieceSize), true)
	s.overwrite(1, extentAt(0, 2*pieceSize))
	told := 0
	s.w.note = func(string) { told++ }
	f.undoStore = s.w.f
	s.w.f = &f
	s.overwrite(2, extentAt(4*pieceSize, 2*pieceSize))
	s.overwrite(3, extentAt(8*pieceSize, 2*pieceSize))
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if !resumed {
		s.finish()
		s.wantGaps(s.files.file.Durable())
		s.wantGaps(s.files.file.Bytes())
		return
	}
	// What the next session finds is not what was there: it must not be put back.
	s.files = holdingUndo(s.files.file.Durable())
	s.resume(true)
	s.overwrite(3, extentAt(8*pieceSize, 2*pieceSize))
	s.finish()
	s.wantGaps(s.files.file.Bytes())
}

// TestUndoGapUnsaid: where not even the gap can be written down nothing more is
// overwritten, with best effort too.
func TestUndoGapUnsaid(t *testing.T) {
	for name, f := range map[string]failingStore{"write": {writes: 1 << 20}, "sync": {syncs: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			s := newUndoStage(t, oldContent(16*pieceSize), true)
			s.overwrite(1, extentAt(0, 2*pieceSize))
			good := s.w.f
			f.undoStore = good
			s.w.f = &f
			for range 2 {
				if _, err := s.w.save(t.Context(), s.meter(), []message.Extent{extentAt(8*pieceSize, 2*pieceSize)}); !errors.Is(err, errUndoFull) {
					t.Fatalf("%v", err)
				}
			}
			s.wantOld("what was saved before", s.files.file.Durable())
			// There is room again.
			s.w.f = good
			s.overwrite(2, extentAt(8*pieceSize, 2*pieceSize))
			s.wantGaps(s.files.file.Durable())
		})
	}
}

// TestUndoBlank: a crash between making the file and its header stops nobody.
func TestUndoBlank(t *testing.T) {
	for _, n := range []int{0, 512, undoHeaderBytes} {
		s := newUndoStage(t, oldContent(16*pieceSize), false)
		s.files = holdingUndo(make([]byte, n))
		s.resume(false)
		s.overwrite(1, extentAt(0, 4*pieceSize))
		s.wantOld("restored", s.files.file.Durable())
	}
}

// wantGaps wants a log to be refused for its gaps, and to put back the first two
// blocks if told to go on.
func (s *undoStage) wantGaps(content []byte) {
	s.t.Helper()
	if _, err := restored(s.t, content, s.vol); err == nil {
		s.t.Fatal("a log with a gap was put back")
	} else if r := (*RefusedError)(nil); !errors.As(err, &r) || r.Next == "" {
		s.t.Fatalf("%v is no refusal", err)
	}
	u, err := openUndoBytes(s.t, content)
	if err != nil {
		s.t.Fatal(err)
	}
	defer u.Close()
	u.AllowGaps = true
	v := namedVolume(s.vol.id, clone(s.vol.memory))
	if err := u.Restore(s.t.Context(), v, nil); err != nil {
		s.t.Fatal(err)
	}
	sameBytes(s.t, "what was saved", v.b[:2*pieceSize], s.old[:2*pieceSize])
	sameBytes(s.t, "what was not", v.b[8*pieceSize:10*pieceSize], s.vol.b[8*pieceSize:10*pieceSize])
}

// TestUndoDamagedTouchesNothing: the whole log is read before the first write.
func TestUndoDamagedTouchesNothing(t *testing.T) {
	s := newUndoStage(t, randomBytes(5, 16*pieceSize), false)
	for i := range int64(4) {
		s.overwrite(uint64(i), extentAt(4*i*pieceSize, 2*pieceSize))
	}
	s.finish()
	content := s.files.file.Bytes()
	index, err := indexUndo(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	content[index.at[3]+undoRecordBytes+undoSpanBytes+100] ^= 1
	u, err := openUndoBytes(t, content)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(s.vol.b)
	if err := u.Restore(t.Context(), s.vol, nil); !errors.Is(err, errUndoCorrupt) {
		t.Fatal(err)
	}
	sameBytes(t, "the target", s.vol.b, before)
}

// TestUndoReadBack (L7): what the medium does not hold after all is an error
// with its place.
func TestUndoReadBack(t *testing.T) {
	s := newUndoStage(t, oldContent(16*pieceSize), false)
	s.overwrite(1, extentAt(0, 4*pieceSize))
	s.finish()
	u, err := openUndoBytes(t, s.files.file.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	err = u.Restore(t.Context(), rotten{s.vol}, nil)
	var v *VerifyError
	if !errors.As(err, &v) || !v.Extent.Contains(pieceSize) {
		t.Fatalf("%v", err)
	}
}

// rotten reads one byte of its medium wrong.
type rotten struct{ *named }

func (r rotten) ReadMediumAt(p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if i := pieceSize - off; 0 <= i && i < int64(n) {
		p[i] ^= 1
	}
	return n, err
}
