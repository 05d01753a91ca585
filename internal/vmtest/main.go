// Command vmtest boots throw-away guests and plays in them what the kernel at
// hand cannot: power cuts at chosen writes, media that lie, disks that are
// pulled out, and the kernel's tracker on kernels and devices that are not here.
// A guest is a Debian kernel under software emulation, with one program in it,
// ./guest, that starts all there is in its user space.
//
// Read it in this order: main.go (what is done), kernel.go (where a kernel comes
// from), pack.go, module.go, program.go and archive.go (what a guest is made of),
// boot.go, then guest/main.go and tracked/.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Parts of the scenarios. Each part has a guest of its own.
const (
	media   = "media"   // what happens to a medium in mid-session
	tracker = "tracker" // what the kernel's tracker sees on which device
)

// job is what the guest is told. It is a file in the guest.
type job struct {
	Part    string
	Seed    uint64
	Cuts    int      // power cuts for each way to lay out the target
	Only    string   // part of the name of the scenarios to play
	Modules []string // paths, in the order in which they are loaded
	Tests   string   // which tests of a scenario that has some, as go test -run does
	Debug   bool     // print what failback and its tests say
}

// settings are the command line.
type settings struct {
	job
	kernel  kernel // "" to get them
	suites  string // that a kernel is taken from, with commas between them
	cache   string
	timeout time.Duration
	accel   string
	memory  int // MiB
	console bool
}

func main() {
	var s settings
	flag.Uint64Var(&s.Seed, "seed", 0, "of all chance (default: a new one, which is printed)")
	flag.IntVar(&s.Cuts, "cuts", 40, "power cuts for each way to lay out the target")
	flag.StringVar(&s.Only, "run", "", "play scenarios with this, or one of these with | between, in their name only")
	flag.StringVar(&s.Tests, "tests", "", "of those about the kernel's tracker, play tests that match this only")
	flag.StringVar(&s.Part, "part", media+","+tracker, "which scenarios")
	flag.StringVar(&s.suites, "suites", release+","+backports, "the kernels of which Debian archives: the first plays all, others what is about the kernel's tracker")
	flag.StringVar(&s.kernel.image, "kernel", os.Getenv("VMTEST_KERNEL"), "a Linux image to boot, instead of Debian's; with -modules")
	flag.StringVar(&s.kernel.modules, "modules", os.Getenv("VMTEST_MODULES"), "its folder of modules, as /lib/modules/VERSION")
	flag.StringVar(&s.cache, "cache", defaultCache(), "where the kernels are kept")
	flag.DurationVar(&s.timeout, "timeout", 45*time.Minute, "after which a guest is stopped")
	flag.StringVar(&s.accel, "accel", "tcg,thread=multi", "what QEMU runs the guest with")
	flag.IntVar(&s.memory, "memory", 2560, "of a guest, MiB")
	flag.BoolVar(&s.console, "console", false, "print what a guest's kernel says too")
	flag.BoolVar(&s.Debug, "debug", false, "print what failback and its tests say in a guest")
	flag.Parse()
	if s.Seed == 0 {
		s.Seed = rand.Uint64()>>1 + 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := play(ctx, s); err != nil {
		fmt.Fprintf(os.Stderr, "vmtest: %v\n", err)
		os.Exit(1)
	}
}

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = os.TempDir()
	}
	return filepath.Join(dir, "failback-vmtest")
}

// play boots a guest for each part and kernel, one after the other.
func play(ctx context.Context, s settings) error {
	began := time.Now()
	if (s.kernel.image == "") != (s.kernel.modules == "") {
		return errors.New("-kernel and -modules go together")
	}
	suites := strings.Split(s.suites, ",")
	if s.kernel.image != "" {
		suites = suites[:1]
	}
	if err := install(ctx, s.kernel.image == ""); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmtest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, dir); err != nil {
		return err
	}
	booted, failed := 0, error(nil)
	for i, suite := range suites {
		k := s.kernel
		if k.image == "" {
			k, err = s.getKernel(ctx, suite)
		}
		if err != nil && i > 0 && ctx.Err() == nil {
			fmt.Printf("vmtest: nothing is shown on the kernel of %s: %v\n", suite, err)
			continue
		}
		if err != nil {
			return err
		}
		for _, part := range strings.Split(s.Part, ",") {
			if part == media && i > 0 {
				continue // which is about the media, whatever the kernel
			}
			g := s
			g.kernel, g.Part = k, part
			failed = errors.Join(failed, g.one(ctx, dir))
			booted++
		}
	}
	if booted == 0 {
		failed = errors.Join(failed, errors.New("no guest was booted"))
	}
	fmt.Printf("vmtest: took %v\n", time.Since(began).Round(time.Second))
	return failed
}

// one plays one part on one kernel.
func (s *settings) one(ctx context.Context, dir string) error {
	initrd := filepath.Join(dir, "initrd")
	if err := s.pack(dir, initrd); err != nil {
		return fmt.Errorf("make the guest: %w", err)
	}
	disks, err := s.disks(dir)
	if err != nil {
		return err
	}
	fmt.Printf("vmtest: %s, kernel %s, emulated; seed %d (-seed repeats it)\n", s.Part, s.kernel.version(), s.Seed)
	return s.boot(ctx, initrd, disks)
}

// loud runs a command; what it says is in the error.
func loud(c *exec.Cmd) error {
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, out)
	}
	return nil
}
