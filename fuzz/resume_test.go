package fuzz_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/failback/failback/internal/journal"
)

// journals are files as the writer leaves them: new, with the second slot the
// newer, and complete.
func journals(f *testing.F) map[string][]any {
	path := filepath.Join(f.TempDir(), "j")
	r := journal.Record{
		Touched: true, Run: [16]byte{1}, Done: 1 << 20, Written: 4096, Started: time.Unix(1, 0), Updated: time.Unix(2, 0),
		Source: journal.Volume{Size: 1 << 30, Identity: "a", Name: "A"}, Target: journal.Volume{Size: 1 << 30, Identity: "b", Name: "B"},
		Basis: [32]byte{7}, Stamp: "writes=3", Undo: "/u", Stage: "/s.fbs", After: [16]byte{5},
	}
	made := map[string][]any{}
	add := func(name string) {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		made[name] = []any{name != "odd", b}
	}
	j, err := journal.Begin(journal.Disk, path, r)
	if err != nil {
		f.Fatal(err)
	}
	add("new")
	r.Done, r.Suspect = 2<<20, true
	for _, name := range []string{"odd", "even"} {
		if err := j.Commit(r); err != nil {
			f.Fatal(err)
		}
		add(name)
		r.Done += 512
	}
	r.Complete = true
	if err := errors.Join(j.Commit(r), j.Close()); err != nil {
		f.Fatal(err)
	}
	add("complete")
	return made
}

// slot is what one of a journal's two takes, bytes.
const slot = 4096

// memoryFiles is a directory with one file, in memory.
type memoryFiles struct{ b []byte }

type memoryStore struct {
	*bytes.Reader
	f *memoryFiles
}

func (f *memoryFiles) Open(string, bool) (journal.Store, error) {
	return memoryStore{bytes.NewReader(f.b), f}, nil
}

func (f *memoryFiles) Place(_ string, b []byte) error { f.b = bytes.Clone(b); return nil }
func (f *memoryFiles) Remove(string) error            { f.b = nil; return nil }

func (s memoryStore) WriteAt(p []byte, off int64) (int, error) { return copy(s.f.b[off:], p), nil }
func (s memoryStore) Sync() error                              { return nil }
func (s memoryStore) Close() error                             { return nil }

// FuzzResume gives any bytes to the reader. What it accepts is within bounds and
// one of the two slots to the byte; and a session that begins over a journal, or
// over a damaged one, leaves its own word, while other files are left alone.
func FuzzResume(f *testing.F) {
	streamSeeds(f, journals(f))
	f.Fuzz(func(t *testing.T, mend bool, in []byte) {
		if mend && len(in) == 2*slot {
			// Past the checksum, which a hostile writer can compute too.
			in = bytes.Clone(in)
			for _, b := range [][]byte{in[:slot], in[slot:]} {
				binary.LittleEndian.PutUint64(b[slot-8:], xxhash.Sum64(b[:slot-8]))
			}
		}
		files := &memoryFiles{b: bytes.Clone(in)}
		r, err := journal.Read(files, "j")
		if err == nil {
			if r.Done < 0 || r.Done > r.Source.Size || r.Done > r.Target.Size {
				t.Fatalf("accepted done %d of %d and %d", r.Done, r.Source.Size, r.Target.Size)
			}
			again := &memoryFiles{}
			if _, err := journal.Begin(failsToOpen{again}, "j", *r); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			got, err := journal.Read(again, "j")
			if err != nil || *got != *r {
				t.Fatalf("read %+v, written and read %+v (%v)", r, got, err)
			}
		}
		own := journal.Record{Run: [16]byte{0xee}, Source: journal.Volume{Size: 512}, Target: journal.Volume{Size: 512},
			Started: time.Unix(3, 0), Updated: time.Unix(4, 0)}
		_, err = journal.Begin(files, "j", own)
		switch {
		case errors.Is(err, journal.ErrNotJournal), errors.Is(err, journal.ErrVersion):
			if !bytes.Equal(files.b, in) {
				t.Fatal("another file was changed")
			}
		case err != nil:
			t.Fatal(err)
		default:
			if got, err := journal.Read(files, "j"); err != nil || *got != own {
				t.Fatalf("began over it, and read %+v (%v)", got, err)
			}
		}
	})
}

// failsToOpen has no file yet.
type failsToOpen struct{ *memoryFiles }

func (f failsToOpen) Open(path string, write bool) (journal.Store, error) {
	if f.b == nil {
		return nil, os.ErrNotExist
	}
	return f.memoryFiles.Open(path, write)
}
