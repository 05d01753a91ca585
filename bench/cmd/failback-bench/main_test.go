package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/bench"
)

// call runs the command as a shell would and returns its exit code and what it printed.
func call(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, &out, &err)
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"nonsense"}, {"floor"}, {"floor", "nonsense"}, {"floor", "send", "one"}, {"floor", "hash"},
		{"image", "extra"}, {"image", "-differs", "much"}, {"run", "-only", "("}, {"table"}, {"link", "one"},
		{"shape"}, {"shape", "-loss", "2", "true"}, {"image", "-nonsense"},
	} {
		if code, _, msg := call(t, args...); code != 2 || msg == "" {
			t.Errorf("%q: exit code %d, %q; want 2 and what is wrong", args, code, msg)
		}
	}
}

func TestSuitesAreListed(t *testing.T) {
	code, out, _ := call(t, "run", "-list")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, s := range bench.Suites() {
		if !strings.Contains(out, s.Name+" ") || !strings.Contains(out, s.Asks) {
			t.Errorf("suite %s is not listed", s.Name)
		}
	}
}

func TestImageAndFloors(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs the program mke2fs (e2fsprogs)")
	}
	dir := t.TempDir()
	images := []string{"-dir", dir, "-size", "16777216"}
	code, out, msg := call(t, append(append([]string{"image"}, images...), "-differs", "seq-10")...)
	if code != 0 {
		t.Fatal(msg)
	}
	var made struct{ Source, Target, Pieces, Leaves string }
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{
		{"floor", "hash", "-hash", "blake3", made.Source, made.Target},
		{"floor", "read", "-list", made.Leaves, made.Source},
		{"floor", "send", "-list", made.Pieces, "-s2", "-read-back", made.Source, made.Target},
		{"floor", "copy", made.Source, made.Target},
	} {
		code, out, msg := call(t, args...)
		var r struct{ Bytes int64 }
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || r.Bytes == 0 {
			t.Errorf("%q: exit code %d, %v: %s%s", args, code, err, out, msg)
		}
	}
	a, err := os.ReadFile(made.Source)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(made.Target); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the target was not brought in line: %v", err)
	}
	if code, _, msg := call(t, "floor", "copy", made.Source, filepath.Join(dir, "gone", "x")); code != 1 || msg == "" {
		t.Errorf("a copy to nowhere: exit code %d, %q", code, msg)
	}
}

func TestRunWithoutBinary(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("needs the program mke2fs (e2fsprogs)")
	}
	dir := t.TempDir()
	code, _, msg := call(t, "run", "-dir", dir, "-size", "16777216", "-failback", filepath.Join(dir, "failback"), "merkle")
	if code != 1 || !strings.Contains(msg, "build it first") {
		t.Errorf("exit code %d, %s", code, msg)
	}
	code, _, msg = call(t, "run", "-dir", dir, "nonsense")
	if code != 2 || !strings.Contains(msg, "nonsense") {
		t.Errorf("exit code %d, %s", code, msg)
	}
}

func TestTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "raw")
	raw := `{"machine":"x","cores":2}
{"schema":1,"scenario":"merkle 0 warm","case":"blocksync-fast, both read","against":"failback","figures":{"wall_seconds":1}}
{"schema":1,"scenario":"merkle 0 warm","case":"failback","against":"failback","figures":{"wall_seconds":2}}
`
	if err := os.WriteFile(path, []byte(raw), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, msg := call(t, "table", path)
	if code != 0 {
		t.Fatal(msg)
	}
	for _, want := range []string{"merkle 0 warm", "0.50", "missed", "1 of 2 goals met"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code, _, _ := call(t, "table", path+"gone"); code != 1 {
		t.Errorf("a file that is not there: exit code %d", code)
	}
}
