// Command guest is all of the user space of a throw-away guest: it loads the
// kernel's modules, plays the scenarios, says how each went, and switches the
// guest off. It wants to be process 1 and to be alone, and does nothing else.
//
// Read it in this order: main.go, volume.go (what is on the disks), dm.go and
// writes.go (the kernel's device mapper, and the log of all writes it keeps),
// then the scenarios about media: power.go, liar.go, pulled.go. Those about the
// kernel's tracker: kinds.go (which devices), md.go and nbd.go (how some
// of them are made), track.go and live.go.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// job is what the host tells. See the command vmtest.
type job struct {
	Part    string
	Seed    uint64
	Cuts    int
	Only    string
	Tests   string
	Modules []string
	Debug   bool
}

// guest is what the scenarios share.
type guest struct {
	job
	dice  *rand.Rand
	knows map[string]bool // flags of failback sync that this build has
}

// scenario is one thing to show. It returns what it did, in a sentence.
type scenario struct {
	name string
	play func(g *guest) (string, error)
}

// The parts of the job, and their scenarios.
const (
	media   = "media"
	tracker = "tracker"
)

func (g *guest) scenarios() ([]scenario, error) {
	switch g.Part {
	case media:
		return mediaScenarios, nil
	case tracker:
		return trackerScenarios(), nil
	}
	return nil, fmt.Errorf("no part is called %q", g.Part)
}

var mediaScenarios = []scenario{
	{"power cut, target a device", func(g *guest) (string, error) { return g.powerCuts(powerSet{}) }},
	{"power cut, target a file", func(g *guest) (string, error) { return g.powerCuts(powerSet{file: true}) }},
	{"power cut in undo, target a device", func(g *guest) (string, error) { return g.powerCuts(powerSet{undoing: true}) }},
	{"power cut in undo, target a file", func(g *guest) (string, error) { return g.powerCuts(powerSet{file: true, undoing: true}) }},
	{"medium that loses writes", func(g *guest) (string, error) { return g.liar("1 drop_writes", wrongMedium) }},
	{"medium that changes a byte of each write", func(g *guest) (string, error) { return g.liar("5 corrupt_bio_byte 77 w 165 0", wrongMedium) }},
	{"medium that refuses writes", func(g *guest) (string, error) { return g.liar("1 error_writes", inputOutput) }},
	{"source pulled out", func(g *guest) (string, error) { return g.pulled(true) }},
	{"target pulled out", func(g *guest) (string, error) { return g.pulled(false) }},
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a guest that go run ./internal/vmtest boots; it is of no use elsewhere")
		os.Exit(2)
	}
	failures := 1
	if err := play(&failures); err != nil {
		say("%v", err)
	}
	say("failures %d", failures)
	unix.Sync()
	// Only an error returns from here, and there is nobody to tell.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// say prints lines that the host knows for ours.
func say(format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Printf("vmtest: %s\n", strings.TrimRight(line, "\n"))
	}
}

func play(failures *int) error {
	if err := mountSystem(); err != nil {
		return err
	}
	g := &guest{knows: map[string]bool{}}
	told, err := os.ReadFile("/job.json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(told, &g.job); err != nil {
		return err
	}
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	for _, path := range g.Modules {
		if err := load(path); err != nil {
			return err
		}
	}
	if err := g.learn(); err != nil {
		return err
	}
	scenarios, err := g.scenarios()
	if err != nil {
		return err
	}
	*failures = 0
	for i, s := range scenarios {
		if !matches(s.name, g.Only) {
			continue
		}
		g.dice = rand.New(rand.NewPCG(g.Seed, uint64(i)))
		begin := time.Now()
		did, err := s.play(g)
		took := time.Since(begin).Round(time.Second)
		if err != nil {
			*failures++
			say("FAIL %s (%v): %v", s.name, took, err)
			continue
		}
		say("ok   %s (%v): %s", s.name, took, did)
	}
	return nil
}

func mountSystem() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"bpf", "/sys/fs/bpf"}, {"tmpfs", "/dev/shm"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil && m.kind == "tmpfs" {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.kind, err)
		}
	}
	return nil
}

// options of modules, by path.
var options = map[string]string{
	"/modules/brd.ko":        fmt.Sprintf("rd_nr=%d rd_size=%d", ramDisks, ramSize>>10),
	"/modules/scsi_debug.ko": fmt.Sprintf("dev_size_mb=%d lbpu=1 lbpws=1", diskSize>>20),
	"/modules/null_blk.ko":   "nr_devices=1 gb=1 zoned=1 zone_size=16",
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), options[path], 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// learn finds out which flags this build of failback has.
func (g *guest) learn() error {
	help, err := g.failback("sync", "--help")
	if err != nil {
		return err
	}
	undo, err := g.failback("undo", "--help")
	if err != nil {
		return err
	}
	var lacks []string
	for _, f := range []string{"--resume", "--undo", "--state"} {
		g.knows[f] = strings.Contains(help.stdout, " "+f+" ") && (f != "--undo" || undo.code == 0)
		if !g.knows[f] {
			lacks = append(lacks, f)
		}
	}
	if len(lacks) > 0 {
		say("this failback has no sync %s: what depends on it is not shown", strings.Join(lacks, ", "))
	}
	return nil
}

// outcome is how a run of failback ended.
type outcome struct {
	code           int
	stdout, stderr string
	took           time.Duration
}

func (o outcome) String() string { return fmt.Sprintf("exit code %d: %s", o.code, o.stderr) }

// failback runs it to its end. Only one that cannot be started is an error.
func (g *guest) failback(args ...string) (outcome, error) {
	c := exec.Command("/failback", args...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	begin := time.Now()
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, fmt.Errorf("run failback: %w", err)
	}
	o := outcome{c.ProcessState.ExitCode(), stdout.String(), strings.TrimSpace(stderr.String()), time.Since(begin)}
	if g.Debug {
		say("failback %s (%v)\n%s", strings.Join(args, " "), o.took, o)
	}
	return o, nil
}

// must runs failback and requires exit code 0.
func (g *guest) must(args ...string) error {
	o, err := g.failback(args...)
	if err == nil && o.code != 0 {
		err = fmt.Errorf("failback %s: %v", args[0], o)
	}
	return err
}

// until asks again and again, for what the kernel does in its own time.
func until(what string, happened func() bool) error {
	late := time.Now().Add(time.Minute)
	for !happened() {
		if time.Now().After(late) {
			return fmt.Errorf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// matches reports whether a name holds one of the texts that are separated by |.
func matches(name, texts string) bool {
	return slices.ContainsFunc(strings.Split(texts, "|"), func(s string) bool { return strings.Contains(name, s) })
}
