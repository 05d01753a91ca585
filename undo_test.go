package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

func openUndo(t *testing.T, path string) *UndoLog {
	t.Helper()
	u, err := OpenUndo(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	return u
}

// TestUndo: a sync, whatever it had to write, is undone bit for bit.
func TestUndo(t *testing.T) {
	const size = 6<<20 + 512
	for i, p := range topologies {
		for name, change := range map[string]func(src, dst *memory){
			"all":       func(src, dst *memory) {},
			"scattered": func(src, dst *memory) { copy(dst.b, src.b); scatter(dst, 5, 300) },
			"nothing":   func(src, dst *memory) { copy(dst.b, src.b) },
			"to zeroes": func(src, dst *memory) { clear(src.b) },
			"of zeroes": func(src, dst *memory) { clear(dst.b) },
			"text":      func(src, dst *memory) { copy(dst.b, bytes.Repeat([]byte("all the same "), size/13)) },
		} {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
				change(src.memory, dst.memory)
				before := bytes.Clone(dst.b)
				dir := t.TempDir()
				a, b := arrange(t, i, Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Undo: dir})
				report, err := Sync(t.Context(), a, b, Options{Streams: p.streams, Undo: b.Dial != nil})
				if err != nil || !bytes.Equal(src.b, dst.b) {
					t.Fatalf("sync: %v", err)
				}
				files, err := filepath.Glob(filepath.Join(dir, "b-*.fbu"))
				if err != nil || len(files) != 1 {
					t.Fatalf("undo files: %v, %v", files, err)
				}
				u := openUndo(t, files[0])
				if !u.Whole || u.Torn != 0 || u.TargetSize != size || report.UndoBytes != report.DivergentBytes || u.Saved < report.UndoBytes {
					t.Errorf("undo log %+v of a sync %+v", u, report)
				}
				image := filepath.Join(dir, "before.img")
				if err := u.Export(t.Context(), dst, image, nil); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, before) {
					t.Errorf("the image is not what the target held (%v)", err)
				}
				if err := u.Restore(t.Context(), dst, nil); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst.b, before) {
					t.Error("the target is not what it was")
				}
			})
		}
	}
}

