package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// programs are this machine's programs that a guest has in /bin, with the
// libraries that they are linked with.
var programs = []string{"sh", "dd", "fsfreeze", "mkfs.ext4", "e2fsck", "dmsetup"}

// addPrograms packs them. A library lies where it lies here, so that the loader
// finds it.
func addPrograms(a *archive) error {
	at := map[string]string{} // file here, by its name in the guest
	for _, name := range programs {
		file, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		at["bin/"+name] = file
		libraries, err := libraries(file)
		if err != nil {
			return err
		}
		for _, l := range libraries {
			at[strings.TrimPrefix(l, "/")] = l
		}
	}
	made := map[string]bool{".": true}
	for name, file := range at {
		a.parents(path.Dir(name), made)
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.file(name, 0o755, content)
	}
	return nil
}

// parents adds a folder, and first those that it lies in.
func (a *archive) parents(dir string, made map[string]bool) {
	if made[dir] {
		return
	}
	a.parents(path.Dir(dir), made)
	a.dir(dir)
	made[dir] = true
}

// libraries are the shared libraries of a program, and the loader: lines such as
// "libc.so.6 => /lib/libc.so.6 (0x7f00)" and "/lib64/ld.so (0x7f00)" of ldd.
func libraries(file string) ([]string, error) {
	out, err := exec.Command("ldd", file).CombinedOutput()
	if strings.Contains(string(out), "not a dynamic executable") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", file, err, out)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "not found") {
			return nil, fmt.Errorf("ldd %s: %s", file, strings.TrimSpace(line))
		}
		for _, f := range strings.Fields(line) {
			if filepath.IsAbs(f) {
				list = append(list, f)
			}
		}
	}
	if len(list) == 0 {
		return nil, errors.New("ldd " + file + " names no library")
	}
	return list, nil
}
