package failback

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
)

// named is a volume that knows who it is and whether it was written.
type named struct {
	faulty
	id      string
	written atomic.Int64
	reads   atomic.Int64
}

func (v *named) Identity() string { return v.id }

func (v *named) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.faulty.ReadAt(p, off)
	v.reads.Add(int64(n))
	return n, err
}

func (v *named) WriteAt(p []byte, off int64) (int, error) {
	v.written.Add(1)
	return v.faulty.WriteAt(p, off)
}

func (v *named) Stamp() (string, error) { return "writes=" + string(rune('a'+v.written.Load())), nil }

func namedVolume(id string, m *memory) *named { return &named{faulty: faulty{memory: m}, id: id} }

var errDied = errors.New("input/output error")

// dieBehind makes the writes of v slow, and fail once the journal at path says
// that more than so many bytes are done. On a busy machine that takes some waiting.
func dieBehind(v *named, path string, done int64) {
	var written atomic.Int64
	v.write = func(int64) error {
		turns := 1
		if written.Add(1) > 4+done>>20 {
			turns = 40
		}
		for range turns {
			<-time.After(3 * time.Millisecond)
			if r, err := journal.Read(journal.Disk, path); err == nil && r.Done > done {
				return errDied
			}
		}
		return nil
	}
}

// TestResume (L2, L5) interrupts a sync at some write, and goes on with it: what
// is acknowledged is neither read, nor hashed, nor sent again.
func TestResume(t *testing.T) {
	const size = 48 << 20
	for i, p := range topologies {
		t.Run(p.name, func(t *testing.T) {
			src := namedVolume("source", randomVolume(1, size))
			dst := namedVolume("target", randomVolume(2, size))
			path := filepath.Join(t.TempDir(), "t.fbj")
			o := Options{Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Streams: p.streams, Workers: 1}
			run := func() (*Report, error) {
				a, b := arrange(t, i, Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path})
				return Sync(t.Context(), a, b, o)
			}
			dieBehind(dst, path, 4<<20)
			if _, err := run(); err == nil {
				t.Fatal("the interrupted sync went well")
			}
			rec, err := journal.Read(journal.Disk, path)
			if err != nil {
				t.Fatal(err)
			}
			if rec.Complete || !rec.Touched || rec.Done <= 4<<20 || !bytes.Equal(src.b[:rec.Done], dst.b[:rec.Done]) {
				t.Fatalf("journal of the interrupted sync: %+v", rec)
			}
			dst.write = nil
			o.Resume = true
			src.reads.Store(0)
			report, err := run()
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(src.b, dst.b) {
				t.Error("the volumes differ")
			}
			if report.ResumedFrom != rec.Done || report.CandidateBytes != size-rec.Done || report.SourceReadBytes > size-rec.Done+1<<20 {
				t.Errorf("resumed from %d (journal: %d), %d candidates, %d read", report.ResumedFrom, rec.Done, report.CandidateBytes, report.SourceReadBytes)
			}
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the journal is still there: %v", err)
			}
		})
	}
}

