package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// trustStage is a source that a live sync has copied to a target, whose tracker is
// still on.
type trustStage struct {
	*trackStage
	image  string // the file behind the source
	target string
	told   trustTold // by the sync before
	said   string    // by it, to people
}

// trustTold is what a live sync reports, of what trust is about.
type trustTold struct{ Result, Rung, Reason, Error, State, Next string }

const trustSize = 2 << 20

func newTrustStage(t *testing.T, base *trackStage) *trustStage {
	t.Helper()
	dir := t.TempDir()
	s := &trustStage{
		trackStage: &trackStage{bin: base.bin, bpffs: base.bpffs, state: filepath.Join(dir, "state")},
		image:      filepath.Join(dir, "source.img"), target: filepath.Join(dir, "target.img"),
	}
	s.device = loopOver(t, s.image, trustSize)
	write(t, s.image, noise(trustSize, 5))
	write(t, s.target, make([]byte, trustSize))
	t.Cleanup(func() { // a tracker that a row has broken may not stop
		if p := start(t, s.bin, "track", "stop", s.device, "--bpffs", s.bpffs, "--state", s.state); p.wait(t) != 0 {
			t.Errorf("stop tracking:\n%s", p.said.String())
		}
	})
	return s
}

func (s *trustStage) pins() string { return filepath.Join(s.bpffs, "failback") }

// sync runs a live sync that leaves the tracker on, and requires its exit code.
func (s *trustStage) sync(t *testing.T, code int, with ...string) {
	t.Helper()
	p := s.live(t, s.target, append(with, "--keep-tracking", "--json")...)
	s.heard(t, p, code)
}

func (s *trustStage) heard(t *testing.T, p *process, code int) {
	t.Helper()
	if got := p.wait(t); got != code {
		t.Fatalf("exit code %d, want %d; it told %s and said:\n%s", got, code, p.stdout.String(), p.said.String())
	}
	s.told, s.said = trustTold{}, p.said.String()
	if err := json.Unmarshal(p.stdout.Bytes(), &s.told); err != nil {
		t.Fatalf("%v in %q", err, p.stdout.String())
	}
}

// same requires that the target is what lies behind the source.
func (s *trustStage) same(t *testing.T) {
	t.Helper()
	if !bytes.Equal(read(t, s.image), read(t, s.target)) {
		t.Errorf("the target is not what the source is (L1); rung %s: %s", s.told.Rung, s.told.Reason)
	}
}

// scratch changes a block of a file: behind the source, where no tracker sees it.
func scratch(t *testing.T, file string, block int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("p"), 4096), block*4096)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// view changes the record of the source that the kernel's programs share, as they
// would, and returns its number: cbt/ebpf/view.go has the table.
func (s *trustStage) view(t *testing.T, change func(v []byte)) (number uint32) {
	t.Helper()
	m := s.pinned(t, "views")
	defer m.Close()
	var st unix.Stat_t
	if err := unix.Stat(s.device, &st); err != nil {
		t.Fatal(err)
	}
	device := uint64(unix.Major(st.Rdev))<<20 | uint64(unix.Minor(st.Rdev))
	v := make([]byte, m.ValueSize())
	for i := range m.MaxEntries() {
		if err := m.Lookup(i, &v); err != nil {
			t.Fatal(err)
		}
		if v[viewLive] != 1 || binary.NativeEndian.Uint64(v[viewDevice:]) != device {
			continue
		}
		change(v)
		if err := m.Put(i, v); err != nil {
			t.Fatal(err)
		}
		return i
	}
	t.Fatal("the source is not tracked")
	return 0
}

func (s *trustStage) pinned(t *testing.T, name string) *ebpf.Map {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(s.pins(), "v2", "maps", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// add adds to a counter of a view.
func add(off int, n uint64) func([]byte) {
	return func(v []byte) {
		binary.NativeEndian.PutUint64(v[off:], binary.NativeEndian.Uint64(v[off:])+n)
	}
}

const (
	viewPassthrough = 40
	viewStrangers   = 56
	viewLive        = 64
	viewDevice      = 120
	viewBaseMissed  = 896
)

// file returns the one file in the state directory whose name ends so.
func (s *trustStage) file(t *testing.T, ext string) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(s.state, "*"+ext))
	if err != nil || len(all) != 1 {
		t.Fatalf("%d files of %s: %v", len(all), ext, err)
	}
	return all[0]
}

