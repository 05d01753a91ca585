package failback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// keptTree makes the tree of content at path.
func keptTree(t *testing.T, content []byte, path string) merkle.Hash {
	t.Helper()
	sh := merkle.Shape{Size: int64(len(content)), Leaf: defaultLeaf, Algorithm: merkle.BLAKE3}
	f, _, err := merkle.Build(t.Context(), bytes.NewReader(content), sh, path, merkle.Options{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := f.Root(t.Context())
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return root
}

// rewrite changes what the journal at path says.
func rewrite(t *testing.T, path string, change func(*journal.Record)) {
	t.Helper()
	r, err := journal.Read(journal.Disk, path)
	if err != nil {
		t.Fatal(err)
	}
	change(r)
	f, err := journal.Begin(journal.Disk, path, *r)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// gone says that no journal is left at path.
func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal is still there: %v", err)
	}
}

// TestSyncFromElsewhere (L1): a map of this pair knows nothing of what another
// source's interrupted sync has left on the target.
func TestSyncFromElsewhere(t *testing.T) {
	const size = 48 << 20
	src, other := namedVolume("source", randomVolume(1, size)), namedVolume("other", randomVolume(3, size))
	dst := namedVolume("target", clone(src.memory))
	path := filepath.Join(t.TempDir(), "j")
	o := Options{Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1}
	dieBehind(dst, path, 24<<20)
	if _, err := Sync(t.Context(), Side{Volume: other, Name: "c"}, Side{Volume: dst, Name: "b", Journal: path}, o); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	a := Side{Volume: src, Name: "a", Dirty: dirtyMap(t, size, nil)}
	b := Side{Volume: dst, Name: "b", Journal: path}
	dieBehind(dst, path, 4<<20) // the doubt is carried on by who is interrupted too
	if _, err := Sync(t.Context(), a, b, o); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	dst.write = nil
	r, err := Sync(t.Context(), a, b, Options{Resume: true})
	if err != nil || r.ResumedFrom == 0 || !bytes.Equal(src.b, dst.b) {
		t.Errorf("%+v, %v", r, err)
	}
	gone(t, path)
}

// TestRepairIsWhole (L7): a place that is wrong where no map and no tree would have
// anybody look is repaired; without --repair, nobody forgets it.
func TestRepairIsWhole(t *testing.T) {
	const size, at = 1 << 20, 3*65536 + 8192
	for _, c := range []string{"nothing", "map", "target's tree", "source's tree", "both trees", "forced exact", "map, no journal"} {
		for i, p := range topologies[:2] {
			for _, repair := range []bool{true, false} {
				t.Run(c+"/"+p.name+"/"+map[bool]string{true: "repair", false: "later"}[repair], func(t *testing.T) {
					dir := t.TempDir()
					src := namedVolume("source", randomVolume(1, size))
					dst := &liar{named: namedVolume("target", randomVolume(1, size)), at: at}
					dst.bad.Store(true) // rot: nobody wrote it
					a, b := Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: filepath.Join(dir, "j")}
					dirty := dirtyMap(t, size, []cbt.Extent{{Off: 0, End: 4096}})
					if strings.Contains(c, "source") || c == "both trees" {
						a.Tree, a.Dirty = filepath.Join(dir, "s"), dirty
						keptTree(t, src.b, a.Tree)
					}
					if strings.Contains(c, "target") || c == "both trees" {
						b.Tree, b.TrustTree = filepath.Join(dir, "t"), true
						keptTree(t, dst.b, b.Tree)
					}
					if c == "map, no journal" {
						if b.Journal = ""; !repair {
							t.Skip("nothing is left that could tell")
						}
					}
					if strings.HasPrefix(c, "map") || c == "forced exact" {
						a.Dirty = dirty
					}
					src.b[100] ^= 1
					a, b = arrange(t, i, a, b)
					o := Options{Verify: VerifyFull, Repair: repair, Codec: "none"}
					if c == "forced exact" {
						o.Rung = RungExact
					}
					r, err := Sync(t.Context(), a, b, o)
					if !repair {
						if !isWrong(err) {
							t.Fatalf("the medium is wrong: %v", err)
						}
						awaitDoubt(t, filepath.Join(dir, "j"))
						o.Verify, o.Rung = VerifyChanged, RungAuto
						r, err = Sync(t.Context(), a, b, o)
					}
					if err != nil || r.Rung != "merkle" || r.CandidateBytes != size {
						t.Fatalf("%+v, %v", r, err)
					}
					if dst.bad.Load() || !bytes.Equal(src.b, dst.b) {
						t.Error("equal, it says, and the medium is wrong")
					}
					gone(t, filepath.Join(dir, "j"))
				})
			}
		}
	}
}