// TestUndoOverlap: where records overlap the first counts, in any order of
// frames and at any granularity.
func TestUndoOverlap(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := int64(512 * (1 + r.IntN(2000)))
		vol := namedVolume("target", randomVolume(seed, int(size)))
		before := bytes.Clone(vol.b)
		path := filepath.Join(t.TempDir(), "u")
		w, err := createUndo(undoDisk{}, path, undoFacts{Target: undoVolume{Size: size, Identity: "target"}})
		if err != nil {
			t.Fatal(err)
		}
		m := &meter{v: vol, name: "target"}
		for range 30 {
			off := r.Int64N(size/512) * 512
			end := min(size, off+512*(1+r.Int64N(300)))
			if ok, err := w.save(t.Context(), m, []message.Extent{{Off: off, End: end}}); err != nil || !ok {
				t.Fatal(err)
			}
			if r.IntN(3) == 0 {
				clear(vol.b[off:end])
			} else {
				copy(vol.b[off:end], randomBytes(r.Uint64(), int(end-off)))
			}
			if r.IntN(4) == 0 { // and a process that dies
				if err := w.close(); err != nil {
					t.Fatal(err)
				}
				if w, err = resumeUndo(undoDisk{}, path, undoFacts{Target: undoVolume{Size: size, Identity: "target"}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(w.finish(), w.close()); err != nil {
			t.Fatal(err)
		}
		if err := openUndo(t, path).Restore(t.Context(), vol, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(vol.b, before) {
			t.Errorf("seed %d: the target is not what it was", seed)
		}
	}
}

// saved makes a small undo file of several records, none of them finished, and
// returns it with the lengths at which a save had returned.
func saved(t *testing.T, path string, finish bool) (vol *named, before []byte, durable []int64) {
	t.Helper()
	vol = namedVolume("target", randomVolume(3, 64<<10))
	copy(vol.b[8<<10:16<<10], make([]byte, 8<<10))
	copy(vol.b[32<<10:48<<10], bytes.Repeat([]byte("again "), 16<<10/6))
	before = bytes.Clone(vol.b)
	w, err := createUndo(undoDisk{}, path, undoFacts{Target: undoVolume{Size: 64 << 10, Identity: "target", Name: "b"}, Source: undoVolume{Size: 64 << 10}})
	if err != nil {
		t.Fatal(err)
	}
	durable = append(durable, w.end)
	for _, x := range []message.Extent{{Off: 0, End: 8 << 10}, {Off: 8 << 10, End: 16 << 10}, {Off: 32 << 10, End: 44 << 10}} {
		if _, err := w.save(t.Context(), &meter{v: vol}, []message.Extent{x}); err != nil {
			t.Fatal(err)
		}
		durable = append(durable, w.end)
		copy(vol.b[x.Off:x.End], randomBytes(uint64(x.Off), int(x.End-x.Off)))
	}
	if finish {
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	return vol, before, durable
}

// TestUndoCut: cut anywhere, the log restores everything whose save had returned
// by then, or says that it is damaged.
func TestUndoCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "u")
	vol, before, durable := saved(t, path, false)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	spans := []cbt.Extent{{Off: 0, End: 8 << 10}, {Off: 8 << 10, End: 16 << 10}, {Off: 32 << 10, End: 44 << 10}}
	for n := range int64(len(whole)) {
		if sparing() && n%31 != 0 && !slices.ContainsFunc(durable, func(d int64) bool { return n == d || n == d-1 }) {
			continue
		}
		for _, fill := range []bool{false, true} { // what is missing may read as zeroes
			b := bytes.Clone(whole[:n])
			if fill {
				b = append(b, make([]byte, int64(len(whole))-n)...)
			}
			x, err := indexUndo(bytes.NewReader(b), int64(len(b)))
			if n < durable[0] {
				if err == nil && !bytes.Equal(b[:durable[0]], whole[:durable[0]]) {
					t.Fatalf("cut to %d: a header that is not whole", n)
				}
				continue
			}
			if err != nil {
				t.Fatalf("cut to %d: %v", n, err)
			}
			got := bytes.Clone(vol.b)
			u := &UndoLog{index: x}
			err = u.lay(t.Context(), func(int64) {}, func(_ context.Context, e cbt.Extent, c []byte) error {
				clear(got[e.Off:e.End])
				copy(got[e.Off:e.End], c)
				return nil
			})
			if err != nil {
				t.Fatalf("cut to %d: %v", n, err)
			}
			for i, e := range spans {
				if n >= durable[i+1] && !bytes.Equal(got[e.Off:e.End], before[e.Off:e.End]) {
					t.Fatalf("cut to %d: %v is not what it was", n, e)
				}
			}
		}
	}
}

// TestUndoFlip (L9): whatever bit of a finished log is flipped, it is an error,
// or nothing is lost by it.
func TestUndoFlip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "u")
	vol, before, _ := saved(t, path, true)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	told, tried := 0, 0
	for i := range whole {
		if sparing() && i%31 != 0 {
			continue
		}
		tried++
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		x, err := indexUndo(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			told++
			continue
		}
		got := bytes.Clone(vol.b)
		u := &UndoLog{index: x}
		err = u.lay(t.Context(), func(int64) {}, func(_ context.Context, e cbt.Extent, c []byte) error {
			clear(got[e.Off:e.End])
			copy(got[e.Off:e.End], c)
			return nil
		})
		if err != nil {
			told++
			continue
		}
		if x.whole && !bytes.Equal(got, before) {
			t.Fatalf("bit %d of byte %d: not told, and the target is not what it was", i%8, i)
		}
		if !x.whole && x.torn == 0 {
			t.Fatalf("byte %d: an end that is gone is not told", i)
		}
	}
	if told < tried*9/10 {
		t.Errorf("%d of %d flipped bits were told", told, tried)
	}
}

// TestUndoRefused (L4): a log of another volume, a log with gaps, a file that is there.
func TestUndoRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "u")
	vol, _, _ := saved(t, path, true)
	u := openUndo(t, path)
	now := bytes.Clone(vol.b)
	var refused *RefusedError
	for name, v := range map[string]Volume{
		"size":     namedVolume("target", randomVolume(1, 128<<10)),
		"identity": namedVolume("elsewhere", vol.memory),
	} {
		if err := u.Restore(t.Context(), v, nil); !errors.As(err, &refused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	u.Gaps = []string{"no space left"}
	if err := u.Restore(t.Context(), vol, nil); !errors.As(err, &refused) {
		t.Errorf("gaps: %v", err)
	}
	if !bytes.Equal(vol.b, now) {
		t.Error("a refused undo has written")
	}
	_, err := createUndo(undoDisk{}, path, undoFacts{Target: undoVolume{Size: 512}})
	if !errors.As(err, &refused) || !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
	if _, err := resumeUndo(undoDisk{}, path, undoFacts{Target: undoVolume{Size: 64 << 10, Identity: "target"}, Session: [16]byte{1}}); !errors.As(err, &refused) {
		t.Errorf("another session: %v", err)
	}
}

// fullUndo is a disk of so many bytes.
type fullUndo struct {
	undoDisk
	room int64
}

type fullStore struct {
	undoStore
	room int64
}

func (f fullUndo) create(path string) (undoStore, error) {
	s, err := f.undoDisk.create(path)
	return fullStore{s, f.room}, err
}

func (f fullUndo) open(path string) (undoStore, int64, error) {
	s, n, err := f.undoDisk.open(path)
	return fullStore{s, f.room}, n, err
}

var errNoSpace = fmt.Errorf("write: %w", fs.ErrInvalid)

func (s fullStore) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.room {
		return 0, errNoSpace
	}
	return s.undoStore.WriteAt(p, off)
}

