package bench

import (
	"fmt"
	"io"
	"strings"
)

// A Verdict is one goal, held against the medians of one run.
type Verdict struct {
	Scenario, Case string
	Goal           string  // in words
	Got, Limit     float64 // in the unit the goal names
}

// Met reports whether the goal was reached.
func (v Verdict) Met() bool { return v.Got <= v.Limit }

// A goal is a rule for the cases of a suite. value returns what is limited and the limit; ok is false where the run does
// not say.
type goal struct {
	suite string // what the scenario's name begins with; empty: every one but "huge"
	match string // part of the case's name
	words string
	value func(c Summary, others map[string]Summary) (got, limit float64, ok bool)
}

var goals = []goal{
	{"exact", "failback", "s: 1.5 times the floor, and the read-back", exactTime},
	{"exact", "failback", "bytes sent before compression: 1.1 times the pieces that differ", factLimit("raw_bytes", 1.1, pieces)},
	{"exact", "zstd", "bytes on the wire: 0.6 times the pieces that differ, where they are many", wireLimit},
	{"exact", "failback", "bytes read at the source: 1.1 times the candidates", factRatio("source_read_bytes", "candidate_bytes", 1.1)},
	{"exact", "failback", "bytes read at the target: 1.1 times the candidates", factRatio("target_read_bytes", "candidate_bytes", 1.1)},
	{"merkle", "failback", "s: blocksync-fast reading both sides", timeLimit(caseBothRead, 1)},
	{"kept", "failback", "s: blocksync-fast with a digest kept", timeLimit(caseDigest, 1)},
	{"digest", "failback digest", "s: 1.2 times the loop that reads and hashes", referenceLimit(1.2)},
	{"digest", "failback verify", "s: 1.2 times the loop that reads and hashes", referenceLimit(1.2)},
	{"copy", "failback, none", "s: 1.3 times a plain copy, and the read-back", copyTime},
	{"undo rand-10", "failback, undo", "s: 1.4 times without", timeLimit(withoutUndo, 1.4)},
	{"undo seq-10", "failback, undo", "s: 1.4 times without", timeLimit(withoutUndo, 1.4)},
	{"line", "failback, auto", "s: 1.1 times the best fixed codec", bestCodec},
	{"network 100", "failback, auto", "s: 1.1 times the best fixed codec", bestCodec},
	{"delay 0", "failback, 20 ms", "s: 0.3 more than without the delay", plusLimit("failback, no delay", 0.3)},
	{"huge", "failback", "MiB resident: 256", memoryLimit(256)},
	{"", "failback", "MiB resident: 64", memoryLimit(64)},
}

// Judge holds summaries against the goals of their suites. A suite is the first word of a scenario's name. Cold runs have
// the goals that do not depend on the page cache, and one of their own: 1.15 times reading both sides.
func Judge(all []Summary) []Verdict {
	scenarios := map[string]map[string]Summary{}
	for _, s := range all {
		if scenarios[s.Scenario] == nil {
			scenarios[s.Scenario] = map[string]Summary{}
		}
		scenarios[s.Scenario][s.Case] = s
	}
	var out []Verdict
	for _, s := range all {
		for _, g := range goals {
			if s.Runs == 0 || !g.concerns(s) {
				continue
			}
			words, value := g.words, g.value
			if g.suite == "merkle" && strings.HasSuffix(s.Scenario, " cold") {
				words, value = "s: 1.15 times reading both sides", timeLimit("read, none", 1.15)
			}
			if got, limit, ok := value(s, scenarios[s.Scenario]); ok {
				out = append(out, Verdict{Scenario: s.Scenario, Case: s.Case, Goal: words, Got: got, Limit: limit})
			}
		}
	}
	return out
}

func (g goal) concerns(s Summary) bool {
	if !strings.Contains(s.Case, g.match) {
		return false
	}
	if g.suite == "" {
		return !strings.HasPrefix(s.Scenario, "huge ")
	}
	return strings.HasPrefix(s.Scenario, g.suite+" ")
}

type limiter = func(Summary, map[string]Summary) (got, limit float64, ok bool)

func pieces(s Summary) int64 { return s.Differ.Pieces }

// exactTime allows 1.5 times the floor, plus what reading back adds to it.
func exactTime(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
	floor, back := others[caseFloor].Total.Median, others[caseFloorBack].Total.Median
	return s.Total.Median, 1.5*floor + max(0, back-floor), floor > 0 && back > 0
}

func copyTime(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
	plain, back := others["plain copy"].Total.Median, others["read back"].Total.Median
	return s.Total.Median, 1.3*plain + back, plain > 0 && back > 0
}

func timeLimit(than string, factor float64) limiter {
	return func(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
		t := others[than].Total.Median
		return s.Total.Median, factor * t, t > 0
	}
}

func referenceLimit(factor float64) limiter {
	return func(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
		return timeLimit(s.Against, factor)(s, others)
	}
}

func plusLimit(than string, seconds float64) limiter {
	return func(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
		t := others[than].Total.Median
		return s.Total.Median, t + seconds, t > 0
	}
}

func bestCodec(s Summary, others map[string]Summary) (got, limit float64, ok bool) {
	for _, name := range []string{"none", "lz4", "zstd-fast", "zstd"} {
		if t := others["failback, "+name].Total.Median; t > 0 && (limit == 0 || 1.1*t < limit) {
			limit = 1.1 * t
		}
	}
	return s.Total.Median, limit, limit > 0
}

func memoryLimit(mib float64) limiter {
	return func(s Summary, _ map[string]Summary) (got, limit float64, ok bool) {
		return float64(max(s.Figures.PeakRSS, s.Server.PeakRSS)) / (1 << 20), mib, true
	}
}

func (s Summary) fact(name string) (float64, bool) {
	v, ok := s.Facts[name].(float64)
	return v, ok
}

func factLimit(name string, factor float64, of func(Summary) int64) limiter {
	return func(s Summary, _ map[string]Summary) (got, limit float64, ok bool) {
		got, ok = s.fact(name)
		return got, factor * float64(of(s)), ok
	}
}

func factRatio(name, of string, factor float64) limiter {
	return func(s Summary, _ map[string]Summary) (got, limit float64, ok bool) {
		got, ok1 := s.fact(name)
		base, ok2 := s.fact(of)
		return got, factor * base, ok1 && ok2
	}
}

// manyBytes is how much must differ before a share of it says something: below it the frames around it count.
const manyBytes = 1 << 20

func wireLimit(s Summary, _ map[string]Summary) (got, limit float64, ok bool) {
	got, ok = s.fact("wire_bytes_out")
	return got, 0.6 * float64(pieces(s)), ok && pieces(s) >= manyBytes
}

// WriteVerdicts prints the goals that were missed, a line each, and how many there were; with all, those that were met too.
func WriteVerdicts(w io.Writer, verdicts []Verdict, all bool) error {
	met := 0
	for _, v := range verdicts {
		word := "missed"
		if v.Met() {
			met++
			word = "met"
			if !all {
				continue
			}
		}
		share := ""
		if v.Limit > 0 {
			share = fmt.Sprintf("%.2f of the limit", v.Got/v.Limit)
		}
		if _, err := fmt.Fprintf(w, "%-6s  %s: %s: %s: %.5g, limit %.5g; %s\n", word, v.Scenario, v.Case, v.Goal, v.Got, v.Limit, share); err != nil {
			return err
		}
	}
	if len(verdicts) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%d of %d goals met\n", met, len(verdicts))
	return err
}
