package cli

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHostileDigest: L9, whatever is changed in a digest file, verify tells the
// truth or says that it cannot.
func TestHostileDigest(t *testing.T) {
	dir := t.TempDir()
	volume, digest := filepath.Join(dir, "a.img"), filepath.Join(dir, "a.fbt")
	content := make([]byte, 160<<10)
	if _, err := rand.NewChaCha8([32]byte{1}).Read(content); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(volume, content, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (int, string) {
		var out, errs bytes.Buffer
		code := Run(t.Context(), args, strings.NewReader(""), &out, &errs)
		return code, out.String() + errs.String()
	}
	if code, said := run("digest", "--leaf", "4KiB", "-o", digest, volume); code != exitDone {
		t.Fatalf("digest: %d %s", code, said)
	}
	if code, said := run("verify", volume, digest); code != exitDone {
		t.Fatalf("verify: %d %s", code, said)
	}
	whole, err := os.ReadFile(digest)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	try := func(what string, b []byte) {
		if err := os.WriteFile(digest, b, 0o600); err != nil {
			t.Fatal(err)
		}
		code, said := run("verify", "--quiet", volume, digest)
		switch code {
		case exitFailed:
			told++
		case exitDone: // a byte that means nothing
		default:
			t.Errorf("%s: exit code %d: %s", what, code, said)
		}
	}
	for i, old := range whole {
		if old == 0 && i%97 != 0 {
			continue // padding, by far the most
		}
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("bit %d of byte %d flipped", i%8, i), b)
	}
	for n := 0; n < len(whole); n += 613 {
		try("cut", whole[:n])
	}
	try("longer", append(bytes.Clone(whole), 0))
	if told < 1000 {
		t.Errorf("%d changes were noticed, and there are more bytes than that", told)
	}
}
