//go:build live

package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/looptest"
)

// The stage for live syncs: a file system on a loop device with writers at work,
// and a target. Volumes lie in memory where they can: what is tested here syncs
// all the time.

// liveKind is a file system that a live sync can find.
type liveKind struct {
	name   string
	size   int64 // bytes of a volume, the least that it is made on or a bit more
	make   []string
	option string   // to mount a copy beside the original
	check  []string // of one that is not mounted and needs no recovery
}

var liveKinds = []liveKind{
	{"ext4", 128 << 20, []string{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, "", []string{"e2fsck", "-fn"}},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f"}, "nouuid", []string{"xfs_repair", "-n"}},
	{"btrfs", 256 << 20, []string{"mkfs.btrfs", "-q", "-f"}, "", []string{"btrfs", "check", "--readonly"}},
}

// liveStage is a source with its writers, and a target.
type liveStage struct {
	liveKind
	bin, dir      string
	image, mount  string // the file behind the source, and where its file system is
	device        *looptest.Device
	target, state string
	at            string // how a sync names the target, if that is not its path
	works         []*work
}

// memoryDir is a directory whose files need no disk, where there is one.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "failback-live-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// tool runs a program that has to succeed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// needLive skips where there can be no live sync, and names what is missing.
func needLive(t *testing.T, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF to track, CAP_SYS_ADMIN to freeze, mount and set up loop devices")
	}
	for _, name := range append(tools, "fsfreeze") {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s", name)
		}
	}
}

func newLiveStage(t *testing.T, kind liveKind, bin string) *liveStage {
	t.Helper()
	needLive(t, kind.make[0], kind.check[0])
	s := &liveStage{liveKind: kind, bin: bin, dir: memoryDir(t), mount: t.TempDir()}
	if p := start(t, bin, "track", "check"); p.wait(t) != 0 {
		t.Skipf("needs a kernel that can track:\n%s%s", p.stdout.String(), p.said.String())
	}
	s.image, s.target, s.state = s.path("source.img"), s.path("target.img"), s.path("state")
	for _, name := range []string{s.image, s.target} {
		write(t, name, nil)
		if err := os.Truncate(name, s.size); err != nil {
			t.Fatal(err)
		}
	}
	// A target that held something else before: both sides have to be compared.
	old, err := os.OpenFile(s.target, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = old.WriteAt(noise(4<<20, 4), 3<<20)
	if err := errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	tool(t, s.make[0], append(slices.Clone(s.make[1:]), s.image)...)
	s.device = looptest.Attach(t, s.image, looptest.Options{})
	t.Cleanup(func() { s.close(t) })
	if err := unix.Mount(s.device.Path, s.mount, s.name, unix.MS_NOATIME, ""); err != nil {
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) {
			t.Skipf("needs mounts of %s: %v", s.name, err)
		}
		t.Fatalf("mount %s: %v", s.device.Path, err)
	}
	seed := dice(t).Uint64()
	s.works = []*work{
		newWork("random writes", 2*time.Millisecond, &directWriter{slots: 512, seed: seed}),
		newWork("appends", 4*time.Millisecond, &appendWriter{seed: seed}),
	}
	if program, err := exec.LookPath("sqlite3"); err == nil {
		s.works = append(s.works, newWork("database", 10*time.Millisecond, &sqliteWriter{program: program}))
	} else {
		t.Log("no database is at work: needs sqlite3")
	}
	for _, w := range s.works {
		w.begin(t, s.mount)
	}
	return s
}

func (s *liveStage) path(name string) string { return filepath.Join(s.dir, name) }

// thaw thaws what may be left frozen, and says whether something was.
func (s *liveStage) thaw(t *testing.T) bool {
	t.Helper()
	d, err := os.Open(s.mount)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const fiThaw = 0xc0045878
	return unix.IoctlSetInt(int(d.Fd()), fiThaw, 0) == nil
}

// close ends the writers, and requires that nothing of it all is left.
func (s *liveStage) close(t *testing.T) {
	t.Helper()
	if s.thaw(t) {
		t.Error("the file system was left frozen (L6)")
	}
	for _, w := range s.works {
		w.end(t)
	}
	eventually(t, "the holders to be gone", func() bool { return len(holders(t, s.bin)) == 0 })
	if s.tracked(t) {
		finish(t, 0, s.bin, "track", "stop", s.device.Path, "--state", s.state)
	}
	eventually(t, "the file system to be idle", func() bool {
		err := unix.Unmount(s.mount, 0)
		return err == nil || errors.Is(err, unix.EINVAL)
	})
	s.device.Release()
}

