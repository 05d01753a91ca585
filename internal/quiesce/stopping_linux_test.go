package quiesce

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Stopping is told once, before the command that stops the writers has ended; not
// where a pause does not get that far.
func TestStopping(t *testing.T) {
	s := newStage(t, "ext4")
	told := filepath.Join(t.TempDir(), "told")
	times := 0
	p := Plan{Device: s.device, Mount: s.dir, Timeout: patience, Limit: patience, Stopping: func() {
		times++
		if err := os.WriteFile(told, nil, 0o600); err != nil {
			t.Error(err)
		}
	}}
	p.OnQuiesce = "until [ -e '" + told + "' ]; do sleep 0.01; done"
	for _, quiesce := range []string{p.OnQuiesce, ""} {
		p.OnQuiesce, times = quiesce, 0
		h, err := p.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.End(); err != nil || times != 1 {
			t.Errorf("with %q: told %d times, %v", quiesce, times, err)
		}
		if err := os.Remove(told); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	times, p.Mount = 0, ""
	if _, err := p.Begin(t.Context()); err == nil || times != 0 {
		t.Errorf("of nothing: told %d times, %v", times, err)
	}
}
