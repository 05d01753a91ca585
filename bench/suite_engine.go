package bench

import (
	"errors"
	"strconv"
	"time"
)

// Names of cases that goals speak of.
const (
	caseFloor     = "floor 64K"
	caseFloorBack = "floor 64K, read back"
	caseBothRead  = "blocksync-fast, both read"
	caseDigest    = "blocksync-fast, digest kept"
	withoutUndo   = "failback, no undo"
)

func (b *Bench) engine() (engine, error) {
	e := engine{binary: b.Failback, set: b.Set}
	return e, e.find()
}

// peer returns the case of one public tool, or none where it is not installed.
func (b *Bench) peer(name string) ([]Case, error) {
	for _, p := range peers {
		if p.name != name {
			continue
		}
		c, err := p.bringInLine(b.Set)
		if errors.Is(err, errNotInstalled) {
			b.miss(err)
			return nil, nil
		}
		return []Case{c}, err
	}
	return nil, errors.New("no adapter for " + name)
}

// exactScenarios: all that differs is known from a map.
func (b *Bench) exactScenarios(cold bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range usual[1:] { // a map of nothing is nothing to measure
		div, err := b.Set.Plan(d)
		if err != nil {
			return nil, err
		}
		cases, err := b.sendFloors(d, cold)
		if err != nil {
			return nil, err
		}
		cases = append(cases, e.exact("failback, 4K map", div.PieceList), e.exact("failback, 64K map", div.LeafList),
			e.exact("failback, 64K map, zstd", div.LeafList, "--codec", "zstd"))
		out = append(out, Scenario{Name: d.String(), Divergence: d, Cases: cases, Against: caseFloorBack})
	}
	return out, nil
}

// merkleScenarios: nothing is known, both sides are read.
func (b *Bench) merkleScenarios(cold bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range usual {
		cases, err := b.peer(caseBothRead)
		if err != nil {
			return nil, err
		}
		cases = append(cases, b.hashFloor("none", cold, b.Set.Source, b.Set.Target),
			b.hashFloor("gmac", cold, b.Set.Source, b.Set.Target),
			e.sync("failback", "--rung", "merkle"))
		out = append(out, Scenario{Name: d.String(), Divergence: d, Cases: cases, Against: cases[0].Name})
	}
	return out, nil
}

// keptScenarios: a tree of the target was kept, so that only the source is read; then trees of both.
func (b *Bench) keptScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range usual {
		cases, err := b.peer(caseDigest)
		if err != nil {
			return nil, err
		}
		cases = append(cases, e.kept("failback, target's tree", false), e.kept("failback, both trees", true))
		out = append(out, Scenario{Name: d.String(), Divergence: d, Cases: cases, Against: cases[0].Name,
			Chill: []string{e.file("target.fbt"), e.file("source.fbt")}})
	}
	return out, nil
}

// digestScenarios: commands that only read, against loops that only read and hash.
func (b *Bench) digestScenarios(cold bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, h := range []string{"blake3", "sha256"} {
		floor := b.hashFloor(h, cold, b.Set.Source)
		out = append(out, Scenario{Name: h, Cases: []Case{floor, e.digest(h), e.verifyDigest(h)}, Against: floor.Name})
	}
	floor := b.hashFloor("gmac", cold, b.Set.Source, b.Set.Target)
	for _, d := range []Divergence{{}, {Percent: 1}} {
		out = append(out, Scenario{Name: "A B " + d.String(), Divergence: d, Cases: []Case{floor, e.verify(d.Percent > 0)}, Against: floor.Name})
	}
	return out, nil
}

// copyScenarios: so much differs that it is a copy.
func (b *Bench) copyScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range []Divergence{{Percent: 50, Runs: true}, {Percent: 100, Runs: true}} {
		div, err := b.Set.Plan(d)
		if err != nil {
			return nil, err
		}
		back := b.floor("read back", "read", "-list", div.LeafList, b.Set.Target)
		back.Reads = true
		out = append(out, Scenario{Name: d.String(), Divergence: d, Against: "plain copy", Cases: []Case{
			b.floor("plain copy", "copy", "-list", div.LeafList, b.Set.Source, b.Set.Target), back,
			e.exact("failback, none", div.LeafList, "--codec", "none"),
			e.exact("failback, auto", div.LeafList),
		}})
	}
	return out, nil
}

// undoScenarios: with a map, so that reading for the comparison hides as little as possible.
func (b *Bench) undoScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range []Divergence{{Percent: 1}, {Percent: 10}, {Percent: 10, Runs: true}, {Percent: 50}} {
		div, err := b.Set.Plan(d)
		if err != nil {
			return nil, err
		}
		out = append(out, Scenario{Name: d.String(), Divergence: d, Against: withoutUndo, Cases: []Case{
			e.exact(withoutUndo, div.LeafList), e.undo("failback, undo", div.LeafList),
		}})
	}
	return out, nil
}

// megabit is 1 Mbit/s in bytes a second.
const megabit = 1e6 / 8

// relay is the command line of a line in front of a server, as far as its two sockets.
func (b *Bench) relay(delay time.Duration, rate int64) []string {
	return []string{b.Self, "link", "-delay", delay.String(), "-rate", strconv.FormatInt(rate, 10)}
}

// lineScenarios: a line of 100 Mbit/s, where compressing pays.
func (b *Bench) lineScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	d := Divergence{Percent: 1, Runs: true}
	sc := Scenario{Name: "100 Mbit/s " + d.String(), Divergence: d, Against: "failback, none"}
	div, err := b.Set.Plan(d)
	if err != nil {
		return nil, err
	}
	for _, codec := range []string{"none", "lz4", "zstd-fast", "zstd", "auto"} {
		exact := e.exact("", div.LeafList)
		c := e.remote("failback, "+codec, b.relay(0, 100*megabit), "--codec", codec, "--dirty", exact.dirtyMap())
		c.Prepare = exact.Prepare
		sc.Cases = append(sc.Cases, c)
	}
	return []Scenario{sc}, nil
}

// dirtyMap returns the path that the case gives to --dirty.
func (c Case) dirtyMap() string {
	for i, a := range c.Args[:len(c.Args)-1] {
		if a == "--dirty" {
			return c.Args[i+1]
		}
	}
	return ""
}

// delayScenarios: a line with a round trip of 20 ms, nothing known.
func (b *Bench) delayScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	var out []Scenario
	for _, d := range []Divergence{{}, {Percent: 1}} {
		out = append(out, Scenario{Name: d.String(), Divergence: d, Cases: []Case{
			e.remote("failback, no delay", b.relay(0, 0), "--rung", "merkle"),
			e.remote("failback, 20 ms", b.relay(10*time.Millisecond, 0), "--rung", "merkle"),
			e.remote("failback, 100 ms", b.relay(50*time.Millisecond, 0), "--rung", "merkle"),
		}})
	}
	return out, nil
}
