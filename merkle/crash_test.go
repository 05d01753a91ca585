package merkle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing"
)

const crashPath = "/v/a.fbt"

// crashShape has three chunks, the last one short.
var crashShape = Shape{Size: 2*chunkLeaves*4096 + 700*4096 + 512, Leaf: 4096, Algorithm: BLAKE3}

// crashVolume has data in a few places, which allocated names.
func crashVolume(generation byte) (v []byte, allocated []Extent) {
	for _, at := range []int64{0, chunkLeaves - 20, 2*chunkLeaves - 1, 2*chunkLeaves + 699} {
		off := at * 4096
		allocated = append(allocated, Extent{off, min(off+40*4096, crashShape.Size)})
	}
	volumes.Lock()
	defer volumes.Unlock()
	if v = volumes.made[generation]; v == nil {
		v = make([]byte, crashShape.Size)
		for _, e := range allocated {
			for i := e.Off; i < e.End; i += 512 {
				v[i] = byte(i>>12) + generation
			}
		}
		volumes.made[generation] = v
	}
	return v, allocated
}

// volumes keeps what crashVolume made: hundreds of builds read them.
var volumes = struct {
	sync.Mutex
	made map[byte][]byte
}{made: map[byte][]byte{}}

// openSound opens the tree and verifies all of it.
func openSound(t *testing.T, d disk, write bool) (Hash, error) {
	t.Helper()
	f, err := openFile(d, crashPath, write)
	if err != nil {
		return Hash{}, err
	}
	defer f.Close() // read only
	if err := f.Verify(context.Background()); err != nil {
		t.Errorf("open took a tree that does not verify: %v", err)
	}
	return mustRoot(t, f), nil
}

// eachCut calls run with a disk that fails at step 0, 1, 2 and so on, each
// before and after the step happened, until run comes to its end.
func eachCut(t *testing.T, prepare func(d *crashDisk), run func(d *crashDisk) error, check func(t *testing.T, d *crashDisk)) {
	t.Helper()
	for step := 0; ; step++ {
		finished := 0 // two workers: not every run takes the same steps
		for seed := range uint64(4) {
			d := newCrashDisk(seed + 100*uint64(step))
			prepare(d)
			d.cutAt, d.happens = d.steps+step, seed%2 == 1
			err := run(d)
			if err != nil && !errors.Is(err, errPower) {
				t.Fatalf("step %d: %v", step, err)
			}
			if err == nil {
				finished++
				continue
			}
			t.Run(fmt.Sprintf("step=%d/seed=%d", step, seed), func(t *testing.T) { check(t, d.crash()) })
		}
		if finished == 4 {
			if step < 5 {
				t.Errorf("only %d steps: nothing was tested", step)
			}
			return
		}
	}
}

func buildOn(d *crashDisk, generation byte, resume bool) (Hash, BuildStats, error) {
	v, allocated := crashVolume(generation)
	f, stats, err := Build(context.Background(), sliceReader(v), crashShape, crashPath, Options{
		disk: d, Sparse: true, Allocated: allocated, Resume: resume, Workers: 1, CheckpointBytes: 1 << 16,
		Epoch: Epoch(generation),
	})
	if err != nil {
		return Hash{}, stats, err
	}
	root, err := f.Root(context.Background())
	return root, stats, errors.Join(err, f.Close())
}

// L10: a build that loses power at any step leaves the earlier tree or the new
// one under its name, and can be resumed to the right root.
func TestCrashInBuild(t *testing.T) {
	t.Parallel()
	roots := map[byte]Hash{}
	for _, g := range []byte{1, 2} {
		v, _ := crashVolume(g)
		roots[g] = newNaive(crashShape, v).root
	}
	resumed, replaced := 0, 0
	prepare := func(d *crashDisk) {
		if _, _, err := buildOn(d, 1, false); err != nil {
			t.Fatal(err)
		}
	}
	run := func(d *crashDisk) error {
		_, _, err := buildOn(d, 2, false)
		return err
	}
	eachCut(t, prepare, run, func(t *testing.T, d *crashDisk) {
		switch root, err := openSound(t, d, false); {
		case err != nil:
			t.Errorf("earlier tree is lost: %v", err)
		case root == roots[2]:
			replaced++
		case root != roots[1]:
			t.Errorf("root %v is neither the old nor the new", root)
		}
		root, stats, err := buildOn(d, 2, true)
		if err != nil || root != roots[2] {
			t.Errorf("resumed build: root %v, %v", root, err)
		}
		if stats.Resumed > 0 {
			resumed++
		}
		if got, err := openSound(t, d, false); err != nil || got != roots[2] {
			t.Errorf("after resuming: root %v, %v", got, err)
		}
	})
	if resumed == 0 || replaced == 0 {
		t.Errorf("%d builds resumed, %d found the new tree in place: the test tests nothing", resumed, replaced)
	}
}