// awaitDoubt waits for a server to end its session, which we have heard the end of.
func awaitDoubt(t *testing.T, path string) {
	t.Helper()
	for range 5000 {
		if r, err := journal.Read(journal.Disk, path); err == nil && r.Suspect {
			return
		}
		<-time.After(time.Millisecond)
	}
	t.Fatal("no doubt is recorded")
}

// TestDoubtGoesOn (L1, L7): a session in doubt that is interrupted is gone on with
// where it was; the doubt stays until one has come to its end.
func TestDoubtGoesOn(t *testing.T) {
	const size = 48 << 20
	src := namedVolume("source", randomVolume(1, size))
	dst := &liar{named: namedVolume("target", randomVolume(2, size)), at: size - 4096}
	path := filepath.Join(t.TempDir(), "j")
	interrupted(t, src, dst.named, path, Options{})
	rewrite(t, path, func(r *journal.Record) { r.Suspect, r.Done = true, 0 })
	dst.bad.Store(true)
	a, b := Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Journal: path}
	o := Options{Resume: true, Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1}
	dieBehind(dst.named, path, 4<<20)
	if _, err := Sync(t.Context(), a, b, o); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	dst.write = nil
	rec, err := journal.Read(journal.Disk, path)
	if err != nil || !rec.Suspect || rec.Done <= 4<<20 {
		t.Fatalf("%+v, %v", rec, err)
	}
	a.Dirty = dirtyMap(t, size, nil) // makes no difference to a session in doubt
	r, err := Sync(t.Context(), a, b, o)
	if err != nil || r.ResumedFrom != rec.Done || dst.bad.Load() || !bytes.Equal(src.b, dst.b) {
		t.Errorf("%+v, %v", r, err)
	}
	gone(t, path)
}

// TestSuspectSource (L5): what is known not to hold what it should is not copied on.
func TestSuspectSource(t *testing.T) {
	src := namedVolume("source", randomVolume(1, 1<<20))
	dst := &liar{named: namedVolume("target", clone(src.memory)), at: 5000}
	dst.bad.Store(true)
	b := Side{Volume: dst, Name: "b", Journal: filepath.Join(t.TempDir(), "j")}
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, b, Options{Verify: VerifyFull}); !isWrong(err) {
		t.Fatal(err)
	}
	_, err := Sync(t.Context(), b, Side{Volume: randomVolume(2, 1<<20)}, Options{})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "medium") {
		t.Errorf("got %v", err)
	}
}

// TestSpentTree (L1): a target's tree does not speak for it once a session has
// written it, though the source has gone back to what the tree says.
func TestSpentTree(t *testing.T) {
	const size = 32 << 20
	for _, way := range []string{"retry", "retry, tree at the source", "anew"} {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			src, dst := namedVolume("source", randomVolume(1, size)), namedVolume("target", randomVolume(2, size))
			copy(src.b[4096:65536], dst.b[4096:65536]) // only its first piece differs, and only at first
			tree := filepath.Join(dir, "t")
			keptTree(t, dst.b, tree)
			back := func() {
				copy(src.b, dst.b[:0])
				copy(src.b[:4096], randomBytes(2, size)[:4096])
				src.written.Add(1)
			}
			var err error
			a, b := Side{Volume: src, Name: "a"}, Side{Volume: dst, Name: "b", Tree: tree, TrustTree: true}
			o := Options{Checkpoint: time.Millisecond, Window: 2 << 20, Codec: "none", Workers: 1}
			if way == "anew" {
				b.Journal = filepath.Join(dir, "j")
				dieBehind(dst, b.Journal, 4<<20)
				if _, err = Sync(t.Context(), a, b, o); !errors.Is(err, errDied) {
					t.Fatal(err)
				}
				dst.write = nil
				back()
				_, err = Sync(t.Context(), a, b, o)
			} else {
				o.RetryFor = time.Minute
				o.Events.Retry = func(error, time.Duration) { back() }
				far := b
				if way != "retry" {
					far.Tree, far.TrustTree = "", false
				}
				far = serve(t, far, Options{})
				if way != "retry" {
					far.Tree, far.TrustTree = tree, true
				}
				dials := 0
				_, err = Sync(t.Context(), a, cutAfter(far, func() int64 { dials++; return int64(dials*dials) * 16 << 20 }), o)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(src.b, dst.b) {
				t.Error("the volumes differ")
			}
		})
	}
}

