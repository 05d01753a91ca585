package bench

import (
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	sum := func(scenario, name string, total float64, rss int64, facts map[string]any) Summary {
		return Summary{Scenario: scenario, Case: name, Against: "read, gmac", Runs: 5, Total: Spread{Median: total},
			Figures: Figures{PeakRSS: rss}, Differ: Differ{Pieces: 10 << 20, Leaves: 160 << 20}, Facts: facts}
	}
	const mib = 1 << 20
	failed := sum("merkle 0 warm", "failback, broken", 9, mib, nil)
	failed.Runs = 0
	verdicts := Judge([]Summary{
		sum("exact rand-1 warm", caseFloor, 1, mib, nil),
		sum("exact rand-1 warm", caseFloorBack, 1.5, mib, nil),
		sum("exact rand-1 warm", "failback, 4K map", 1.9, 65*mib, map[string]any{
			"raw_bytes": 11.5 * mib, "wire_bytes_out": 7.0 * mib, "source_read_bytes": 10.0 * mib, "candidate_bytes": 10.0 * mib}),
		sum("exact rand-1 warm", "failback, 4K map, zstd", 2.1, mib, map[string]any{"wire_bytes_out": 7.0 * mib}),
		sum("merkle 0 warm", caseBothRead, 1, mib, nil),
		sum("merkle 0 warm", "failback", 1.1, mib, nil),
		failed,
		sum("merkle 0 cold", "read, none", 1, mib, nil),
		sum("merkle 0 cold", caseBothRead, 9, mib, nil),
		sum("merkle 0 cold", "failback", 1.1, mib, nil),
		sum("delay 0 warm", "failback, no delay", 1, mib, nil),
		sum("delay 0 warm", "failback, 20 ms", 1.31, mib, nil),
		sum("delay rand-1 warm", "failback, no delay", 1, mib, nil),
		sum("delay rand-1 warm", "failback, 20 ms", 1.31, mib, nil),
		sum("huge sync warm", "failback", 9, 65*mib, nil),
		sum("line x warm", "failback, lz4", 2, mib, nil),
		sum("line x warm", "failback, none", 9, mib, nil),
		sum("line x warm", "failback, auto", 2.1, mib, nil),
		sum("copy x warm", "plain copy", 1, mib, nil),
		sum("copy x warm", "read back", 1, mib, nil),
		sum("copy x warm", "failback, none", 2.4, mib, nil),
	})
	missed := map[string]bool{}
	for _, v := range verdicts {
		if !v.Met() {
			missed[v.Scenario+": "+v.Case+": "+strings.SplitN(v.Goal, ":", 2)[0]] = true
		}
	}
	want := []string{
		"exact rand-1 warm: failback, 4K map: MiB resident",
		"exact rand-1 warm: failback, 4K map: bytes sent before compression",
		"exact rand-1 warm: failback, 4K map, zstd: s",
		"exact rand-1 warm: failback, 4K map, zstd: bytes on the wire",
		"merkle 0 warm: failback: s",
		"delay 0 warm: failback, 20 ms: s",
		"copy x warm: failback, none: s",
	}
	for _, w := range want {
		if !missed[w] {
			t.Errorf("not missed: %s", w)
		}
		delete(missed, w)
	}
	if len(missed) > 0 {
		t.Errorf("missed too: %v", missed)
	}
	var short, long strings.Builder
	if err := WriteVerdicts(&short, verdicts, false); err != nil {
		t.Fatal(err)
	}
	if err := WriteVerdicts(&long, verdicts, true); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(short.String(), "\n"); got != len(want)+1 {
		t.Errorf("%d lines, want those missed and their number:\n%s", got, short.String())
	}
	if got := strings.Count(long.String(), "\n"); got != len(verdicts)+1 {
		t.Errorf("%d lines, want all and their number:\n%s", got, long.String())
	}
}
