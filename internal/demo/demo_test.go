package demo_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/internal/cli"
	"github.com/failback/failback/internal/demo"
)

// TestMain makes of the test binary the program with the hold command, which a
// live sync starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "hold" {
		os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return cli.Run(ctx, args, strings.NewReader(""), stdout, stderr)
}

// needExt4 skips where the stage of ext4 on loop devices cannot be set.
func needExt4(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for mount and loop devices (CAP_SYS_ADMIN)")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	if err := exec.Command("losetup", "--find").Run(); err != nil {
		t.Skipf("needs a free loop device: %v", err)
	}
}

// tracks reports whether this kernel can track.
func tracks(t *testing.T) bool {
	t.Helper()
	var said bytes.Buffer
	if command(t.Context(), []string{"track", "check"}, &said, &said) == 0 {
		return true
	}
	t.Logf("no live way home: needs a kernel that can track:\n%s", said.String())
	return false
}

// memoryDir is a directory whose files need no disk, where there is one: what
// is tested here waits for many syncs.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "failback-demo-test-")
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

// left is what a demo in dir has not cleaned up: files, mounts, loop devices.
func left(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	for _, list := range []string{"/proc/self/mounts", "/proc/swaps"} {
		b, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, dir) {
				found = append(found, line)
			}
		}
	}
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range backing {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), dir) {
			found = append(found, path)
		}
	}
	return strings.Join(found, " ")
}

func TestDemoExt4(t *testing.T) {
	needExt4(t)
	dir := memoryDir(t)
	var story bytes.Buffer
	r, err := demo.Run(t.Context(), demo.Options{Dir: dir, Size: 64 << 20, Out: &story, Command: command})
	if err != nil {
		t.Fatalf("%v\n%s", err, story.String())
	}
	if r.Result != "proven" || r.Stage != "ext4 on loop devices" || r.TailBytes == 0 || r.TailTransactions == 0 || r.DivergentBytes == 0 {
		t.Errorf("%+v", r)
	}
	if r.WireBytes >= r.FullCopyWireBytes {
		t.Errorf("the way home put %d bytes on the link, a full copy %d", r.WireBytes, r.FullCopyWireBytes)
	}
	tracker, home := "none", "The application stops for the way home."
	if tracks(t) {
		tracker, home = "kernel", "failback sync --live --json"
		if r.Rounds < 2 || r.PauseMS <= 0 || r.PredictedMS <= 0 || r.LiveTransactions == 0 || r.SwitchRung != "exact" || r.SwitchSeconds <= 0 {
			t.Errorf("%+v", r)
		}
		var tracked bytes.Buffer
		_, rest, _ := strings.Cut(story.String(), "failback track start ")
		device, _, _ := strings.Cut(rest, " ")
		if command(t.Context(), []string{"track", "status", device}, &tracked, &tracked) == 0 {
			t.Errorf("%s is still tracked:\n%s", device, tracked.String())
		}
	}
	if r.Tracker != tracker {
		t.Errorf("the tracker is %q, want %q", r.Tracker, tracker)
	}
	for _, text := range []string{"Tracker: " + tracker, home, "power cut", "e2fsck -fn finds nothing wrong", "failback sync --json /dev/loop", "full copy"} {
		if !strings.Contains(story.String(), text) {
			t.Errorf("the story does not say %q:\n%s", text, story.String())
		}
	}
	if s := left(t, dir); s != "" {
		t.Errorf("left behind: %s", s)
	}
}

// TestDemoCleansUp: L6 for the demo's own things, whichever command is the last
// that runs.
func TestDemoCleansUp(t *testing.T) {
	needExt4(t)
	for name, stop := range map[string]func(cancel context.CancelFunc) int{
		"interrupted": func(cancel context.CancelFunc) int { cancel(); return 3 },
		"failed":      func(context.CancelFunc) int { return 3 },
	} {
		commands := []string{"sync", "diff"}
		if tracks(t) {
			commands = append(commands, "track start", "sync --live")
		}
		for _, at := range commands {
			t.Run(name+" at "+at, func(t *testing.T) {
				dir := memoryDir(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				_, err := demo.Run(ctx, demo.Options{Dir: dir, Size: demo.MinSize, Out: io.Discard,
					Command: func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
						if strings.HasPrefix(strings.Join(args, " "), at) {
							return stop(cancel)
						}
						return command(ctx, args, stdout, stderr)
					}})
				if err == nil {
					t.Error("the demo went on")
				}
				if s := left(t, dir); s != "" {
					t.Errorf("left behind: %s", s)
				}
			})
		}
	}
}

// TestDemoNotices: a way home that brings the wrong content does not pass.
func TestDemoNotices(t *testing.T) {
	syncs := 0
	_, err := demo.Run(t.Context(), demo.Options{Dir: memoryDir(t), Size: demo.MinSize, Plain: true, Out: io.Discard,
		Command: func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
			if args[0] == "sync" {
				if syncs++; syncs == 2 { // the way home: says it was there, and was not
					_, _ = io.WriteString(stdout, "{}\n")
					return 0
				}
			}
			return command(ctx, args, stdout, stderr)
		}})
	if err == nil {
		t.Error("the demo calls a primary proven that was never synced")
	}
}
