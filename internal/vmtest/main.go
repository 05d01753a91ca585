// Command vmtest boots a throw-away guest and plays in it what the kernel at
// hand cannot: power cuts at chosen writes, media that lie, disks that are
// pulled out. The guest is a Debian kernel under software emulation, with one
// program in it, ./guest, that is all of its user space.
//
// Read it in this order: main.go (what is done), kernel.go (where the kernel
// comes from), module.go and archive.go (what the guest is made of), boot.go,
// then guest/main.go.
package main

import (
	"context"
	"encoding/json"
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

// job is what the guest is told. It is a file in the guest.
type job struct {
	Seed    uint64
	Cuts    int      // power cuts for each way to lay out the target
	Only    string   // part of the name of the scenarios to play
	Modules []string // paths, in the order in which they are loaded
	Debug   bool     // print what failback says
}

// settings are the command line.
type settings struct {
	job
	kernel, modules string // a kernel and its folder of modules, "" to get them
	cache           string
	timeout         time.Duration
	accel           string
	memory          int // MiB
	console         bool
}

func main() {
	var s settings
	flag.Uint64Var(&s.Seed, "seed", 0, "of all chance (default: a new one, which is printed)")
	flag.IntVar(&s.Cuts, "cuts", 40, "power cuts for each way to lay out the target")
	flag.StringVar(&s.Only, "run", "", "play scenarios with this in their name only")
	flag.StringVar(&s.kernel, "kernel", os.Getenv("VMTEST_KERNEL"), "a Linux image to boot, instead of Debian's; with -modules")
	flag.StringVar(&s.modules, "modules", os.Getenv("VMTEST_MODULES"), "its folder of modules, as /lib/modules/VERSION")
	flag.StringVar(&s.cache, "cache", defaultCache(), "where the kernel is kept")
	flag.DurationVar(&s.timeout, "timeout", 30*time.Minute, "after which the guest is stopped")
	flag.StringVar(&s.accel, "accel", "tcg,thread=multi", "what QEMU runs the guest with")
	flag.IntVar(&s.memory, "memory", 1536, "of the guest, MiB")
	flag.BoolVar(&s.console, "console", false, "print what the guest's kernel says too")
	flag.BoolVar(&s.Debug, "debug", false, "print what failback says in the guest")
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

func play(ctx context.Context, s settings) error {
	began := time.Now()
	if err := install(ctx, s.modules == ""); err != nil {
		return err
	}
	if err := s.getKernel(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmtest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initrd")
	if err := s.makeGuest(ctx, dir, initrd); err != nil {
		return fmt.Errorf("make the guest: %w", err)
	}
	fmt.Printf("vmtest: kernel %s, emulated; seed %d (-seed repeats it)\n", filepath.Base(s.modules), s.Seed)
	err = s.boot(ctx, initrd)
	fmt.Printf("vmtest: took %v\n", time.Since(began).Round(time.Second))
	return err
}

// wanted are the modules the scenarios need; one that is built in is not found,
// which the guest notices if it is not so.
var wanted = []string{"brd", "ext4", "crc32c_generic", "dm-mod", "dm-log-writes", "dm-flakey", "scsi_debug", "sd_mod"}

// fsSize is the size of the empty ext4 that the guest finds.
const fsSize = 48 << 20 // bytes

// makeGuest builds the programs and packs all of the guest.
func (s *settings) makeGuest(ctx context.Context, dir, initrd string) error {
	for name, pkg := range map[string]string{"init": "./internal/vmtest/guest", "failback": "./cmd/failback"} {
		c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, name), pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if err := loud(c); err != nil {
			return err
		}
	}
	image := filepath.Join(dir, "ext4")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, fsSize); err != nil {
		return err
	}
	if err := loud(exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)); err != nil {
		return err
	}
	out, err := os.Create(initrd)
	if err != nil {
		return err
	}
	defer out.Close()
	a := newArchive(out)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "mnt", "modules"} {
		a.dir(d)
	}
	a.console("dev/console")
	if err := s.addModules(a); err != nil {
		return err
	}
	told, err := json.Marshal(s.job)
	if err != nil {
		return err
	}
	a.file("job.json", 0o600, told)
	if err := loud(exec.CommandContext(ctx, "gzip", "-1", image)); err != nil {
		return err
	}
	for name, mode := range map[string]os.FileMode{"init": 0o755, "failback": 0o755, "ext4.gz": 0o600} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		a.file(name, mode, content)
	}
	return a.close()
}

// addModules packs the modules and tells the guest their order.
func (s *settings) addModules(a *archive) error {
	index, err := indexModules(s.modules)
	if err != nil {
		return err
	}
	list, err := index.order(wanted)
	if err != nil {
		return err
	}
	for _, m := range list {
		name := "modules/" + m.name + ".ko"
		a.file(name, 0o600, m.content)
		s.job.Modules = append(s.job.Modules, "/"+name)
	}
	return nil
}

// loud runs a command; what it says is in the error.
func loud(c *exec.Cmd) error {
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, out)
	}
	return nil
}
