package fuzz_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/failback/failback"
	"github.com/klauspost/compress/s2"
)

// undone is a volume in memory that has an identity.
type undone struct{ b []byte }

func (v *undone) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(v.b).ReadAt(p, off) }
func (v *undone) WriteAt(p []byte, off int64) (int, error) {
	return copy(v.b[off:], p), nil
}
func (v *undone) Size() int64      { return int64(len(v.b)) }
func (v *undone) Sync() error      { return nil }
func (v *undone) Identity() string { return "undone" }

// undoLogs are files as the writer leaves them: of a sync that went well, of one
// that wrote nothing, and of one that was cut.
func undoLogs(f *testing.F) map[string][]any {
	fill := func(seed uint64, n int) []byte {
		b := make([]byte, n)
		_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
		return b
	}
	made := map[string][]any{}
	for name, change := range map[string]func(src, dst []byte){
		"pieces": func(src, dst []byte) {
			copy(src, dst)
			copy(src[8192:], fill(9, 4096))
			copy(src[20480:], fill(8, 512))
		},
		"zeroes":  func(src, dst []byte) { copy(src, dst); clear(dst[4096:12288]) },
		"text":    func(src, dst []byte) { copy(dst, bytes.Repeat([]byte("of no value "), len(dst)/12)) },
		"nothing": func(src, dst []byte) { copy(src, dst) },
	} {
		src, dst := &undone{fill(1, 24<<10+512)}, &undone{fill(2, 24<<10+512)}
		change(src.b, dst.b)
		path := filepath.Join(f.TempDir(), "u")
		if _, err := failback.Sync(f.Context(), failback.Side{Volume: src}, failback.Side{Volume: dst, Undo: path}, failback.Options{}); err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		made[name] = []any{true, b}
		made[name+"-cut"] = []any{false, b[:len(b)-30]}
	}
	return made
}

// Layout of the file, as docs/format-undo.md has it.
const (
	undoHeader = 2048
	undoFixed  = 72
)

// mendUndo makes every checksum right, as whoever forges a log can.
func mendUndo(b []byte) {
	if len(b) < undoHeader {
		return
	}
	le := binary.LittleEndian
	le.PutUint64(b[80:], xxhash.Sum64(append(bytes.Clone(b[:80]), b[88:undoHeader]...)))
	for at := undoHeader; at+undoFixed <= len(b); {
		r := b[at:]
		table, stored := 16*int(le.Uint32(r[12:])), int(le.Uint32(r[44:]))
		if table < 0 || stored < 0 || table+stored > len(r)-undoFixed {
			return
		}
		le.PutUint64(r[16:], uint64(at))
		le.PutUint64(r[48:], xxhash.Sum64(r[undoFixed:undoFixed+table]))
		le.PutUint64(r[56:], xxhash.Sum64(r[undoFixed+table:undoFixed+table+stored]))
		le.PutUint64(r[64:], xxhash.Sum64(append(bytes.Clone(b[48:64]), r[:64]...)))
		at += undoFixed + table + stored
	}
}

// naiveUndo lays a log that is known to be good over a volume: from the last
// record to the first, so that of two records of one place the first counts.
func naiveUndo(t *testing.T, b, volume []byte, records int) {
	le := binary.LittleEndian
	var at []int
	for off := undoHeader; len(at) < records; {
		r := b[off:]
		if kind := le.Uint16(r[8:]); kind == 1 || kind == 2 {
			at = append(at, off)
		}
		off += undoFixed + 16*int(le.Uint32(r[12:])) + int(le.Uint32(r[44:]))
	}
	for i := len(at) - 1; i >= 0; i-- {
		r := b[at[i]:]
		spans := int(le.Uint32(r[12:]))
		body := r[undoFixed+16*spans:][:le.Uint32(r[44:])]
		if le.Uint16(r[10:]) == 3 {
			raw, err := s2.Decode(nil, body)
			if err != nil || len(raw) != int(le.Uint32(r[40:])) {
				t.Fatalf("a body that was verified does not decompress: %d, %v", len(raw), err)
			}
			body = raw
		}
		for j := range spans {
			off, n := le.Uint64(r[undoFixed+16*j:]), le.Uint64(r[undoFixed+16*j+8:])
			clear(volume[off : off+n])
			if le.Uint16(r[8:]) == 1 {
				body = body[copy(volume[off:off+n], body):]
			}
		}
	}
}

// FuzzUndo gives any bytes to the reader of undo logs, also with checksums made
// right. It never panics and allocates in proportion to the input; what it
// accepts and verifies restores what a naive reader of the format restores, and
// nothing is written to a volume from a log that does not verify.
func FuzzUndo(f *testing.F) {
	streamSeeds(f, undoLogs(f))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, mend bool, in []byte) {
		in = bytes.Clone(in)
		if mend {
			mendUndo(in)
		}
		path := filepath.Join(dir, "u")
		if err := os.WriteFile(path, in, 0o600); err != nil {
			t.Fatal(err)
		}
		var u *failback.UndoLog
		var err error
		if n := allocated(func() { u, err = failback.OpenUndo(path) }); n > 4<<20+64*uint64(len(in)) {
			t.Errorf("allocated %d bytes for %d", n, len(in))
		}
		if err != nil {
			return
		}
		defer u.Close()
		if u.TargetSize > 1<<20 || u.TargetIdentity != "undone" {
			return
		}
		before := make([]byte, u.TargetSize)
		for i := range before {
			before[i] = byte(i)
		}
		v := &undone{bytes.Clone(before)}
		u.AllowGaps = true
		verified := u.Verify(context.Background(), nil) == nil
		err = u.Restore(context.Background(), v, nil)
		switch {
		case !verified && (err == nil || !bytes.Equal(v.b, before)):
			t.Fatalf("restored from a log that does not verify: %v", err)
		case !verified:
			return
		case err != nil:
			t.Fatalf("a log that verifies does not restore: %v", err)
		}
		naiveUndo(t, in, before, u.Records)
		if !bytes.Equal(v.b, before) {
			t.Fatal("not what the naive reader restores")
		}
	})
}
