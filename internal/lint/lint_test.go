package lint

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	module     = "github.com/failback/failback"
	moduleRoot = "../.."
)

var moduleFS = os.DirFS(moduleRoot)

// leaves are the packages that others build on, with all they may import of
// ours. An embedder takes one of them and gets nothing else.
var leaves = map[string][]string{
	"cbt":               {},
	"cbt/cbttest":       {"cbt"},
	"merkle":            {},
	"transport":         {},
	"transport/message": {"transport"},
	"transport/dial":    {},
	"internal/journal":  {},
	"internal/faulty":   {},
	"internal/looptest": {},
	"internal/quiesce":  {"internal/sysfs"},
	"internal/sysfs":    {},
	"internal/throttle": {"internal/sysfs"},
}

// rootMay is what the root package may import of ours.
var rootMay = []string{"cbt", "merkle", "transport", "transport/message", "transport/dial", "internal/journal", "internal/sysfs"}

// heavy must not come with the root package: commands, servers, kernel programs.
var heavy = []string{
	"github.com/spf13/cobra", "github.com/cilium/ebpf", "net/http", "google.golang.org/grpc",
	"go.etcd.io/bbolt", "go.etcd.io/etcd", "github.com/prometheus",
}

// listed is what go list tells about a package.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

var listPackages = sync.OnceValues(func() (map[string]listed, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Dir = moduleRoot
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	all := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all[short(p.ImportPath)] = p
	}
})

func packages(t *testing.T) map[string]listed {
	t.Helper()
	all, err := listPackages()
	if err != nil {
		t.Fatalf("go list ./...: %v", err)
	}
	return all
}

// short is an import path of ours from the module root; "." is the root package.
func short(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// ours filters an import list.
func ours(imports []string) []string {
	var all []string
	for _, i := range imports {
		if i == module || strings.HasPrefix(i, module+"/") {
			all = append(all, short(i))
		}
	}
	return all
}

func TestArrows(t *testing.T) {
	all := packages(t)
	for leaf, may := range leaves {
		p, ok := all[leaf]
		if !ok {
			t.Errorf("package %s is gone: take it out of leaves, or bring it back", leaf)
			continue
		}
		for _, i := range ours(p.Imports) {
			if !slices.Contains(may, i) {
				t.Errorf("%s imports %s: a leaf imports nothing of ours but %q; declare a small interface where it is used, and let the root package join the two", leaf, i, may)
			}
		}
	}
	for _, i := range ours(all["."].Imports) {
		if !slices.Contains(rootMay, i) {
			t.Errorf("the root package imports %s: embedders would link it; move what is needed into the root or a leaf", i)
		}
	}
	for name, p := range all {
		for _, i := range ours(slices.Concat(p.Imports, p.TestImports, p.XTestImports)) {
			if i == "cmd" || strings.HasPrefix(i, "cmd/") {
				t.Errorf("%s imports %s: a command is run, not imported; move the shared part to internal/", name, i)
			}
		}
	}
}

// What comes with the root package comes with every program that embeds it.
func TestRootStaysLight(t *testing.T) {
	for _, dep := range packages(t)["."].Deps {
		for _, h := range heavy {
			if dep == h || strings.HasPrefix(dep, h+"/") {
				t.Errorf("the root package links %s (see go mod why or go list -deps): move what needs it to internal/ or a package of its own", dep)
			}
		}
	}
}

// A fuzz target without seeds starts from nothing and finds nothing in a short run.
func TestFuzzSeeds(t *testing.T) {
	committed, git := wouldCommit(t)
	found := 0
	for _, s := range sources(t) {
		if s.dir != "fuzz" || !s.test {
			continue
		}
		for _, f := range s.functions() {
			if !strings.HasPrefix(f.name, "Fuzz") {
				continue
			}
			found++
			dir := path.Join("fuzz/testdata/fuzz", f.name)
			if n := seeds(t, dir, committed, git); n == 0 {
				t.Errorf("%s: no seeds in %s: have the real writer make some, and commit them", f.name, dir)
			}
		}
	}
	if found == 0 {
		t.Error("fuzz/ has no fuzz target: every decoder needs one")
	}
}

// seeds counts the files of dir that have content and are, or can be, committed.
func seeds(t *testing.T, dir string, committed map[string]bool, git bool) int {
	t.Helper()
	entries, err := fs.ReadDir(moduleFS, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if git && !committed[name] {
			t.Errorf("%s is ignored by git: others will not have it; see .gitignore", name)
			continue
		}
		if info.Size() > 0 {
			n++
		}
	}
	return n
}

// wouldCommit lists what git has or would take; false outside of a work tree.
func wouldCommit(t *testing.T) (map[string]bool, bool) {
	t.Helper()
	if _, err := fs.Stat(moduleFS, ".git"); err != nil {
		return nil, false
	}
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "fuzz")
	cmd.Dir = moduleRoot
	out, err := cmd.Output()
	if err != nil {
		t.Logf("git ls-files: %v: seeds are looked for on disk only", err)
		return nil, false
	}
	all := map[string]bool{}
	for name := range strings.SplitSeq(string(out), "\x00") {
		all[name] = true
	}
	return all, true
}

func TestDecisionsNameDependencies(t *testing.T) {
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = moduleRoot
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod edit: %v", err)
	}
	var mod struct {
		Require []struct{ Path string }
		Tool    []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	notes, err := fs.Glob(moduleFS, "docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, n := range notes {
		b, err := fs.ReadFile(moduleFS, n)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	var need []string
	for _, r := range mod.Require {
		if imported(t, r.Path) { // what nobody imports is for go mod tidy to remove
			need = append(need, r.Path)
		}
	}
	for _, tool := range mod.Tool {
		need = append(need, tool.Path)
	}
	for _, n := range need {
		if !strings.Contains(text.String(), "`"+n+"`") {
			t.Errorf("no note in docs/decisions/ names `%s`: say in two lines what it does for us and what we would have to write without it", n)
		}
	}
}

// imported reports whether a package or test of ours imports from the module.
func imported(t *testing.T, modulePath string) bool {
	t.Helper()
	for _, p := range packages(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if i == modulePath || strings.HasPrefix(i, modulePath+"/") {
				return true
			}
		}
	}
	return false
}