// edit replaces text in such a file.
func (s *trustStage) edit(t *testing.T, ext, member string, value any) {
	t.Helper()
	name := s.file(t, ext)
	var all map[string]any
	d := json.NewDecoder(bytes.NewReader(read(t, name)))
	d.UseNumber()
	if err := d.Decode(&all); err != nil {
		t.Fatal(err)
	}
	if _, ok := all[member]; !ok {
		t.Fatalf("%s has no %q", name, member)
	}
	all[member] = value
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, b)
}

// epoch is the highest in such files, of which there is one for each size that the
// source has had.
func (s *trustStage) epoch(t *testing.T, ext string) (highest uint64) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(s.state, "*"+ext))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		var in struct{ Epoch uint64 }
		if err := json.Unmarshal(read(t, name), &in); err != nil {
			t.Fatal(err)
		}
		highest = max(highest, in.Epoch)
	}
	return highest
}

// losetup runs it on the source. Whose number is free for a moment may lose it.
func (s *trustStage) losetup(t *testing.T, args ...string) {
	t.Helper()
	switch out, err := exec.Command("losetup", args...).CombinedOutput(); {
	case err != nil && strings.Contains(string(out), "busy"):
		t.Skipf("needs %s again, which another process has taken", s.device)
	case err != nil:
		t.Fatalf("losetup %v: %v: %s", args, err, out)
	}
}

// resize makes the file behind the source so long, and the source with it.
func (s *trustStage) resize(t *testing.T, size int64) {
	t.Helper()
	if err := os.Truncate(s.image, size); err != nil {
		t.Fatal(err)
	}
	s.losetup(t, "--set-capacity", s.device)
}

// reattach puts a file under the number of the source.
func (s *trustStage) reattach(t *testing.T, file string) {
	t.Helper()
	s.losetup(t, "--detach", s.device)
	eventually(t, s.device+" to be free", func() bool {
		_, err := os.Stat("/sys/block/" + filepath.Base(s.device) + "/loop")
		return errors.Is(err, fs.ErrNotExist)
	})
	s.losetup(t, s.device, file)
}

// sysfs is the place of an attribute of the source's disk.
func (s *trustStage) sysfs(attribute string) string {
	return filepath.Join("/sys/block", filepath.Base(s.device), attribute)
}

