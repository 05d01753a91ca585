package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// buildBench builds failback and failback-bench from this tree and makes a bench of them on a small set.
func buildBench(t *testing.T) *Bench {
	t.Helper()
	if testing.Short() {
		t.Skip("builds two programs: not with -short")
	}
	dir := t.TempDir()
	b := &Bench{Set: testSet(t, 64), Failback: filepath.Join(dir, "failback"), Self: filepath.Join(dir, "failback-bench")}
	for path, pkg := range map[string]string{b.Failback: "../cmd/failback", b.Self: "./cmd/failback-bench"} {
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	return b
}

// One scenario of every suite runs through, and every result in it is right. What it takes is not looked at.
func TestSuitesRun(t *testing.T) {
	b := buildBench(t)
	h := &Harness{Set: b.Set, Rounds: 1}
	for _, s := range Suites() {
		for _, cold := range []bool{false, true} {
			all, err := b.Scenarios(s.Name, cold)
			if err != nil {
				t.Fatal(err)
			}
			if s.Name == "huge" { // a smaller one below
				continue
			}
			if cold && s.Name != "merkle" { // cold differs by flags and the cache alone
				continue
			}
			if len(all) == 0 {
				t.Logf("suite %s was left out", s.Name)
				continue
			}
			pick := all[min(2, len(all)-1)]
			recs, err := h.Run(t.Context(), pick)
			if err != nil {
				t.Errorf("%s: %v", pick.Name, err)
			}
			for _, r := range recs {
				if r.Error != "" {
					t.Errorf("%s: %s: %s", r.Scenario, r.Case, r.Error)
				}
			}
			Judge(Summarize(recs))
		}
	}
	for _, m := range b.Missing {
		t.Log(m)
	}
}

func TestHugeSuiteRuns(t *testing.T) {
	b := buildBench(t)
	e, err := b.engine()
	if err != nil {
		t.Fatal(err)
	}
	all, err := b.hugePair(e, 1<<33, 4*leaf, 50)
	if err != nil {
		t.Fatal(err)
	}
	recs, err := (&Harness{Set: b.Set, Rounds: 2}).Run(t.Context(), all[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if r.Error != "" {
			t.Errorf("%s: %s", r.Case, r.Error)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(b.Set.Dir, "huge*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestScenariosRefuse(t *testing.T) {
	b := &Bench{Set: testSet(t, 32), Failback: filepath.Join(t.TempDir(), "none")}
	if _, err := b.Scenarios("nonsense", false); err == nil {
		t.Error("a suite that is not there was found")
	}
	if _, err := b.Scenarios("merkle", false); err == nil {
		t.Error("a binary that is not there was found")
	}
	if err := os.WriteFile(b.Failback, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Scenarios("merkle", false); err != nil {
		t.Error(err)
	}
}
