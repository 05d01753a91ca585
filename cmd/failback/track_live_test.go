package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// live begins a live sync whose writers need nothing to come to rest.
func (s *trackStage) live(t *testing.T, target string, more ...string) *process {
	t.Helper()
	return start(t, s.bin, s.liveArgs(target, more...)...)
}

// liveArgs is its command line. On a busy machine a pause may take long, which is not
// what is tested.
func (s *trackStage) liveArgs(target string, more ...string) []string {
	args := []string{"sync", "--live", "--on-quiesce", "true", "--on-resume", "true", "--pause", "5s", "--state", s.state, "--bpffs", s.bpffs}
	return append(append(args, more...), s.device, target)
}

// says requires words of what track status tells of the device.
func (s *trackStage) says(t *testing.T, code int, words string) {
	t.Helper()
	p := s.track(t, code, nil, "status", s.device)
	if told := p.stdout.String() + p.said.String(); !strings.Contains(told, words) {
		t.Errorf("status tells\n%swant %q in it", told, words)
	}
}

// killedLive leaves the tracker of a live sync that was killed while data travelled.
func (s *trackStage) killedLive(t *testing.T, target string) {
	t.Helper()
	d, err := os.OpenFile(s.device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// More than a frame: the first goes at once, the next has to wait.
	_, err = d.WriteAt(noise(2<<20, 7), 0)
	if err := errors.Join(err, d.Sync(), d.Close()); err != nil {
		t.Fatal(err)
	}
	before := read(t, target)
	p := s.live(t, target, "--limit", "256KiB/s", "--codec", "none")
	eventually(t, "something to arrive", func() bool { return !bytes.Equal(read(t, target), before) })
	p.signal(t, syscall.SIGKILL)
	p.wait(t)
}

// TestTrackLive: what a live sync tracks is on record. One that is killed leaves
// its tracker on; status says whose it is, and the next live sync ends it.
func TestTrackLive(t *testing.T) {
	s := newTrackStage(t)
	target := filepath.Join(t.TempDir(), "target.img")
	write(t, target, make([]byte, 8<<20))
	s.killedLive(t, target)
	s.says(t, 0, "for a sync --live; if none runs any more")
	if p := s.live(t, target); p.wait(t) != 0 {
		t.Fatalf("it said:\n%s", p.said.String())
	}
	if string(read(t, target)) != string(read(t, s.device)) {
		t.Error("the target is not what the source is")
	}
	s.says(t, 4, "it was tracked for a sync --live, which has ended")

	write(t, target, make([]byte, 8<<20))
	s.killedLive(t, target)
	if p := s.live(t, target, "--keep-tracking"); p.wait(t) != 0 {
		t.Fatalf("it said:\n%s", p.said.String())
	}
	var r tracked
	if p := s.track(t, 0, &r, "status", s.device); strings.Contains(p.stdout.String(), "sync --live") || !r.Volumes[0].Trusted {
		t.Errorf("kept, and status tells %s", p.stdout.String())
	}
	// It is the user's from here on: a live sync leaves it on, and none goes below
	// the epoch that the last has sealed.
	epoch := r.Volumes[0].Epoch
	if p := s.live(t, target); p.wait(t) != 0 {
		t.Fatalf("it said:\n%s", p.said.String())
	}
	s.says(t, 0, "every write since epoch")
	s.track(t, 0, &r, "status", s.device)
	if r.Volumes[0].Epoch <= epoch {
		t.Errorf("epoch %d after %d", r.Volumes[0].Epoch, epoch)
	}
	s.track(t, 0, nil, "stop", s.device)
}