// elsewhere runs a live sync for which sysfs has something else at a place: a file
// with this text, or, where text ends in a slash, a directory with an entry of that
// name.
func (s *trustStage) elsewhere(t *testing.T, code int, place, text string) {
	t.Helper()
	for _, name := range []string{"unshare", "mount"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
	made := filepath.Join(t.TempDir(), "made-up")
	if name, ok := strings.CutSuffix(text, "/"); ok {
		if err := os.MkdirAll(filepath.Join(made, name), 0o700); err != nil {
			t.Fatal(err)
		}
	} else {
		write(t, made, []byte(text))
	}
	args := []string{"--mount", "sh", "-c", `mount --bind "$1" "$2" && shift 2 && exec "$@"`, "sh", made, place}
	args = append(args, s.bin)
	s.heard(t, start(t, "unshare", append(args, s.liveArgs(s.target, "--keep-tracking", "--json")...)...), code)
}

// wants requires rung and words of the sync before. Rung "" is a refusal.
func (s *trustStage) wants(t *testing.T, rung, words string) {
	t.Helper()
	result := "equal"
	if rung == "" {
		result = "refused"
	}
	if s.told.Result != result || s.told.Rung != rung || !strings.Contains(s.told.Reason, words) {
		t.Errorf("%s, rung %s: %s (%s); want %s, rung %s: %q", s.told.Result, s.told.Rung, s.told.Reason, s.told.Error, result, rung, words)
	}
	if rung == "" && s.told.Next == "" {
		t.Error("it does not say what to do about it")
	}
}

// A trustRow is something that happens between two live syncs, and what the second
// one makes of it.
type trustRow struct {
	name   string
	happen func(*testing.T, *trustStage)
	rung   string // "" refused; then tracking is stopped, and a third one compares
	words  string // why
}

// What is not seen by the tracker happens before, where the second sync is to
// compare: it ends equal only if it does.
var trustRows = []trustRow{
	{"nothing", func(*testing.T, *trustStage) {}, "exact", "dirty map of epoch"},

	// No disk of this kind is at hand everywhere: its counter stands for it.
	{"passthrough", func(t *testing.T, s *trustStage) { s.view(t, add(viewPassthrough, 1)) }, "merkle", "commands were passed through to the disk (SG_IO or the like), which may have written: 1 are counted"},
	{"missed", func(t *testing.T, s *trustStage) { s.view(t, add(viewBaseMissed, ^uint64(0))) }, "merkle", "1 writes came in an interrupt of the program that marks them"},
	{"lost marks", func(t *testing.T, s *trustStage) {
		m := s.pinned(t, "bitmaps")
		defer m.Close()
		if err := m.Delete(s.view(t, func([]byte) {})); err != nil {
			t.Fatal(err)
		}
		s.write(t, 5)
	}, "", "1 writes could not be marked"},
	{"detached alone", func(t *testing.T, s *trustStage) {
		if err := os.Remove(filepath.Join(s.pins(), "v2", "links", "mark_queued")); err != nil {
			t.Fatal(err)
		}
	}, "", "the kernel program mark_queued was detached by somebody"},
	{"killed, and a stranger", func(t *testing.T, s *trustStage) {
		s.killedLive(t, s.target)
		s.view(t, add(viewStrangers, 1))
	}, "merkle", "a write ended without a mark, after a session that did not come to rest"},

	{"replaced", func(t *testing.T, s *trustStage) { s.reattach(t, s.image) }, "", "the device was replaced: disk number"},
	{"replaced by another", func(t *testing.T, s *trustStage) {
		s.image = filepath.Join(t.TempDir(), "other.img")
		write(t, s.image, noise(trustSize, 6))
		s.reattach(t, s.image)
	}, "", "the device was replaced: disk number"},
	{"grown", func(t *testing.T, s *trustStage) {
		s.resize(t, 2*trustSize)
		if err := os.Truncate(s.target, 2*trustSize); err != nil {
			t.Fatal(err)
		}
	}, "", "the device was resized from 2097152 to 4194304 bytes"},
	{"shrunk", func(t *testing.T, s *trustStage) {
		s.resize(t, trustSize/2)
		if err := os.Truncate(s.target, trustSize/2); err != nil {
			t.Fatal(err)
		}
	}, "", "the device was resized from 2097152 to 1048576 bytes"},
	{"shrunk and grown while somebody looked", func(t *testing.T, s *trustStage) {
		s.resize(t, trustSize/2)
		s.says(t, 0, "resized")
		s.resize(t, trustSize)
	}, "merkle", "the device was resized from 2097152 to 1048576 bytes"},

	{"taken", func(t *testing.T, s *trustStage) {
		s.write(t, 7) // it is in the map that was taken, and nowhere else
		s.track(t, 0, nil, "take", s.device, "-o", filepath.Join(t.TempDir(), "x.fbm"))
	}, "merkle", "it holds what was written since epoch"},
	{"stopped", func(t *testing.T, s *trustStage) { s.track(t, 0, nil, "stop", s.device) }, "merkle", "it was not tracked until now"},
	{"stopped, written and started", func(t *testing.T, s *trustStage) {
		s.track(t, 0, nil, "stop", s.device)
		s.write(t, 7)
		s.track(t, 0, nil, "start", s.device)
	}, "merkle", "and the last sync with this target was epoch"},
	{"stopped and started", func(t *testing.T, s *trustStage) {
		s.write(t, 7)
		s.track(t, 0, nil, "stop", s.device)
		s.track(t, 0, nil, "start", s.device)
		s.write(t, 9)
	}, "exact", "8192 bytes"},
	{"not stopped alone", func(t *testing.T, s *trustStage) {
		if err := os.RemoveAll(s.pins()); err != nil {
			t.Fatal(err)
		}
	}, "merkle", "and that was not stopped in order"},
	{"reboot alone", func(t *testing.T, s *trustStage) {
		if err := os.RemoveAll(s.pins()); err != nil {
			t.Fatal(err)
		}
		s.edit(t, ".track", "boot", "7d1cbd6e-0000-4000-8000-000000000000")
		s.edit(t, ".track", "epoch", 1<<41) // and the clock goes wrong
	}, "merkle", "the machine was started anew since"},

	{"target written", func(t *testing.T, s *trustStage) { scratch(t, s.target, 11) }, "merkle", "nothing says that the target was not written since"},
	{"another target of that name", func(t *testing.T, s *trustStage) {
		if err := os.Remove(s.target); err != nil {
			t.Fatal(err)
		}
		write(t, s.target, make([]byte, trustSize))
	}, "merkle", "nothing says that the target was not written since"},
	{"another target", func(t *testing.T, s *trustStage) {
		mine := s.target
		s.target = filepath.Join(t.TempDir(), "other.img")
		write(t, s.target, make([]byte, trustSize))
		s.sync(t, 0)
		s.wants(t, "merkle", "its last live sync was with another target, "+mine)
		s.same(t)
		s.write(t, 7)
		s.target = mine
	}, "merkle", "its last live sync was with another target, "},

	{"no sync point", func(t *testing.T, s *trustStage) {
		if err := os.Remove(s.file(t, ".point")); err != nil {
			t.Fatal(err)
		}
	}, "merkle", "no sync with this target is known"},
	{"sync point of garbage", func(t *testing.T, s *trustStage) { write(t, s.file(t, ".point"), noise(200, 7)) }, "merkle", ".point cannot be read"},
	{"sync point cut off", func(t *testing.T, s *trustStage) {
		name := s.file(t, ".point")
		write(t, name, read(t, name)[:100])
	}, "merkle", ".point cannot be read"},
	{"sync point of another version", func(t *testing.T, s *trustStage) { s.edit(t, ".point", "schema", "failback.point/9") }, "merkle", ".point cannot be read"},
	{"sync point of another source", func(t *testing.T, s *trustStage) { s.edit(t, ".point", "source", "block:other") }, "merkle", "is of another source, block:other"},
	{"sync point of another epoch", func(t *testing.T, s *trustStage) { s.edit(t, ".point", "epoch", 1<<40) }, "merkle", "and the last sync with this target was epoch 1099511627776"},
	{"sync point of no epoch", func(t *testing.T, s *trustStage) { s.edit(t, ".point", "epoch", 0) }, "merkle", ".point cannot be read"},
	{"sync point of another session", func(t *testing.T, s *trustStage) {
		s.edit(t, ".point", "session", strings.Repeat("ab", 16))
		s.edit(t, ".point", "target_stamp", "file:ino=1")
	}, "merkle", "nothing says that the target was not written since"},

	{"io statistics off", func(t *testing.T, s *trustStage) {
		write(t, s.sysfs("queue/iostats"), []byte("0"))
		t.Cleanup(func() { write(t, s.sysfs("queue/iostats"), []byte("1")) })
		s.write(t, 7)
	}, "exact", "4096 bytes"},
}

// TestLiveTrust: whatever happens to the tracker of a source between two live syncs,
// the second one compares both sides and says why, or is refused and says why; it
// looks at less only where nothing has happened. In the end both are equal (L1, L3).
func TestLiveTrust(t *testing.T) {
	base := newTrackStage(t)
	base.track(t, 0, nil, "start", base.device) // the programs stay in the kernel meanwhile
	t.Cleanup(func() { base.track(t, 0, nil, "stop", base.device) })
	for name, test := range map[string]func(*testing.T, *trackStage){
		"made up": trustMadeUp, "undrained": trustUndrained, "attach": trustAttach, "take killed": trustTakeKilled, "target device": trustTargetDevice, "midway": trustMidway,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			test(t, base)
		})
	}
	for _, row := range trustRows {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			stage := base
			if strings.HasSuffix(row.name, " alone") { // what it does to the pins is not for the others
				stage = newPins(t, base)
			}
			t.Parallel()
			s := newTrustStage(t, stage)
			s.sync(t, 0)
			s.wants(t, "merkle", "it was not tracked until now")
			s.same(t)
			if row.rung != "exact" {
				scratch(t, s.image, 13)
			}
			row.happen(t, s)
			before, epoch := read(t, s.target), s.epoch(t, ".track")
			s.sync(t, map[bool]int{true: 0, false: 4}[row.rung != ""])
			s.wants(t, row.rung, row.words)
			if row.rung == "" {
				if !bytes.Equal(before, read(t, s.target)) {
					t.Error("the target was written (L4)")
				}
				s.track(t, 0, nil, "stop", s.device)
				s.sync(t, 0)
				s.wants(t, "merkle", "it was not tracked until now")
			}
			s.same(t)
			if now := s.epoch(t, ".point"); now < epoch { // a device of another size is another volume
				t.Errorf("epoch %d after %d", now, epoch)
			}
			// The sync after it has nothing to doubt any more.
			if row.name != "io statistics off" {
				s.write(t, 21)
				s.sync(t, 0)
				s.wants(t, "exact", "4096 bytes")
				s.same(t)
			}
		})
	}
}
