package bench

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/failback/failback/bench/floor"
)

// A Bench is what suites are built from: images, the program under test, and the program that runs the floors.
type Bench struct {
	Set      *Set
	Failback string // path of the failback binary; empty: measure the others only
	Self     string // path of a program that runs "floor" as failback-bench does
	Slow     bool   // with what takes minutes
	Missing  []string
}

// A Suite is a group of scenarios that answer one question.
type Suite struct {
	Name, Asks string
	scenarios  func(b *Bench, cold bool) ([]Scenario, error)
}

// Suites returns what can be run, in the order of `all`.
func Suites() []Suite {
	return []Suite{
		{"peers", "what do the public tools and a plain copy need?", (*Bench).peerScenarios},
		{"floors", "how fast can this machine read and hash?", (*Bench).floorScenarios},
		{"exact", "what differs is known from a map: how close to the floor?", (*Bench).exactScenarios},
		{"merkle", "nothing is known and both sides are read: how close to the fastest peer?", (*Bench).merkleScenarios},
		{"kept", "a tree of the target was kept: how close to the fastest peer with a digest?", (*Bench).keptScenarios},
		{"digest", "digest and verify: how close to a loop that only reads and hashes?", (*Bench).digestScenarios},
		{"copy", "half of it or all differs: how close to a copy?", (*Bench).copyScenarios},
		{"undo", "what is overwritten is saved first: what does that cost?", (*Bench).undoScenarios},
		{"line", "a line of 100 Mbit/s: does auto choose well?", (*Bench).lineScenarios},
		{"network", "real connections over narrow and lossy lines", (*Bench).networkScenarios},
		{"huge", "16 TiB with little in it: what memory and time does it take?", (*Bench).hugeScenarios},
		{"delay", "a long line: what does a round trip cost?", (*Bench).delayScenarios},
	}
}

// Scenarios builds the scenarios of a suite, warm or cold.
func (b *Bench) Scenarios(name string, cold bool) ([]Scenario, error) {
	i := slices.IndexFunc(Suites(), func(s Suite) bool { return s.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("suite %q: not known", name)
	}
	out, err := Suites()[i].scenarios(b, cold)
	if err != nil {
		return nil, fmt.Errorf("suite %s: %w", name, err)
	}
	temperature := "warm"
	if cold {
		temperature = "cold"
	}
	for i := range out {
		out[i].Cold = cold
		out[i].Name = name + " " + out[i].Name + " " + temperature
	}
	return out, nil
}

// usual are the divergences that everything is measured at.
var usual = []Divergence{{}, {Percent: 0.1}, {Percent: 1}, {Percent: 10}, {Percent: 50}, {Percent: 1, Runs: true}}

func (b *Bench) peerScenarios(cold bool) ([]Scenario, error) {
	var out []Scenario
	for _, d := range usual {
		sc := Scenario{Name: d.String(), Divergence: d}
		for _, p := range peers {
			if p.slow && !b.Slow {
				continue
			}
			c, err := p.bringInLine(b.Set)
			if errors.Is(err, errNotInstalled) {
				b.miss(err)
				continue
			}
			if err != nil {
				return nil, err
			}
			sc.Cases = append(sc.Cases, c)
		}
		floors, err := b.sendFloors(d, cold)
		if err != nil {
			return nil, err
		}
		sc.Cases = append(sc.Cases, floors...)
		sc.Cases = append(sc.Cases, b.floor("plain copy", "copy", b.Set.Source, b.Set.Target))
		sc.Against = floors[0].Name
		out = append(out, sc)
	}
	return out, nil
}

func (b *Bench) miss(err error) {
	if s := err.Error(); !slices.Contains(b.Missing, s) {
		b.Missing = append(b.Missing, s)
	}
}

// sendFloors are the ways to send what is known to differ.
func (b *Bench) sendFloors(d Divergence, cold bool) ([]Case, error) {
	div, err := b.Set.Plan(d)
	if err != nil {
		return nil, err
	}
	direct := strconv.FormatBool(cold)
	send := func(name, list string, more ...string) Case {
		args := append([]string{"-list", list, "-direct=" + direct}, more...)
		return b.floor(name, "send", append(args, b.Set.Source, b.Set.Target)...)
	}
	return []Case{
		send(caseFloor, div.LeafList),
		send("floor 64K s2", div.LeafList, "-s2"),
		send(caseFloorBack, div.LeafList, "-read-back"),
		send("floor 4K", div.PieceList),
		send("floor 4K, read back", div.PieceList, "-read-back"),
	}, nil
}

// floor is a floor in a process of its own, as what is held against it.
func (b *Bench) floor(name, kind string, args ...string) Case {
	return Case{Name: name, Args: append([]string{b.Self, "floor", kind}, args...), Facts: jsonFacts}
}

// floorScenarios read and hash one side and both.
func (b *Bench) floorScenarios(cold bool) ([]Scenario, error) {
	var out []Scenario
	for _, side := range []struct {
		name  string
		paths []string
	}{{"one side", []string{b.Set.Source}}, {"both sides", []string{b.Set.Source, b.Set.Target}}} {
		sc := Scenario{Name: side.name}
		for _, h := range floor.Hashes() {
			sc.Cases = append(sc.Cases, b.hashFloor(h, cold, side.paths...))
		}
		out = append(out, sc)
	}
	return out, nil
}

func (b *Bench) hashFloor(hash string, direct bool, paths ...string) Case {
	args := append([]string{"-hash", hash, "-direct=" + strconv.FormatBool(direct)}, paths...)
	c := b.floor("read, "+hash, "hash", args...)
	c.Reads = true
	return c
}
