package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/failback/failback/cbt"
)

func (s *soak) source() *volume {
	if s.forward {
		return s.a
	}
	return s.b
}

func (s *soak) target() *volume {
	if s.forward {
		return s.b
	}
	return s.a
}

// way is which side is at a server.
type way int

const (
	push way = iota
	pull
	relay
)

// trip is one way to run a sync.
type trip struct {
	server  *server
	live    bool // an application writes to the source meanwhile
	mapped  bool // with the dirty map
	undo    bool
	resume  bool
	retry   bool
	repair  bool
	slow    bool // so that there is a barrier before the last
	way     way
	fault   fault
	command []string
}

// attempts is how many syncs a round may take until the volumes are equal. The
// last ones are undisturbed.
const attempts = 12

// round lets applications write, then syncs until the volumes are equal.
func (s *soak) round(ctx context.Context) error {
	s.tally.rounds++
	if s.dice.IntN(6) == 0 {
		s.forward = !s.forward
	}
	if err := s.source().works(s.dice, 1+s.dice.IntN(60)); err != nil {
		return err
	}
	if s.dice.IntN(3) == 0 { // the tail
		if err := s.target().works(s.dice, 1+s.dice.IntN(10)); err != nil {
			return err
		}
	}
	for i := range attempts {
		done, err := s.attempt(ctx, i)
		if err != nil {
			return fmt.Errorf("sync %d: %w", i, err)
		}
		if done {
			return s.finish()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("not equal after %d syncs", attempts)
}

// finish is what is done once a sync said that the volumes are equal.
func (s *soak) finish() error {
	if err := same(s.source(), s.target()); err != nil {
		return fmt.Errorf("a sync said that the volumes are equal: %w", err)
	}
	if err := s.forget(); err != nil {
		return err
	}
	s.tally.equal++
	s.tally.written = s.a.wrote.Load() + s.b.wrote.Load()
	s.tally.wire = s.link.bytes()
	s.link.lead(s.old.socket, -1)
	there := "unix://" + s.path("link.sock") + "?volume=" + s.name(s.target())
	switch s.dice.IntN(12) {
	case 0:
		return s.must(0, "verify", "-q", s.source().path, there)
	case 1:
		// A bit that no map knows of: it is found, and made good.
		if err := s.target().flip(s.dice.Int64N(s.target().size)); err != nil {
			return err
		}
		s.tally.faults[flipBit]++
		if err := s.must(1, "verify", "-q", s.source().path, there); err != nil {
			return err
		}
		if err := s.must(0, "sync", "-q", "--verify", "full", s.source().path, there); err != nil {
			return err
		}
		return same(s.source(), s.target())
	}
	return nil
}

func (s *soak) name(v *volume) string {
	if v == s.a {
		return "a"
	}
	return "b"
}

// choose decides how the i-th sync of a round is run. The later, the calmer.
func (s *soak) choose(i int) trip {
	t := trip{server: s.old, mapped: s.dice.IntN(3) > 0}
	if s.dice.IntN(3) == 0 {
		t.server = s.young
	}
	if i < attempts/2 && s.dice.IntN(2) == 0 {
		t.fault = allFaults[s.dice.IntN(len(allFaults))]
	}
	if t.fault == killServer {
		t.server = s.young
	}
	t.live = i < 2 && s.dice.IntN(3) == 0
	t.way = [...]way{push, push, pull, pull, relay}[s.dice.IntN(5)]
	t.undo = s.knows["--undo"] && s.dice.IntN(2) == 0
	t.repair = s.knows["--repair"] && (t.fault == flipBit || s.dice.IntN(8) == 0)
	t.slow = t.fault == killCommand && s.dice.IntN(4) == 0
	// Nothing may have changed since the journal was made but the target, and that
	// only by the sync.
	if s.interrupted && !s.tainted {
		t.resume = s.knows["--resume"] && s.dice.IntN(4) > 0
		t.mapped, t.live = s.mapped, false
	}
	if t.resume {
		// What was begun with an undo log goes on with it, what was not does not.
		t.undo = s.knows["--undo"] && s.chain != ""
	}
	t.retry = s.knows["--retry-for"] && (t.fault == cutLink || t.fault == killServer) && s.dice.IntN(2) == 0
	return t
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// arguments are the command line.
func (s *soak) arguments(t trip) []string {
	args := []string{"sync", "--json"}
	if t.mapped {
		args = append(args, "--dirty", s.path("dirty.fbm"))
	}
	if t.undo && t.way == pull {
		args = append(args, "--undo", s.path(undoDir))
	} else if t.undo {
		args = append(args, "--undo-served")
	}
	if t.repair {
		args = append(args, "--repair")
	}
	if t.resume {
		args = append(args, "--resume")
	}
	if s.knows["--retry-for"] && !t.retry {
		args = append(args, "--retry-for", "0")
	}
	pick := func(of ...string) string { return of[s.dice.IntN(len(of))] }
	args = append(args, "--codec", pick("auto", "auto", "none", "lz4", "zstd"), "--streams", pick("1", "1", "2", "4"))
	if t.slow {
		args = append(args, "--limit", "1MiB/s", "--window", "2MiB")
	} else if s.dice.IntN(2) == 0 {
		args = append(args, "--limit", pick("8MiB/s", "32MiB/s", "64MiB/s"))
	}
	if !t.live && s.dice.IntN(4) == 0 {
		args = append(args, "--verify", "full")
	}
	if !t.live && s.dice.IntN(8) == 0 {
		args = append(args, "--seal")
	}
	from, to := s.source().path, s.target().path
	remote := func(v *volume) string { return "unix://" + s.path("link.sock") + "?volume=" + s.name(v) }
	if t.way != push {
		from = remote(s.source())
	}
	if t.way != pull {
		to = remote(s.target())
	}
	return append(args, from, to)
}

// attempt runs one sync, disturbed or not, and reports whether both volumes
// must be equal now.
func (s *soak) attempt(ctx context.Context, i int) (equal bool, err error) {
	if err := s.look(); err != nil {
		return false, err
	}
	t := s.choose(i)
	s.mapped = t.mapped
	s.tainted = s.tainted || t.live || t.fault == flipBit
	t.command = s.arguments(t)
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n(failback %s; live %v, %v)", err, strings.Join(t.command, " "), t.live, t.fault)
		}
	}()
	taken, err := s.take(ctx)
	if err != nil {
		return false, err
	}
	// Until it is proven that they are equal, everything taken is put back (L2).
	var proven []cbt.Extent
	defer func() {
		for v, m := range taken {
			err = errors.Join(err, v.tracker.PutBack(m, proven))
		}
	}()
	if err := s.expect(t); err != nil {
		return false, err
	}
	code := 0
	run := func() error {
		code, err = s.perform(t)
		return err
	}
	if t.live {
		err = s.live(ctx, run)
	} else {
		err = run()
	}
	if err != nil {
		return false, err
	}
	if undone, err := s.mayUndo(t); undone || err != nil {
		return false, err
	}
	if code != 0 || t.fault == flipBit {
		return false, nil
	}
	proven = []cbt.Extent{{Off: 0, End: s.a.size}}
	s.tainted, s.undos = false, nil // nothing is to lead back behind what is no longer in a map
	return !t.live, nil
}

// take takes the maps of both trackers and saves their union.
func (s *soak) take(ctx context.Context) (map[*volume]*cbt.Taken, error) {
	taken := map[*volume]*cbt.Taken{}
	all, err := cbt.NewDirtyMap(s.a.size, cbt.BlockSize(s.a.size))
	if err != nil {
		return nil, err
	}
	for _, v := range []*volume{s.a, s.b} {
		if taken[v], err = v.tracker.Take(ctx, v.epoch); err != nil {
			return nil, err
		}
		for r := range taken[v].Runs() {
			all.Add(r)
		}
	}
	return taken, all.Map().Save(s.path("dirty.fbm"))
}

// perform runs the sync and judges how it ended.
func (s *soak) perform(t trip) (code int, err error) {
	m, err := cbt.LoadMap(s.path("dirty.fbm"))
	if err != nil {
		return 0, err
	}
	if len(m.Extents()) == 0 && t.fault == flipBit {
		t.fault = nothing
	}
	cut := int64(-1)
	if t.fault == cutLink {
		cut = s.dice.Int64N(16 << 20)
	}
	s.link.lead(t.server.socket, cut)
	// A server may need a moment to see that an earlier peer is gone.
	for late := time.Now().Add(30 * time.Second); ; {
		begin := time.Now()
		p, err := s.start(t.command...)
		if err != nil {
			return 0, err
		}
		if err := s.strike(t.fault, t, p, m.Extents()); err != nil {
			return 0, err
		}
		if code, err = p.wait(s.timeout); err != nil {
			return 0, err
		}
		if code == 4 && strings.Contains(p.said.String(), "another failback holds it") && time.Now().Before(late) {
			continue
		}
		s.tally.syncs++
		s.tally.faults[t.fault]++
		if t.resume {
			s.tally.resumed++
		}
		if repaired(t, p, code) {
			s.tally.repaired++
		}
		if code == 0 && !t.slow {
			s.usual = (s.usual*7 + time.Since(begin)) / 8
		}
		return code, s.judge(t, p, code)
	}
}

// judge says whether a sync may end as it did.
func (s *soak) judge(t trip, p *process, code int) error {
	switch {
	case code == 0:
		return nil
	case code == -1 && (t.fault == killCommand || t.fault == endCommand): // before its handler was set up
		s.tally.failed++
		return nil
	case code == 3 && t.fault != nothing && t.fault != freezeServer && (!t.retry || !strings.Contains(p.said.String(), "plan: ")):
		s.tally.failed++
		var told struct{ State, Next string }
		if err := json.Unmarshal(p.stdout.Bytes(), &told); err != nil {
			return fmt.Errorf("what it told: %w", err)
		}
		if told.State == "" || told.Next == "" {
			return fmt.Errorf("told no state or no next step: %s", p.stdout.String())
		}
		return nil
	}
	return fmt.Errorf("exit code %d; it said:\n%s%s", code, p.stdout.String(), p.said.String())
}

// repaired reports whether a sync found its target's medium wrong and made it good.
func repaired(t trip, p *process, code int) bool {
	var told struct{ Attempts int }
	return t.repair && t.fault == flipBit && code == 0 && json.Unmarshal(p.stdout.Bytes(), &told) == nil && told.Attempts > 1
}
