package cbt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/failback/failback/internal/faulty"
)

// dirSteps are the durable steps of Save on a file system that loses power. The
// file that Save itself makes only lends its name.
type dirSteps struct {
	d    *faulty.Dir
	temp *faulty.File
}

func (s *dirSteps) write(m io.WriterTo, temp *os.File) (err error) {
	s.temp, err = s.d.Open(temp.Name(), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = m.WriteTo(io.NewOffsetWriter(s.temp, 0))
	return err
}

func (s *dirSteps) sync(*os.File) error { return s.temp.Sync() }

func (s *dirSteps) rename(from, to string) error {
	return errors.Join(s.d.Rename(from, to), os.Remove(from))
}

func (s *dirSteps) syncDir(dir string) error { return s.d.SyncDir(dir) }

// crashMap is a map of several chunks, another one for each epoch, from few runs
// to many.
func crashMap(t *testing.T, epoch Epoch) *Map {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(epoch), 5))
	m, err := NewMap(1<<34, 0, func(yield func(Run) bool) {
		at := int64(0)
		for range 1 + r.IntN(40000) {
			at += MinBlock * (1 + r.Int64N(60))
			x := Extent{at, at + MinBlock*(1+r.Int64N(3))}
			if at = x.End; !yield(Run{x, Dirty}) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Epoch = epoch
	return m
}

func mapBytes(t *testing.T, m *Map) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// afterCrash loads the map that a power cut by seed leaves at path.
func afterCrash(t *testing.T, d *faulty.Dir, path string, seed uint64) (*Map, error) {
	t.Helper()
	out := t.TempDir()
	if err := d.Crash(seed).Export(out); err != nil {
		t.Fatal(err)
	}
	return LoadMap(filepath.Join(out, path))
}

// TestSaveCrash: power is lost at a random step of one of several saves, for 200
// seeds. A map is there, whole, and it is not older than the last one that
// Save vouched for (L1, L10).
func TestSaveCrash(t *testing.T) {
	const saves = 3
	var maps [saves + 1]*Map
	counting := faulty.New()
	d, path := faulty.NewDir(counting), filepath.Join(t.TempDir(), "vol.fbm")
	for i := range maps {
		maps[i] = crashMap(t, Epoch(i))
		if i == 0 {
			continue
		}
		if err := maps[i].save(path, &dirSteps{d: d}); err != nil {
			t.Fatal(err)
		}
	}
	steps := len(counting.Steps())
	left := map[string]int{}
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			cut := faulty.Rule{Op: faulty.Step, N: 1 + r.IntN(steps+steps/10), Kind: faulty.Cut, After: r.IntN(2) == 0}
			if r.IntN(2) == 0 { // most steps are writes
				cut.N = 1 + r.IntN(saves)
				cut.Op = []faulty.Op{faulty.Sync, faulty.Rename, faulty.SyncDir}[r.IntN(3)]
			}
			d := faulty.NewDir(faulty.New(cut))
			d.WriteFile(path, mapBytes(t, maps[0]))
			var saved, tried Epoch
			for i := 1; i <= saves && saved == tried; i++ {
				tried++
				err := maps[i].save(path, &dirSteps{d: d})
				if err == nil {
					saved++
				} else if !errors.Is(err, faulty.ErrPower) {
					t.Fatal(err)
				}
			}
			m, err := afterCrash(t, d, path, seed)
			if err != nil {
				t.Fatalf("saved %d, tried %d: %v", saved, tried, err)
			}
			if m.Epoch < saved || m.Epoch > tried {
				t.Fatalf("epoch %d is there, saved %d, tried %d", m.Epoch, saved, tried)
			}
			if !bytes.Equal(mapBytes(t, m), mapBytes(t, maps[m.Epoch])) {
				t.Errorf("the map of epoch %d is another one", m.Epoch)
			}
			switch {
			case saved == tried:
				left["no crash"]++
			case m.Epoch == saved:
				left["old"]++
			default:
				left["new"]++
			}
		})
	}
	for _, k := range []string{"no crash", "old", "new"} {
		if left[k] == 0 {
			t.Errorf("no seed ended with %q: %v", k, left)
		}
	}
}

// TestSaveOnBadDevice: writes that fail, are short, lost or altered, and syncs
// that fail or lie. Save says so, or what is there after a power cut is the old
// map, the new one, or refused: never one that covers less.
func TestSaveOnBadDevice(t *testing.T) {
	before, after := crashMap(t, 1), crashMap(t, 2)
	said, refused := 0, 0
	for seed := range uint64(200) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			rule := faulty.Rule{Op: faulty.Write, N: 1 + r.IntN(2), Bit: r.Int64N(1 << 19), After: r.IntN(2) == 0}
			rule.Kind = []faulty.Kind{faulty.Fail, faulty.NoSpace, faulty.Short, faulty.Lost, faulty.Flip}[r.IntN(5)]
			if r.IntN(3) == 0 {
				rule.Op, rule.N, rule.Kind = faulty.Sync, 1, []faulty.Kind{faulty.Fail, faulty.Lost}[r.IntN(2)]
			}
			d, path := faulty.NewDir(faulty.New(rule)), filepath.Join(t.TempDir(), "vol.fbm")
			d.WriteFile(path, mapBytes(t, before))
			err := after.save(path, &dirSteps{d: d})
			lies := rule.Kind == faulty.Lost || rule.Kind == faulty.Flip
			if (err == nil) != lies {
				t.Errorf("%s of a %s: save said %v", rule.Kind, rule.Op, err)
			}
			if err != nil {
				said++
			}
			m, lerr := afterCrash(t, d, path, seed)
			switch {
			case lerr != nil && lies && (errors.Is(lerr, ErrCorrupt) || errors.Is(lerr, ErrNotMap) || errors.Is(lerr, ErrVersion)):
				refused++
			case lerr != nil:
				t.Errorf("%s of a %s: %v", rule.Kind, rule.Op, lerr)
			case !bytes.Equal(mapBytes(t, m), mapBytes(t, before)) && !bytes.Equal(mapBytes(t, m), mapBytes(t, after)):
				t.Errorf("%s of a %s left another map", rule.Kind, rule.Op)
			}
		})
	}
	if said == 0 || refused == 0 {
		t.Errorf("%d saves failed, %d maps were refused: the test tests nothing", said, refused)
	}
}

// TestSaveFullDisk: no room for the new map leaves the old one.
func TestSaveFullDisk(t *testing.T) {
	before, after := crashMap(t, 1), crashMap(t, 2)
	for room := int64(0); room < int64(len(mapBytes(t, after))); room += 1 << 15 {
		full := func(e faulty.Event) bool { return e.Off+e.Len > room }
		d := faulty.NewDir(faulty.New(faulty.Rule{Op: faulty.Write, When: full, Kind: faulty.NoSpace}))
		path := filepath.Join(t.TempDir(), "vol.fbm")
		d.WriteFile(path, mapBytes(t, before))
		if err := after.save(path, &dirSteps{d: d}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("room for %d bytes: save: %v", room, err)
		}
		if m, err := afterCrash(t, d, path, 1); err != nil || m.Epoch != 1 {
			t.Errorf("room for %d bytes: %v", room, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a real file was made: %v", err)
		}
	}
}