// interrupted leaves a journal of a sync that did not finish.
func interrupted(t *testing.T, src, dst *named, path string, o Options) *journal.Record {
	t.Helper()
	dieBehind(dst, path, 0)
	defer func() { dst.write = nil }()
	o.Checkpoint, o.Window, o.Codec, o.Workers = time.Millisecond, 2<<20, "none", 1
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path}, o); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	r, err := journal.Read(journal.Disk, path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestResumeRefused (L4): a journal that is not of these two volumes as they are
// is refused, not used.
func TestResumeRefused(t *testing.T) {
	const size = 48 << 20
	for _, c := range []struct {
		name   string
		change func(src, dst *named, path string, a, b *Side, o *Options)
		say    string
	}{
		{"no journal", func(_, _ *named, path string, _, _ *Side, _ *Options) { os.Remove(path) }, "no journal of an interrupted sync"},
		{"no place", func(_, _ *named, _ string, _, b *Side, _ *Options) { b.Journal = "" }, "no journal is kept"},
		{"another source", func(src, _ *named, _ string, _, _ *Side, _ *Options) { src.id = "elsewhere" }, `with the source a ("source"), this one is "elsewhere"`},
		{"another target", func(_, dst *named, _ string, _, _ *Side, _ *Options) { dst.id = "elsewhere" }, `with the target b ("target")`},
		{"source written", func(src, _ *named, _ string, _, _ *Side, _ *Options) { src.written.Add(1) }, "was written since"},
		{"another map", func(_, _ *named, _ string, a, _ *Side, _ *Options) {
			a.Dirty, _ = mapOf(size, []cbt.Extent{{Off: 0, End: 4096}})
		}, "other maps"},
		{"another rung", func(_, _ *named, _ string, _, _ *Side, o *Options) { o.Rung = RungFull }, "another rung"},
		{"nameless", func(src, _ *named, path string, a, _ *Side, _ *Options) { a.Volume = src.memory }, `this one is ""`},
		{"another file", func(_, _ *named, path string, _, _ *Side, _ *Options) {
			os.WriteFile(path, []byte("my diary, of more than a few bytes"), 0o600)
		}, "is something else"},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := namedVolume("source", randomVolume(1, size))
			dst := namedVolume("target", randomVolume(2, size))
			path := filepath.Join(t.TempDir(), "t.fbj")
			interrupted(t, src, dst, path, Options{})
			before := bytes.Clone(dst.b)
			a, b, o := Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path}, Options{Resume: true}
			c.change(src, dst, path, &a, &b, &o)
			_, err := Sync(t.Context(), a, b, o)
			var refused *RefusedError
			if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.say) {
				t.Errorf("got %v, want a refusal with %q", err, c.say)
			}
			if !bytes.Equal(before, dst.b) {
				t.Error("the target was written")
			}
			if c.name == "another file" {
				return
			}
			o.Resume = false
			if _, err := Sync(t.Context(), a, b, o); err != nil {
				t.Fatal(err)
			}
			if c.name != "another map" && !bytes.Equal(src.b, dst.b) {
				t.Error("the volumes differ after a sync from the beginning")
			}
		})
	}
}

// TestInconsistentSource (L5): what a sync has begun to overwrite is not copied on.
func TestInconsistentSource(t *testing.T) {
	src := namedVolume("source", randomVolume(1, 48<<20))
	dst := namedVolume("target", randomVolume(2, 48<<20))
	path := filepath.Join(t.TempDir(), "t.fbj")
	interrupted(t, src, dst, path, Options{})
	third := namedVolume("third", randomVolume(3, 48<<20))
	_, err := Sync(t.Context(), Side{Volume: dst, Name: "b", Journal: path}, Side{Volume: third}, Options{})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("got %v", err)
	}
	if _, err := Sync(t.Context(), Side{Volume: dst, Name: "b", Journal: path, AllowInconsistent: true}, Side{Volume: third}, Options{}); err != nil {
		t.Fatal(err)
	}
	// A later sync that finds nothing to do ends the journal too.
	copy(dst.b, src.b)
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path}, Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
}

// TestNoTraceWithoutDifference: a sync that finds nothing to do leaves no file, at any time.
func TestNoTraceWithoutDifference(t *testing.T) {
	src := namedVolume("source", randomVolume(1, 1<<20))
	dst := namedVolume("target", clone(src.memory))
	path := filepath.Join(t.TempDir(), "none", "t.fbj") // it could not be made there
	if _, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst, Journal: path}, Options{}); err != nil {
		t.Fatal(err)
	}
	dst.b[0] ^= 1
	_, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst, Journal: path}, Options{})
	var refused *RefusedError
	if !errors.As(err, &refused) || dst.written.Load() != 0 {
		t.Errorf("without a place for the journal: %v, %d writes", err, dst.written.Load())
	}
}

// liar is a volume whose cache holds what was written and whose medium, at one
// place and for some writes, something else (L7).
type liar struct {
	*named
	at    int64
	wrong atomic.Int64 // writes of that place that go wrong
	bad   atomic.Bool
}

