package ebpf

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/failback/failback/cbt"
)

// late starts a write of block 3 that is held on its way, takes its mark and
// has it proven: the race that loses a write for ever.
func late(t *testing.T, tr *Tracker, f *frozen) (land func()) {
	t.Helper()
	v := &deviceVolume{f: openFile(t, f.device, os.O_RDWR)}
	wait := stall(t, f, tr, v, []byte("late"), 3*cbt.MinBlock)
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); !slices.Contains(got, block(3)) {
		t.Fatalf("took %v, want the write that is under way", got)
	}
	mustPutBack(t, tr, taken, all(tr))
	return func() {
		t.Helper()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// unarm takes the programs of the session away and waits until they are gone,
// which the kernel does some time after.
func unarm(t *testing.T, tr *Tracker) {
	t.Helper()
	var ids []ebpf.ProgramID
	for _, name := range sessionPrograms {
		l, err := link.LoadPinnedLink(filepath.Join(tr.sessionDir(), name), nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := l.Info()
		if err = errors.Join(err, l.Close()); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, info.Program)
	}
	if err := tr.sweepSession(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !until(t, 10*second, func() bool {
			p, err := ebpf.NewProgramFromID(id)
			if err == nil {
				p.Close()
			}
			return err != nil
		}) {
			t.Fatal("a program of the session stays")
		}
	}
}

func block(i int64) cbt.Extent {
	return cbt.Extent{Off: i * cbt.MinBlock, End: (i + 1) * cbt.MinBlock}
}

func all(tr *Tracker) cbt.Extent { return cbt.Extent{Off: 0, End: tr.planes.size} }

// The suite has the same as L1/InFlight. Here is the proof that it proves
// something: without the marks at the end, the write is lost.
func TestInFlightNeedsTheEnd(t *testing.T) {
	dir := newFreezer(t, 64<<20)
	for _, marked := range []bool{true, false} {
		t.Run(map[bool]string{true: "Marked", false: "Unmarked"}[marked], func(t *testing.T) {
			f := newFrozen(t, dir, 1<<20)
			tr := sealed(t, f.device, Options{}, 2)
			land := late(t, tr, f)
			if !marked {
				unarm(t, tr)
			}
			land()
			got := slices.Contains(mustMap(t, tr).Extents(), block(3))
			if got != marked {
				t.Errorf("the write that landed late is in the map: %v, want %v", got, marked)
			}
		})
	}
}

// A session that rests, or closes, while a write is under way must not lose it.
func TestRestWhileAWriteIsUnderWay(t *testing.T) {
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	tr := sealed(t, f.device, Options{}, 2)
	land := late(t, tr, f)
	// Long enough for a kernel that counts the write not to look quiet.
	ctx, cancel := context.WithTimeout(t.Context(), second/5)
	defer cancel()
	if err := tr.Rest(ctx); !errors.Is(err, ErrBusy) {
		t.Fatalf("rest beside a write: %v", err)
	}
	if err := tr.Close(ctx); err != nil {
		t.Fatal(err)
	}
	land()
	again, err := Open(f.device, Options{FS: tr.pins.mount})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, again) })
	if !slices.Contains(mustMap(t, again).Extents(), block(3)) {
		t.Error("the write that landed after Rest is not in the map")
	}
	if err := again.Rest(t.Context()); err != nil || mustStatus(t, again).Reading {
		t.Errorf("does not rest on a quiet device: %v", err)
	}
	if err := again.Trust().Check(2); err != nil {
		t.Error(err)
	}
}

