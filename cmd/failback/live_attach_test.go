package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// What takes a device that hangs, a kind of device that is not at hand, or another
// target: the rest of the reasons that a live sync has to compare, or to refuse.

// trustMadeUp: what the source turns into, or is from the start, as a
// made-up sysfs tells it.
func trustMadeUp(t *testing.T, base *trackStage) {
	for _, row := range []struct{ name, attribute, text, words, once string }{
		{"mapped directly", "queue/dax", "1\n", "the device can be mapped directly (DAX)", "it can be mapped directly (DAX): stores to such a mapping pass no block layer"},
		{"a part of md", "holders", "md7/", "the device became a part of /dev/md7", "it is a part of /dev/md7, which may send on requests that are not announced again"},
		{"zoned", "queue/zoned", "host-managed\n", "", "it is a zoned device (host-managed)"},
	} {
		t.Run(strings.ReplaceAll(row.name, " ", "-"), func(t *testing.T) {
			s := newTrustStage(t, base)
			s.elsewhere(t, 4, s.sysfs(row.attribute), row.text)
			s.wants(t, "", row.once)
			s.says(t, 4, "it is not tracked")
			s.sync(t, 0)
			if row.words == "" { // nothing turns into that
				return
			}
			scratch(t, s.image, 13)
			before := string(read(t, s.target))
			s.elsewhere(t, 4, s.sysfs(row.attribute), row.text)
			s.wants(t, "", row.words)
			if string(read(t, s.target)) != before {
				t.Error("the target was written (L4)")
			}
			s.sync(t, 0) // it is not any more what it was in between, and was not watched
			s.wants(t, "merkle", row.words)
			s.same(t)
		})
	}
}

// trustUndrained: nobody sees the end of writes that were under way when the
// tracking of a disk began that is not driven by requests.
func trustUndrained(t *testing.T, base *trackStage) {
	number, err := os.ReadFile("/sys/class/zram-control/hot_add")
	if err != nil {
		t.Skipf("needs zram: %v", err)
	}
	disk := "zram" + strings.TrimSpace(string(number))
	t.Cleanup(func() {
		eventually(t, disk+" to be idle", func() bool {
			return os.WriteFile("/sys/class/zram-control/hot_remove", number, 0) == nil
		})
	})
	s := newTrustStage(t, base)
	s.device = "/dev/" + disk
	write(t, s.sysfs("disksize"), fmt.Append(nil, trustSize))
	s.write(t, 3)
	s.elsewhere(t, 4, s.sysfs("inflight"), "       0        1\n")
	s.wants(t, "", "writes that were under way when tracking began have not ended yet, as far as anybody can see (Drain waits for that): pause the writers for a moment")
	if !strings.Contains(s.said, "waiting for writes to "+s.device+" that are under way") {
		t.Errorf("it said:\n%s", s.said)
	}
	s.sync(t, 0)
	s.wants(t, "merkle", "no sync with this target is known")
	s.write(t, 5)
	s.sync(t, 0)
	s.wants(t, "exact", "4096 bytes")
	if string(read(t, s.device)) != string(read(t, s.target)) {
		t.Error("the target is not what the source is")
	}
}

// thawer thaws the file system of fs when it is called, when the test ends, and when
// it is killed: who waits for a frozen one cannot be killed.
func thawer(t *testing.T, fs *smallFS) (thaw func()) {
	t.Helper()
	if _, err := exec.LookPath("fsfreeze"); err != nil {
		t.Skip("needs fsfreeze")
	}
	guard := exec.Command("sh", "-c", `cat >/dev/null; fsfreeze --unfreeze "$1" 2>/dev/null || true`, "sh", fs.dir)
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	thaw = sync.OnceFunc(func() {
		if err := errors.Join(in.Close(), guard.Wait()); err != nil {
			t.Errorf("thaw %s: %v", fs.dir, err)
		}
	})
	t.Cleanup(thaw)
	return thaw
}

// frozenUnder freezes the file system of fs until it is thawed.
func frozenUnder(t *testing.T, fs *smallFS) (thaw func()) {
	t.Helper()
	thaw = thawer(t, fs)
	if out, err := exec.Command("fsfreeze", "--freeze", fs.dir).CombinedOutput(); err != nil {
		t.Fatalf("freeze %s: %v: %s", fs.dir, err, out)
	}
	return thaw
}

