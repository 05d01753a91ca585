package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/failback/failback"
)

// TestMakeDir (L10): the names of directories that are made for a stage, a journal or
// a record are durable before anything in them is needed; those that are there already
// cost nothing.
func TestMakeDir(t *testing.T) {
	var synced []string
	was := syncDir
	syncDir = func(dir string) error {
		synced = append(synced, dir)
		return was(dir)
	}
	t.Cleanup(func() { syncDir = was })
	image := filepath.Join(t.TempDir(), "b.img")
	if err := os.WriteFile(image, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := failback.Open(image, failback.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, use := range map[string]func(dir string) error{
		"stage": func(dir string) error { _, err := makeStageDir(dir, "b"); return err },
		"state": func(dir string) error {
			_, err := (&placeFlags{state: dir}).journal(d, image, true)
			return err
		},
		"record": func(dir string) error { return replaceFile(filepath.Join(dir, "x"), nil) },
	} {
		top := t.TempDir()
		dir := filepath.Join(top, "some", "where")
		for first := true; ; first = false {
			synced = nil
			if err := use(dir); err != nil {
				t.Fatal(name, err)
			}
			for _, holds := range []string{top, filepath.Dir(dir)} {
				if slices.Contains(synced, holds) != first {
					t.Errorf("%s: what holds a new directory, %s, is synced: %v", name, holds, !first)
				}
			}
			if !first {
				break
			}
		}
	}
}
