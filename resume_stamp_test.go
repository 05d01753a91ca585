package failback

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// TestWrongRootUnsettled (L5, L9): a source that seals before all is acknowledged
// does not keep the target waiting for the rest, and its mark stays.
func TestWrongRootUnsettled(t *testing.T) {
	within(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "j")
		dst := randomVolume(1, hostileSize)
		far, wait := pipeServe(t.Context(), Options{Workers: 2}, Side{Name: "dst", Volume: dst, Journal: path})
		rw, err := far[0].Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		v := newVillain(t, rw)
		v.begin(nil, true)
		v.greet(nil)
		v.plan(first)
		v.say(message.Zero{Spans: wireExtents([]cbt.Extent{first})})
		v.must(kindCredit, nil)
		v.say(message.Pass{Purpose: 2, Digest: 2, Leaf: 65536}, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{first})})
		v.must(kindDigests, nil)
		began := time.Now()
		v.say(message.Seal{Algorithm: 2, Root: [32]byte{1}}, message.Report{Last: true, Chunk: []byte("{}")}, message.Bye{})
		v.leave(true)
		if err := errors.Join(wait()...); !errors.Is(err, ErrProtocol) || time.Since(began) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if r, err := journal.Read(journal.Disk, path); err != nil || !r.Touched || r.Complete {
			t.Errorf("the journal is %+v, %v", r, err)
		}
	})
}

// sparseNamed is a volume that also knows what is allocated.
type sparseNamed struct{ *named }

func (v sparseNamed) Allocated(ctx context.Context) ([]cbt.Extent, error) {
	return (&sparseMemory{memory{b: v.b}}).Allocated(ctx)
}

// TestResumedCheckIsWhole (L3, L7): what --verify=full and --seal of a resumed sync
// prove is the whole, also where volumes have holes and below what was done.
func TestResumedCheckIsWhole(t *testing.T) {
	const size = 48 << 20
	for _, wrong := range []bool{false, true} {
		src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
		clear(src.b[12<<20 : 13<<20])
		clear(dst.b[12<<20 : 13<<20])
		path := filepath.Join(t.TempDir(), "j")
		o := Options{Seal: merkle.BLAKE3, Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1}
		run := func() (*Report, error) {
			return Sync(t.Context(), Side{Volume: sparseNamed{src}, Name: "a"}, Side{Volume: sparseNamed{dst}, Name: "b", Journal: path}, o)
		}
		dieBehind(dst, path, 2<<20)
		if _, err := run(); !errors.Is(err, errDied) {
			t.Fatal(err)
		}
		dst.write, o.Resume = nil, true
		if wrong {
			dst.b[4096] ^= 1 // and no stamp tells
		}
		r, err := run()
		if wrong {
			if !isWrong(err) {
				t.Errorf("a byte is wrong below what was done: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if root := keptTree(t, src.b, filepath.Join(t.TempDir(), "t")); r.ResumedFrom == 0 || r.Root == nil || *r.Root != root.String() {
			t.Errorf("resumed from %d, sealed %v, the volume's root is %v", r.ResumedFrom, *r.Root, root)
		}
	}
}

// TestResumedRoot: a kept tree speaks for its volume only if nothing is dirty,
// wherever that lies.
func TestResumedRoot(t *testing.T) {
	const size = 48 << 20
	src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
	dir := t.TempDir()
	a := Side{Volume: src, Name: "a", Tree: filepath.Join(dir, "tree")}
	keptTree(t, src.b, a.Tree)
	src.b[5000] ^= 1
	a.Dirty = dirtyMap(t, size, []cbt.Extent{{Off: 4096, End: 8192}})
	b := Side{Volume: dst, Name: "b", Journal: filepath.Join(dir, "j")}
	o := Options{Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1}
	dieBehind(dst, b.Journal, 1<<20)
	if _, err := Sync(t.Context(), a, b, o); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	dst.write, o.Resume = nil, true
	r, err := Sync(t.Context(), a, b, o)
	if err != nil || r.ResumedFrom == 0 || !bytes.Equal(src.b, dst.b) {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Root != nil {
		t.Errorf("the root of a tree that is not current: %s", *r.Root)
	}
}

// TestTargetWritten (L1, L4): who has written the target since the interrupted sync
// is found out by its stamp. It is not gone on with then, and no map is believed.
func TestTargetWritten(t *testing.T) {
	const size = 48 << 20
	for i, p := range topologies[:4] {
		t.Run(p.name, func(t *testing.T) {
			src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
			x := []cbt.Extent{{Off: 0, End: size}}
			path := filepath.Join(t.TempDir(), "j")
			rec := interrupted(t, src, dst, path, Options{})
			if rec.Left == "" {
				t.Fatalf("no stamp in the journal: %+v", rec)
			}
			dst.b[1] ^= 1
			dst.written.Add(1)
			sync := func(o Options, dirty []cbt.Extent) (*Report, error) {
				a, b := arrange(t, i, Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path})
				a.Dirty = dirtyMap(t, size, dirty)
				o.Codec = "none"
				return Sync(t.Context(), a, b, o)
			}
			before := bytes.Clone(dst.b)
			var refused *RefusedError
			if _, err := sync(Options{Resume: true}, x); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "may have been written since") {
				t.Errorf("resumed: %v", err)
			}
			if _, err := sync(Options{Rung: RungExact}, x); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "rung exact") {
				t.Errorf("forced exact: %v", err)
			}
			if !bytes.Equal(before, dst.b) {
				t.Error("the target was written")
			}
			// A map that knows nothing of it, nor of what lay above what was done.
			r, err := sync(Options{}, nil)
			if err != nil || r.Rung != "merkle" || r.CandidateBytes != size || !strings.Contains(r.Reason, "in doubt") || !bytes.Equal(src.b, dst.b) {
				t.Errorf("%+v, %v", r, err)
			}
			gone(t, path)
		})
	}
}