// updateLeaves are the leaves that the crash tests change, and to what.
func updateLeaves(h *Hasher) map[int64]Hash {
	out := map[int64]Hash{
		0: h.Leaf([]byte("a")), 1: h.Leaf([]byte("b")), 17: h.Leaf([]byte("c")),
		5000: h.Leaf([]byte("d")), 8191: h.Zero(0, 8191), crashShape.Leaves() - 1: h.Leaf([]byte("e")),
	}
	return out
}

// ascending yields m in ascending order of its keys.
func ascending(m map[int64]Hash) func(func(int64, Hash) bool) {
	return func(yield func(int64, Hash) bool) {
		for _, i := range slices.Sorted(maps.Keys(m)) {
			if !yield(i, m[i]) {
				return
			}
		}
	}
}

func updateOn(d *crashDisk) error {
	f, err := openFile(d, crashPath, true)
	if err != nil {
		return err
	}
	_, err = f.Update(context.Background(), 9, ascending(updateLeaves(f.st.hasher)))
	return errors.Join(err, f.Close())
}

// L10: an update that loses power at any step leaves the old tree, the new one,
// or one that says what it is and is finished by OpenUpdate, which may lose
// power too.
func TestCrashInUpdate(t *testing.T) {
	t.Parallel()
	v, _ := crashVolume(1)
	old := newNaive(crashShape, v)
	h := mustHasher(t, crashShape)
	leaves := slices.Clone(old.levels[0])
	for i, l := range updateLeaves(h) {
		leaves[i] = l
	}
	after, err := NewTree(crashShape, leaves)
	if err != nil {
		t.Fatal(err)
	}
	base := newCrashDisk(1)
	if _, _, err := buildOn(base, 1, false); err != nil {
		t.Fatal(err)
	}
	prepare := func(d *crashDisk) {
		c := base.crash()
		d.names, d.durable = c.names, c.durable
	}
	seen := map[string]int{}
	eachCut(t, prepare, updateOn, func(t *testing.T, d *crashDisk) {
		root, err := openSound(t, d, false)
		switch {
		case err == nil && root == old.root:
			seen["old"]++
			return
		case err == nil && root == after.root:
			seen["new"]++
			return
		case !errors.Is(err, ErrUpdating):
			t.Fatalf("root %v, %v", root, err)
		}
		seen["updating"]++
		for later := 0; ; later++ { // the power fails again, later and later
			d.cutAt = later
			root, err = openSound(t, d, true)
			if err == nil {
				break
			}
			if !errors.Is(err, errPower) {
				t.Fatalf("recovery: %v", err)
			}
			seen["again"]++
			d = d.crash()
		}
		if root != after.root {
			t.Errorf("recovered to root %v, not %v", root, after.root)
		}
	})
	for _, k := range []string{"old", "new", "updating", "again"} {
		if seen[k] == 0 {
			t.Errorf("no crash led to %q: %v", k, seen)
		}
	}
}

