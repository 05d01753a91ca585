package ebpf

import (
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"golang.org/x/sys/unix"
)

// dirtied is a tracker with a map out, of one written block.
func dirtied(t *testing.T) (tr *Tracker, taken *cbt.Taken, fs, path string) {
	t.Helper()
	needKernel(t)
	fs, path = ownFS(t), newLoop(t, makeFile(t, scratch(t)+"/disk", 4<<20), 0)
	tr = sealed(t, path, Options{FS: fs}, 2)
	writeDirect(t, openFile(t, path, os.O_RDWR|unixDirect), 0, 4096, 1)
	return tr, mustTake(t, tr, 2), fs, path
}

// An advance that dies between the new epoch and the marks: who relies on the old
// epoch is refused, and none of its marks is gone.
func TestAdvanceKilledBetween(t *testing.T) {
	if !faultsPanic {
		t.Skip("needs a build without the race detector: a fault in its atomic operations cannot be recovered from")
	}
	tr, taken, fs, path := dirtied(t)
	// The first mark that goes is where the process dies: it may only read them.
	if err := unix.Mprotect(tr.memory, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() {
			if recover() == nil {
				t.Error("nothing that was proven has gone from the kernel's memory")
			}
		}()
		_ = tr.Advance(taken, taken.Extents(), 3)
	}()
	if err := errors.Join(unix.Mprotect(tr.memory, unix.PROT_READ|unix.PROT_WRITE), tr.release()); err != nil {
		t.Fatal(err)
	}
	again, err := Open(path, Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, again) })
	if _, err := again.Take(t.Context(), 2); !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(err.Error(), "recorded since epoch 3") {
		t.Errorf("the old epoch: %v", err)
	}
	if got := mustMap(t, again).Extents(); !slices.Equal(got, []cbt.Extent{block(0)}) {
		t.Errorf("holds %v, want what was not proven for epoch 3", got)
	}
}

// What a tracker was lost for since the take is not put right by an advance, and it
// proves nothing.
func TestAdvanceRightsNothing(t *testing.T) {
	for reason, spoil := range map[string]func(*Tracker){
		"written: 1 are counted":        func(tr *Tracker) { tr.rec.set(offPassthrough, tr.rec.get(offPassthrough)+1) },
		"1 writes came in an interrupt": func(tr *Tracker) { tr.rec.set(offBaseMissed, tr.rec.get(offBaseMissed)-1) },
		"1 writes could not be marked":  func(tr *Tracker) { tr.rec.set(offLost, 1) },
		"the test says so":              func(tr *Tracker) { tr.Lose("the test says so") },
	} {
		t.Run(reason, func(t *testing.T) {
			tr, taken, _, _ := dirtied(t)
			spoil(tr)
			if err := tr.Advance(taken, taken.Extents(), 3); !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(err.Error(), reason) {
				t.Fatalf("advance: %v", err)
			}
			wantLost(t, tr, reason)
			if got := mustMap(t, tr).Extents(); !slices.Equal(got, []cbt.Extent{block(0)}) {
				t.Errorf("holds %v", got)
			}
		})
	}
}

// A write that passed the program of the queue by may be under way when a seal puts
// that right. Of a disk that is not driven by requests nothing tells which one it is
// when it ends.
func TestSealBesideAMissedWrite(t *testing.T) {
	for _, missed := range []bool{false, true} {
		tr := sealed(t, newZram(t, 4<<20), Options{}, 2)
		if missed {
			tr.rec.set(offBaseMissed, tr.rec.get(offBaseMissed)-1)
			wantLost(t, tr, "in an interrupt")
			if err := tr.Seal(3); err != nil {
				t.Fatal(err)
			}
		}
		mustPutBack(t, tr, mustTake(t, tr, 3), all(tr))
		tr.rec.set(offStrangers, tr.rec.get(offStrangers)+1) // as if it had ended now
		if missed {
			wantLost3(t, tr, "a write ended without a mark, after others had passed the programs by")
			continue
		}
		mustPutBack(t, tr, mustTake(t, tr, 3))
	}
}

// wantLost3 is wantLost of epoch 3.
func wantLost3(t *testing.T, tr *Tracker, reason string) {
	t.Helper()
	if _, err := tr.Take(t.Context(), 3); !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("take: %v, want a lost epoch because %q", err, reason)
	}
}
