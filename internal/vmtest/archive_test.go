package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// cpio reads the archive back, as the kernel would.
func TestArchive(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("needs cpio")
	}
	var b bytes.Buffer
	a := newArchive(&b)
	a.dir("dir")
	a.file("dir/odd", 0o755, []byte("12345"))
	a.file("empty", 0o600, nil)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes", b.Len())
	}
	c := exec.Command(cpio, "-i", "--quiet", "-v")
	c.Dir, c.Stdin = t.TempDir(), &b
	out, err := c.CombinedOutput()
	if err != nil || strings.Join(strings.Fields(string(out)), " ") != "dir dir/odd empty" {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	got, err := exec.Command(filepath.Join("/bin", "cat"), filepath.Join(c.Dir, "dir/odd")).Output()
	if err != nil || string(got) != "12345" {
		t.Errorf("%q, %v", got, err)
	}
}
