package quiesce

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// refuses requires a refusal with a word in its reason, and a next step.
func refuses(t *testing.T, what string, err error, reason string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, reason) || refused.Next == "" {
		t.Errorf("%s: %v, want a refusal with %q", what, err, reason)
	}
}

func TestCheckRefuses(t *testing.T) {
	for reason, p := range map[string]Plan{
		"nothing that brings":   {Device: "v"},
		"none to quiesce":       {Device: "v", Mount: "/", OnResume: "x"},
		"make no sense":         {Device: "v", OnQuiesce: "x", Limit: -1},
		"no such file":          {Device: "v", Mount: "/nonexistent"},
		"not a directory":       {Device: "v", Mount: "/proc/self/mountinfo"},
		"not a block device":    {Device: "/proc/self/mountinfo", Mount: "/"},
		"it is not a block dev": {Device: "/nonexistent", Mount: "/"},
	} {
		refuses(t, reason, p.Check(), reason)
		_, err := p.Begin(t.Context())
		refuses(t, "begin: "+reason, err, reason)
	}
}

func TestCheckMount(t *testing.T) {
	a, b := newStage(t, "ext4"), newStage(t, "ext4")
	p := a.plan()
	if err := p.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
	p.Device = b.device
	refuses(t, "the other's device", p.Check(), "does not lie on it")
	_, err := p.Begin(t.Context())
	refuses(t, "begin with the other's device", err, "does not lie on it")
	a.free(t)
	p = a.plan()
	p.Mount = filepath.Join(a.dir, "lost+found")
	refuses(t, "a directory", p.Check(), "is not a mount point")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(a.dir, link); err != nil {
		t.Fatal(err)
	}
	p.Mount = link
	if err := p.Check(); err != nil {
		t.Errorf("by a symbolic link: %v", err)
	}
	second := t.TempDir()
	if err := unix.Mount(a.dir, second, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	p.Mount = second
	if err := p.Check(); err != nil {
		t.Errorf("mounted a second time: %v", err)
	}
	if err := unix.Unmount(second, 0); err != nil {
		t.Error(err)
	}
}

// Without commands every file system on the volume has to be the frozen one.
func TestCheckOthers(t *testing.T) {
	s := newStage(t, "ext4")
	m := s.mount(t)
	h := host{sysfs.Host{Sys: t.TempDir(), Proc: t.TempDir()}}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	put(t, h.Proc, "self/mountinfo", string(text)+"9999 1 253:99 / /the\\040other rw - ext4 /dev/dm-99 rw\n")
	put(t, h.Sys, "dev/block/"+m.Dev.String()+"/holders/dm-99/dev", "253:99")
	p := s.plan()
	_, err = p.open(h)
	refuses(t, "check", err, "mounted for writing on /the other")
	p.OnQuiesce = "true"
	if f, err := p.open(h); err != nil {
		t.Errorf("with a command: %v", err)
	} else {
		f.Close()
	}
	put(t, h.Proc, "self/mountinfo", string(text)+"9999 1 253:99 / /the\\040other rw - ext4 /dev/dm-99 ro\n")
	p.OnQuiesce = ""
	if f, err := p.open(h); err != nil {
		t.Errorf("read-only: %v", err)
	} else {
		f.Close()
	}
}

func put(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// What lies on what, on a machine with a bit of everything: a disk with two
// partitions, a volume group on the second, and a file system of several disks.
func TestStacks(t *testing.T) {
	h := host{sysfs.Host{Sys: t.TempDir(), Proc: t.TempDir()}}
	for path, text := range map[string]string{
		"devices/sda/dev":                   "8:0",
		"devices/sda/sda1/dev":              "8:1",
		"devices/sda/sda1/partition":        "1",
		"devices/sda/sda2/dev":              "8:2",
		"devices/sda/sda2/partition":        "2",
		"devices/sda/sda2/holders/dm-0/dev": "253:0",
		"devices/dm-0/dev":                  "253:0",
		"devices/dm-0/slaves/sda2/dev":      "8:2",
		"devices/dm-0/holders/dm-1/dev":     "253:1",
		"devices/dm-1/dev":                  "253:1",
		"devices/dm-1/slaves/dm-0/dev":      "253:0",
		"devices/dm-1/slaves/sdb/dev":       "8:16",
		"devices/sdb/dev":                   "8:16",
		"devices/sdb/holders/dm-1/dev":      "253:1",
	} {
		put(t, h.Sys, path, text)
	}
	for n, dir := range map[string]string{"8:0": "sda", "8:1": "sda/sda1", "8:2": "sda/sda2", "253:0": "dm-0", "253:1": "dm-1", "8:16": "sdb"} {
		link := filepath.Join(h.Sys, "dev/block", n)
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(filepath.Join(h.Sys, "devices", dir), link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ of, above, below string }{
		{"8:0", "253:0 253:1 8:0 8:1 8:2", "8:0"},
		{"8:1", "8:1", "8:0 8:1"},
		{"8:2", "253:0 253:1 8:2", "8:0 8:2"},
		{"253:1", "253:1", "253:0 253:1 8:0 8:16 8:2"},
		{"8:16", "253:1 8:16", "8:16"},
	} {
		n, ok := sysfs.ParseDevno(c.of)
		if !ok {
			t.Fatal(c.of)
		}
		if got := numbers(h.above(n)); got != c.above {
			t.Errorf("above %s: %s, want %s", c.of, got, c.above)
		}
		if got := numbers(h.below(n)); got != c.below {
			t.Errorf("below %s: %s, want %s", c.of, got, c.below)
		}
	}
}

func numbers(set map[sysfs.Devno]bool) string {
	var list []string
	for n := range maps.Keys(set) {
		list = append(list, n.String())
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func TestOutside(t *testing.T) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			s, other := newStage(t, kind), newStage(t, "ext4")
			p := s.plan()
			in := filepath.Join(s.dir, "target.img")
			if err := os.WriteFile(in, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			link, dangling := filepath.Join(other.dir, "link"), filepath.Join(other.dir, "dangling")
			if err := errors.Join(os.Symlink(in, link), os.Symlink(filepath.Join(s.dir, "new"), dangling)); err != nil {
				t.Fatal(err)
			}
			loop := loopOver(t, in)
			for what, path := range map[string]string{
				"a file":               in,
				"a new file":           filepath.Join(s.dir, "new", "dir", "file"),
				"a link":               link,
				"a link to a new file": dangling,
				"a loop device":        loop,
				"the mount point":      s.dir,
			} {
				refuses(t, what, p.Outside("", other.dir, path), path)
			}
			if err := p.Outside("", other.dir, filepath.Join(other.dir, "new"), "/dev/null", s.device, other.device, "/nonexistent/x"); err != nil {
				t.Errorf("outside: %v", err)
			}
		})
	}
}

// A file system on a loop device over a file of the frozen one waits too.
func TestOutsideNested(t *testing.T) {
	s, inner := newStage(t, "xfs"), t.TempDir()
	image := filepath.Join(s.dir, "inner.img")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", image)
	run(t, "mount", "-o", "loop", image, inner)
	t.Cleanup(func() {
		eventually(t, "the inner file system to be unmounted", func() bool { return unix.Unmount(inner, 0) == nil })
	})
	p := s.plan()
	refuses(t, "a file in it", p.Outside(filepath.Join(inner, "new")), "lies on the file system on "+s.dir)
}
