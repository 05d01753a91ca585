package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func told(t *testing.T, in string) (code int, out, errs, skips, closing string) {
	t.Helper()
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	s, c := filepath.Join(dir, "skips"), filepath.Join(dir, "closing")
	code = run([]string{"-name", "run", "-skips", s, "-closing", c}, strings.NewReader(in), &stdout, &stderr)
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	return code, stdout.String(), stderr.String(), read(s), read(c)
}

func TestPassedAndSkipped(t *testing.T) {
	code, out, errs, skips, closing := told(t, `deps: hello
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:1: needs root\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
{not json`)
	if code != 0 || errs != "" {
		t.Errorf("exit %d, %q", code, errs)
	}
	if want := "deps: hello\nok  \tp\t0.1s\n{not json"; out != want {
		t.Errorf("printed %q, want %q", out, want)
	}
	if want := "run: p TestB: b_test.go:1: needs root\n"; skips != want {
		t.Errorf("skips %q, want %q", skips, want)
	}
	if want := "ok  \tp\t0.1s\n"; closing != want {
		t.Errorf("closing %q, want %q", closing, want)
	}
}

func TestFailures(t *testing.T) {
	for name, in := range map[string]string{
		"test": `{"Action":"output","Package":"p","Test":"TestA","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`,
		"panic": `{"Action":"output","Package":"p","Test":"TestA","Output":"why\n"}
{"Action":"fail","Package":"p"}`,
		"build": `{"Action":"build-output","ImportPath":"p","Output":"why\n"}
{"Action":"build-fail","ImportPath":"p"}`,
		"package": `{"Action":"output","Package":"p","Output":"why\n"}
{"Action":"fail","Package":"p"}`,
	} {
		if code, out, _, _, _ := told(t, in); code != 1 || !strings.Contains(out, "why") {
			t.Errorf("%s: exit %d, printed %q", name, code, out)
		}
	}
}

// A run that tested nothing has proven nothing.
func TestNothingRan(t *testing.T) {
	for _, in := range []string{"", "make: nothing to be done\n", `{"Action":"skip","Package":"p"}`} {
		if code, _, errs, _, _ := told(t, in); code != 1 || !strings.Contains(errs, "no test ran") {
			t.Errorf("%q: exit %d, %q", in, code, errs)
		}
	}
	var stderr bytes.Buffer
	if code := run([]string{"-no-such-flag"}, strings.NewReader(""), &stderr, &stderr); code != 2 {
		t.Errorf("a wrong flag: exit %d", code)
	}
}