// tracked reports whether the kernel records what is written to the source.
func (s *liveStage) tracked(t *testing.T) bool {
	t.Helper()
	p := finish(t, 0, s.bin, "track", "status", "--json", "--state", s.state)
	return strings.Contains(p.stdout.String(), strconv.Quote(s.device.Path))
}

// liveTold is what a live sync reports.
type liveTold struct {
	Result, Rung, Reason, Error, State, Next string

	Candidates int64 `json:"candidate_bytes"`
	Live       struct {
		Rounds []struct {
			Bytes, Left int64
			Last        bool
		}
		Pause     float64 `json:"pause_ms"`
		Predicted float64 `json:"predicted_pause_ms"`
		Tries     int
	}
}

func toldBy(t *testing.T, p *process) (r liveTold) {
	t.Helper()
	if err := json.Unmarshal(p.stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v: %q; it said:\n%s", err, p.stdout.String(), p.said.String())
	}
	return r
}

// How the writers are brought to rest. The hooks note when the pause began, for
// those who ask what was acknowledged before.
const (
	rested = "rested" // holds /proc/uptime of that moment
	paused = "paused" // holds the source as it was in the pause
)

// byFreeze has failback freeze the file system.
func (s *liveStage) byFreeze() []string {
	return []string{"--freeze", s.mount, "--on-quiesce", "cat /proc/uptime >" + s.path(rested)}
}

// byHooks freezes it in commands, where the source can be copied while it rests.
func (s *liveStage) byHooks() []string {
	return []string{
		"--on-quiesce", fmt.Sprintf("cat /proc/uptime >%s && fsfreeze --freeze %s && cp --sparse=always %s %s", s.path(rested), s.mount, s.image, s.path(paused)),
		// Run twice after a crash: what is not frozen any more is no error.
		"--on-resume", fmt.Sprintf("fsfreeze --unfreeze %s || true", s.mount),
	}
}

// args is the command line of a live sync. On a slow machine a pause may take
// long, which is not what is tested.
func (s *liveStage) args(how []string, more ...string) []string {
	args := []string{"sync", "--live", "--json", "--state", s.state, "--pause", "5s", "--pause-limit", "15s", "--keep-tracking"}
	return slices.Concat(args, how, more, []string{s.device.Path, cmp.Or(s.at, s.target)})
}

// rate has every writer begin a thing so often.
func (s *liveStage) rate(every time.Duration) {
	for _, w := range s.works {
		w.every.Store(int64(every))
	}
}

