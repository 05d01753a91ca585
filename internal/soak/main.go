// Command soak syncs two volumes for hours while an application writes to them
// and everything around them fails, and looks whether they are equal each time,
// and whether the server that lives through it all grows.
//
// Read it in this order: main.go (how long, and what counts), round.go (what is
// done), undo.go (and undone), fault.go (what goes wrong), volume.go, process.go, link.go (with what),
// watch.go (whether it stays flat).
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

// soak is one run of this program.
type soak struct {
	bin, dir string
	dice     *rand.Rand
	knows    map[string]bool // flags of failback sync that this build has
	timeout  time.Duration   // what no command may take

	a, b    *volume
	forward bool    // a is the source
	old     *server // lives through it all, and is watched
	young   *server // killed and started again
	link    *link
	watch   watch
	tally   tally
	usual   time.Duration // what a sync takes that nothing disturbs, about
	mapped  bool          // the sync before had the dirty map
	tainted bool          // what was written since may hide behind a journal that is still there

	interrupted bool            // there is a journal at the target
	chain       string          // the undo log that it names
	before      []byte          // what the target held before the sync that goes on; nil: not noted
	undos       []undoLog       // undone from the last to the first, they lead back
	logs        map[string]bool // paths of all undo logs that are there
}

// tally counts what happened.
type tally struct {
	rounds, syncs, equal int
	faults               map[fault]int
	failed               int // syncs that ended with exit code 3, as they had to
	undone, undosKilled  int
	resumed, repaired    int
	written, wire        int64 // bytes, by the application and on links
}

func main() {
	var (
		length = flag.Duration("for", time.Hour, "how long")
		size   = flag.Int64("size", 96<<20, "of each volume, bytes")
		seed   = flag.Uint64("seed", 0, "of all chance (default: a new one, which is printed)")
		dir    = flag.String("dir", "", "for the volumes (default: a temporary one)")
	)
	flag.Parse()
	if *seed == 0 {
		*seed = rand.Uint64()>>1 + 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Printf("soak: %v, volumes of %d MiB, seed %d (-seed repeats the choices, not the timing)\n", *length, *size>>20, *seed)
	dirUsed, err := os.MkdirTemp(*dir, "soak")
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
	s := &soak{dir: dirUsed, dice: rand.New(rand.NewPCG(*seed, 1)), timeout: 3 * time.Minute, forward: true, usual: time.Second}
	if err := s.run(ctx, *length, *size); err != nil {
		fmt.Fprintf(os.Stderr, "soak: FAILED: %v\nsoak: volumes and files are kept in %s\n", err, s.dir)
		os.Exit(1)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("soak: passed")
}

func (s *soak) path(name string) string { return filepath.Join(s.dir, name) }

// run plays rounds for the given time. Whatever a round finds wrong ends it.
func (s *soak) run(ctx context.Context, length time.Duration, size int64) (err error) {
	if err := s.prepare(ctx, size); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tearDown()) }()
	begin := time.Now()
	minute := begin.Add(time.Minute)
	for time.Since(begin) < length && ctx.Err() == nil {
		if err := s.round(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("round %d, after %v: %w", s.tally.rounds, time.Since(begin).Round(time.Second), err)
		}
		if err := s.watch.sample(s.old); err != nil {
			return err
		}
		if now := time.Now(); now.After(minute) {
			minute = now.Add(time.Minute)
			s.tell(time.Since(begin))
		}
	}
	s.tell(time.Since(begin))
	return s.watch.verdict()
}

// prepare builds the program and sets up volumes, servers and the link.
func (s *soak) prepare(ctx context.Context, size int64) error {
	s.bin = s.path("failback")
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", s.bin, "./cmd/failback")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	help, err := exec.CommandContext(ctx, s.bin, "sync", "--help").Output()
	if err != nil {
		return err
	}
	s.knows = map[string]bool{}
	for _, f := range []string{"--resume", "--undo", "--retry-for", "--repair"} {
		s.knows[f] = strings.Contains(string(help), f+" ") && (f != "--undo" || exec.CommandContext(ctx, s.bin, "undo", "--help").Run() == nil)
		if !s.knows[f] {
			fmt.Printf("soak: this failback has no sync %s: it is left out\n", f)
		}
	}
	s.tally.faults = map[fault]int{}
	content := noise(s.dice, int(size))
	if s.a, err = newVolume(s.path("a.img"), content); err != nil {
		return err
	}
	if s.b, err = newVolume(s.path("b.img"), content); err != nil {
		return err
	}
	if err = s.forget(); err != nil {
		return err
	}
	if s.old, err = s.serve("old"); err != nil {
		return err
	}
	if s.young, err = s.serve("young"); err != nil {
		return err
	}
	s.link, err = newLink(s.path("link.sock"))
	return err
}

// tearDown ends what runs, and requires that the servers end well and leave no
// socket.
func (s *soak) tearDown() error {
	var err error
	for _, v := range []*server{s.old, s.young} {
		if v != nil {
			err = errors.Join(err, v.stop())
		}
	}
	if s.link != nil {
		err = errors.Join(err, s.link.close())
	}
	left, globErr := filepath.Glob(s.path("*.sock"))
	if err = errors.Join(err, globErr); err == nil && len(left) > 0 {
		err = fmt.Errorf("sockets are left: %q", left)
	}
	return err
}

// tell prints a line.
func (s *soak) tell(since time.Duration) {
	t := &s.tally
	var faults []string
	for _, f := range allFaults {
		if n := t.faults[f]; n > 0 {
			faults = append(faults, fmt.Sprintf("%d %v", n, f))
		}
	}
	fmt.Printf("soak: %v: %d rounds, %d times equal, %d syncs (%d ended early; %d resumed, %d repaired; %s), %d undone (undo killed %d times), %.1f GiB written, %.1f GiB on links; the old server: %v\n",
		since.Round(time.Second), t.rounds, t.equal, t.syncs, t.failed, t.resumed, t.repaired, strings.Join(faults, ", "), t.undone, t.undosKilled,
		float64(t.written)/(1<<30), float64(t.wire)/(1<<30), s.watch.last())
}
