package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
)

// saves is how often the checkpoints of these tests are made.
const saves = "150ms"

// checkpoints begins a track start that goes on running, and returns when there is
// a checkpoint of this recording.
func (s *trackStage) checkpoints(t *testing.T, more ...string) *process {
	t.Helper()
	p := start(t, s.bin, append([]string{"track", "start", "--checkpoint", saves, "--bpffs", s.bpffs, "--state", s.state, s.device}, more...)...)
	s.saved(t, p, func(c checkpointSaved) bool { return true })
	return p
}

// checkpointSaved is what track status tells of a checkpoint.
type checkpointSaved struct {
	File  string
	Time  time.Time
	Seen  time.Time
	Epoch int
	Dirty int64 `json:"dirty_bytes"`
}

// saved waits for a checkpoint of the recording that is at work.
func (s *trackStage) saved(t *testing.T, p *process, like func(checkpointSaved) bool) (c checkpointSaved) {
	t.Helper()
	eventually(t, "a checkpoint; it said "+p.said.String(), func() bool {
		var told struct {
			Volumes []struct{ Checkpoint *checkpointSaved }
		}
		q := start(t, s.bin, "track", "status", "--json", "--bpffs", s.bpffs, "--state", s.state, s.device)
		if q.wait(t) != 0 || json.Unmarshal(q.stdout.Bytes(), &told) != nil || told.Volumes[0].Checkpoint == nil {
			return false
		}
		c = *told.Volumes[0].Checkpoint
		return like(c)
	})
	return c
}

// reboot has the device, the record and the checkpoint be as after a crash: what
// was in kernel memory is gone, and the files name another boot.
func (s *trackStage) reboot(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.bpffs, "failback")); err != nil {
		t.Fatal(err)
	}
	boot := strings.TrimSpace(string(read(t, "/proc/sys/kernel/random/boot_id")))
	for _, kind := range []string{"*.track", "*.checkpoint"} {
		names, err := filepath.Glob(filepath.Join(s.state, kind))
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %v, %v", kind, names, err)
		}
		was := read(t, names[0])
		now := bytes.Replace(was, []byte(boot), []byte("00000000-1111-2222-3333-444444444444"), 1)
		if bytes.Equal(was, now) {
			t.Fatalf("%s names no boot", names[0])
		}
		write(t, names[0], now)
	}
}

// TestTrackCheckpoint: the map is saved while the tracker is at work, also beside
// another user of it, and again after the process was killed. After a crash it is
// told of and not believed (L1).
func TestTrackCheckpoint(t *testing.T) {
	s := newTrackStage(t)
	p := s.checkpoints(t)
	s.write(t, 3)
	s.write(t, 7)
	c := s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 8192 })
	if c.Epoch != 1 || !strings.HasPrefix(c.File, s.state) || time.Since(c.Time) > patience {
		t.Errorf("checkpoint: %+v", c)
	}
	// Nothing was written, and nothing is.
	info, err := os.Stat(c.File)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it to be looked at again", func() bool {
		again, err := os.Stat(c.File)
		if err != nil {
			t.Fatal(err)
		}
		return again.ModTime().After(info.ModTime().Add(300 * time.Millisecond))
	})
	if again := s.saved(t, p, func(checkpointSaved) bool { return true }); !again.Time.Equal(c.Time) || !again.Seen.After(c.Time) {
		t.Errorf("it was written anew, though nothing had changed: %+v, it was %+v", again, c)
	}
	// Nothing is cleared by it, and who takes the map may.
	s.wantBlocks(t, 3, 7)
	taken := filepath.Join(t.TempDir(), "taken.fbm")
	s.track(t, 0, nil, "take", s.device, "-o", taken)
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 0 && c.Epoch == 2 })

	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	s.write(t, 9)
	s.wantBlocks(t, 9) // the kernel records without it
	p = s.checkpoints(t)
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 4096 })
	s.write(t, 11)
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 || !strings.Contains(p.said.String(), "the kernel records on") {
		t.Errorf("ended by SIGTERM: exit code %d; it said %q", code, p.said.String())
	}
	if told := p.stdout.String(); !strings.Contains(told, "checkpoint every "+saves) {
		t.Errorf("it told\n%s", told)
	}
	// What was dirty when it ended is in it.
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 8192 })
	s.wantBlocks(t, 9, 11)
	s.crashes(t)
}

