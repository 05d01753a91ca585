package fuzz_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/internal/cli"
	"github.com/failback/failback/merkle"
)

var updateVerify = flag.Bool("update.verify", false, "write the seeds of FuzzVerify anew")

// verified is the volume that FuzzVerify holds digest files against: content,
// zeroes, and a last leaf that is short.
func verified() []byte {
	b := make([]byte, 70<<10+512)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b[:30<<10])
	_, _ = rand.NewChaCha8([32]byte{8}).Read(b[60<<10:])
	return b
}

// verifySeeds are digest files of the volume, and of another, made by the real writer.
func verifySeeds(t testing.TB) map[string][]byte {
	dir := t.TempDir()
	other := verified()
	other[1234] ^= 1
	seeds := map[string][]byte{}
	for name, c := range map[string]struct {
		content []byte
		shape   merkle.Shape
	}{
		"equal-blake3": {verified(), merkle.Shape{Leaf: 4096, Algorithm: merkle.BLAKE3}},
		"equal-sha256": {verified(), merkle.Shape{Leaf: 65536, Algorithm: merkle.SHA256}},
		"other-blake3": {other, merkle.Shape{Leaf: 4096, Algorithm: merkle.BLAKE3}},
		"shorter":      {other[:64<<10], merkle.Shape{Leaf: 8192, Algorithm: merkle.SHA256}},
	} {
		c.shape.Size = int64(len(c.content))
		path := filepath.Join(dir, name)
		f, _, err := merkle.Build(t.Context(), bytes.NewReader(c.content), c.shape, path, merkle.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if seeds[name], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return seeds
}

// TestVerifySeeds wants the committed seeds to be what the writer makes today.
func TestVerifySeeds(t *testing.T) {
	dir := filepath.Join("testdata", "fuzz", "FuzzVerify")
	for name, b := range verifySeeds(t) {
		path, want := filepath.Join(dir, name), fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", b)
		if *updateVerify {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("seed %s is not what the writer makes (%v): go test ./fuzz -run VerifySeeds -update.verify", name, err)
		}
	}
}

// FuzzVerify runs the whole command `verify VOLUME DIGEST` on a digest file
// from outside. It says "same" only of a file whose root is the volume's own.
func FuzzVerify(f *testing.F) {
	content := verified()
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		volume, digest := filepath.Join(dir, "v"), filepath.Join(dir, "d")
		for path, b := range map[string][]byte{volume: content, digest: in} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), []string{"verify", "--json", volume, digest}, strings.NewReader(""), &out, &errs)
		var said struct{ Schema, Result string }
		if err := json.Unmarshal(out.Bytes(), &said); err != nil || said.Schema == "" {
			t.Fatalf("exit %d without an answer: %q, %q (%v)", code, out.String(), errs.String(), err)
		}
		if code < 0 || code > 3 {
			t.Fatalf("exit %d: %s", code, out.String())
		}
		if (code == 0) != (said.Result == "equal") {
			t.Fatalf("exit %d, result %s", code, said.Result)
		}
		if code == 0 {
			trueDigest(t, digest, content)
		}
	})
}

// trueDigest fails unless the file at path is a tree of content, whole.
func trueDigest(t *testing.T, path string, content []byte) {
	file, err := merkle.Open(path)
	if err != nil {
		t.Fatalf("verify believed a file that does not open: %v", err)
	}
	defer file.Close()
	shape := file.Shape()
	got, err := file.Root(t.Context())
	if err != nil || shape.Size != int64(len(content)) {
		t.Fatalf("verify believed a tree of %d bytes (%v)", shape.Size, err)
	}
	h, err := merkle.NewHasher(shape)
	if err != nil {
		t.Fatal(err)
	}
	var leaves []merkle.Hash
	for rest := content; len(rest) > 0; {
		n := min(int64(len(rest)), shape.Leaf)
		leaves = append(leaves, h.Leaf(rest[:n]))
		rest = rest[n:]
	}
	tree, err := merkle.NewTree(shape, leaves)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := tree.Root(t.Context()); want != got {
		t.Errorf("verify believed root %s, the volume's is %s", got, want)
	}
}