// What a stop saves has a write that nobody sees land any more.
func TestStopWhileAWriteIsUnderWay(t *testing.T) {
	dir := newFreezer(t, 64<<20)
	for _, who := range []string{"its session", "another"} {
		t.Run(who, func(t *testing.T) {
			f := newFrozen(t, dir, 1<<20)
			tr := sealed(t, f.device, Options{}, 2)
			land := late(t, tr, f)
			if who == "another" {
				ctx, cancel := context.WithTimeout(t.Context(), second/5)
				defer cancel()
				fs := tr.pins.mount
				if err := tr.Close(ctx); err != nil {
					t.Fatal(err)
				}
				var err error
				if tr, err = Open(f.device, Options{FS: fs}); err != nil {
					t.Fatal(err)
				}
			}
			m, err := tr.Stop()
			land()
			if err != nil {
				t.Fatal(err)
			}
			if m.Epoch != 0 && !slices.Contains(m.Extents(), block(3)) {
				t.Errorf("the map vouches for epoch %d, and has not the write that landed late: %v", m.Epoch, m.Extents())
			}
			if (m.Epoch == 2) != (who == "its session") {
				t.Errorf("epoch %d", m.Epoch)
			}
		})
	}
}

// A write that was queued before the start gets its first mark at its end.
func TestStartBesideAWrite(t *testing.T) {
	dir := newFreezer(t, 64<<20)
	for _, settled := range []bool{true, false} {
		t.Run(map[bool]string{true: "Settled", false: "Unsettled"}[settled], func(t *testing.T) {
			f := newFrozen(t, dir, 1<<20)
			land := early(t, f)
			tr := start(t, f.device, Options{})
			if err := tr.Seal(2); err != nil {
				t.Fatal(err)
			}
			if s := mustStatus(t, tr); s.Drained || !s.Reading {
				t.Errorf("beside a write: %+v", s)
			}
			mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
			if !settled {
				unarm(t, tr)
			}
			land()
			if got := slices.Contains(mustMap(t, tr).Extents(), block(0)); got != settled {
				t.Errorf("the write from before the start is in the map: %v, want %v", got, settled)
			}
			if !settled {
				return
			}
			if err := tr.Rest(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s := mustStatus(t, tr); !s.Drained || s.Reading {
				t.Errorf("in the end: %+v", s)
			}
		})
	}
}

// early starts a write to block 0 that the kernel counts and nobody has marked.
func early(t *testing.T, f *frozen) (land func()) {
	t.Helper()
	f.freeze(t)
	v := &deviceVolume{f: openFile(t, f.device, os.O_RDWR)}
	ended := make(chan error, 1)
	go func() { // ends when the file system is thawed
		_, err := v.WriteAt([]byte("early"), 0)
		ended <- err
	}()
	d, err := lookDevice(f.device)
	if err != nil {
		t.Fatal(err)
	}
	if !until(t, 5*second, func() bool { _, idle := d.quiet(); return !idle }) {
		t.Fatal("no write is under way")
	}
	return func() {
		t.Helper()
		f.thaw(t)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// A discard that ends after its mark was taken is a write: the block may hold what
// was written since, and was taken and proven as well.
func TestLateDiscard(t *testing.T) {
	f := newFrozen(t, newFreezer(t, 64<<20), 1<<20)
	tr := sealed(t, f.device, Options{}, 2)
	var landed func() error
	// A frozen file takes a discard and holds a write: so one is put in front.
	hold := func() {
		landed = stall(t, f, tr, &deviceVolume{f: openFile(t, f.device, os.O_RDWR)}, []byte("in front"), 200*cbt.MinBlock)
	}
	lateDiscard(t, tr, hold, func() {
		if err := landed(); err != nil {
			t.Error(err)
		}
	})
}

// lateDiscard discards blocks 4 to 12 between hold and release.
func lateDiscard(t *testing.T, tr *Tracker, hold, release func()) {
	t.Helper()
	dev := openFile(t, tr.device, os.O_RDWR)
	writeDirect(t, openFile(t, tr.device, os.O_RDWR|unixDirect), 0, 1<<19, 1)
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr)) // the marks at the end of what was written
	hold()
	ended := make(chan error, 1)
	go func() { ended <- discardRange(dev, 4*cbt.MinBlock, 8*cbt.MinBlock) }()
	if !until(t, 10*second, func() bool { return mustStatus(t, tr).Discards > 0 }) {
		t.Error("the discard was not queued")
	}
	want := cbt.Extent{Off: 4 * cbt.MinBlock, End: 12 * cbt.MinBlock}
	taken := mustTake(t, tr, 2)
	if got := slices.Collect(taken.Runs()); !slices.Contains(got, cbt.Run{Extent: want, State: cbt.Discarded}) {
		t.Errorf("took %v, want a discard", got)
	}
	mustPutBack(t, tr, taken, all(tr))
	release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(mustMap(t, tr).Runs()); !slices.Contains(got, cbt.Run{Extent: want, State: cbt.Dirty}) {
		t.Errorf("after the end: %v, want dirty", got)
	}
}

// An end that the kernel did not run the program for is one without a mark.
func TestMissedEnd(t *testing.T) {
	needKernel(t)
	path := newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	fs := ownFS(t)
	tr := sealed(t, path, Options{FS: fs}, 2)
	f := openFile(t, path, os.O_RDWR|unixDirect)
	writeDirect(t, f, 0, int(cbt.MinBlock), 1)
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	tr.strangers-- // as if the kernel had counted one more
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); !slices.Equal(got, []cbt.Extent{block(0)}) {
		t.Errorf("after an end without a mark took %v, want all that the session had", got)
	}
	mustPutBack(t, tr, taken)
	// The same for a session that another process left behind.
	tr.rec.set(offSeenStranger, ^uint64(0))
	if err := tr.release(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path, Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, again) })
	wantLost(t, again, "a write ended without a mark")
}

