package failback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/failback/failback/cbt"
	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/transport"
)

func testStage(t rapid.TB, base Volume, dir *fault.Dir, block int64) *stage {
	t.Helper()
	f := stageFacts{target: undoVolume{Size: base.Size(), Identity: "to", Name: "target"}, source: undoVolume{Size: base.Size(), Identity: "from", Name: "source"},
		session: [16]byte{1}, stamp: "writes=1"}
	s, err := beginStage(faultyStages{dir}, stagePath(stageTestDir, f.target, f.journal), &meter{v: base, name: "target"}, f)
	if err != nil {
		t.Fatal(err)
	}
	if block != s.h.block {
		// As of a volume of more than 2 TiB.
		s.h.block = block
		if s.m, err = cbt.NewDirtyMap(s.h.target.Size, block); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestStageVolume: whatever is written and zeroed in whatever pieces, the stage reads
// as a volume would, and so does one that was closed and opened again; the target is
// not touched until it is applied, and then it is that.
func TestStageVolume(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := 512 * rapid.IntRange(1, 400).Draw(rt, "sectors")
		block := int64(4096) << rapid.IntRange(0, 3).Draw(rt, "block")
		want := oldContent(size)
		base := fault.NewVolume("to", want, nil)
		dir := fault.NewDir(nil)
		s := testStage(rt, base, dir, block)
		for range rapid.IntRange(0, 12).Draw(rt, "steps") {
			off := 512 * rapid.IntRange(0, size/512-1).Draw(rt, "off")
			n := min(512*rapid.IntRange(1, 60).Draw(rt, "n"), size-off)
			switch rapid.IntRange(0, 2).Draw(rt, "what") {
			case 0:
				b := randomBytes(rapid.Uint64Range(0, 255).Draw(rt, "seed"), n)
				if got, err := s.WriteAt(b, int64(off)); got != n || err != nil {
					rt.Fatal(got, err)
				}
				copy(want[off:], b)
			case 1:
				if err := s.ZeroAt(int64(off), int64(n)); err != nil {
					rt.Fatal(err)
				}
				clear(want[off : off+n])
			default:
				b := make([]byte, n)
				if got, err := s.ReadAt(b, int64(off)); got != n || err != nil || !bytes.Equal(b, want[off:off+n]) {
					rt.Fatal(got, err)
				}
			}
		}
		if got := base.Bytes(); !bytes.Equal(got, oldContent(size)) {
			rt.Fatal("the target was written")
		}
		if err := errors.Join(s.settle(stageWhole), s.close()); err != nil {
			rt.Fatal(err)
		}
		h, err := readStageHead(s.files, s.path)
		if err != nil {
			rt.Fatal(err)
		}
		again, err := openStage(faultyStages{dir.Crash(7)}, s.path, h, &meter{v: base, name: "target"})
		if err != nil {
			rt.Fatal(err)
		}
		got := make([]byte, size+512)
		for _, read := range []func([]byte, int64) (int, error){again.ReadAt, again.ReadMediumAt} {
			if n, err := read(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], want) {
				rt.Fatal("opened again, it reads otherwise", n, err)
			}
		}
		if again.staged() != s.staged() {
			rt.Fatal(again.staged(), s.staged())
		}
		var p stageProgress
		if err := errors.Join(again.check(t.Context(), p.laid), again.apply(t.Context(), &meter{v: base, name: "target"}, &p)); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(base.Durable(), want) {
			rt.Fatal("applied, the target is not what was staged")
		}
	})
}

// TestStageZeroes: zeroes over content, and a range of them as long as the volume.
func TestStageZeroes(t *testing.T) {
	const size = 8 << 20
	base := &sparseMemory{*randomVolume(1, size)}
	s := testStage(t, base, fault.NewDir(nil), 4096)
	for _, err := range []error{
		onlyErr(s.WriteAt(randomBytes(2, 1<<20), 1<<20)), s.ZeroAt(0, size), onlyErr(s.WriteAt(randomBytes(3, 8192), 4<<20)), s.settle(stageKept),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if s.h.data != 2 || s.h.zeroes != size/4096-2 {
		t.Errorf("%d blocks with content, %d of zeroes", s.h.data, s.h.zeroes)
	}
	chunks := 0
	if err := s.chunks(func(stageChunk) error { chunks++; return nil }); err != nil || chunks != 3 {
		t.Errorf("%d chunks, %v", chunks, err)
	}
	if err := s.apply(t.Context(), &meter{v: base, name: "target"}, &stageProgress{}); err != nil {
		t.Fatal(err)
	}
	if x, _ := base.Allocated(t.Context()); len(x) != 1 || x[0] != (cbt.Extent{Off: 4 << 20, End: 4<<20 + 8192}) {
		t.Errorf("left: %v", x)
	}
}

func onlyErr(_ int, err error) error { return err }

// TestStageRefused: a stage of something else, or files of others, stay as they are (L4).
func TestStageRefused(t *testing.T) {
	base := randomVolume(1, 64<<10)
	f := stageFacts{target: undoVolume{Size: base.Size(), Identity: "to"}, source: undoVolume{Size: base.Size()}, session: [16]byte{1}}
	path := stagePath(stageTestDir, f.target, f.journal)
	other := stageHead{state: stageWhole, block: 4096, target: undoVolume{Size: 4096, Identity: "another"}, source: undoVolume{Size: 4096}}
	for name, files := range map[string]map[string][]byte{
		"another file":             {path: []byte("my letters")},
		"an empty file":            {path: nil},
		"content without a head":   {path + "-data": []byte("mine")},
		"an index without a head":  {path + "-index": []byte("mine")},
		"a stage of another":       {path: other.encode(), path + "-data": []byte("x")},
		"a stage of another build": {path: append([]byte(stageMagic), bytes.Repeat([]byte{9}, stageHeadBytes-8)...)},
	} {
		dir := fault.NewDir(nil)
		for name, b := range files {
			dir.WriteFile(name, b)
		}
		s, err := beginStage(faultyStages{dir}, path, &meter{v: base, name: "target"}, f)
		var refused *RefusedError
		if s != nil || !errors.As(err, &refused) && !errors.Is(err, errStageVersion) {
			t.Errorf("%s: %v", name, err)
		}
		if got := dir.Names(); len(got) != len(files) {
			t.Errorf("%s: left %v", name, got)
		}
		for name, b := range files {
			if got, err := dir.ReadFile(name); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s was changed: %v", name, err)
			}
		}
	}
}

