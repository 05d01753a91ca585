package failback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/looptest"
	"github.com/failback/failback/transport/message"
)

// forgedUndo is a header for a target of 1 MiB and one record whose checksums
// are right, whatever it says.
func forgedUndo(change func(h *undoHeader, r *undoRecord, raw func(off int, v uint64, n int)), body []byte) []byte {
	h := &undoHeader{block: pieceSize, target: undoVolume{Size: 1 << 20, Identity: "to", Name: "t"}, source: undoVolume{Size: 1 << 20}}
	r := &undoRecord{kind: undoData, at: undoHeaderBytes, durable: undoHeaderBytes, spans: []cbt.Extent{{Off: 0, End: pieceSize}}, raw: pieceSize, stored: len(body)}
	var patches []func([]byte)
	raw := func(off int, v uint64, n int) {
		patches = append(patches, func(b []byte) {
			var x [8]byte
			binary.LittleEndian.PutUint64(x[:], v)
			copy(b[off:], x[:n])
		})
	}
	change(h, r, raw)
	r.body = xxhash.Sum64(body)
	head := r.appendHead(nil, &h.key)
	for _, p := range patches {
		p(head)
	}
	table := head[undoRecordBytes:]
	binary.LittleEndian.PutUint64(head[48:], xxhash.Sum64(table))
	binary.LittleEndian.PutUint64(head[64:], undoRecordSum(head, &h.key))
	return append(append(h.encode(), head...), body...)
}