// TestResumeStamps (L1): where a side can tell on one day and not on the other, an
// interrupted sync is not gone on with; where it never could, that is said.
func TestResumeStamps(t *testing.T) {
	const size = 48 << 20
	for _, c := range []struct {
		name         string
		change       func(src, dst *named, r *journal.Record) (Volume, Volume)
		refused, say string
	}{
		{"nobody has written", func(src, dst *named, _ *journal.Record) (Volume, Volume) { return src, dst }, "", ""},
		{"the source could not tell", func(src, dst *named, r *journal.Record) (Volume, Volume) { r.Stamp = ""; return src, dst },
			"nothing told, when the interrupted sync began", ""},
		{"the source cannot tell", func(src, dst *named, _ *journal.Record) (Volume, Volume) { return nameOnly{src}, dst },
			"nothing tells any more whether the source", ""},
		{"the target cannot tell", func(src, dst *named, _ *journal.Record) (Volume, Volume) { return src, nameOnly{dst} },
			"now nothing that tells", ""},
		{"the session was killed", func(src, dst *named, r *journal.Record) (Volume, Volume) { r.Left = ""; return src, dst },
			"", "nothing says whether"},
		{"it was complete, and killed", func(src, dst *named, r *journal.Record) (Volume, Volume) {
			r.Left, r.Complete, r.Done = "", true, size
			return src, dst
		}, "", ""},
		{"it was complete, and is", func(src, dst *named, r *journal.Record) (Volume, Volume) {
			copy(dst.b, src.b)
			r.Complete, r.Done = true, size
			return src, dst
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
			path := filepath.Join(t.TempDir(), "j")
			done := interrupted(t, src, dst, path, Options{}).Done
			var a, b Volume
			rewrite(t, path, func(r *journal.Record) { a, b = c.change(src, dst, r); done = r.Done })
			if c.name == "it was complete, and killed" {
				done = 0 // a power cut may have brought it back, who knows when
			}
			var notes []string
			o := Options{Resume: true, Codec: "none", Events: Events{Note: func(s string) { notes = append(notes, s) }}}
			r, err := Sync(t.Context(), Side{Volume: a, Name: "a"}, Side{Volume: b, Name: "b", Journal: path}, o)
			var refused *RefusedError
			if errors.As(err, &refused) != (c.refused != "") || refused != nil && !strings.Contains(refused.Reason, c.refused) {
				t.Errorf("got %v, want a refusal with %q", err, c.refused)
			}
			if err == nil && (r.ResumedFrom != done || !bytes.Equal(src.b, dst.b)) {
				t.Errorf("resumed from %d of %d", r.ResumedFrom, done)
			}
			if all := strings.Join(notes, "\n"); len(notes) > 1 || (c.say != "") != (len(notes) == 1) || !strings.Contains(all, c.say) {
				t.Errorf("told %q", notes)
			}
			if err == nil && c.say != "" != strings.Contains(r.Reason, "nothing says whether the target was written since") {
				t.Errorf("the reason is %q", r.Reason)
			}
		})
	}
}

// nameOnly is a volume that cannot tell whether it was written.
type nameOnly struct{ v *named }

func (n nameOnly) ReadAt(p []byte, off int64) (int, error)  { return n.v.ReadAt(p, off) }
func (n nameOnly) WriteAt(p []byte, off int64) (int, error) { return n.v.WriteAt(p, off) }
func (n nameOnly) Size() int64                              { return n.v.Size() }
func (n nameOnly) Sync() error                              { return n.v.Sync() }
func (n nameOnly) Identity() string                         { return n.v.id }
