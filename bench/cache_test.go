package bench

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestChillAndWarm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	want := bytes.Repeat([]byte("content "), 1<<17)
	if err := os.WriteFile(path, want, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := warm(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if in, err := resident(path); err != nil || in < int64(len(want)) {
		t.Fatalf("warm: %d of %d bytes in the cache, %v", in, len(want), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	byMincore, err := residentByMap(f)
	if err != nil || byMincore < int64(len(want)) {
		t.Errorf("mincore sees %d of %d bytes, %v", byMincore, len(want), err)
	}
	if err := chill(path); err != nil {
		t.Skipf("the page cache cannot be dropped on this file system: %v", err)
	}
	if byMincore, err = residentByMap(f); err != nil || byMincore > 0 {
		t.Errorf("cold: mincore sees %d bytes, %v", byMincore, err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("dropping the cache changed the file: %v", err)
	}
}
