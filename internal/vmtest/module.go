package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// module is a kernel module as the kernel takes it.
type module struct {
	name    string
	content []byte
}

// moduleIndex is where each module lies, by name, with _ for -.
type moduleIndex map[string]string

// moduleName is the name that the kernel uses.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// indexModules finds all modules below a folder.
func indexModules(dir string) (moduleIndex, error) {
	index := moduleIndex{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			index[moduleName(name)] = path
		}
		return err
	})
	if err == nil && len(index) == 0 {
		err = fmt.Errorf("no modules in %s", dir)
	}
	return index, err
}

// order returns the modules and all that they depend on, each after what it
// depends on. What is not in the index is taken for a part of the kernel.
func (x moduleIndex) order(names []string) ([]module, error) {
	var list []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		path, ok := x[name]
		if seen[name] || !ok {
			return nil
		}
		seen[name] = true
		content, err := readModule(path)
		if err != nil {
			return err
		}
		needs, err := dependencies(content)
		if err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		list = append(list, module{name, content})
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// readModule reads a module, decompressed.
func readModule(path string) ([]byte, error) {
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		out, err := exec.Command("xz", "-dc", path).Output()
		if err != nil {
			return nil, fmt.Errorf("xz -dc %s: %w", path, err)
		}
		return out, nil
	case ".zst":
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		d, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return io.ReadAll(d)
	}
	return nil, fmt.Errorf("read %s: compressed in a way not known here", path)
}

// dependencies are what a module says it needs, in its section .modinfo, which
// is a list of NAME=VALUE with a zero byte after each.
func dependencies(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var list []string
	for field := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(field, "depends="); ok && v != "" {
			list = append(list, strings.Split(v, ",")...)
		}
	}
	return list, nil
}
