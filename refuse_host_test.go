package failback

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
	"github.com/failback/failback/internal/sysfs"
)

// standIn is a machine made of files: kinds of devices that a test machine may
// lack, above all device-mapper.
func standIn(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"sys/block", "sys/dev/block", "proc/self", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := files["proc/self/mountinfo"]; !ok {
		files["proc/self/mountinfo"] = ""
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		// A device is reached by its number through a link, as in sysfs.
		if rest, ok := strings.CutPrefix(name, "sys/block/"); ok && filepath.Base(name) == "dev" && strings.Count(rest, "/") <= 2 {
			link := filepath.Join(root, "sys/dev/block", text)
			if err := os.Symlink(filepath.Dir(path), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	return host{Host: sysfs.Host{Sys: filepath.Join(root, "sys"), Proc: filepath.Join(root, "proc")}, dev: filepath.Join(root, "dev")}
}

func devno(major, minor uint32) sysfs.Devno { return sysfs.Devno{Major: major, Minor: minor} }

// lvm is a disk sda with a partition that holds two logical volumes, and md0
// over sdb and sdc, which are two paths to one disk each with a world-wide name.
func lvm() map[string]string {
	return map[string]string{
		"sys/block/sda/dev":                        "8:0",
		"sys/block/sda/size":                       "204800",
		"sys/block/sda/device/wwid":                "naa.5000 c500  a1b2\x01c3",
		"sys/block/sda/sda1/dev":                   "8:1",
		"sys/block/sda/sda1/partition":             "1",
		"sys/block/sda/sda1/start":                 "2048",
		"sys/block/sda/sda1/size":                  "102400",
		"sys/block/sda/sda1/holders/dm-0/dev":      "253:0",
		"sys/block/sda/sda1/holders/dm-0/dm/name":  "vg-home",
		"sys/block/sda/sda2/dev":                   "8:2",
		"sys/block/sda/sda2/partition":             "2",
		"sys/block/sda/sda2/start":                 "104448",
		"sys/block/sda/sda2/size":                  "10240",
		"sys/block/dm-0/dev":                       "253:0",
		"sys/block/dm-0/size":                      "8192",
		"sys/block/dm-0/dm/uuid":                   "LVM-aaaa",
		"sys/block/dm-0/slaves/sda1/dev":           "8:1",
		"sys/block/dm-1/dev":                       "253:1",
		"sys/block/dm-1/size":                      "8192",
		"sys/block/dm-1/dm/uuid":                   "LVM-bbbb",
		"sys/block/dm-1/slaves/sda1/dev":           "8:1",
		"sys/block/sdb/dev":                        "8:16",
		"sys/block/sdb/size":                       "2048",
		"sys/block/sdb/wwid":                       "eui.0025",
		"sys/block/sdb/holders/md0/dev":            "9:0",
		"sys/block/sdc/dev":                        "8:32",
		"sys/block/sdc/size":                       "2048",
		"sys/block/sdc/wwid":                       "eui.0025",
		"sys/block/vda/dev":                        "254:0",
		"sys/block/vda/serial":                     "",
		"sys/block/vda/diskseq":                    "9",
		"sys/block/vdb/dev":                        "254:16",
		"sys/block/vdb/serial":                     strings.Repeat("long serial ", 50),
		"sys/block/vdb/diskseq":                    "10",
		"sys/block/nvme0n1/dev":                    "259:0",
		"sys/block/nvme0n1/ro":                     "1",
		"sys/block/loop9/dev":                      "7:9",
		"sys/block/loop9/loop/backing_file":        "/none/such (deleted)",
		"sys/block/self/dev":                       "250:0",
		"sys/block/self/slaves/self/dev":           "250:0", // a circle must end
		"sys/block/self/holders/by-nobody/dm/name": "",
	}
}

func TestHostHolders(t *testing.T) {
	h := standIn(t, lvm())
	for n, reason := range map[sysfs.Devno]string{
		devno(8, 0):   "its partition sda1 is held by dm-0 (vg-home)",
		devno(8, 1):   "it is held by dm-0 (vg-home)",
		devno(8, 16):  "it is held by md0",
		devno(259, 0): "read-only",
	} {
		isRefused(t, h.refuseUsedDevice("/dev/x", n), "/dev/x", reason)
	}
	for _, n := range []sysfs.Devno{devno(8, 2), devno(253, 0), devno(8, 32), devno(254, 0), devno(1, 2)} {
		if err := h.refuseUsedDevice("/dev/x", n); err != nil {
			t.Errorf("%v: %v", n, err)
		}
	}
}

func TestHostMounts(t *testing.T) {
	files := lvm()
	files["proc/self/mountinfo"] = strings.Join([]string{
		`22 27 0:21 / /proc rw - proc proc rw`,
		`30 27 8:2 / /mnt/a\040b\134c rw,relatime shared:1 master:2 - ext4 /dev/sda2 rw`,
		`31 27 0:50 / /btrfs rw - btrfs /elsewhere/disk rw`,
		`broken`, ``, `1 2 3`, `1 2 x:y / /z - ext4 /dev/x rw`, `a 2 8:32 / /z - ext4 /dev/x rw`, ` - `, `1 2 8:32 / - x`,
	}, "\n")
	h := standIn(t, files)
	isRefused(t, h.refuseUsedDevice("d", devno(8, 2)), "d", `it is mounted on /mnt/a b\c`)
	isRefused(t, h.refuseMounted("d", devno(8, 0), h.family(devno(8, 0))), "d", "its partition sda2 is mounted on")
	if err := h.refuseUsedDevice("d", devno(8, 32)); err != nil {
		t.Error(err)
	}
}

// TestHostBlind: a machine that does not tell what is in use gets no target.
func TestHostBlind(t *testing.T) {
	path := makeFile(t, filepath.Join(t.TempDir(), "volume"), 4096)
	h := host{Host: sysfs.Host{Sys: t.TempDir(), Proc: t.TempDir()}, dev: t.TempDir()}
	_, err := h.open(path, asTarget)
	isRefused(t, err, path, "cannot tell whether it is in use")
	isRefused(t, h.refuseUsedDevice("d", devno(8, 0)), "d", "cannot tell whether it is in use")
	d, err := h.open(path, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestHostSwaps(t *testing.T) {
	path := makeFile(t, filepath.Join(t.TempDir(), "swap file"), 4096)
	h := standIn(t, map[string]string{"proc/swaps": "Filename Type Size Used Priority\n" +
		strings.ReplaceAll(path, " ", `\040`) + " file 4 0 -2\n/dev/none partition 4 0 -3"})
	_, err := h.open(path, asTarget)
	isRefused(t, err, path, "in use as swap")
	d, err := h.open(makeFile(t, path+"2", 4096), asTarget)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func TestHostPlaces(t *testing.T) {
	h := standIn(t, lvm())
	at := func(n sysfs.Devno, size int64) *Disk {
		return &Disk{path: n.String(), places: h.devicePlaces(n, place{end: size}, 0)}
	}
	sda, sda1, sda2 := at(devno(8, 0), 100<<20), at(devno(8, 1), 50<<20), at(devno(8, 2), 5<<20)
	home, other := at(devno(253, 0), 4<<20), at(devno(253, 1), 4<<20)
	for _, c := range []struct {
		source, target *Disk
		reason         string // "": fine
	}{
		{home, home, "it is the source"},
		{home, other, ""},
		{home, sda1, "the source 253:0 lies on it"},
		{sda1, home, "it lies on the source"},
		{home, sda, "lies on it"},
		{home, sda2, ""},
		{sda, sda2, "shares storage"},
		{sda1, sda2, ""},
		{at(devno(8, 16), 1<<20), at(devno(8, 32), 1<<20), "both lie on the disk eui.0025"},
		{at(devno(254, 0), 1<<20), at(devno(254, 16), 1<<20), ""},
	} {
		err := CheckPair(c.source, c.target)
		if c.reason == "" {
			if err != nil {
				t.Errorf("%s to %s: %v", c.source, c.target, err)
			}
			continue
		}
		isRefused(t, err, c.target.path, c.reason)
	}
	if list := at(devno(250, 0), 1).places; len(list) > 2*maxLayers {
		t.Errorf("a circle of devices gave %d places", len(list))
	}
}

func TestHostIdentity(t *testing.T) {
	h := standIn(t, lvm())
	for n, want := range map[sysfs.Devno]string{
		devno(8, 0):   "block:wwid=naa.5000_c500_a1b2_c3,size=512",
		devno(8, 1):   "block:wwid=naa.5000_c500_a1b2_c3,start=1048576,size=512",
		devno(253, 0): "block:dm=LVM-aaaa,size=512",
		devno(254, 0): "block:dev=254:0,diskseq=9,size=512",
		devno(99, 7):  "block:dev=99:7,diskseq=0,size=512",
	} {
		if got := h.deviceIdentity(n, 512); got != want {
			t.Errorf("%v: %s, want %s", n, got, want)
		}
	}
	long := h.deviceIdentity(devno(254, 16), 1<<62)
	if len(long) > 255 || !strings.Contains(long, "~") || long == h.deviceIdentity(devno(254, 16), 1<<61) {
		t.Errorf("long serial: %s", long)
	}
}

func TestIdentity(t *testing.T) {
	seen := map[string]string{}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			path := k.open(t, 64<<10)
			var ids []string
			for range 2 {
				d := openDisk(t, path, k.o)
				ids = append(ids, d.Identity())
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			id := ids[0]
			if ids[1] != id {
				t.Errorf("%s, then %s", id, ids[1])
			}
			if len(id) == 0 || len(id) > 255 || !strings.HasSuffix(id, ",size=65536") || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("identity %q", id)
			}
			if other, ok := seen[id]; ok {
				t.Errorf("%s has the identity of %s: %s", path, other, id)
			}
			seen[id] = path
		})
	}
	t.Run("inode used again", func(t *testing.T) {
		path := plainFile(t, 4096)
		first := openDisk(t, path, OpenOptions{}).Identity()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if again := openDisk(t, makeFile(t, path, 4096), OpenOptions{}).Identity(); strings.Contains(first, "born=") && again == first {
			t.Errorf("another file has the same identity: %s", first)
		}
	})
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "naa.5", " a  b ", "\x00\xff", "ä", strings.Repeat("x", 128), strings.Repeat("y,", 200)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s)
		if len(got) > maxMark || strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r > '~' || r == ',' }) {
			t.Errorf("plain(%q) = %q", s, got)
		}
		if len(s) <= maxMark && plain(got) != got {
			t.Errorf("plain(%q) = %q, of that %q", s, got, plain(got))
		}
	})
}

// TestLoops finds a real loop device, its file, and where in it the device starts.
func TestLoops(t *testing.T) {
	backing := makeFile(t, filepath.Join(t.TempDir(), "name with spaces"), 1<<20)
	path := looptest.Attach(t, backing, looptest.Options{Offset: 4096}).Path
	l := loopOver(t, backing)
	var st unix.Stat_t
	if err := unix.Stat(backing, &st); err != nil {
		t.Fatal(err)
	}
	if l.name != filepath.Base(path) || l.ino != st.Ino || l.file != sysfs.DevnoOf(st.Dev) || l.isBlock || l.offset != 4096 {
		t.Errorf("loop %+v", l)
	}
	// Also once its file has no name any more.
	if err := os.Remove(backing); err != nil {
		t.Fatal(err)
	}
	if gone, ok := thisHost.loop(l.name); !ok || gone.ino != st.Ino || gone.file != l.file {
		t.Errorf("loop over a removed file: %+v, %v", gone, ok)
	}
}