// The programs of the end alone, without those of the queue: of a disk that is
// driven by requests, and of one that is not.
func TestEndIsMarked(t *testing.T) {
	needKernel(t)
	for kind, device := range map[string]func(*testing.T) string{
		"Request": func(t *testing.T) string { return newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0) },
		"Bio":     func(t *testing.T) string { return newZram(t, 4<<20) },
	} {
		t.Run(kind, func(t *testing.T) {
			path := device(t)
			tr := sealed(t, path, Options{}, 2)
			if tr.request != (kind == "Request") {
				t.Fatalf("driven by requests: %v", tr.request)
			}
			mustPutBack(t, tr, mustTake(t, tr, 2), all(tr)) // arms
			tr.k.leave(tr.number)
			f := openFile(t, path, os.O_RDWR|unixDirect)
			writeDirect(t, f, 5*cbt.MinBlock, 2*int(cbt.MinBlock), 1)
			if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{{Off: 5 * cbt.MinBlock, End: 7 * cbt.MinBlock}}) {
				t.Errorf("marked at the end: %v", got)
			}
			if n := tr.rec.get(offStrangers); n != 0 {
				t.Errorf("%d strangers, want none: each write began and ended here", n)
			}
			if err := tr.k.enter(tr.number, kernelNumber(tr.rec.get32(offDisk))); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The end of a write that was queued before the session reports again all that
// the session has taken.
func TestStranger(t *testing.T) {
	needKernel(t)
	path := newZram(t, 4<<20)
	tr := sealed(t, path, Options{}, 2)
	f := openFile(t, path, os.O_RDWR|unixDirect)
	writeDirect(t, f, 0, int(cbt.MinBlock), 1)
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	taken := mustTake(t, tr, 2)
	if got := taken.Extents(); len(got) > 0 {
		t.Fatalf("took %v of a quiet device", got)
	}
	mustPutBack(t, tr, taken)
	// Not remembered, as if it had been queued before the programs came: the map
	// of what is under way is full.
	inflight, err := ebpf.LoadPinnedMap(tr.inflightPin(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer inflight.Close()
	for i := range uint64(inflight.MaxEntries()) {
		if err := inflight.Put(i+1, [2]uint64{}); err != nil {
			t.Fatal(err)
		}
	}
	writeDirect(t, f, 9*cbt.MinBlock, int(cbt.MinBlock), 1)
	if n := tr.rec.get(offStrangers); n != 1 {
		t.Fatalf("%d strangers, want 1", n)
	}
	taken = mustTake(t, tr, 2)
	if got, want := taken.Extents(), []cbt.Extent{block(0), block(9)}; !slices.Equal(got, want) {
		t.Errorf("after a stranger took %v, want %v", got, want)
	}
	mustPutBack(t, tr, taken)
}
