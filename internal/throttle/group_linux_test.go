package throttle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/internal/looptest"
	"github.com/failback/failback/internal/sysfs"
)

// machine is one with cgroup v2 and some groups.
type machine struct {
	host
	mount string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	root := t.TempDir()
	m := &machine{host: host{sysfs.Host{Sys: sysfs.This.Sys, Proc: filepath.Join(root, "proc")}}, mount: filepath.Join(root, "cgroup")}
	files(t, root, map[string]string{
		"proc/self/mounts": "proc /proc proc rw 0 0\ncgroup /v1 cgroup rw 0 0\ncgroup2 " + m.mount + " cgroup2 rw 0 0\n",
		"proc/self/cgroup": "7:blkio:/\n0::/user/session\n",
	})
	m.group(t, "", map[string]string{"cgroup.controllers": "cpu io memory", "cgroup.subtree_control": "io"})
	m.group(t, "db", nil)
	m.group(t, "db/child", nil)
	m.group(t, "user", nil)
	m.group(t, "user/session", nil)
	return m
}

// group makes one that can be limited, but for what is otherwise.
func (m *machine) group(t *testing.T, name string, otherwise map[string]string) string {
	t.Helper()
	content := map[string]string{"cgroup.controllers": "io memory\n", "cgroup.type": "domain\n", "cgroup.events": "populated 1\nfrozen 0\n", "io.max": ""}
	if name == "" {
		content = map[string]string{}
	}
	for k, v := range otherwise {
		content[k] = v
		if v == "-" {
			delete(content, k)
		}
	}
	dir := filepath.Join(m.mount, name)
	files(t, dir, content)
	return dir
}

func TestCheck(t *testing.T) {
	m := newMachine(t)
	v1, plain := filepath.Join(t.TempDir(), "blkio"), t.TempDir()
	files(t, v1, map[string]string{"tasks": "1\n", "blkio.throttle.write_bps_device": ""})
	off := newMachine(t)
	off.group(t, "", map[string]string{"cgroup.controllers": "cpu"})
	for name, c := range map[string]struct {
		dir  string
		says []string // none: it is well
	}{
		"a group":            {dir: filepath.Join(m.mount, "db")},
		"one below it":       {dir: filepath.Join(m.mount, "db/child")},
		"a directory":        {plain, []string{"not a control group"}},
		"cgroup v1":          {v1, []string{"of cgroup v1", "systemd.unified_cgroup_hierarchy=1"}},
		"the root":           {m.mount, []string{"the root of all control groups"}},
		"not enabled":        {m.group(t, "off", map[string]string{"cgroup.controllers": "cpu"}), []string{"not enabled", "echo +io > " + m.mount + "/cgroup.subtree_control (of"}},
		"nor above":          {m.group(t, "off/below", map[string]string{"cgroup.controllers": ""}), []string{"not enabled", "echo +io > " + m.mount + "/cgroup.subtree_control, and so in each group on the way"}},
		"with v1":            {off.group(t, "db", map[string]string{"cgroup.controllers": "cpu"}), []string{"no io controller here", "cgroup_no_v1=blkio"}},
		"no throttling":      {m.group(t, "old", map[string]string{"io.max": "-"}), []string{"CONFIG_BLK_DEV_THROTTLING"}},
		"empty":              {m.group(t, "empty", map[string]string{"cgroup.events": "populated 0\nfrozen 0\n"}), []string{"no process in it"}},
		"ours":               {filepath.Join(m.mount, "user/session"), []string{"failback itself is in it"}},
		"ours, further down": {filepath.Join(m.mount, "user"), []string{"failback itself is in it"}},
	} {
		err := m.check("the group", c.dir)
		var refused *RefusedError
		switch {
		case len(c.says) == 0 && err != nil:
			t.Errorf("%s: %v", name, err)
		case len(c.says) > 0 && (!errors.As(err, &refused) || refused.Group != "the group" || refused.Next == ""):
			t.Errorf("%s: %v", name, err)
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %v, want %q in it", name, err, s)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	m := newMachine(t)
	db := filepath.Join(m.mount, "db")
	for _, name := range []string{db, "db", "/db", "db/"} {
		if got, err := m.resolve(name); got != db || err != nil {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for name, says := range map[string]string{"none": "no such control group", "/none/at/all": "no such control group", filepath.Join(db, "io.max"): "not a directory"} {
		if _, err := m.resolve(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// io.max is of disks: a partition's is its disk's.
func TestFindDisk(t *testing.T) {
	m := newMachine(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<20)); err != nil {
		t.Fatal(err)
	}
	disk := looptest.Attach(t, image, looptest.Options{}).Path
	part := looptest.Partition(t, disk, 1, 64<<10, 64<<10)
	n, ok := sysfs.BlockDevice(disk)
	if !ok {
		t.Fatalf("%s is not a block device", disk)
	}
	for _, device := range []string{disk, part} {
		g, err := m.find("db", device)
		if err != nil || g.Disk != n.String() || g.Dir != filepath.Join(m.mount, "db") || g.Direct {
			t.Errorf("%s: %+v, %v, want disk %v", device, g, err, n)
		}
	}
	m.group(t, "db", map[string]string{"cgroup.controllers": "io\n"})
	if g, err := m.find("db", disk); err != nil || !g.Direct {
		t.Errorf("without the memory controller: %+v, %v", g, err)
	}
	if _, err := m.find("db", m.mount); err == nil || !strings.Contains(err.Error(), "is not a block device") {
		t.Errorf("a directory: %v", err)
	}
}

// TestFindHere asks the machine at hand, where cgroup v2 may be there without its io
// controller, or with.
func TestFindHere(t *testing.T) {
	mount := thisHost.mount()
	if mount == "" {
		t.Skip("needs cgroup v2 mounted")
	}
	dir, err := os.MkdirTemp(mount, "failback-test-")
	if err != nil {
		t.Skipf("needs to make a control group: %v", err)
	}
	defer os.Remove(dir)
	err = thisHost.check(dir, dir)
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	switch why := refused.Reason; {
	case !has(mount, "cgroup.controllers", "io") && !strings.Contains(why, "no io controller here"),
		has(mount, "cgroup.controllers", "io") && !strings.Contains(why, "not enabled for it") && !strings.Contains(why, "no process in it"):
		t.Errorf("%v", err)
	}
	t.Log(err)
}
