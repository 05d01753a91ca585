package sysfs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// machine makes one up: files by their path, and the links by which sysfs finds
// devices by number.
func machine(t *testing.T, files, links map[string]string) Host {
	t.Helper()
	h := Host{Sys: filepath.Join(t.TempDir(), "sys"), Proc: filepath.Join(t.TempDir(), "proc")}
	for name, text := range files {
		put(t, h.Sys, name, text+"\n")
	}
	for number, dir := range links {
		link := filepath.Join(h.Sys, "dev/block", number)
		if err := os.MkdirAll(filepath.Dir(link), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(h.Sys, "devices", dir), link); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func put(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A disk with two partitions and one that has no number, and a volume over one
// of them and another disk.
func stack(t *testing.T) Host {
	t.Helper()
	return machine(t, map[string]string{
		"devices/sda/dev":              "8:0",
		"devices/sda/sda1/dev":         "8:1",
		"devices/sda/sda1/partition":   "1",
		"devices/sda/sda1/start":       "2048",
		"devices/sda/sda2/dev":         "8:2",
		"devices/sda/sda2/partition":   "2",
		"devices/sda/sda2/start":       "-1",
		"devices/sda/sda3/dev":         "none",
		"devices/sda/sda3/partition":   "3",
		"devices/sda/queue/dev":        "7:7", // no partition
		"devices/dm-0/dev":             "253:0",
		"devices/dm-0/slaves/sda2/dev": "8:2",
		"devices/dm-0/slaves/sdb/dev":  "8:16",
		"devices/bare/part/dev":        "9:1",
		"devices/bare/part/partition":  "1",
	}, map[string]string{"8:0": "sda", "8:1": "sda/sda1", "8:2": "sda/sda2", "253:0": "dm-0", "9:1": "bare/part"})
}

func TestHost(t *testing.T) {
	h := stack(t)
	for n, want := range map[Devno]struct {
		name              string
		disk              Devno
		start             int64
		partitions, lower []Devno
	}{
		{8, 0}:   {"sda", Devno{8, 0}, 0, []Devno{{8, 1}, {8, 2}}, nil},
		{8, 1}:   {"sda1", Devno{8, 0}, 1 << 20, nil, nil},
		{8, 2}:   {"sda2", Devno{8, 0}, 0, nil, nil},
		{253, 0}: {"dm-0", Devno{253, 0}, 0, nil, []Devno{{8, 2}, {8, 16}}},
		{9, 1}:   {"part", Devno{9, 1}, 0, nil, nil},  // of a disk that does not tell its number
		{8, 16}:  {"8:16", Devno{8, 16}, 0, nil, nil}, // not there
	} {
		disk, start := h.Disk(n)
		if name := h.Name(n); name != want.name || disk != want.disk || start != want.start {
			t.Errorf("%v: %s on %v from %d, want %s on %v from %d", n, name, disk, start, want.name, want.disk, want.start)
		}
		if got := h.Partitions(n); !slices.Equal(got, want.partitions) {
			t.Errorf("partitions of %v: %v, want %v", n, got, want.partitions)
		}
		if got := h.Slaves(n); !slices.Equal(got, want.lower) {
			t.Errorf("slaves of %v: %v, want %v", n, got, want.lower)
		}
	}
	if list := Devnos(filepath.Join(h.Sys, "[")); list != nil {
		t.Errorf("a malformed pattern: %v", list)
	}
}

func TestAttr(t *testing.T) {
	h := machine(t, map[string]string{"text": "  two words ", "number": "42", "below": "-1", "empty": ""}, nil)
	for name, want := range map[string]struct {
		text   string
		number int64
	}{"text": {"two words", 0}, "number": {"42", 42}, "below": {"-1", 0}, "empty": {"", 0}, "none": {"", 0}} {
		if text, number := Attr(h.Sys, name), Number(h.Sys, name); text != want.text || number != want.number {
			t.Errorf("%s: %q and %d, want %q and %d", name, text, number, want.text, want.number)
		}
	}
}

func TestParseDevno(t *testing.T) {
	for in, want := range map[string]bool{"8:1": true, "4095:1048575": true, "8": false, "a:1": false, "8:": false, "8:1:2": false,
		"-8:1": false, fmt.Sprint(uint64(1)<<33) + ":1": false} {
		n, ok := ParseDevno(in)
		if ok != want || ok && n.String() != in {
			t.Errorf("ParseDevno(%q) = %v, %v", in, n, ok)
		}
	}
}

func TestBlockDevice(t *testing.T) {
	for _, path := range []string{"", "/none/such", t.TempDir(), "/dev/null"} {
		if n, ok := BlockDevice(path); ok {
			t.Errorf("%q is the block device %v", path, n)
		}
	}
	// This machine's own, by their node and by sysfs.
	nodes, err := filepath.Glob("/sys/class/block/*/dev")
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		name := filepath.Base(filepath.Dir(node))
		n, ok := BlockDevice("/dev/" + name)
		if !ok {
			continue // nobody has made a node
		}
		if n.String() != Attr(node) && Attr(node) != "" || This.Name(n) != name {
			t.Errorf("%s is %v, named %s; sysfs says %s", name, n, This.Name(n), Attr(node))
		}
	}
}
