package merkle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback/internal/faulty"
)

// powerDisk is a file system in memory that loses power, lies and fails.
type powerDisk struct{ *faulty.Dir }

func (d powerDisk) open(path string, flag int) (media, error) {
	f, err := d.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return powerFile{f}, nil
}

func (d powerDisk) rename(from, to string) error { return d.Rename(from, to) }

func (d powerDisk) remove(path string) error {
	if err := d.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d powerDisk) syncDir(path string) error { return d.SyncDir(filepath.Dir(path)) }

type powerFile struct{ *faulty.File }

func (f powerFile) size() (int64, error)     { return f.Size(), nil }
func (f powerFile) nextData(off int64) int64 { return f.NextData(off) }
func (f powerFile) zero(off, n int64) error  { return f.ZeroAt(off, n) }
func (f powerFile) lock(exclusive bool) error {
	if f.Lock(exclusive) != nil {
		return ErrInUse
	}
	return nil
}

// powerBuild builds the tree of a generation of the volume.
func powerBuild(d disk, generation byte, resume bool) (Hash, error) {
	v, allocated := crashVolume(generation)
	f, _, err := Build(context.Background(), sliceReader(v), crashShape, crashPath, Options{
		disk: d, Sparse: true, Allocated: allocated, Resume: resume, Workers: 1, CheckpointBytes: 1 << 16,
		Epoch: Epoch(generation),
	})
	if err != nil {
		return Hash{}, err
	}
	return endOf(f)
}

func powerUpdate(d disk) (Hash, error) {
	f, err := openFile(d, crashPath, true)
	if err != nil {
		return Hash{}, err
	}
	_, err = f.Update(context.Background(), 9, ascending(updateLeaves(f.st.hasher)))
	root, rerr := endOf(f)
	return root, errors.Join(err, rerr)
}

// endOf closes f and returns its root.
func endOf(f *File) (Hash, error) {
	root, err := f.Root(context.Background())
	return root, errors.Join(err, f.Close())
}

// found opens what lies under the tree's name and verifies all of it.
func found(d disk, write bool) (Hash, error) {
	f, err := openFile(d, crashPath, write)
	if err != nil {
		return Hash{}, err
	}
	err = f.Verify(context.Background())
	root, rerr := endOf(f)
	return root, errors.Join(err, rerr)
}

// steps returns how many steps work takes on a disk like d.
func steps(t *testing.T, d *faulty.Dir, work func(disk) (Hash, error)) int {
	t.Helper()
	machine := faulty.New()
	d = d.Crash(0)
	d.Plug(machine)
	if _, err := work(powerDisk{d}); err != nil {
		t.Fatal(err)
	}
	return len(machine.Steps())
}

// cutAt lets the power fail at a random one of n steps, before or after it.
func cutAt(r *rand.Rand, n int) *faulty.Faults {
	return faulty.New(faulty.Rule{Op: faulty.Step, N: 1 + r.IntN(n), Kind: faulty.Cut, After: r.IntN(2) == 0})
}

// builtDisk is a disk with the first generation's tree on it.
func builtDisk(t *testing.T) *faulty.Dir {
	t.Helper()
	d := faulty.NewDir(nil)
	if _, err := powerBuild(powerDisk{d}, 1, false); err != nil {
		t.Fatal(err)
	}
	if left := d.Unclosed(); len(left) > 0 {
		t.Fatalf("left open: %v", left)
	}
	return d
}

func volumeTree(t *testing.T, generation byte) *naive {
	t.Helper()
	v, _ := crashVolume(generation)
	return newNaive(crashShape, v)
}

// TestPowerInBuild: power fails, or the process dies, at a random step of a build
// over an earlier tree, and again in the builds that resume it, for 200 seeds. Each time
// the earlier or the new tree is there whole, and in the end the new one (L10).
func TestPowerInBuild(t *testing.T) {
	t.Parallel()
	before, after := volumeTree(t, 1).root, volumeTree(t, 2).root
	base := builtDisk(t)
	n := steps(t, base, func(d disk) (Hash, error) { return powerBuild(d, 2, false) })
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			d := base.Crash(seed)
			for again := range 3 {
				d.Plug(cutAt(r, n))
				_, err := powerBuild(powerDisk{d}, 2, again > 0)
				if err != nil && !errors.Is(err, faulty.ErrPower) {
					t.Fatalf("build %d: %v", again, err)
				}
				if d.Plug(nil); r.IntN(2) == 0 { // else only the process died
					d = d.Crash(r.Uint64())
				}
				if root, err := found(powerDisk{d}, false); err != nil || (root != before && root != after) {
					t.Fatalf("after cut %d: root %v, %v", again, root, err)
				}
			}
			if root, err := powerBuild(powerDisk{d}, 2, true); err != nil || root != after {
				t.Fatalf("resumed: root %v, %v", root, err)
			}
			if root, err := found(powerDisk{d.Crash(seed)}, false); err != nil || root != after {
				t.Errorf("in the end: root %v, %v", root, err)
			}
		})
	}
}

