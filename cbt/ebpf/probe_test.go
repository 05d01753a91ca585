package ebpf

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	needKernel(t)
	for _, f := range Probe(ownFS(t)) {
		t.Logf("%-60s %-8v since %s %s %s", f.Name, f.Support, f.Since, f.Config, f.Detail)
		if f.Required && f.Support == No {
			t.Errorf("%s: no, on a kernel that should have it: %s", f.Name, f.Detail)
		}
		if f.Name == "" || f.Since == "" && f.Config == "" {
			t.Errorf("%+v does not say what it needs", f)
		}
	}
}

func TestUnsupported(t *testing.T) {
	for want, e := range map[string]UnsupportedError{
		"loops: not supported":                                       {Feature: "loops"},
		"loops: not supported (needs Linux 5.17)":                    {Feature: "loops", Since: "5.17"},
		"types: not supported (needs Linux 5.4 with CONFIG_X): gone": {Feature: "types", Since: "5.4", Config: "CONFIG_X", Err: errors.New("gone")},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if !errors.Is(&e, ErrUnsupported) {
			t.Errorf("%v is not ErrUnsupported", &e)
		}
	}
	if err := explainLoad(fmt.Errorf("program: %w", unix.EPERM)); !strings.Contains(err.Error(), "CAP_BPF") {
		t.Errorf("no privileges: %v", err)
	}
	f := answer(Feature{Name: "x"}, fmt.Errorf("y: %w", ebpf.ErrNotSupported))
	if f.Support != No || answer(Feature{}, errors.New("z")).Support != Unknown || answer(Feature{}, nil).Support != Yes {
		t.Errorf("answers: %+v", f)
	}
}

// The committed objects are what the sources make. Versions of clang differ in
// what they make of one source, so only the one that made them is asked.
func TestObjectsAreCurrent(t *testing.T) {
	needTool(t, "clang", "llvm-strip")
	if _, err := os.Stat("/usr/include/bpf/bpf_helpers.h"); err != nil {
		t.Skip("needs the headers of libbpf (libbpf-dev)")
	}
	version, err := exec.Command("clang", "--version").Output()
	if err != nil || !bytes.Contains(version, []byte("clang version "+builtWith)) {
		t.Skipf("needs clang %s, this is %.40q", builtWith, version)
	}
	dir := t.TempDir()
	mustRun(t, "bpf/build", dir)
	for name, committed := range map[string][]byte{"tracker": trackerObject, "session": sessionObject} {
		fresh, err := os.ReadFile(dir + "/" + name + ".bpf.o")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(code(t, fresh), code(t, committed)) {
			t.Errorf("%s.bpf.o is not what its source makes: run go generate ./cbt/ebpf", name)
		}
	}
}

// code is what a kernel would be given of an object: its sections, less those
// that speak of the sources.
func code(t *testing.T, object []byte) []byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, s := range f.Sections {
		if strings.HasPrefix(s.Name, ".BTF") || s.Type == elf.SHT_NOBITS || s.Type == elf.SHT_NULL {
			continue
		}
		p, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, s.Name...), p...)
	}
	return all
}
