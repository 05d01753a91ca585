package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// trackStage is a loop device, a bpffs and a state directory of a test's own.
type trackStage struct {
	bin, device, bpffs, state string
}

func newTrackStage(t *testing.T) *trackStage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: CAP_BPF, loop devices")
	}
	if _, err := exec.LookPath("losetup"); err != nil {
		t.Skip("needs losetup")
	}
	s := newPins(t, &trackStage{bin: build(t), state: filepath.Join(t.TempDir(), "state")})
	if p := start(t, s.bin, "track", "check", "--bpffs", s.bpffs); p.wait(t) != 0 {
		t.Skipf("needs a kernel that can track:\n%s%s", p.stdout.String(), p.said.String())
	}
	s.device = loopOver(t, filepath.Join(t.TempDir(), "disk.img"), 8<<20)
	return s
}

// newPins is a stage with a bpffs of its own.
func newPins(t *testing.T, like *trackStage) *trackStage {
	t.Helper()
	s := *like
	s.bpffs = t.TempDir()
	if err := unix.Mount("bpf", s.bpffs, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("needs to mount bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.bpffs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return &s
}

func loopOver(t *testing.T, file string, size int64) string {
	t.Helper()
	write(t, file, nil)
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
	device := strings.TrimSpace(string(out))
	mine := filepath.Dir(t.TempDir())
	t.Cleanup(func() {
		behind, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
		if err != nil || !strings.HasPrefix(string(behind), mine) {
			return // a test that has detached it itself; it may be somebody else's by now
		}
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}

// track runs a track command, and reads what it tells with --json.
func (s *trackStage) track(t *testing.T, code int, into any, args ...string) *process {
	t.Helper()
	args = append([]string{"track"}, args...)
	args = append(args, "--bpffs", s.bpffs)
	if name := args[1]; name != "extents" && name != "check" {
		args = append(args, "--state", s.state)
	}
	if into != nil {
		args = append(args, "--json")
	}
	p := finish(t, code, s.bin, args...)
	if into != nil {
		if err := json.Unmarshal(p.stdout.Bytes(), into); err != nil {
			t.Fatalf("%v: %v in %s", args, err, p.stdout.String())
		}
	}
	return p
}

// write changes one block of the device and waits until it has it.
func (s *trackStage) write(t *testing.T, block int64) {
	t.Helper()
	f, err := os.OpenFile(s.device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 4096), block*4096)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

type tracked struct {
	Result  string
	Volumes []struct {
		Device, Name, Reason    string
		Trusted                 bool
		Epoch                   int
		DirtyBytes, KernelBytes int64
	}
	Saved struct {
		File, Reason string
		Trusted      bool
	}
	Reason, Next, Volume string
	Extents              []struct {
		Offset, Length int64
		State          string
	}
}

// UnmarshalJSON reads members with underscores.
func (r *tracked) UnmarshalJSON(b []byte) error {
	type plain tracked
	b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("dirty_bytes"), []byte("DirtyBytes")), []byte("kernel_bytes"), []byte("KernelBytes"))
	return json.Unmarshal(b, (*plain)(r))
}

func (r *tracked) blocks() []int64 {
	var n []int64
	for _, e := range r.Extents {
		for off := e.Offset; off < e.Offset+e.Length; off += 4096 {
			n = append(n, off/4096)
		}
	}
	return n
}

func (s *trackStage) wantBlocks(t *testing.T, want ...int64) {
	t.Helper()
	var r tracked
	s.track(t, 0, &r, "extents", s.device)
	if got := r.blocks(); !equalBlocks(got, want) {
		t.Fatalf("dirty blocks %v, want %v", got, want)
	}
}

func equalBlocks(a, b []int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// A volume's life: start, writes, status, extents, take, stop, and start again
// with what was saved. Between any two of them no process of ours runs.
func TestTrack(t *testing.T) {
	s := newTrackStage(t)
	var r tracked
	s.track(t, 4, &r, "status", s.device)
	if !strings.Contains(r.Reason, "not tracked") || !strings.Contains(r.Next, "track start") {
		t.Errorf("status before the start: %+v", r)
	}
	s.track(t, 0, &r, "start", s.device, "--name", "orders")
	if r.Result != "started" || !r.Volumes[0].Trusted || r.Volumes[0].Epoch != 1 {
		t.Fatalf("started: %+v", r)
	}
	if p := s.track(t, 4, nil, "start", s.device); !strings.Contains(p.said.String(), "tracked already") {
		t.Errorf("started twice: %s", p.said.String())
	}
	s.write(t, 3)
	s.write(t, 7)
	s.wantBlocks(t, 3, 7)
	r = tracked{}
	s.track(t, 0, &r, "status", "orders")
	if len(r.Volumes) != 1 || r.Volumes[0].Device != s.device || r.Volumes[0].DirtyBytes != 8192 || r.Volumes[0].KernelBytes == 0 {
		t.Errorf("status: %+v", r)
	}
	if p := s.track(t, 0, nil, "status"); !strings.Contains(p.stdout.String(), "trusted    yes: it has every write since epoch 1") {
		t.Errorf("status in words:\n%s", p.stdout.String())
	}
	s.takes(t)
	s.stops(t)
}

func (s *trackStage) takes(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	// There is no room for the map: nothing is cleared.
	s.track(t, 3, nil, "take", "orders", "-o", dir+"/none/x.fbm")
	s.wantBlocks(t, 3, 7)
	var r struct {
		Epoch      int
		DirtyBytes int64 `json:"dirty_bytes"`
	}
	s.track(t, 0, &r, "take", "orders", "-o", dir+"/one.fbm")
	if r.Epoch != 1 || r.DirtyBytes != 8192 {
		t.Errorf("took %+v", r)
	}
	s.wantBlocks(t)
	s.write(t, 9)
	s.track(t, 0, &r, "take", s.device, "-o", dir+"/two.fbm")
	if r.Epoch != 2 || r.DirtyBytes != 4096 {
		t.Errorf("took %+v", r)
	}
	p := finish(t, 0, s.bin, "map", "show", "--extents", dir+"/two.fbm")
	if got := p.stdout.String(); got != "36864 4096 dirty\n" {
		t.Errorf("the map holds %q", got)
	}
	// What is taken can be used: the map is of this volume.
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	finish(t, 0, s.bin, "sync", "--no-journal", "--dirty", dir+"/one.fbm", "--dirty", dir+"/two.fbm", "--verify", "full", s.device, image)
}

// stops stops and starts again: with no write in between, with one, and after
// the pins were lost.
func (s *trackStage) stops(t *testing.T) {
	t.Helper()
	s.write(t, 11)
	var r tracked
	s.track(t, 0, &r, "stop", "orders")
	if r.Result != "stopped" || r.Volumes[0].DirtyBytes != 4096 || !r.Saved.Trusted {
		t.Fatalf("stopped: %+v", r)
	}
	if p := s.track(t, 0, nil, "status"); p.stdout.String() != "nothing is tracked\n" {
		t.Errorf("after the stop: %s", p.stdout.String())
	}
	r = tracked{}
	s.track(t, 0, &r, "start", s.device, "--name", "orders")
	if !r.Saved.Trusted || r.Volumes[0].Epoch != 3 {
		t.Errorf("nothing was written, and started with %+v", r)
	}
	s.wantBlocks(t, 11)
	s.track(t, 0, nil, "stop", s.device)

	s.write(t, 13)
	r = tracked{}
	s.track(t, 0, &r, "start", s.device)
	if r.Saved.Trusted || !strings.Contains(r.Saved.Reason, "written to") || r.Volumes[0].Epoch != 4 {
		t.Errorf("written in between, and started with %+v", r)
	}
	s.wantBlocks(t)

	// As after a reboot: what is in kernel memory is gone.
	if err := os.RemoveAll(filepath.Join(s.bpffs, "failback")); err != nil {
		t.Fatal(err)
	}
	r = tracked{}
	s.track(t, 4, &r, "status", s.device)
	if !strings.Contains(r.Reason, "not stopped in order") {
		t.Errorf("status after the record is lost: %+v", r)
	}
	s.track(t, 4, &r, "start", s.device, "--trust-saved")
	r = tracked{}
	s.track(t, 0, &r, "start", s.device)
	if r.Saved.Trusted || r.Volumes[0].Epoch != 5 {
		t.Errorf("the record was lost, and started with %+v", r)
	}
	s.write(t, 15)
	s.track(t, 0, nil, "stop", s.device)
	s.write(t, 17)
	r = tracked{}
	s.track(t, 0, &r, "start", s.device, "--trust-saved")
	if !r.Saved.Trusted || r.Volumes[0].Epoch != 5 {
		t.Errorf("started with the user's word: %+v", r)
	}
	s.wantBlocks(t, 15)
}

// What cannot be trusted is not taken, and says why; what cannot be tracked is refused.
func TestTrackRefuses(t *testing.T) {
	s := newTrackStage(t)
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, make([]byte, 1<<20))
	for _, c := range []struct {
		code int
		args []string
		want string
	}{
		{4, []string{"start", file}, "no block device"},
		{4, []string{"start", file + "-none"}, "does not exist"},
		{2, []string{"start", s.device, "--name", "a/b"}, "no slash"},
		{2, []string{"start", s.device, "--block", "5000"}, "5000"},
		{4, []string{"take", "nothing", "-o", file + ".fbm"}, "no tracked volume has this name"},
		{4, []string{"take", s.device, "-o", file + ".fbm"}, "not tracked"},
		{4, []string{"stop", s.device}, "not tracked"},
		{2, []string{"take", s.device}, "-o MAP"},
	} {
		if p := s.track(t, c.code, nil, c.args...); !strings.Contains(p.said.String(), c.want) {
			t.Errorf("%v said %q, want %q", c.args, p.said.String(), c.want)
		}
	}
	s.track(t, 0, nil, "start", s.device)
	s.write(t, 1)
	other := loopOver(t, filepath.Join(t.TempDir(), "other.img"), 4<<20)
	if err := exec.Command("losetup", "--detach", s.device).Run(); err != nil {
		t.Fatal(err)
	}
	p := s.track(t, 4, nil, "take", s.device, "-o", file+".fbm")
	if !strings.Contains(p.said.String(), "replaced") || !strings.Contains(p.said.String(), "stop and start tracking") {
		t.Errorf("take of a device that is gone said %q", p.said.String())
	}
	if _, err := os.Stat(file + ".fbm"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it made a map: %v", err)
	}
	s.track(t, 0, nil, "stop", s.device)
	if out, err := exec.Command("losetup", s.device, filepath.Join(filepath.Dir(file), "file")).CombinedOutput(); err != nil {
		t.Fatalf("attach %s again: %v: %s", s.device, err, out) // for the cleanup
	}
	s.track(t, 0, nil, "start", other, "--name", "other")
	if p := s.track(t, 4, nil, "start", s.device, "--name", "other"); !strings.Contains(p.said.String(), "is called other") {
		t.Errorf("two of one name: %q", p.said.String())
	}
}