// crashes loses the record of a volume that has a checkpoint.
func (s *trackStage) crashes(t *testing.T) {
	t.Helper()
	s.write(t, 13)
	s.reboot(t)
	words := []string{"the machine was started anew since", "there is a checkpoint of 20", "with 8.0 KiB dirty", "it is of before the crash, and what was written after it is not known, so it is not used"}
	said := s.track(t, 4, nil, "status", s.device).said.String()
	for _, w := range words {
		if !strings.Contains(said, w) {
			t.Errorf("status says %q, want %q in it", said, w)
		}
	}
	// The user's word is that nothing was written since the recording ended in
	// order; of a checkpoint that is never so.
	said = s.track(t, 4, nil, "start", s.device, "--trust-saved").said.String()
	if !strings.Contains(said, "nothing was saved that could be taken over") || !strings.Contains(said, words[3]) {
		t.Errorf("--trust-saved says %q", said)
	}
	names, err := filepath.Glob(filepath.Join(s.state, "*.checkpoint"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%v, %v", names, err)
	}
	_, behind, _ := bytes.Cut(read(t, names[0]), []byte("\n"))
	if m, err := cbt.ReadMap(bytes.NewReader(behind)); err != nil || m.Epoch != 0 || len(m.Extents()) != 2 {
		t.Errorf("it holds %+v, %v", m, err)
	}
	target := filepath.Join(t.TempDir(), "target")
	write(t, target, make([]byte, 8<<20))
	if p := start(t, s.bin, "sync", "--dirty", names[0], s.device, target); p.wait(t) == 0 || !strings.Contains(p.said.String(), "leave it out") {
		t.Errorf("a sync that was given the checkpoint as a map said %q", p.said.String())
	}
	var r tracked
	s.track(t, 0, &r, "start", s.device)
	if r.Saved.Trusted || r.Saved.File != "" || !strings.Contains(r.Saved.Reason, words[3]) || r.Volumes[0].Epoch != 3 {
		t.Errorf("started with %+v", r)
	}
	s.wantBlocks(t)
	// The next crash is without one: the old is not told of again.
	if err := os.RemoveAll(filepath.Join(s.bpffs, "failback")); err != nil {
		t.Fatal(err)
	}
	if said := s.track(t, 4, nil, "status", s.device).said.String(); strings.Contains(said, "checkpoint") {
		t.Errorf("status tells of the checkpoint of another recording: %q", said)
	}
}

// TestTrackCheckpointStopped: track stop ends it, and the map of the clean stop is
// what it would be without.
func TestTrackCheckpointStopped(t *testing.T) {
	s := newTrackStage(t)
	p := s.checkpoints(t, "--json")
	s.write(t, 5)
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 4096 })
	s.write(t, 6)
	s.track(t, 0, nil, "stop", s.device)
	if code := p.wait(t); code != 0 || !strings.Contains(p.said.String(), "is not tracked any more") {
		t.Errorf("exit code %d; it said %q", code, p.said.String())
	}
	var r tracked
	if err := json.Unmarshal(p.stdout.Bytes(), &r); err != nil || r.Result != "stopped" || len(r.Volumes) != 1 {
		t.Errorf("it told %s: %v", p.stdout.String(), err)
	}
	if names, err := filepath.Glob(filepath.Join(s.state, "*.checkpoint*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	r = tracked{}
	s.track(t, 0, &r, "start", s.device)
	if !r.Saved.Trusted || r.Volumes[0].Epoch != 1 {
		t.Errorf("started with %+v", r)
	}
	s.wantBlocks(t, 5, 6)
	// A clean stop, then a recording with checkpoints that is lost: neither of the
	// two maps is believed.
	p = s.checkpoints(t)
	s.write(t, 8)
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 3*4096 })
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	s.reboot(t)
	s.track(t, 4, nil, "start", s.device, "--trust-saved")
	r = tracked{}
	s.track(t, 0, &r, "start", s.device)
	if r.Saved.Trusted {
		t.Errorf("started with %+v", r)
	}
	s.wantBlocks(t)
	s.track(t, 0, nil, "stop", s.device)
}

