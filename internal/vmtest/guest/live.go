package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// liveKinds are the kinds of devices under a file system that is copied live.
var liveKinds = []string{"device-mapper, linear", "device-mapper, thin", "md, RAID 1"}

// Where a live sync finds and leaves things.
const (
	liveMount  = "/mnt"
	liveTarget = "/tmp/target.img"
	livePaused = "/tmp/paused.img" // the source as it was in the pause
)

// live syncs a device with a file system that is written all the while: once with
// hooks, which freeze it and copy what it is then, and once more with --freeze.
func (g *guest) live(k kind) (string, error) {
	r, err := k.make(g)
	if err != nil {
		return "", fmt.Errorf("make the device: %w", err)
	}
	did, err := g.liveOn(r.path)
	left := errors.Join(os.RemoveAll(liveTarget), os.RemoveAll(livePaused), os.RemoveAll(trackDir))
	return did, errors.Join(err, left, r.end())
}

func (g *guest) liveOn(device string) (string, error) {
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", device).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	if err := unix.Mount(device, liveMount, "ext4", unix.MS_NOATIME, ""); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	if err := store(liveTarget, g.noise(rigSize)); err != nil { // it held something else before
		return "", err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- writeOn(ctx, liveMount, rand.New(rand.NewPCG(g.Seed, 1))) }()
	did, err := g.liveTwice(device)
	stop()
	err = errors.Join(err, <-ended)
	if _, e := g.failback("track", "stop", device, "--state", trackDir); e != nil {
		err = errors.Join(err, e)
	}
	var busy error
	if until("an idle file system", func() bool { busy = unix.Unmount(liveMount, 0); return !errors.Is(busy, unix.EBUSY) }) != nil || busy != nil {
		err = errors.Join(err, fmt.Errorf("unmount: %w", busy))
	}
	return did, err
}

func (g *guest) liveTwice(device string) (string, error) {
	one, err := g.liveOnce(device,
		"--on-quiesce", fmt.Sprintf("fsfreeze --freeze %s && dd if=%s of=%s bs=1M iflag=direct status=none", liveMount, device, livePaused),
		"--on-resume", fmt.Sprintf("fsfreeze --unfreeze %s || true", liveMount))
	if err != nil {
		return "", err
	}
	paused, err := os.ReadFile(livePaused)
	if err != nil {
		return "", err
	}
	if err := holds(liveTarget, paused, "the target is not what the source was in the pause"); err != nil {
		return "", err
	}
	if err := fsck(liveTarget); err != nil {
		return "", err
	}
	two, err := g.liveOnce(device, "--freeze", liveMount)
	if err != nil {
		return "", err
	}
	if err := fsck(liveTarget); err != nil {
		return "", err
	}
	return "with hooks: " + one + ", the target is the source of the pause, fsck clean\nwith --freeze: " + two + ", fsck clean", nil
}

func fsck(path string) error {
	if out, err := exec.Command("e2fsck", "-f", "-n", path).CombinedOutput(); err != nil {
		return fmt.Errorf("e2fsck: %w\n%s", err, out)
	}
	return nil
}

// liveOnce runs a live sync and returns what it reports. A pause takes long on an
// emulated machine, which is not what is shown.
func (g *guest) liveOnce(device string, how ...string) (string, error) {
	args := append([]string{"sync", "--live", "--json", "--state", trackDir, "--pause", "20s", "--pause-limit", "60s", "--keep-tracking"}, how...)
	o, err := g.failback(append(args, device, liveTarget)...)
	if err != nil {
		return "", err
	}
	if o.code != 0 {
		return "", fmt.Errorf("failback sync --live: %v\n%s", o, o.stdout)
	}
	var told struct {
		Rung string
		Live struct {
			Rounds []struct{ Bytes int64 }
			Pause  float64 `json:"pause_ms"`
		}
	}
	if err := json.Unmarshal([]byte(o.stdout), &told); err != nil {
		return "", fmt.Errorf("%w: %q", err, o.stdout)
	}
	last := told.Live.Rounds[len(told.Live.Rounds)-1]
	return fmt.Sprintf("rung %s, %d rounds, the last of %d KiB, a pause of %.0f ms", told.Rung, len(told.Live.Rounds), last.Bytes>>10, told.Live.Pause), nil
}

// writeOn writes files in a folder until it is told to stop: one at random places
// around the page cache, others through it.
func writeOn(ctx context.Context, dir string, dice *rand.Rand) error {
	const size = 4 << 20
	f, err := os.OpenFile(filepath.Join(dir, "random"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // as direct I/O wants it
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	for n := 0; ctx.Err() == nil; n++ {
		copy(p, fmt.Sprint(n))
		if _, err := f.WriteAt(p, dice.Int64N(size/piece)*piece); err != nil {
			return err
		}
		if n%8 != 0 {
			continue
		}
		name := filepath.Join(dir, fmt.Sprint("file.", n/8%20))
		if err := store(name, bytes.Repeat([]byte{byte(n)}, 1+dice.IntN(64<<10))); err != nil {
			return err
		}
	}
	return nil
}
