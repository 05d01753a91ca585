package cbt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// faultySteps fails at one step: before it happened, or after. It notes the
// steps it is asked for.
type faultySteps struct {
	osSteps
	step     string
	happened bool
	asked    *[]string
}

var errFault = errors.New("power cut")

// at runs a step or fails it.
func (f faultySteps) at(step string, run func() error) error {
	*f.asked = append(*f.asked, step)
	if f.step != step {
		return run()
	}
	if f.happened {
		if err := run(); err != nil {
			return err
		}
	}
	return errFault
}

func (f faultySteps) write(m io.WriterTo, temp *os.File) error {
	if f.step == "write" && !f.happened {
		temp.Write([]byte(mapMagic)) // torn
	}
	return f.at("write", func() error { return f.osSteps.write(m, temp) })
}

func (f faultySteps) sync(temp *os.File) error {
	return f.at("sync", func() error { return f.osSteps.sync(temp) })
}

func (f faultySteps) rename(from, to string) error {
	return f.at("rename", func() error { return f.osSteps.rename(from, to) })
}

func (f faultySteps) syncDir(dir string) error {
	return f.at("sync directory", func() error { return f.osSteps.syncDir(dir) })
}

func smallMap(t *testing.T, epoch Epoch) *Map {
	t.Helper()
	m, err := NewMap(1<<20, 0, slices.Values([]Run{{Extent{0, int64(epoch) * MinBlock}, Dirty}}))
	if err != nil {
		t.Fatal(err)
	}
	m.Epoch = epoch
	return m
}

// TestSaveFaults fails each durable step of Save: the old map or the new one
// is there whole, the new one wherever Save may have renamed it (L10).
func TestSaveFaults(t *testing.T) {
	steps := []string{"write", "sync", "rename", "sync directory"}
	for i, step := range steps {
		for _, happened := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/happened=%v", step, happened), func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "vol.fbm")
				if err := smallMap(t, 1).Save(path); err != nil {
					t.Fatal(err)
				}
				var asked []string
				err := smallMap(t, 2).save(path, faultySteps{step: step, happened: happened, asked: &asked})
				if !errors.Is(err, errFault) {
					t.Fatalf("save: got %v, want %v", err, errFault)
				}
				if !slices.Equal(asked, steps[:i+1]) {
					t.Errorf("steps %v, want %v", asked, steps[:i+1])
				}
				want := Epoch(1)
				if step == "sync directory" || step == "rename" && happened {
					want = 2
				}
				m, err := LoadMap(path)
				if err != nil {
					t.Fatal(err)
				}
				if m.Epoch != want || m.Extents()[0].Len() != int64(want)*MinBlock {
					t.Errorf("epoch %d with %v, want epoch %d", m.Epoch, m.Extents(), want)
				}
				files, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				if len(files) != 1 {
					t.Errorf("an error left %v", files)
				}
				// The next save repeats the work.
				if err := smallMap(t, 3).Save(path); err != nil {
					t.Fatal(err)
				}
				if m, err = LoadMap(path); err != nil || m.Epoch != 3 {
					t.Errorf("after the next save: %v", err)
				}
			})
		}
	}
}

func TestSaveWhereThereIsNoDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone", "vol.fbm")
	if err := smallMap(t, 1).Save(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("save: got %v", err)
	}
	if _, err := LoadMap(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("load: got %v", err)
	}
	if err := (osSteps{}).syncDir(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sync directory: got %v", err)
	}
}

func TestSaveInTheWorkingDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := smallMap(t, 5).Save("vol.fbm"); err != nil {
		t.Fatal(err)
	}
	if m, err := LoadMap("vol.fbm"); err != nil || m.Epoch != 5 {
		t.Errorf("load: %v", err)
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vol.fbm")
	if err := os.WriteFile(path, []byte(mapMagic), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := LoadMap(path)
	want := "load dirty map " + path + ": at 0x8: corrupt dirty map: file ends at 0x8 inside the header: unexpected EOF"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