// since reads when the last pause began.
func (s *liveStage) since(t *testing.T) time.Duration {
	t.Helper()
	text, _, _ := strings.Cut(string(read(t, s.path(rested))), " ")
	d, err := time.ParseDuration(text + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// same requires that the target is, byte for byte, what the source was in the
// pause.
func (s *liveStage) same(t *testing.T) {
	t.Helper()
	if x := differing(t, s.path(paused), s.target); len(x) > 0 {
		t.Fatalf("the target is not what the source was in the pause: %d pieces differ, the first at %#x", len(x), x[0])
	}
}

// differing returns the offsets of the pieces of 4 KiB in which two files differ.
func differing(t *testing.T, a, b string) (offs []int64) {
	t.Helper()
	const piece, chunk = 4 << 10, 1 << 20
	var files [2]*os.File
	for i, name := range []string{a, b} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	p, q := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); ; off += chunk {
		n, _ := files[0].ReadAt(p, off) // an error is a short read
		m, _ := files[1].ReadAt(q, off)
		if n != m {
			t.Fatalf("%d and %d bytes at %#x", n, m, off)
		}
		for i := 0; i < n; i += piece {
			if end := min(i+piece, n); !bytes.Equal(p[i:end], q[i:end]) {
				offs = append(offs, off+int64(i))
			}
		}
		if n < chunk {
			return offs
		}
	}
}

// sound requires that the target mounts clean and holds what every writer had
// done, by a copy of it: to mount a file system may write to it.
func (s *liveStage) sound(t *testing.T) {
	t.Helper()
	image, dir := s.path("copy.img"), t.TempDir()
	tool(t, "cp", "--sparse=always", s.target, image)
	defer os.Remove(image)
	if s.name == "ext4" { // which leaves nothing to recover when it is frozen
		tool(t, s.check[0], append(slices.Clone(s.check[1:]), image)...)
	}
	l := looptest.Attach(t, image, looptest.Options{})
	if err := unix.Mount(l.Path, dir, s.name, unix.MS_RDONLY|unix.MS_NOATIME, s.option); err != nil {
		t.Fatalf("mount the target: %v", err)
	}
	for _, w := range s.works {
		w.proves(t, dir, s.since(t))
	}
	eventually(t, "the copy to be idle", func() bool { return unix.Unmount(dir, 0) == nil })
	l.Release()
	tool(t, s.check[0], append(slices.Clone(s.check[1:]), image)...)
}

// goOn requires that nobody is at rest: every writer goes on.
func (s *liveStage) goOn(t *testing.T) {
	t.Helper()
	for _, w := range s.works {
		w.goesOn(t)
	}
}

// covered requires that the tracker has every piece in which the target differs
// (L1, L2). It is asked after the volumes were read: it forgets nothing meanwhile.
func (s *liveStage) covered(t *testing.T) (differ int) {
	t.Helper()
	offs := differing(t, s.image, s.target)
	p := finish(t, 0, s.bin, "track", "extents", s.device.Path, "--json")
	var told struct {
		Extents []struct{ Offset, Length int64 }
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &told); err != nil {
		t.Fatal(err)
	}
	i := 0
	for _, off := range offs {
		for i < len(told.Extents) && told.Extents[i].Offset+told.Extents[i].Length <= off {
			i++
		}
		if i == len(told.Extents) || told.Extents[i].Offset > off {
			t.Fatalf("the piece at %#x differs, and the tracker does not know (L1)", off)
		}
	}
	return len(offs)
}

// marked requires that the target, which a session has written to and not
// finished, says so (L5). Who was killed when everything was done leaves one that
// is sound.
func (s *liveStage) marked(t *testing.T) {
	t.Helper()
	other := s.path("other.img")
	write(t, other, nil)
	defer os.Remove(other)
	if err := os.Truncate(other, s.size); err != nil {
		t.Fatal(err)
	}
	p := start(t, s.bin, "sync", "--state", s.state, s.target, other)
	switch code := p.wait(t); {
	case code == 4 && strings.Contains(p.said.String(), "interrupted"):
	case code == 0:
		t.Log("the target counts as consistent")
		s.sound(t)
	default:
		t.Errorf("as a source the target ended with %d:\n%s", code, p.said.String())
	}
}

// live runs a live sync to its end, which has to be good, and returns what it told.
func (s *liveStage) live(t *testing.T, how []string, more ...string) liveTold {
	t.Helper()
	for _, w := range s.works {
		w.longest()
	}
	p := finish(t, 0, s.bin, s.args(how, more...)...)
	r := toldBy(t, p)
	var waits []string
	for _, w := range s.works {
		waits = append(waits, fmt.Sprintf("%s %v", w.name, w.longest().Round(time.Millisecond)))
	}
	t.Logf("rung %s, %d rounds, %d tries, pause %.0f ms (predicted %.0f); longest waits: %s",
		r.Rung, len(r.Live.Rounds), r.Live.Tries, r.Live.Pause, r.Live.Predicted, strings.Join(waits, ", "))
	if n := len(r.Live.Rounds); r.Result != "equal" || n < 2 || !r.Live.Rounds[n-1].Last || r.Live.Pause <= 0 {
		t.Errorf("told %+v", r)
	}
	return r
}

// stopped ends the sync by a signal.
func (s *liveStage) stopped(t *testing.T, p *process, sig syscall.Signal) {
	t.Helper()
	p.signal(t, sig)
	switch code := p.wait(t); {
	case code == 0: // it was quicker
	case sig == syscall.SIGKILL && code == -1:
	case sig != syscall.SIGKILL && code == 3:
		if r := toldBy(t, p); r.Result != "failed" || !strings.Contains(r.Error, "interrupted") || r.State == "" || r.Next == "" {
			t.Errorf("after %v it told %+v", sig, r)
		}
	default:
		t.Errorf("after %v: exit code %d; it said:\n%s", sig, code, p.said.String())
	}
}