// TestUndoFull: a log that is full stops the session before the first overwrite
// that could not be undone; with best effort it goes on, says so, and what was
// saved can be put back.
func TestUndoFull(t *testing.T) {
	const size = 8 << 20
	for _, best := range []bool{false, true} {
		t.Run(fmt.Sprintf("best=%v", best), func(t *testing.T) {
			src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
			before := bytes.Clone(dst.b)
			path := filepath.Join(t.TempDir(), "u")
			var notes []string
			b := Side{Volume: dst, Name: "b", Undo: path, UndoBestEffort: best, undoAt: fullUndo{room: 3 << 20}}
			report, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, b, Options{Events: Events{Note: func(s string) { notes = append(notes, s) }}})
			u := openUndo(t, path)
			if !best {
				if !errors.Is(err, errNoSpace) {
					t.Fatalf("got %v", err)
				}
				if err := u.Restore(t.Context(), dst, nil); err != nil || !bytes.Equal(dst.b, before) {
					t.Errorf("the target cannot be made what it was: %v", err)
				}
				return
			}
			if err != nil || !bytes.Equal(src.b, dst.b) || len(notes) != 1 || report.UnsavedBytes == 0 || report.UnsavedBytes+report.UndoBytes != size {
				t.Fatalf("%v, told %v, %d bytes not saved and %d saved", err, notes, report.UnsavedBytes, report.UndoBytes)
			}
			if len(u.Gaps) != 1 || u.Whole {
				t.Errorf("undo log %+v", u)
			}
			u.AllowGaps = true
			if err := u.Restore(t.Context(), dst, nil); err != nil {
				t.Fatal(err)
			}
			list, _, err := u.Extents()
			// Saves go on side by side: the first to end may be the one that finds it full,
			// and one that is in the log when that is found counts as unsaved.
			if err != nil || cbt.Total(list) < report.UndoBytes {
				t.Fatalf("%v, %v are saved, reported %d bytes", err, list, report.UndoBytes)
			}
			for _, x := range list {
				if !bytes.Equal(dst.b[x.Off:x.End], before[x.Off:x.End]) {
					t.Errorf("%v is not what it was", x)
				}
			}
		})
	}
}
