package demo

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRecordLog(t *testing.T) {
	enough := make(chan struct{})
	close(enough)
	// A ring smaller than what load commits: it wraps. Something lies before it.
	l := &recordLog{path: filepath.Join(t.TempDir(), "log"), off: 8192, size: 30 * recordSize}
	last, err := l.load(t.Context(), enough)
	if err != nil || last != minTransactions {
		t.Fatalf("load = %d, %v", last, err)
	}
	if last, err = l.load(t.Context(), enough); err != nil || last != 2*minTransactions {
		t.Fatalf("second load = %d, %v", last, err)
	}
	if got, err := l.check(t.Context()); err != nil || got != last {
		t.Fatalf("check = %d, %v; want %d", got, err, last)
	}
	whole, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte){
		"a flipped bit":        func(b []byte) { b[l.off+3*recordSize+1000] ^= 1 },
		"an old record":        func(b []byte) { copy(b[l.off+3*recordSize:], record(33)) },
		"a missing record":     func(b []byte) { clear(b[l.off+3*recordSize:][:recordSize]) },
		"a record of its own":  func(b []byte) { copy(b[l.off+3*recordSize:], record(1<<40)) },
		"two records exchange": func(b []byte) { copy(b[l.off:], b[l.off+recordSize:][:recordSize]) },
	} {
		b := append([]byte(nil), whole...)
		damage(b)
		if err := os.WriteFile(l.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := l.check(t.Context()); err == nil {
			t.Errorf("%s: check = %d, nil", name, got)
		}
	}
}