// TestStageTwice: two syncs onto one target at once do not share a stage.
func TestStageTwice(t *testing.T) {
	dir := fault.NewDir(nil)
	base := randomVolume(1, 64<<10)
	s := testStage(t, base, dir, 4096)
	f := stageFacts{target: s.h.target, source: s.h.source, session: [16]byte{2}}
	var refused *RefusedError
	if _, err := beginStage(s.files, s.path, s.base, f); !errors.As(err, &refused) || !refused.busy {
		t.Fatalf("got %v", err)
	}
	if _, err := s.WriteAt(randomBytes(1, 4096), 0); err != nil {
		t.Error(err)
	}
	if err := errors.Join(s.settle(stageWhole), s.check(t.Context(), func(int64) {}), s.close()); err != nil {
		t.Error(err)
	}
	// When that one is gone, what it left is of no use.
	next, err := beginStage(s.files, s.path, s.base, f)
	if err != nil || next.staged() != 0 {
		t.Fatal(err)
	}
}

// TestStageFull: no room beside the target is an error that says so, and the target
// is as it was; so it is where the stage cannot even be made.
func TestStageFull(t *testing.T) {
	for _, rule := range []fault.Rule{
		{Op: fault.Write, When: func(e fault.Event) bool { return e.Off > 0 && filepath.Ext(e.On) == ".fbs-data" }, Kind: fault.NoSpace},
		{Op: fault.Write, When: func(e fault.Event) bool { return filepath.Ext(e.On) == ".fbs-index" }, Kind: fault.NoSpace},
		{Op: fault.Sync, When: func(e fault.Event) bool { return filepath.Ext(e.On) == ".fbs-data" }, Kind: fault.NoSpace},
		{Op: fault.Create, When: func(e fault.Event) bool { return filepath.Ext(e.On) == ".fbs-index" }, Kind: fault.NoSpace},
	} {
		b := newStageBench(512<<10, true)
		b.power.Add(rule)
		_, err := b.sync(t)
		var full *stageError
		if !errors.As(err, &full) || !full.full() || full.Next() == "" || full.Class() != "the disk of the stage is full" {
			t.Fatalf("%v: %v", rule.Op, err)
		}
		if !bytes.Equal(b.dst.Bytes(), b.old) || b.journal(t) != nil {
			t.Errorf("%v: the target was touched", rule.Op)
		}
		if left := b.dir.Names(); len(left) > 0 {
			t.Errorf("%v: left behind: %v", rule.Op, left)
		}
		next := b.restart(0)
		if _, err := next.sync(t); err != nil || !bytes.Equal(next.dst.Bytes(), b.src.b) {
			t.Errorf("with room: %v", err)
		}
	}
}

// TestStageGoesOn: a session whose peer was lost comes again, and what has come does
// not travel twice; where the target was written meanwhile it does.
func TestStageGoesOn(t *testing.T) {
	for _, spoil := range []bool{false, true} {
		t.Run(fmt.Sprintf("written=%v", spoil), func(t *testing.T) {
			b := newStageBench(8<<20, false)
			copy(b.src.b, randomBytes(9, 8<<20))
			far := serve(t, b.target(), Options{})
			d := fault.Dialer{Dial: far.Dial, Calls: []fault.Call{{Rules: []fault.LinkRule{{Way: fault.Out, At: 5 << 20, Kind: fault.Reset}}}}}
			far.Dial = d.Connect
			o := Options{RetryFor: time.Minute, Stage: true, Codec: "none", barrier: 1 << 20, Window: minWindow, Streams: 1}
			o.Events.Retry = func(error, time.Duration) {
				if spoil {
					if _, err := b.dst.WriteAt([]byte("somebody else"), 7<<20); err != nil {
						t.Error(err)
					}
				}
			}
			r, err := Sync(t.Context(), b.source(), far, o)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b.dst.Bytes(), b.src.b) || r.Attempts != 2 {
				t.Errorf("the target is not the source, after %d attempts", r.Attempts)
			}
			if again := r.RawBytes == 8<<20; again != spoil || r.StagedBytes != 8<<20 {
				t.Errorf("the second attempt sent %d bytes, %d are staged", r.RawBytes, r.StagedBytes)
			}
		})
	}
}