// updatedTree is the first generation's tree after updateLeaves.
func updatedTree(t *testing.T) Hash {
	t.Helper()
	leaves := slices.Clone(volumeTree(t, 1).levels[0])
	for i, l := range updateLeaves(mustHasher(t, crashShape)) {
		leaves[i] = l
	}
	tree, err := NewTree(crashShape, leaves)
	if err != nil {
		t.Fatal(err)
	}
	return tree.root
}

// TestPowerInUpdate: power fails, or the process dies, at a random step of an
// update, and power again while that is recovered, for 200 seeds: the old tree,
// the new one, or one that says that it is in between and becomes the new one.
func TestPowerInUpdate(t *testing.T) {
	t.Parallel()
	before, after := volumeTree(t, 1).root, updatedTree(t)
	base := builtDisk(t)
	n := steps(t, base, powerUpdate)
	seen := map[string]int{}
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 4))
			d := base.Crash(seed)
			d.Plug(cutAt(r, n))
			if _, err := powerUpdate(powerDisk{d}); err != nil && !errors.Is(err, faulty.ErrPower) {
				t.Fatal(err)
			}
			if d.Plug(nil); seed%2 == 0 { // else only the process died
				d = d.Crash(r.Uint64())
			}
			root, err := found(powerDisk{d}, false)
			switch {
			case err == nil && (root == before || root == after):
				seen[map[bool]string{true: "old", false: "new"}[root == before]]++
				if root, err := found(powerDisk{d.Crash(r.Uint64())}, true); err != nil || (root != before && root != after) {
					t.Errorf("after another cut: root %v, %v", root, err)
				}
				return
			case !errors.Is(err, ErrUpdating):
				t.Fatalf("root %v, %v", root, err)
			}
			seen["updating"]++
			d.Plug(cutAt(r, 9))
			if _, err := found(powerDisk{d}, true); err != nil && !errors.Is(err, faulty.ErrPower) {
				t.Fatalf("recovery: %v", err)
			}
			d = d.Crash(r.Uint64())
			// Where only the process died, the mark itself may not have been durable.
			if root, err := found(powerDisk{d}, true); err != nil || (root != after && (seed%2 == 0 || root != before)) {
				t.Errorf("recovered to root %v, %v", root, err)
			}
		})
	}
	for _, k := range []string{"old", "new", "updating"} {
		if seen[k] == 0 {
			t.Errorf("no seed led to %q: %v", k, seen)
		}
	}
}

// badDevice is a rule for a random fault of a device that fails or lies, once.
func badDevice(r *rand.Rand, ops int) faulty.Rule {
	rule := faulty.Rule{Op: faulty.Write, N: 1 + r.IntN(ops), Bit: r.Int64N(1 << 15), After: r.IntN(2) == 0}
	rule.Kind = []faulty.Kind{faulty.Fail, faulty.NoSpace, faulty.Short, faulty.Lost, faulty.Flip}[r.IntN(5)]
	if r.IntN(3) == 0 {
		rule.Op, rule.N = faulty.Sync, 1+r.IntN(4)
		rule.Kind = []faulty.Kind{faulty.Fail, faulty.Lost}[r.IntN(2)]
	}
	return rule
}

// TestTreeOnBadDevice: whatever one write or sync does wrong, and a power cut
// after it, a tree that opens and verifies is a right one, and a build begun
// anew makes the new one.
func TestTreeOnBadDevice(t *testing.T) {
	t.Parallel()
	right := []Hash{volumeTree(t, 1).root, volumeTree(t, 2).root, updatedTree(t)}
	base := builtDisk(t)
	failed, refused := 0, 0
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 5))
			d := base.Crash(seed)
			rule := badDevice(r, 40)
			d.Plug(faulty.New(rule))
			work := powerUpdate
			if seed%2 == 0 {
				work = func(d disk) (Hash, error) { return powerBuild(d, 2, false) }
			}
			if _, err := work(powerDisk{d}); err != nil {
				failed++
			}
			d = d.Crash(r.Uint64())
			for _, write := range []bool{false, true} {
				root, err := found(powerDisk{d}, write)
				if err == nil && !slices.Contains(right, root) {
					t.Errorf("%s of a %s: the tree verifies and is wrong", rule.Kind, rule.Op)
				}
				if err != nil {
					refused++
				}
			}
			if root, err := powerBuild(powerDisk{d}, 2, seed%4 < 2); err == nil && root != right[1] {
				t.Errorf("%s of a %s: resumed to root %v", rule.Kind, rule.Op, root)
			}
			if root, err := found(powerDisk{d}, false); err == nil && !slices.Contains(right, root) {
				t.Errorf("%s of a %s: the resumed tree verifies and is wrong", rule.Kind, rule.Op)
			}
			if _, err := powerBuild(powerDisk{d}, 2, false); err != nil {
				t.Fatalf("%s of a %s: built anew: %v", rule.Kind, rule.Op, err)
			}
			if root, err := found(powerDisk{d}, false); err != nil || root != right[1] {
				t.Errorf("%s of a %s: built anew to root %v, %v", rule.Kind, rule.Op, root, err)
			}
		})
	}
	if failed == 0 || refused == 0 {
		t.Errorf("%d runs failed, %d trees were refused: the test tests nothing", failed, refused)
	}
}