func (v *liar) WriteAt(p []byte, off int64) (int, error) {
	if off <= v.at && v.at < off+int64(len(p)) {
		v.bad.Store(v.wrong.Add(-1) >= 0)
	}
	return v.named.WriteAt(p, off)
}

func (v *liar) ReadMediumAt(p []byte, off int64) (int, error) {
	n, err := v.named.ReadAt(p, off)
	if v.bad.Load() && off <= v.at && v.at < off+int64(n) {
		p[v.at-off] ^= 0x10
	}
	return n, err
}

// TestRepair (L7): a block the medium got wrong is found, named, and sent again
// once, though every cache shows the right bytes.
func TestRepair(t *testing.T) {
	const size, at = 8 << 20, 5<<20 + 77
	for i, p := range topologies {
		for _, wrong := range []int64{0, 1, 2} {
			for _, full := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d times wrong/full=%v", p.name, wrong, full), func(t *testing.T) {
					src := namedVolume("source", randomVolume(1, size))
					dst := &liar{named: namedVolume("target", randomVolume(2, size)), at: at}
					if full { // only the comparison of the whole can see it
						copy(dst.b[4<<20:6<<20], src.b[4<<20:6<<20])
						dst.bad.Store(wrong > 0)
						wrong--
					}
					dst.wrong.Store(wrong)
					a, b := arrange(t, i, Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: filepath.Join(t.TempDir(), "j")})
					o := Options{Repair: true, Streams: p.streams, Codec: "none"}
					if full {
						o.Verify = VerifyFull
					}
					report, err := Sync(t.Context(), a, b, o)
					if full {
						wrong++
					}
					switch {
					case wrong == 2:
						if !isWrong(err) || !strings.Contains(err.Error(), "[0x500000,0x5") {
							t.Fatalf("wrong twice: %v", err)
						}
						return
					case err != nil:
						t.Fatal(err)
					case int64(report.Attempts) != wrong+1:
						t.Errorf("%d attempts", report.Attempts)
					}
					if !bytes.Equal(src.b, dst.b) || dst.bad.Load() {
						t.Error("the medium is not right")
					}
				})
			}
		}
	}
}

// TestSuspectJournal (L7): whoever goes on with a sync that found the medium
// wrong looks at the medium, also without being asked to.
func TestSuspectJournal(t *testing.T) {
	src := namedVolume("source", randomVolume(1, 4<<20))
	dst := &liar{named: namedVolume("target", randomVolume(2, 4<<20)), at: 1 << 20}
	dst.wrong.Store(1)
	a, b := Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: filepath.Join(t.TempDir(), "j")}
	if _, err := Sync(t.Context(), a, b, Options{}); !isWrong(err) {
		t.Fatal(err)
	}
	if rec, err := journal.Read(journal.Disk, b.Journal); err != nil || !rec.Suspect {
		t.Fatalf("journal %+v, %v", rec, err)
	}
	if _, err := Sync(t.Context(), a, b, Options{Resume: true}); err != nil || dst.bad.Load() {
		t.Errorf("%v, medium wrong: %v", err, dst.bad.Load())
	}
}

// TestDoneIsSent (L2): what a barrier says is finished with has been sent, also
// what several goroutines were gathering into frames when it was set.
func TestDoneIsSent(t *testing.T) {
	const size = 32 << 20
	for n := range int64(40) {
		src := namedVolume("source", randomVolume(1, size))
		dst := namedVolume("target", clone(src.memory))
		scatter(dst.memory, uint64(n), 3000)
		path := filepath.Join(t.TempDir(), "j")
		var writes atomic.Int64
		dst.write = func(int64) error {
			if writes.Add(1) > 200+60*n {
				return errDied
			}
			return nil
		}
		o := Options{barrier: 256 << 10, Checkpoint: time.Hour, Codec: "none", Window: 2 << 20}
		_, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path}, o)
		if err == nil {
			continue
		}
		rec, err := journal.Read(journal.Disk, path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(src.b[:rec.Done], dst.b[:rec.Done]) {
			t.Fatalf("after %d writes the journal says %#x is done, and it differs", 200+60*n, rec.Done)
		}
	}
}
