package ebpf

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/failback/failback/cbt"
)

// A thin volume of device-mapper holds writes for which its pool has to make room
// first. The kernel does not count those as under way.

// thinVolume is a thin volume whose pool can be held.
type thinVolume struct {
	*mapper
	pool  *mapper
	table string  // of the pool, but for its features
	data  *mapper // of the pool
}

const thinSize = 8 << 20 // bytes

func newThin(t *testing.T, features string) *thinVolume {
	t.Helper()
	data := newMapper(t, 2*thinSize)
	meta := newLoop(t, makeFile(t, scratch(t)+"/meta", 4<<20), 0)
	table := fmt.Sprintf("0 %d thin-pool %s %s 128 0", 2*thinSize/sector, meta, data.device)
	pool := newMapped(t, table+" "+features)
	pool.run(t, "message", "0", "create_thin 0")
	return &thinVolume{newMapped(t, fmt.Sprintf("0 %d thin %s 0", thinSize/sector, pool.device)), pool, table, data}
}

// newMapped makes a device-mapper device of a table with one line.
func newMapped(t *testing.T, table string) *mapper {
	t.Helper()
	m := &mapper{name: fmt.Sprintf("failback-%d-%d", os.Getpid(), rand.Uint32())}
	m.device = "/dev/mapper/" + m.name
	if err := m.dmsetup("create", "--table", table); err != nil {
		t.Skipf("needs %s of device-mapper: %v", table, err)
	}
	m.lasts(t)
	return m
}

