package failback

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/internal/looptest"
)

// TestStageDevice (L4): a block device counts flushes for writes; a staged sync onto
// one, that flushes it, takes nobody's write for another's. A write is one, also if it
// was only in the device's page cache.
func TestStageDevice(t *testing.T) {
	src := randomVolume(1, 8<<20)
	old := clone(src)
	scatter(old, 3, 50)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, old.b, 0o600); err != nil {
		t.Fatal(err)
	}
	device := looptest.Attach(t, image, looptest.Options{}).Path
	dst, err := Open(device, OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	before, err := dst.writes()
	if err != nil || before == "" {
		t.Fatalf("nothing is counted for %s: %v", device, err)
	}
	if err := dst.Sync(); err != nil {
		t.Fatal(err)
	}
	if now, err := dst.writes(); err != nil || now != before {
		t.Errorf("a flush counts: %q, now %q (%v)", before, now, err)
	}
	side := Side{Volume: dst, Name: "target", Journal: filepath.Join(t.TempDir(), "t.fbj"), Stage: t.TempDir()}
	for range 2 { // the second time nothing differs
		if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	scatter(src, 4, 50)
	source := &meddled{src, once(func() {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte("foreign"), 5<<20)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Error(err)
		}
	})}
	var refused *RefusedError
	if _, err := Sync(t.Context(), Side{Volume: source, Name: "source"}, side, Options{}); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "somebody has written it") {
		t.Errorf("got %v", err)
	}
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(src.b))
	if _, err := dst.ReadMediumAt(got, 0); err != nil || !bytes.Equal(got, src.b) {
		t.Errorf("the target is not the source (%v)", err)
	}
}