// TestPowerInBuilder: leaves are set from two goroutines in an order of their
// own, with checkpoints, until the power fails. A Builder that resumes lacks no
// chunk that was whole when a Checkpoint returned, believes none that is not
// as it was set, and comes to the right root. For 200 seeds.
func TestPowerInBuilder(t *testing.T) {
	t.Parallel()
	want := volumeTree(t, 2)
	leaves := want.levels[0]
	kept := 0
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 6))
			d := faulty.NewDir(cutAt(r, 160))
			var saved map[int64]bool
			for range 3 {
				if saved = setSome(t, powerDisk{d}, leaves, r, saved); t.Failed() {
					return
				}
				kept += len(saved)
				if r.IntN(2) == 0 { // else only the process died
					d = d.Crash(r.Uint64())
				}
				d.Plug(cutAt(r, 160))
			}
			d.Plug(nil)
			b, err := Create(crashPath, crashShape, Options{disk: powerDisk{d}, Resume: true})
			if err != nil {
				t.Fatal(err)
			}
			for m := range b.Missing() {
				if err := b.SetLeaves(m.First, leaves[m.First:m.End]); err != nil {
					t.Fatal(err)
				}
			}
			f, err := b.Seal(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if root, err := endOf(f); err != nil || root != want.root {
				t.Errorf("root %v, want %v: %v", root, want.root, err)
			}
		})
	}
	if kept == 0 {
		t.Error("no checkpoint saved a chunk: the test tests nothing")
	}
}

// setSome resumes, holds what is missing against the chunks that were saved, and
// sets leaves until the power fails or all are set. It returns the chunks that
// are saved now.
func setSome(t *testing.T, d disk, leaves []Hash, r *rand.Rand, saved map[int64]bool) map[int64]bool {
	t.Helper()
	b, err := Create(crashPath, crashShape, Options{disk: d, Resume: true})
	if err != nil {
		powerOnly(t, err)
		return saved
	}
	defer func() { powerOnly(t, b.Close()) }()
	still := map[int64]bool{}
	for c := range b.chunkCount() {
		still[c] = true
	}
	var todo []Range
	for m := range b.Missing() {
		for at := m.First; at < m.End; at += 256 {
			part := Range{at, min(at+256, m.End)}
			todo = append(todo, part)
			delete(still, part.First/chunkLeaves)
			delete(still, (part.End-1)/chunkLeaves)
		}
	}
	for c := range saved {
		if !still[c] {
			t.Errorf("chunk %d was saved by a checkpoint and is gone", c)
		}
	}
	if r.IntN(2) == 0 { // else in order, so that chunks become whole soon
		r.Shuffle(len(todo), func(i, j int) { todo[i], todo[j] = todo[j], todo[i] })
	}
	for part := range slices.Chunk(todo, 6) {
		if err := setBoth(b, part, leaves); err != nil {
			powerOnly(t, err)
			return still
		}
		whole := map[int64]bool{}
		for c := range b.chunkCount() {
			whole[c] = len(b.missingIn(c)) == 0
		}
		if err := b.Checkpoint(context.Background()); err != nil {
			powerOnly(t, err)
			return still
		}
		for c, is := range whole {
			if is {
				still[c] = true
			}
		}
	}
	return still
}

// setBoth sets the leaves of the ranges from two goroutines.
func setBoth(b *Builder, ranges []Range, leaves []Hash) error {
	errs := make(chan error, 2)
	for half := range 2 {
		go func() {
			var err error
			for i := half; i < len(ranges) && err == nil; i += 2 {
				err = b.SetLeaves(ranges[i].First, leaves[ranges[i].First:ranges[i].End])
			}
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// powerOnly fails the test for any error but that of the power.
func powerOnly(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, faulty.ErrPower) {
		t.Error(err)
	}
}