// TestStageAlive: applying takes its time, and nobody gives the session up for idle;
// neither while the target first finishes what another has left.
func TestStageAlive(t *testing.T) {
	within(t, func(t *testing.T) {
		b := newStageBench(512<<10, false)
		for _, op := range []fault.Op{fault.Write, fault.ReadMedium} {
			b.power.Add(fault.Rule{Op: op, On: "target", Kind: fault.Slow, For: 9 * time.Minute})
		}
		o := Options{Workers: 1, Idle: 10 * time.Minute, Stage: true}
		var phases []string
		o.Events.Progress = func(p Progress) {
			if n := len(phases); n == 0 || phases[n-1] != p.Phase {
				phases = append(phases, p.Phase)
			}
		}
		far, wait := pipeServe(t.Context(), Options{Workers: 1}, b.target())
		began := time.Now()
		if _, err := Sync(t.Context(), b.source(), far[0], o); err != nil {
			t.Fatal(err)
		}
		wait()
		if time.Since(began) < 15*time.Minute || phases[len(phases)-1] != phaseApply {
			t.Errorf("it took %v; phases %v", time.Since(began), phases)
		}
		if !bytes.Equal(b.dst.Bytes(), b.src.b) {
			t.Error("the target is not the source")
		}
	})
	within(t, func(t *testing.T) {
		b := newStageBench(512<<10, false)
		b.power.Add(fault.Rule{Op: fault.Write, On: "target", N: 3, Kind: fault.Cut})
		if _, err := b.sync(t); !errors.Is(err, fault.ErrPower) {
			t.Fatal(err)
		}
		left := b.restart(3)
		left.power.Add(fault.Rule{Op: fault.Write, On: "target", Kind: fault.Slow, For: 9 * time.Minute})
		far, wait := pipeServe(t.Context(), Options{Workers: 1}, left.target())
		r, err := Sync(t.Context(), b.source(), far[0], Options{Workers: 1, Idle: 10 * time.Minute})
		wait()
		if err != nil || r.DivergentBytes != 0 || !bytes.Equal(left.dst.Bytes(), b.src.b) {
			t.Errorf("%v: %+v", err, r)
		}
	})
}

// TestStageHangs: a target whose disk does nothing for too long is given up, as it is
// by any session; should the disk come back, what was begun is applied.
func TestStageHangs(t *testing.T) {
	within(t, func(t *testing.T) {
		b := newStageBench(512<<10, false)
		b.power.Add(fault.Rule{Op: fault.Sync, On: "target", N: 1, Kind: fault.Slow, For: 2 * time.Hour})
		far, wait := pipeServe(t.Context(), Options{Workers: 1}, b.target())
		began := time.Now()
		_, err := Sync(t.Context(), b.source(), far[0], Options{Workers: 1, Idle: 10 * time.Minute, Stage: true})
		if took := time.Since(began); !errors.Is(err, transport.ErrIdle) || took > 20*time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
		wait()
		if rec := b.journal(t); !bytes.Equal(b.dst.Durable(), b.src.b) || rec == nil || !rec.Complete {
			t.Errorf("the target is not what it was going to be, or the journal does not say so: %+v", rec)
		}
	})
}

// TestStageGoodBye: a source that is gone before it was told is held to it.
func TestStageGoodBye(t *testing.T) {
	x := &target{}
	x.stage = &stage{}
	if err := x.gone(); !errors.Is(err, ErrProtocol) {
		t.Errorf("got %v", err)
	}
	x.told.Store(true)
	if err := x.gone(); err != nil {
		t.Errorf("got %v", err)
	}
}

// TestStageHeads (L9): no changed byte of a head is another head, and what is read is
// written the same.
func TestStageHeads(t *testing.T) {
	h := stageHead{state: stageWhole, block: 8192, target: undoVolume{1<<20 + 512, "to", "größe"}, source: undoVolume{1 << 20, "from", "source"},
		session: [16]byte{1, 2}, after: [16]byte{3}, key: 4, made: 5, data: 6, zeroes: 7, pages: 8, stamp: "writes=9"}
	b := h.encode()
	got, err := parseStageHead(b)
	if err != nil || *got != h || !bytes.Equal(got.encode(), b) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := parseStageHead(bad); !errors.Is(err, errNotStage) && !errors.Is(err, errStageVersion) && !errors.Is(err, errStageCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := parseStageHead(b[:i]); !errors.Is(err, errNotStage) && !errors.Is(err, errStageCorrupt) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	if _, err := (stageDisk{}).head(os.DevNull); !errors.Is(err, errNotStage) {
		t.Errorf("a device: %v", err)
	}
}