// A tree in the middle of an update whose journal is gone or altered is refused.
func TestUpdateWithoutJournal(t *testing.T) {
	t.Parallel()
	base := newCrashDisk(1)
	if _, _, err := buildOn(base, 1, false); err != nil {
		t.Fatal(err)
	}
	// Find a disk in the state "updating".
	var d *crashDisk
	for step := 0; ; step++ {
		d = base.crash()
		d.cutAt, d.happens = d.steps+step, true
		if err := updateOn(d); err == nil {
			t.Fatal("no step leaves the tree updating")
		}
		d.cutAt = -1
		if _, err := openFile(d, crashPath, false); errors.Is(err, ErrUpdating) {
			break
		}
	}
	journal := d.names[crashPath+journalSuffix]
	whole := slices.Clone(journal.data)
	for i := 0; i < len(whole); i += 7 {
		journal.data = slices.Clone(whole)
		journal.data[i] ^= 0x10
		if _, err := openFile(d, crashPath, true); !errors.Is(err, ErrUpdating) || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	for n := 0; n < len(whole); n += 5 {
		journal.data = whole[:n:n]
		if _, err := openFile(d, crashPath, true); !errors.Is(err, ErrUpdating) || !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	journal.data = append(slices.Clone(whole), 0)
	if _, err := openFile(d, crashPath, true); !errors.Is(err, errTrailing) {
		t.Errorf("a byte too many: %v", err)
	}
	other, err := newJournalWriter(d, crashPath+journalSuffix)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.end(journalEnd{old: Hash{1}, new: Hash{2}}); err != nil {
		t.Fatal(err)
	}
	if _, err := openFile(d, crashPath, true); !errors.Is(err, ErrUpdating) || errors.Is(err, ErrCorrupt) {
		t.Errorf("journal of another update: %v", err)
	}
	delete(d.names, crashPath+journalSuffix)
	if _, err := openFile(d, crashPath, true); !errors.Is(err, ErrUpdating) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no journal: %v", err)
	}
	d.names[crashPath+journalSuffix] = journal
	journal.data = whole
	if _, err := openFile(d, crashPath, true); err != nil {
		t.Errorf("whole journal: %v", err)
	}
}

// What an earlier build left cannot come back once Create has begun anew, even
// under the same epoch: its leaves are of another volume.
func TestCrashForgetsEarlierBuild(t *testing.T) {
	t.Parallel()
	v, _ := crashVolume(2)
	want := newNaive(crashShape, v).root
	for seed := range uint64(20) {
		d := newCrashDisk(seed)
		for again := range 2 {
			b, err := Create(crashPath, crashShape, Options{disk: d, Epoch: 2})
			if err != nil {
				t.Fatal(err)
			}
			if again > 0 { // the second one gets no further
				break
			}
			for i := range int64(chunkLeaves) {
				if err := b.SetLeaf(i, Hash{7, byte(i)}); err != nil {
					t.Fatal(err)
				}
			}
			end := b.Close
			if seed%2 == 1 {
				end = b.Discard
			}
			if err := errors.Join(b.Checkpoint(context.Background()), end()); err != nil {
				t.Fatal(err)
			}
		}
		if root, _, err := buildOn(d.crash(), 2, true); err != nil || root != want {
			t.Fatalf("seed %d: root %v, want %v: %v", seed, root, want, err)
		}
	}
}

// Once the header may say complete, a Seal that failed takes no more leaves, and
// can be called again.
func TestSealAgain(t *testing.T) {
	t.Parallel()
	failed := 0
	for step := 0; ; step++ {
		d := newCrashDisk(1)
		b, err := Create(crashPath, crashShape, Options{disk: d})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(b.SetZero(Range{0, crashShape.Leaves()}), b.SetLeaf(5, Hash{1})); err != nil {
			t.Fatal(err)
		}
		d.cutAt = d.steps + step
		_, err = b.Seal(context.Background())
		if d.cutAt = -1; err == nil {
			break
		}
		failed++
		root := mustHasher(t, crashShape).Zero(0, 0)
		err = b.SetLeaf(5, root)
		if header, _ := readHeader(crashPath, b.st.m); header.state == stateComplete && !errors.Is(err, errSealed) {
			t.Errorf("step %d: leaf set under a complete header: %v", step, err)
		}
		f, err := b.Seal(context.Background())
		if err != nil {
			t.Fatalf("step %d: sealed again: %v", step, err)
		}
		if err := errors.Join(f.Verify(context.Background()), f.Close()); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
	}
	if failed < 5 {
		t.Errorf("only %d steps failed", failed)
	}
}

// What Checkpoint returned for is there after a crash.
func TestCheckpointIsDurable(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		d := newCrashDisk(seed)
		b, err := Create(crashPath, crashShape, Options{disk: d})
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(2 * chunkLeaves) {
			if err := b.SetLeaf(i, Hash{7, byte(i)}); err != nil {
				t.Fatal(err)
			}
			if i == chunkLeaves {
				if err := b.Checkpoint(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
		}
		b, err = Create(crashPath, crashShape, Options{disk: d.crash(), Resume: true})
		if err != nil {
			t.Fatal(err)
		}
		for r := range b.Missing() {
			if r.First < chunkLeaves {
				t.Errorf("seed %d: leaves %v are gone", seed, r)
			}
		}
	}
}
