package throttle

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/failback/failback/internal/sysfs"
)

// host is where to look for groups and devices; tests look elsewhere.
type host struct{ sysfs.Host }

var thisHost = host{sysfs.This}

// Find returns the writers in a control group to the disk of a block device. The
// group is named by its directory, or by its path below the mount of cgroup v2, as
// systemctl show -p ControlGroup has it. What cannot be slowed down is refused with
// a [*RefusedError]; nothing is changed.
func Find(group, device string) (*Group, error) { return thisHost.find(group, device) }

func (h host) find(group, device string) (*Group, error) {
	dir, err := h.resolve(group)
	if err != nil {
		return nil, err
	}
	n, ok := sysfs.BlockDevice(device)
	if !ok {
		return nil, refuse(group, "name the block device that the applications write to", "%s is not a block device, so nobody's writes to it can be limited", device)
	}
	if err := h.check(group, dir); err != nil {
		return nil, err
	}
	disk, _ := h.Disk(n) // io.max is of whole disks
	return &Group{Dir: dir, Disk: disk.String(), Direct: !has(dir, "cgroup.controllers", "memory")}, nil
}

// resolve returns the directory of a group.
func (h host) resolve(group string) (string, error) {
	find := "name the directory of the group of the applications (systemctl show -p ControlGroup UNIT)"
	tries := []string{group}
	if mount := h.mount(); mount != "" {
		tries = append(tries, filepath.Join(mount, group))
		if !filepath.IsAbs(group) { // relative to the working directory last: there it is seldom
			slices.Reverse(tries)
		}
	}
	var first error
	for _, dir := range tries {
		info, err := os.Stat(dir)
		switch {
		case err == nil && !info.IsDir():
			return "", refuse(group, find, "it is not a directory, so it is no control group")
		case err == nil:
			return filepath.Abs(dir)
		case first == nil || !errors.Is(err, fs.ErrNotExist):
			first = err
		}
	}
	if errors.Is(first, fs.ErrNotExist) {
		return "", refuse(group, find, "there is no such control group")
	}
	return "", refuse(group, find, "it cannot be looked at: %v", first)
}

// mount is where cgroup v2 is mounted, "" if it is not.
func (h host) mount() string {
	text, err := os.ReadFile(filepath.Join(h.Proc, "self", "mounts"))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(text) {
		if f := strings.Fields(string(line)); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// check refuses a directory that is no group whose writes can be limited.
func (h host) check(group, dir string) error {
	switch {
	case !there(dir, "cgroup.controllers") && there(dir, "tasks"):
		return refuse(group, "name its group in the hierarchy of cgroup v2; if there is none, boot with that alone (systemd.unified_cgroup_hierarchy=1)",
			"it is a group of cgroup v1, whose limits pass over what the page cache writes out; it takes cgroup v2")
	case !there(dir, "cgroup.controllers"):
		return refuse(group, "name the directory of a control group (below /sys/fs/cgroup)", "it is not a control group")
	case !has(dir, "cgroup.controllers", "io"):
		return noController(group, dir)
	case !there(dir, "io.max") && !there(dir, "cgroup.type"):
		return refuse(group, "name a group below it", "it is the root of all control groups, which cannot be limited")
	case !there(dir, "io.max"):
		return refuse(group, "boot a kernel that can", "this kernel cannot limit what a group writes (needs CONFIG_BLK_DEV_THROTTLING)")
	case has(dir, "cgroup.events", "populated 0"):
		return refuse(group, "name the group that the applications are in", "there is no process in it, so there is nobody to be slowed down")
	case h.within(dir):
		return refuse(group, "run failback outside of it, or name the group of the applications alone", "failback itself is in it, and would be slowed down with it")
	}
	f, err := os.OpenFile(filepath.Join(dir, "io.max"), os.O_WRONLY, 0)
	if err != nil {
		return refuse(group, "run it as root", "its limits cannot be changed: %v", err)
	}
	return f.Close()
}

func there(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

// has reports whether a file of a group has a word, or a line of more than one.
func has(dir, name, word string) bool {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return false
	}
	if strings.Contains(word, " ") {
		return slices.Contains(strings.Split(string(b), "\n"), word)
	}
	return slices.Contains(strings.Fields(string(b)), word)
}

// noController says where the io controller is turned on for a group.
func noController(group, dir string) error {
	for above := filepath.Dir(dir); there(above, "cgroup.controllers"); above = filepath.Dir(above) {
		if !has(above, "cgroup.controllers", "io") {
			continue
		}
		next := "echo +io > " + filepath.Join(above, "cgroup.subtree_control")
		if above != filepath.Dir(dir) {
			next += ", and so in each group on the way down to it"
		}
		return refuse(group, next+" (of a unit of systemd: IOAccounting=yes)", "the io controller is not enabled for it")
	}
	return refuse(group, "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1, or cgroup_no_v1=blkio)",
		"cgroup v2 has no io controller here: it is with cgroup v1, or this kernel has none (CONFIG_BLK_CGROUP)")
}

// within reports whether this process is in a group or below it. Where that cannot
// be told it is taken to be outside.
func (h host) within(dir string) bool {
	text, err := os.ReadFile(filepath.Join(h.Proc, "self", "cgroup"))
	group, err2 := os.Stat(dir)
	mount := h.mount()
	if err != nil || err2 != nil || mount == "" {
		return false
	}
	for line := range bytes.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::")
		if !ok {
			continue
		}
		for ours := filepath.Join(mount, path); len(ours) >= len(mount); ours = filepath.Dir(ours) {
			if info, err := os.Stat(ours); err == nil && os.SameFile(info, group) {
				return true
			}
		}
	}
	return false
}