// TestUndoHostile: a forged file is an error, and costs no more memory than a
// good one of its size.
func TestUndoHostile(t *testing.T) {
	page := randomBytes(1, pieceSize)
	bomb := s2.Encode(nil, make([]byte, 4<<20))
	type forge = func(h *undoHeader, r *undoRecord, raw func(off int, v uint64, n int))
	for _, c := range []struct {
		name   string
		body   []byte
		change forge
	}{
		{"spans without end", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(12, 1<<32-1, 4) }},
		{"raw without end", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(40, 1<<32-1, 4) }},
		{"stored without end", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(44, 1<<32-1, 4) }},
		{"more stored than raw", page, func(_ *undoHeader, r *undoRecord, raw func(int, uint64, int)) { raw(40, 512, 4) }},
		{"unknown kind", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(8, 9, 2) }},
		{"unknown codec", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(10, 77, 2) }},
		{"durable in the future", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) { r.durable = r.at + 1 }},
		{"durable before the first", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) { r.durable = -1 }},
		{"another number", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) { r.seq = 1 }},
		{"span past the target", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) {
			r.spans = []cbt.Extent{{Off: 1 << 20, End: 1<<20 + pieceSize}}
		}},
		{"span that overflows", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(undoRecordBytes+8, 1<<64-1, 8) }},
		{"empty span", page, func(_ *undoHeader, _ *undoRecord, raw func(int, uint64, int)) { raw(undoRecordBytes+8, 0, 8) }},
		{"half a block", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) {
			r.spans = []cbt.Extent{{Off: 512, End: 512 + pieceSize}}
		}},
		{"spans out of order", append(page, page...), func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) {
			r.spans = []cbt.Extent{{Off: 8192, End: 12288}, {Off: 0, End: 4096}}
			r.raw = 8192
		}},
		{"fewer bytes than spans", page, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) { r.spans[0].End *= 2 }},
		{"bomb", bomb, func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) {
			r.codec, r.spans, r.raw = undoS2, []cbt.Extent{{Off: 0, End: 64 * pieceSize}}, 64*pieceSize
		}},
		{"not compressed", page[:100], func(_ *undoHeader, r *undoRecord, _ func(int, uint64, int)) { r.codec = undoS2 }},
		{"end that counts wrong", make([]byte, undoEndBytes-1+1), func(_ *undoHeader, r *undoRecord, raw func(int, uint64, int)) {
			r.kind, r.spans, r.raw = undoEnd, nil, undoEndBytes
		}},
		{"block too small", page, func(h *undoHeader, _ *undoRecord, _ func(int, uint64, int)) { h.block = 512 }},
		{"block without end", page, func(h *undoHeader, _ *undoRecord, _ func(int, uint64, int)) { h.block = 1 << 31 }},
		{"target without end", page, func(h *undoHeader, _ *undoRecord, _ func(int, uint64, int)) { h.target.Size = 1<<63 - 512 }},
		{"target of nothing", page, func(h *undoHeader, _ *undoRecord, _ func(int, uint64, int)) { h.target.Size = 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := forgedUndo(c.change, c.body)
			target := namedVolume("to", &memory{b: make([]byte, 1<<20)})
			if _, err := restored(t, content, target); !errors.Is(err, errUndoCorrupt) {
				t.Fatalf("%v", err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if index, err := indexUndo(bytes.NewReader(content), int64(len(content))); err == nil {
				_ = index.each(func(*undoRecord, []byte) error { return nil })
			}
			runtime.ReadMemStats(&after)
			if got := after.TotalAlloc - before.TotalAlloc; got > 3<<20 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
}

// TestUndoOtherFiles: three different errors for three different things.
func TestUndoOtherFiles(t *testing.T) {
	good := forgedUndo(func(*undoHeader, *undoRecord, func(int, uint64, int)) {}, randomBytes(1, pieceSize))
	later := bytes.Clone(good)
	later[8] = 2
	torn := bytes.Clone(good)
	torn[20]++
	for _, c := range []struct {
		name    string
		content []byte
		want    error
	}{
		{"text", []byte("This is no undo file, but it is long enough to hold one's first bytes."), errNotUndo},
		{"empty", nil, errUndoCorrupt},
		{"the magic alone", good[:8], errUndoCorrupt},
		{"another version", later, errUndoVersion},
		{"flipped header", torn, errUndoCorrupt},
		{"good", good, nil},
	} {
		u, err := openUndoBytes(t, c.content)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if c.want != nil {
			var e *undoError
			if !errors.As(err, &e) || e.Next() == "" || e.Class() == "" {
				t.Errorf("%s: %v says nothing about what to do", c.name, err)
			}
		} else if err := u.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
	}
	fifo := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenUndo(fifo); !errors.Is(err, errNotUndo) {
		t.Errorf("a pipe: %v", err)
	}
}

// TestUndoInUndo: a target that holds records of an undo file, this one's copy
// too, cannot confuse it.
func TestUndoInUndo(t *testing.T) {
	old := randomBytes(9, 16*pieceSize)
	inner := newUndoStage(t, old, false)
	inner.overwrite(1, extentAt(0, 4*pieceSize))
	inner.finish()
	copy(old[4*pieceSize:], inner.files.file.Bytes())
	s := newUndoStage(t, old, false)
	s.overwrite(1, extentAt(0, 8*pieceSize))
	s.overwrite(2, extentAt(8*pieceSize, 8*pieceSize))
	content := s.files.file.Bytes()
	for _, cut := range []int{len(content), len(content) - 1, len(content) - 3*pieceSize} {
		vol := s.vol
		if cut < len(content) {
			vol = namedVolume("to", clone(s.vol.memory))
			copy(vol.b[8*pieceSize:], old[8*pieceSize:]) // not acknowledged, not overwritten
		}
		got, err := restored(t, content[:cut], vol)
		if err != nil {
			t.Fatal(err)
		}
		sameBytes(t, "restored", got, old)
	}
}

// TestUndoDiskFull: a real file system that has no more room.
func TestUndoDiskFull(t *testing.T) {
	dir, _ := fileSystem(t, "ext4", 16<<20, looptest.Options{})
	vol := namedVolume("to", randomVolume(1, 24<<20))
	old := bytes.Clone(vol.b)
	path := filepath.Join(dir, "x.fbu")
	w, err := createUndo(undoDisk{}, path, undoFactsOf(vol, false))
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	saved := 0
	for off := int64(0); off < vol.Size(); off += 1 << 20 {
		x := extentAt(off, 1<<20)
		if _, err = w.save(t.Context(), &meter{v: vol, name: "target"}, []message.Extent{x}); err != nil {
			break
		}
		clear(vol.b[x.Off:x.End])
		saved++
	}
	if !errors.Is(err, errUndoFull) || !errors.Is(err, syscall.ENOSPC) || saved == 0 {
		t.Fatalf("after %d MiB: %v", saved, err)
	}
	u, err := OpenUndo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := u.Restore(t.Context(), vol, nil); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "the target", vol.b, old)
}