// heldWrite starts a write of block 3, where the pool has nothing yet, while the
// disk below the pool waits; resume lets it land. witness sees it queued.
func (v *thinVolume) heldWrite(t *testing.T, witness *Tracker) (resume func()) {
	t.Helper()
	before := mustStatus(t, witness).Writes
	f := openFile(t, v.device, os.O_RDWR|unixDirect)
	v.data.run(t, "suspend", "--noflush", "--nolockfs")
	held := true
	ended := make(chan error, 1)
	go func() { // ends when the disk below is resumed
		_, err := f.WriteAt(aligned(int(cbt.MinBlock)), 3*cbt.MinBlock)
		ended <- err
	}()
	resume = func() {
		t.Helper()
		if held {
			held = false
			if err := errors.Join(v.data.dmsetup("resume"), <-ended); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(resume)
	if !until(t, 10*second, func() bool { return mustStatus(t, witness).Writes > before }) {
		t.Fatal("the write was not queued")
	}
	return resume
}

// A write that was queued before the start lands after the seal: the epoch is lost.
func TestStartOfThin(t *testing.T) {
	v := newThin(t, "")
	resume := v.heldWrite(t, start(t, v.device, Options{}))
	fs := ownFS(t)
	tr := start(t, v.device, Options{FS: fs})
	if s := mustStatus(t, tr); !s.Holds || !s.Reading || s.Drained {
		t.Errorf("started: %+v", s)
	}
	if err := errors.Join(tr.Drain(t.Context()), tr.Seal(2)); err != nil {
		t.Fatal(err)
	}
	if got := tr.Trust(); got.Lost != "" || got.Since != 2 {
		t.Errorf("sealed: %+v", got)
	}
	resume()
	all, err := List(Options{FS: fs}) // as another process sees it
	if err != nil || len(all) != 1 || all[0].Trust.Lost != lostEarly {
		t.Errorf("a write landed after the seal and has no mark: %+v, %v", all, err)
	}
	if m := mustMap(t, tr); m.Epoch != 0 {
		t.Errorf("the map is of epoch %d", m.Epoch)
	}
	// What has ended is known to have: a new epoch stands.
	if err := tr.Seal(3); err != nil {
		t.Error(err)
	}
	if got := tr.Trust(); got.Lost != "" {
		t.Errorf("sealed anew: %+v", got)
	}
}

// Who moves the epoch on after a session does not know yet that a write came
// meanwhile. Who seals relies on nothing from before.
func TestSealOfThin(t *testing.T) {
	v := newThin(t, "")
	resume := v.heldWrite(t, start(t, v.device, Options{}))
	tr := start(t, v.device, Options{})
	if err := tr.Seal(2); err != nil {
		t.Fatal(err)
	}
	taken := mustTake(t, tr, 2)
	resume()
	if err := tr.Advance(taken, taken.Extents(), 3); !errors.Is(err, cbt.ErrEpochLost) || tr.Trust().Lost != lostEarly {
		t.Errorf("advanced: %v, %+v", err, tr.Trust())
	}
	if err := tr.Seal(3); err != nil {
		t.Error(err)
	}
	mustPutBack(t, tr, mustTake(t, tr, 3), all(tr))
	if got := tr.Trust(); got.Lost != "" || got.Since != 3 {
		t.Errorf("sealed anew: %+v", got)
	}
}

// A write whose mark was taken and proven lands after the session.
func TestRestOfThin(t *testing.T) {
	v := newThin(t, "")
	tr := sealed(t, v.device, Options{}, 2)
	writeDirect(t, openFile(t, v.device, os.O_RDWR|unixDirect), 1<<20, 4096, 1) // now the kernel counts the device's writes
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	resume := v.heldWrite(t, tr)
	mustPutBack(t, tr, mustTake(t, tr, 2), all(tr))
	ctx, cancel := context.WithTimeout(t.Context(), second)
	defer cancel()
	if err := tr.Rest(ctx); err != nil {
		t.Error(err)
	}
	resume()
	if got := mustMap(t, tr); !slices.Contains(got.Extents(), block(3)) || got.Epoch != 2 {
		t.Errorf("the write that landed after Rest is not in the map: epoch %d, %v", got.Epoch, got.Extents())
	}
}

// Without io statistics nobody sees a quiet moment of any device-mapper device.
func TestStartOfBiosWithoutStats(t *testing.T) {
	m := newMapper(t, 4<<20)
	d, err := lookDevice(m.device)
	if err != nil {
		t.Fatal(err)
	}
	setStats(t, d.dir, false)
	witness := start(t, m.device, Options{})
	resume := m.heldWrite(t)
	if !until(t, 10*second, func() bool { return mustStatus(t, witness).Writes > 0 }) {
		t.Fatal("the write was not queued")
	}
	tr := start(t, m.device, Options{})
	if s := mustStatus(t, tr); !s.Uncounted || s.Holds || !s.Reading || s.Drained {
		t.Errorf("started: %+v", s)
	}
	if err := errors.Join(tr.Drain(t.Context()), tr.Seal(2)); err != nil {
		t.Fatal(err)
	}
	resume()
	if got := tr.Trust(); got.Lost != lostEarly {
		t.Errorf("a write landed after the seal and has no mark: %+v", got)
	}
}

// A pool that does not zero: what is read beside a write changes, too.
func TestThinWithoutZeroing(t *testing.T) {
	v := newThin(t, "1 skip_block_zeroing")
	above := newMapped(t, fmt.Sprintf("0 %d linear %s 0", thinSize/sector, v.device))
	for _, device := range []string{v.device, above.device, newLoop(t, above.device, 0)} {
		_, err := Start(t.Context(), device, Options{FS: ownFS(t)})
		if e := (*RefusedError)(nil); !errors.As(err, &e) || !strings.Contains(e.Reason, v.pool.device+" does not zero") {
			t.Errorf("start: %v", err)
		}
	}
}

// A pool that stops to zero while its volume is tracked.
func TestThinStopsZeroing(t *testing.T) {
	v := newThin(t, "")
	tr := sealed(t, v.device, Options{}, 2)
	v.pool.run(t, "suspend")
	v.pool.run(t, "load", "--table", v.table+" 1 skip_block_zeroing")
	v.pool.run(t, "resume")
	wantLost(t, tr, "does not zero")
}

// A volume that becomes another one of its pool, as when a snapshot of it is merged
// into it: what it holds is replaced, and nobody writes.
func TestThinReplaced(t *testing.T) {
	v := newThin(t, "")
	above := newMapped(t, fmt.Sprintf("0 %d linear %s 0", thinSize/sector, v.device))
	trackers := []*Tracker{start(t, v.device, Options{}), start(t, above.device, Options{}), start(t, newLoop(t, above.device, 0), Options{})}
	v.pool.run(t, "message", "0", "create_thin 1")
	for _, id := range []int{0, 1} { // the first is what it was
		v.run(t, "suspend")
		v.run(t, "load", "--table", fmt.Sprintf("0 %d thin %s %d", thinSize/sector, v.pool.device, id))
		v.run(t, "resume")
		for _, tr := range trackers {
			want := []string{"", "another volume of a thin pool"}[id]
			if got := tr.Trust().Lost; got != want && (want == "" || !strings.Contains(got, want)) {
				t.Errorf("%s, volume %d: lost because %q, want %q", tr.device, id, got, want)
			}
		}
	}
}

// A device into which a snapshot is merged.
func TestMergedSnapshot(t *testing.T) {
	m := newMapper(t, 4<<20)
	tr := sealed(t, m.device, Options{}, 2)
	table := fmt.Sprintf("0 %d snapshot-merge %s %s P 8", 4<<20/sector, m.below, newLoop(t, makeFile(t, scratch(t)+"/cow", 4<<20), 0))
	m.run(t, "suspend")
	if err := m.dmsetup("load", "--table", table); err != nil {
		m.run(t, "resume")
		t.Skipf("needs snapshots of device-mapper: %v", err)
	}
	m.run(t, "resume")
	wantLost(t, tr, "a snapshot is merged into "+m.device)
	_, err := Start(t.Context(), m.device, Options{FS: ownFS(t)})
	if e := (*RefusedError)(nil); !errors.As(err, &e) || !strings.Contains(e.Reason, "a snapshot is merged into "+m.device) {
		t.Errorf("start: %v", err)
	}
}

// A table of many parts is read whole, however long it is.
func TestLongTable(t *testing.T) {
	m := newMapper(t, 8<<20)
	const parts = 2000
	var table strings.Builder
	for i := range parts {
		fmt.Fprintf(&table, "%d 8 linear %s %d\n", i*8, m.below, mapperStart/sector+(parts-1-i)*8)
	}
	load := exec.Command("dmsetup", "load", m.name)
	load.Stdin = strings.NewReader(table.String())
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("dmsetup load: %v: %s", err, out)
	}
	m.run(t, "resume")
	d, err := lookDevice(m.device)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := mapperState(d.disk, 0); err != nil || len(got) != parts || got[parts-1].kind != "linear" {
		t.Errorf("%d parts, %v", len(got), err)
	}
	if err := d.refuse(); err != nil || d.holds() {
		t.Errorf("holds: %v; %v", d.holds(), err)
	}
}

// What the kernel says of a table.
func TestReadTargets(t *testing.T) {
	answer := make([]byte, 256)
	put := func(at, next int, kind, params string) {
		*(*uint32)(unsafe.Pointer(&answer[at+20])) = uint32(next)
		copy(answer[at+24:at+40], kind)
		copy(answer[at+40:], params)
	}
	put(0, 64, "linear", "")
	put(64, 128, "thin", "253:1 0")
	put(128, 0, "thin-pool", "a b c")
	if got, err := readTargets(answer, 3); err != nil || !slices.Equal(got, []target{{"linear", ""}, {"thin", "253:1 0"}, {"thin-pool", "a b c"}}) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, next := range []int{217, 256, 1 << 30, -1} {
		put(64, next, "thin", "")
		if got, err := readTargets(answer, 3); err == nil {
			t.Errorf("the third at %d: got %q", next, got)
		}
	}
}
