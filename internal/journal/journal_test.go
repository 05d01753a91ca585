package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func example() Record {
	return Record{
		Touched: true, Run: [16]byte{1, 2, 3},
		Source: Volume{Size: 1 << 30, Identity: "wwid=1", Name: "/dev/vg/backup"},
		Target: Volume{Size: 1<<30 + 512, Identity: "file:dev=1,ino=2", Name: "größe"},
		Done:   1 << 20, Written: 12345, Started: time.Unix(1, 5), Updated: time.Unix(2, 7),
		Basis: [32]byte{9}, Stamp: "file:mtime=1", Undo: "/var/lib/failback/x.fbu", Saved: 2048, Left: "file:mtime=2", Stage: "/var/lib/failback/stage/x.fbs", After: [16]byte{4, 5},
	}
}

func begin(t *testing.T, path string, r Record) *File {
	t.Helper()
	j, err := Begin(Disk, path, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func mustRead(t *testing.T, path string) Record {
	t.Helper()
	r, err := Read(Disk, path)
	if err != nil {
		t.Fatal(err)
	}
	return *r
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	r := example()
	j := begin(t, path, r)
	for i := range 5 {
		if got := mustRead(t, path); !reflect.DeepEqual(got, r) {
			t.Fatalf("%d: got %+v\nwant %+v", i, got, r)
		}
		r.Done, r.Suspect, r.Complete = r.Done+4096, i%2 == 0, i == 4
		if err := j.Commit(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	// Another session begins over it.
	r2 := example()
	r2.Run[0], r2.Undo = 7, ""
	j = begin(t, path, r2)
	if got := mustRead(t, path); !reflect.DeepEqual(got, r2) {
		t.Errorf("got %+v\nwant %+v", got, r2)
	}
	if err := j.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(Disk, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after removing it: %v", err)
	}
	if err := j.Commit(r); !errors.Is(err, os.ErrClosed) {
		t.Errorf("commit to a removed one: %v", err)
	}
}

// TestEveryByte (L9): whatever byte is changed, what is read was said at some
// time, or it is an error.
func TestEveryByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	first, second := example(), example()
	second.Done += 4096
	j := begin(t, path, first)
	if err := j.Commit(second); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			r, _, err := load(bytes.NewReader(b))
			if err == nil && !reflect.DeepEqual(*r, first) && !reflect.DeepEqual(*r, second) {
				t.Fatalf("byte %d: %+v", i, r)
			}
			if err != nil && !errors.Is(err, ErrVersion) {
				t.Fatalf("byte %d: one slot is whole, and %v", i, err)
			}
		}
	}
	for n := range good {
		if _, _, err := load(bytes.NewReader(good[:n])); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotJournal) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, _, err := load(bytes.NewReader(append(good, 0))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
	both := bytes.Clone(good)
	both[100] ^= 1
	both[slotSize+100] ^= 1
	if _, _, err := load(bytes.NewReader(both)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("both slots damaged: %v", err)
	}
}

// TestBeginOver: a damaged journal is replaced, another file is not (L4).
func TestBeginOver(t *testing.T) {
	dir := t.TempDir()
	damaged := filepath.Join(dir, "damaged")
	begin(t, damaged, example())
	b, err := os.ReadFile(damaged)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(damaged, b[:5000], 0o600); err != nil {
		t.Fatal(err)
	}
	begin(t, damaged, example())
	mustRead(t, damaged)

	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte(strings.Repeat("my letters ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Begin(Disk, other, example()); !errors.Is(err, ErrNotJournal) {
		t.Errorf("got %v", err)
	}
	if _, err := Begin(Disk, filepath.Join(dir, "none", "j"), example()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestPlaceSecondName: a power cut in a rename may leave a journal under both of
// its names. The next one must not be written into it: what it says holds until
// the new one is there.
func TestPlaceSecondName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.fbj")
	old := []byte("what is durable")
	if err := errors.Join(os.WriteFile(path, old, 0o600), os.Link(path, path+".tmp"), os.Link(path, path+".old")); err != nil {
		t.Fatal(err)
	}
	if err := Disk.Place(path, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path + ".old"); err != nil || !bytes.Equal(now, old) {
		t.Errorf("it was written over: %q, %v", now, err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != "new" {
		t.Errorf("the journal holds %q, %v", now, err)
	}
	if _, err := os.Lstat(path + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// TestBounds: what does not fit is an error, not cut off.
func TestBounds(t *testing.T) {
	for name, change := range map[string]func(*Record){
		"identity": func(r *Record) { r.Source.Identity = strings.Repeat("x", 256) },
		"undo":     func(r *Record) { r.Undo = strings.Repeat("x", maxUndo+1) },
		"stage":    func(r *Record) { r.Stage = strings.Repeat("x", maxUndo+1) },
		"both": func(r *Record) {
			r.Undo, r.Stage = strings.Repeat("x", maxUndo), strings.Repeat("y", maxUndo)
		},
		"left": func(r *Record) { r.Left = strings.Repeat("x", 256) },
	} {
		r := example()
		change(&r)
		if _, err := Begin(Disk, filepath.Join(t.TempDir(), "j"), r); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	most := example()
	for _, s := range []*string{&most.Source.Identity, &most.Source.Name, &most.Target.Identity, &most.Target.Name, &most.Stamp, &most.Left} {
		*s = strings.Repeat("y", maxShort)
	}
	most.Undo = strings.Repeat("z", maxUndo)
	most.Stage = strings.Repeat("z", 344)
	path := filepath.Join(t.TempDir(), "j")
	begin(t, path, most)
	if got := mustRead(t, path); !reflect.DeepEqual(got, most) {
		t.Errorf("got %+v", got)
	}
}

// failing is a store one of whose steps fails, before or after it has its effect.
type failing struct {
	Files
	write, sync, late bool
}

type failingStore struct {
	Store
	f *failing
}

var errFailed = errors.New("input/output error")

func (f *failing) Open(path string, write bool) (Store, error) {
	s, err := f.Files.Open(path, write)
	return failingStore{s, f}, err
}

func (s failingStore) WriteAt(p []byte, off int64) (int, error) {
	if s.f.write && !s.f.late {
		_, err := s.Store.WriteAt(p[:len(p)/3], off) // torn
		return len(p) / 3, errors.Join(err, errFailed)
	}
	n, err := s.Store.WriteAt(p, off)
	if s.f.write {
		err = errors.Join(err, errFailed)
	}
	return n, err
}

func (s failingStore) Sync() error {
	if s.f.sync {
		return errFailed
	}
	return s.Store.Sync()
}

// TestFaults: after each step that failed, or that had its effect and was lost,
// a restart reads the old word or the new one, and this File says no more.
func TestFaults(t *testing.T) {
	for name, f := range map[string]failing{
		"write":        {write: true},
		"write, after": {write: true, late: true},
		"sync":         {sync: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "j")
			begin(t, path, example())
			f.Files = Disk
			step := f
			f.write, f.sync = false, false
			r := example()
			j, err := Begin(&f, path, r)
			if err != nil {
				t.Fatal(err)
			}
			f.write, f.sync = step.write, step.sync
			next := r
			next.Done += 8192
			if err := j.Commit(next); !errors.Is(err, errFailed) {
				t.Fatal(err)
			}
			if got := mustRead(t, path); !reflect.DeepEqual(got, r) && !reflect.DeepEqual(got, next) {
				t.Errorf("got %+v", got)
			}
			f.write, f.sync = false, false
			if err := j.Commit(next); !errors.Is(err, os.ErrClosed) {
				t.Errorf("a commit after one that failed: %v", err)
			}
		})
	}
}