// trustAttach: a write that was on its way to the source before anybody
// tracked it lands when the sync is under way, and is not missed (L1).
func trustAttach(t *testing.T, base *trackStage) {
	below := newSmallFS(t, 16<<20)
	s := newTrustStage(t, base)
	s.image = below.path("source.img")
	s.device = loopOver(t, s.image, trustSize)
	write(t, s.target, make([]byte, trustSize)) // both are zeroes
	below.sync(t)

	thaw := frozenUnder(t, below)
	defer thaw() // before the write is waited for
	early := start(t, "dd", "if=/dev/urandom", "of="+s.device, "bs=4096", "count=1", "seek=9", "oflag=direct", "conv=notrunc")
	eventually(t, "a write to be under way", func() bool {
		return strings.Join(strings.Fields(string(read(t, s.sysfs("inflight")))), " ") == "0 1"
	})
	s.track(t, 0, nil, "start", s.device)
	s.says(t, 0, "yes: it has every write since epoch")
	s.wantBlocks(t)
	thaw()
	if code := early.wait(t); code != 0 {
		t.Fatalf("the early write: %s", early.said.String())
	}
	s.sync(t, 0, "--trust-tracker") // for both were equal when it began
	s.wants(t, "exact", "4096 bytes")
	s.same(t)
}

// trustTakeKilled: somebody takes the marks into a file, and is killed
// before it is there. They are all still there for the sync (L2).
func trustTakeKilled(t *testing.T, base *trackStage) {
	full := newSmallFS(t, 16<<20)
	s := newTrustStage(t, base)
	s.sync(t, 0)
	s.write(t, 7)
	thaw := frozenUnder(t, full)
	defer thaw() // before the take is waited for
	take := start(t, s.bin, "track", "take", s.device, "-o", full.path("x.fbm"), "--bpffs", s.bpffs, "--state", s.state)
	eventually(t, "the take to write its file", func() bool {
		state, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", take.cmd.Process.Pid))
		for _, name := range state {
			if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), ") D ") {
				return true // it waits for the thaw, in the kernel
			}
		}
		return err != nil
	})
	take.signal(t, syscall.SIGKILL)
	s.write(t, 9)
	thaw()
	if code := take.wait(t); code != -1 {
		t.Fatalf("the take ended with %d:\n%s", code, take.said.String())
	}
	if _, err := os.Stat(full.path("x.fbm")); err == nil {
		t.Error("the take came to its end")
	}
	s.wantBlocks(t, 7, 9)
	s.sync(t, 0)
	s.wants(t, "exact", "8192 bytes")
	s.same(t)
}

// trustTargetDevice: a target that is a device is asked what the kernel has
// counted of writes to it; where it counts none, nothing says that there was none.
func trustTargetDevice(t *testing.T, base *trackStage) {
	for name, happen := range map[string]struct {
		rung string
		do   func(t *testing.T, s *trustStage, stats string)
	}{
		"nothing":            {"exact", func(*testing.T, *trustStage, string) {}},
		"written":            {"merkle", func(t *testing.T, s *trustStage, _ string) { scratch(t, s.target, 11) }},
		"nothing is counted": {"merkle", func(t *testing.T, _ *trustStage, stats string) { write(t, stats, []byte("0")) }},
		"written while nothing is counted": {"merkle", func(t *testing.T, s *trustStage, stats string) {
			write(t, stats, []byte("0"))
			if out, err := exec.Command("dd", "if=/dev/urandom", "of="+s.target, "bs=4096", "count=1", "seek=11", "oflag=direct", "conv=notrunc").CombinedOutput(); err != nil {
				t.Fatalf("dd: %v: %s", err, out)
			}
			write(t, stats, []byte("1"))
		}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			s := newTrustStage(t, base)
			image := s.target
			s.target = loopOver(t, image, trustSize)
			stats := "/sys/block/" + filepath.Base(s.target) + "/queue/iostats"
			t.Cleanup(func() { write(t, stats, []byte("1")) })
			s.sync(t, 0)
			happen.do(t, s, stats)
			s.write(t, 5)
			s.sync(t, 0)
			words := "nothing says that the target was not written since"
			if happen.rung == "exact" {
				words = "4096 bytes"
			}
			s.wants(t, happen.rung, words)
			if string(read(t, s.image)) != string(read(t, image)) {
				t.Errorf("the target is not what the source is; rung %s: %s", s.told.Rung, s.told.Reason)
			}
		})
	}
}

// trustMidway: a command is passed through to the source while the first round reads
// it. What it wrote may have been read before, so no round makes up for it; the sync
// fails, and the next one compares.
func trustMidway(t *testing.T, base *trackStage) {
	s := newTrustStage(t, base)
	before := string(read(t, s.target))
	p := s.live(t, s.target, "--keep-tracking", "--json", "--limit", "1MiB/s", "--codec", "none")
	eventually(t, "something to arrive", func() bool { return string(read(t, s.target)) != before })
	scratch(t, s.image, 0) // which has arrived, or is on its way
	s.view(t, add(viewPassthrough, 1))
	s.heard(t, p, 3)
	if s.told.Result != "failed" || !strings.Contains(s.told.Reason, "epoch lost: commands were passed through to the disk") || s.told.State == "" || s.told.Next == "" {
		t.Errorf("told %+v", s.told)
	}
	s.sync(t, 0)
	s.wants(t, "merkle", "no sync with this target is known")
	s.same(t)
	s.write(t, 5)
	s.sync(t, 0)
	s.wants(t, "exact", "4096 bytes")
	s.same(t)
}
