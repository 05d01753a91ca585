package ebpf

import (
	"context"
	"os"
	"slices"
	"testing"

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
				if err := tr.sweepSession(); err != nil {
					t.Fatal(err)
				}
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
	if err := tr.Rest(ctx); err != nil {
		t.Fatal(err)
	}
	if mustStatus(t, tr).Reading {
		t.Error("still reads after Rest")
	}
	land()
	if !slices.Contains(mustMap(t, tr).Extents(), block(3)) {
		t.Error("the write that landed after Rest is not in the map")
	}
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
			if err := tr.k.leave(tr.number); err != nil {
				t.Fatal(err)
			}
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
	// Not remembered: as if it had been queued before the programs came.
	if err := os.Remove(tr.sessionDir() + "/remember_bio"); err != nil {
		t.Fatal(err)
	}
	if !until(t, second, func() bool {
		writeDirect(t, f, 9*cbt.MinBlock, int(cbt.MinBlock), 1)
		return tr.rec.get(offStrangers) > 0
	}) {
		t.Fatal("no stranger")
	}
	taken = mustTake(t, tr, 2)
	if got, want := taken.Extents(), []cbt.Extent{block(0), block(9)}; !slices.Equal(got, want) {
		t.Errorf("after a stranger took %v, want %v", got, want)
	}
	mustPutBack(t, tr, taken)
}