// TestTrackCheckpointAnew: a recording that was stopped and begun anew while nobody
// looked is another one. Stopping it removes what is left of a process that was
// killed.
func TestTrackCheckpointAnew(t *testing.T) {
	s := newTrackStage(t)
	p := start(t, s.bin, "track", "start", "--checkpoint", "1h", "--bpffs", s.bpffs, "--state", s.state, s.device)
	s.saved(t, p, func(checkpointSaved) bool { return true })
	p.signal(t, syscall.SIGSTOP)
	s.track(t, 0, nil, "stop", s.device)
	s.track(t, 0, nil, "start", s.device)
	p.signal(t, syscall.SIGCONT)
	if code := p.wait(t); code != 0 || !strings.Contains(p.said.String(), "is not tracked any more") {
		t.Errorf("exit code %d; it said %q", code, p.said.String())
	}
	p = s.checkpoints(t)
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	s.track(t, 0, nil, "stop", s.device)
	if names, err := filepath.Glob(filepath.Join(s.state, "*.checkpoint*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
	// It joins a recording that this state directory does not know of yet.
	state := s.state
	s.state = filepath.Join(t.TempDir(), "other")
	s.track(t, 0, nil, "start", s.device)
	s.state = state
	p = s.checkpoints(t)
	p.signal(t, syscall.SIGTERM)
	p.wait(t)
	s.reboot(t)
	s.says(t, 4, "so it is not used")
}

// What a recording that is under way is not, it does not become by joining it; a
// device that is gone ends it.
func TestTrackCheckpointRefuses(t *testing.T) {
	s := newTrackStage(t)
	if p := s.track(t, 2, nil, "start", s.device, "--checkpoint", "1ms"); !strings.Contains(p.said.String(), "at least 100ms") {
		t.Errorf("it said %q", p.said.String())
	}
	s.track(t, 0, nil, "start", s.device, "--name", "orders")
	for _, args := range [][]string{{"--name", "others"}, {"--block", "64KiB"}} {
		p := s.track(t, 4, nil, append([]string{"start", s.device, "--checkpoint", saves}, args...)...)
		if !strings.Contains(p.said.String(), "it is tracked already, ") {
			t.Errorf("%v: it said %q", args, p.said.String())
		}
	}
	p := s.checkpoints(t, "--name", "orders")
	file := loopFile(t, s.device)
	if out, err := exec.Command("losetup", "--detach", s.device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	code := p.wait(t)
	if said := p.said.String(); code != 3 || !strings.Contains(said, "is gone") || !strings.Contains(said, "the last checkpoint is of") || !strings.Contains(said, "track stop") {
		t.Errorf("exit code %d; it said %q", code, said)
	}
	s.track(t, 0, nil, "stop", "orders")
	if out, err := exec.Command("losetup", s.device, file).CombinedOutput(); err != nil {
		t.Fatalf("attach %s again: %v: %s", s.device, err, out) // for the cleanup
	}
	// There is no place for it: it ends with an error, and the recording goes on.
	s.track(t, 0, nil, "start", s.device)
	file = filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	p = start(t, s.bin, "track", "start", "--checkpoint", saves, "--bpffs", s.bpffs, "--state", filepath.Join(file, "below"), s.device)
	if code := p.wait(t); code == 0 {
		t.Errorf("it said %q", p.said.String())
	}
	s.track(t, 0, nil, "stop", s.device)
}

// TestTrackCheckpointLost: pins that are gone are no stop. What there is of a
// checkpoint stays, and whoever looks after the service hears of it.
func TestTrackCheckpointLost(t *testing.T) {
	s := newTrackStage(t)
	p := s.checkpoints(t)
	if err := os.RemoveAll(filepath.Join(s.bpffs, "failback")); err != nil {
		t.Fatal(err)
	}
	code, said := p.wait(t), p.said.String()
	if code != 3 || !strings.Contains(said, "it was not stopped in order") || !strings.Contains(said, "the last checkpoint is of 20") || !strings.Contains(said, "compare the volumes by hash") {
		t.Errorf("exit code %d; it said %q", code, said)
	}
	s.says(t, 4, "there is a checkpoint of 20")
}

// TestTrackCheckpointOfSync: the tracker of a live sync ends with that, so nobody is to
// rely on it.
func TestTrackCheckpointOfSync(t *testing.T) {
	s := newTrackStage(t)
	target := filepath.Join(t.TempDir(), "target.img")
	write(t, target, make([]byte, 8<<20))
	s.killedLive(t, target)
	p := s.track(t, 4, nil, "start", s.device, "--checkpoint", saves)
	if !strings.Contains(p.said.String(), "it is tracked for a sync --live, and that ends with it") {
		t.Errorf("it said %q", p.said.String())
	}
	s.says(t, 0, "for a sync --live; if none runs any more")
	s.track(t, 0, nil, "stop", s.device)
}

// TestTrackCheckpointOnce: one process makes the checkpoints of a volume, and what one
// that was killed has left behind goes.
func TestTrackCheckpointOnce(t *testing.T) {
	s := newTrackStage(t)
	p := s.checkpoints(t)
	q := s.track(t, 4, nil, "start", s.device, "--checkpoint", saves)
	if !strings.Contains(q.said.String(), "another process makes checkpoints of it") {
		t.Errorf("it said %q", q.said.String())
	}
	temp := s.saved(t, p, func(checkpointSaved) bool { return true }).File + ".tmp"
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	write(t, temp, []byte("half of it"))
	s.write(t, 3)
	p = s.checkpoints(t)
	s.saved(t, p, func(c checkpointSaved) bool { return c.Dirty == 4096 })
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
	write(t, temp, []byte("half of it"))
	s.track(t, 0, nil, "stop", s.device)
	if names, err := filepath.Glob(filepath.Join(s.state, "*.checkpoint*")); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// loopFile is the file behind a loop device.
func loopFile(t *testing.T, device string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