// TestNarrowPlanInDoubt (L7): a source that does not look at everything is refused
// where everything is in doubt, and the doubt stays.
func TestNarrowPlanInDoubt(t *testing.T) {
	whole := cbt.Extent{Off: 0, End: hostileSize}
	for _, c := range []struct {
		name   string
		plan   func(*message.Plan)
		list   cbt.Extent
		accept bool
	}{
		{"whole", func(*message.Plan) {}, whole, true},
		{"narrow", func(*message.Plan) {}, first, false},
		{"from elsewhere", func(p *message.Plan) { p.From = uint8(fromPeer) }, whole, false},
		{"blind", func(p *message.Plan) { p.Level, p.From, p.Rung = 0, uint8(fromPeer), uint8(RungAllocated) }, whole, false},
		{"full", func(p *message.Plan) { p.Level, p.From, p.Rung = 0, uint8(fromPeer), uint8(RungFull) }, whole, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "j")
				r := journal.Record{Suspect: true, Source: journal.Volume{Size: hostileSize}, Target: journal.Volume{Size: hostileSize}}
				f, err := journal.Begin(journal.Disk, path, r)
				if err != nil {
					t.Fatal(err)
				}
				_ = f.Close()
				far, wait := pipeServe(t.Context(), Options{Workers: 1}, Side{Name: "dst", Volume: randomVolume(1, hostileSize), Journal: path})
				rw, err := far[0].Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				v := newVillain(t, rw)
				v.begin(nil, true)
				if info := v.greet(nil); !info.Doubt {
					t.Error("the doubt is not told")
				}
				m := hostilePlan([]cbt.Extent{c.list})
				c.plan(&m)
				v.say(m, message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents([]cbt.Extent{c.list})})
				if _, ok := v.hear(kindAgree); ok != c.accept {
					t.Errorf("agreed: %v; told %v", ok, v.told)
				}
				_ = rw.Close()
				v.leave(false)
				wait()
				if r, err := journal.Read(journal.Disk, path); err != nil || !r.Suspect {
					t.Errorf("the journal is %+v, %v", r, err)
				}
			})
		})
	}
}

// TestRepairFails: what the medium was found to be is said also if the repair ends
// for another reason.
func TestRepairFails(t *testing.T) {
	src := namedVolume("source", randomVolume(1, 4<<20))
	dst := &liar{named: namedVolume("target", randomVolume(2, 4<<20)), at: 1 << 20}
	dst.wrong.Store(1)
	far := serve(t, Side{Volume: dst, Name: "b"}, Options{})
	dial, dials := far.Dial, atomic.Int64{}
	far.Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
		if dials.Add(1) > 1 {
			return nil, syscall.ECONNREFUSED
		}
		return dial(ctx)
	}
	_, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, far, Options{Repair: true})
	if !errors.Is(err, syscall.ECONNREFUSED) || !isWrong(err) || dials.Load() != 2 {
		t.Errorf("%v, %d dials", err, dials.Load())
	}
}

// TestUndoKeepsDoubt (L7): putting back what was overwritten does not mend a medium.
func TestUndoKeepsDoubt(t *testing.T) {
	const size = 1 << 20
	dir := t.TempDir()
	src, old := namedVolume("source", randomVolume(1, size)), randomVolume(1, size)
	scatter(old, 4, 20)
	dst := &liar{named: namedVolume("target", clone(old)), at: 3*65536 + 8192}
	copy(dst.b[3*65536:4*65536], src.b[3*65536:])
	want := bytes.Clone(dst.b)
	dst.bad.Store(true)
	b := Side{Volume: dst, Name: "b", Journal: filepath.Join(dir, "j"), Undo: filepath.Join(dir, "u")}
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, b, Options{Verify: VerifyFull}); !isWrong(err) {
		t.Fatal(err)
	}
	u, err := OpenUndo(b.Undo)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Journal = b.Journal
	if err := u.Restore(t.Context(), dst, nil); err != nil || !bytes.Equal(dst.b, want) {
		t.Fatalf("undone: %v", err)
	}
	if r, err := journal.Read(journal.Disk, b.Journal); err != nil || r.Touched || !r.Suspect {
		t.Errorf("the journal is %+v, %v", r, err)
	}
	b.Undo = ""
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "a"}, b, Options{}); err != nil || dst.bad.Load() {
		t.Errorf("%v, the medium is wrong: %v", err, dst.bad.Load())
	}
}
