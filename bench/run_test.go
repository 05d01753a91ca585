package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/bench/floor"
)

// copyCase brings the target in line with a tool that every machine has.
func copyCase(s *Set) Case {
	return Case{Name: "dd", Args: []string{"dd", "if=" + s.Source, "of=" + s.Target, "bs=64k", "conv=notrunc"}}
}

func TestHarnessTakesTurns(t *testing.T) {
	s := testSet(t, 32)
	var order []string
	note := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			order = append(order, name)
			_, err := floor.Copy(ctx, s.Source, s.Target, nil)
			return err
		}
	}
	var raw bytes.Buffer
	h := &Harness{Set: s, Rounds: 3, Raw: &raw}
	d := Divergence{Percent: 50}
	recs, err := h.Run(t.Context(), Scenario{Name: "turns", Divergence: d, Cases: []Case{
		{Name: "a", Func: note("a")}, {Name: "b", Func: note("b")}, copyCase(s)}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ""); got != "ababab" {
		t.Errorf("ran in the order %s", got)
	}
	if len(recs) != 9 {
		t.Fatalf("%d records, want 9", len(recs))
	}
	div, err := s.Plan(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range recs {
		if r.Error != "" || r.Against != "a" || r.Figures.Wall <= 0 {
			t.Errorf("record %+v", r)
		}
		if r.Differ.Leaves != 16*leaf || r.Differ.Pieces != 16*piece || len(div.moves) != 16 {
			t.Errorf("record says that %+v differ", r.Differ)
		}
		if r.Case == "dd" && (r.Figures.CallsRead < s.Info.Size || r.Figures.CallsWrite < s.Info.Size || r.Figures.PeakRSS == 0) {
			t.Errorf("figures of a process that copied %d bytes: %+v", s.Info.Size, r.Figures)
		}
	}
	back, err := ReadRecords(&raw)
	if err != nil || len(back) != len(recs) {
		t.Fatalf("read %d records back, want %d: %v", len(back), len(recs), err)
	}
	for i := range back {
		if back[i].Case != recs[i].Case || back[i].Figures != recs[i].Figures || back[i].Round != recs[i].Round {
			t.Errorf("record %d reads back as %+v, was %+v", i, back[i], recs[i])
		}
	}
}

func TestHarnessChecksEveryResult(t *testing.T) {
	s := testSet(t, 32)
	nothing := func(context.Context) error { return nil }
	spoil := func(context.Context) error { return os.WriteFile(s.Target, random(int(s.Info.Size)), 0o644) }
	h := &Harness{Set: s, Rounds: 2}
	for _, c := range []struct {
		name  string
		c     Case
		wrong string // part of the error; empty: counts
	}{
		{"does nothing", Case{Name: "x", Func: nothing}, "wrong result"},
		{"only reads", Case{Name: "x", Func: nothing, Reads: true}, ""},
		{"writes though it only reads", Case{Name: "x", Func: spoil, Reads: true}, "wrong result"},
		{"spoils", Case{Name: "x", Func: spoil}, "wrong result"},
		{"copies", copyCase(s), ""},
		{"fails", Case{Name: "x", Func: func(context.Context) error { return errors.New("no such luck") }}, "no such luck"},
		{"exits wrongly", Case{Name: "x", Args: []string{"sh", "-c", "echo why >&2; exit 3"}}, "why"},
		{"exits as told", Case{Name: "x", Args: []string{"sh", "-c", "exit 1"}, Exit: 1, Reads: true}, ""},
		{"does not exit as told", Case{Name: "x", Args: []string{"true"}, Exit: 1, Reads: true}, "exit code 0"},
		{"is not there", Case{Name: "x", Args: []string{"/nonexistent"}}, "no such file"},
	} {
		recs, err := h.Run(t.Context(), Scenario{Name: c.name, Divergence: Divergence{Percent: 10}, Cases: []Case{c.c}})
		if err != nil {
			t.Fatal(c.name, err)
		}
		for _, r := range recs {
			if (c.wrong == "") != (r.Error == "") || !strings.Contains(r.Error, c.wrong) {
				t.Errorf("%s: error %q, want %q", c.name, r.Error, c.wrong)
			}
		}
	}
	if err := s.restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := naiveDiffering(t, s); len(left) > 0 {
		t.Errorf("after all that the images differ at %v", left)
	}
}

func TestHarnessCold(t *testing.T) {
	s := testSet(t, 32)
	if err := chill(s.Source); err != nil {
		t.Skipf("the page cache cannot be dropped on this file system: %v", err)
	}
	var in int64
	look := func(context.Context) (err error) { in, err = resident(s.Source); return err }
	h := &Harness{Set: s, Rounds: 1}
	for _, cold := range []bool{true, false} {
		if _, err := h.Run(t.Context(), Scenario{Name: "look", Cold: cold, Cases: []Case{{Name: "look", Func: look, Reads: true}}}); err != nil {
			t.Fatal(err)
		}
		if cold != (in < s.Info.Size/2) {
			t.Errorf("cold=%v: %d of %d bytes were in the cache", cold, in, s.Info.Size)
		}
	}
}

func TestHarnessRefuses(t *testing.T) {
	h := &Harness{}
	f := func(context.Context) error { return nil }
	for name, sc := range map[string]Scenario{
		"no case":   {},
		"no way":    {Cases: []Case{{Name: "a"}}},
		"two ways":  {Cases: []Case{{Name: "a", Func: f, Args: []string{"true"}}}},
		"same name": {Cases: []Case{{Name: "a", Func: f}, {Name: "a", Func: f}}},
	} {
		if _, err := h.Run(t.Context(), sc); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestServerRunsMeanwhile(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c := Case{Name: "x", Args: []string{"test", "-e", socket},
		Servers: []Server{{Args: []string{"sh", "-c", "touch " + socket + "; exec sleep 600"}, Socket: socket}}}
	var rec Record
	if err := c.measure(t.Context(), &rec); err != nil {
		t.Fatal(err)
	}
	if rec.Server == nil || rec.Server.PeakRSS == 0 {
		t.Errorf("no figures of the server: %+v", rec.Server)
	}
	c.Servers[0] = Server{Args: []string{"sh", "-c", "echo broken >&2; exit 1"}, Keep: true}
	if err := c.measure(t.Context(), &rec); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a server that fails gives %v", err)
	}
}

// What this process used once is not the child's.
func TestPeakIsTheChilds(t *testing.T) {
	big := random(256 << 20)
	if big[0] == 0 && big[1] == 0 {
		t.Fatal("not random")
	}
	p, err := startProcess(t.Context(), []string{"true"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.wait()
	if err != nil {
		t.Fatal(err)
	}
	if f.PeakRSS > 128<<20 {
		t.Errorf("the peak of \"true\" is %d MiB", f.PeakRSS>>20)
	}
}

func TestJSONFacts(t *testing.T) {
	for in, want := range map[string]any{
		"{\"a\": 1}\n":              1.0,
		"text\n{\"a\": 1}\n":        1.0,
		"{\n \"a\":\n 1\n}\n":       1.0,
		"nothing of the kind":       nil,
		"":                          nil,
		"{\"a\": 2}\n{\"a\": 1}\n ": 1.0,
	} {
		if got := jsonFacts([]byte(in))["a"]; got != want {
			t.Errorf("%q gives %v, want %v", in, got, want)
		}
	}
}

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{5, 1, 3}, Spread{3, 1, 5}},
		{[]float64{4, 1, 2, 9}, Spread{3, 1, 9}},
	} {
		if got := spreadOf(slices.Clone(c.in)); got != c.want {
			t.Errorf("%v: %v, want %v", c.in, got, c.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	rec := func(name string, round int, wall, flush float64, err string) Record {
		return Record{Schema: recordSchema, Scenario: "s", Case: name, Against: "ref", Round: round, Error: err,
			Figures: Figures{Wall: wall, Flush: flush, PeakRSS: int64(round+1) << 20, DiskRead: int64(10 * round)}}
	}
	sum := Summarize([]Record{
		rec("ref", 0, 1, 0, ""), rec("x", 0, 2, 1, ""), // 3
		rec("ref", 1, 4, 0, ""), rec("x", 1, 4, 0, ""), // 1: both were slow
		rec("ref", 2, 1, 0, ""), rec("x", 2, 1, 1, ""), // 2
		rec("ref", 3, 1, 0, "broke"), rec("x", 3, 9, 0, ""), // no ratio
		rec("ref", 4, 1, 0, ""), rec("x", 4, 0, 0, "broke"), // does not count
	})
	if len(sum) != 2 || sum[0].Case != "ref" || sum[1].Case != "x" {
		t.Fatalf("summaries %+v", sum)
	}
	x := sum[1]
	if x.Runs != 4 || x.Failed != 1 || x.Error != "broke" {
		t.Errorf("runs %d, failed %d, %q", x.Runs, x.Failed, x.Error)
	}
	if want := (Spread{2, 1, 3}); x.Ratio != want {
		t.Errorf("ratio %v, want %v", x.Ratio, want)
	}
	if want := (Spread{3.5, 2, 9}); x.Total != want {
		t.Errorf("total %v, want %v", x.Total, want)
	}
	if x.Figures.PeakRSS != 4<<20 || x.Figures.DiskRead != 15 {
		t.Errorf("figures %+v", x.Figures)
	}
	if sum[0].Ratio != (Spread{1, 1, 1}) {
		t.Errorf("the reference's ratio to itself is %v", sum[0].Ratio)
	}
	var table strings.Builder
	if err := WriteTable(&table, sum); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ref *", "4 of 5", "2.00", "1.00..3.00"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, table.String())
		}
	}
}

func TestReadRecordsRefuses(t *testing.T) {
	if _, err := ReadRecords(strings.NewReader("{\"schema\":1}\n{")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a cut line gives %v", err)
	}
	recs, err := ReadRecords(strings.NewReader("{\"schema\":99,\"case\":\"x\"}\n{\"machine\":\"m\"}\n"))
	if err != nil || len(recs) != 0 {
		t.Errorf("lines of another kind give %v, %v", recs, err)
	}
}

func TestPeersSayWhatIsMissing(t *testing.T) {
	s := testSet(t, 32)
	t.Setenv("PATH", t.TempDir())
	for _, p := range peers {
		if _, err := p.bringInLine(s); !errors.Is(err, errNotInstalled) || !strings.Contains(err.Error(), p.needs[0]) {
			t.Errorf("%s without its program: %v", p.name, err)
		}
	}
}

// Each tool that is installed brings a small target in line.
func TestPeersWork(t *testing.T) {
	s := testSet(t, 32)
	h := &Harness{Set: s, Rounds: 1}
	for _, p := range peers {
		t.Run(p.name, func(t *testing.T) {
			c, err := p.bringInLine(s)
			if err != nil {
				t.Skip(err)
			}
			recs, err := h.Run(t.Context(), Scenario{Name: "peer", Divergence: Divergence{Percent: 10}, Cases: []Case{c}})
			if err != nil {
				t.Fatal(err)
			}
			if recs[0].Error != "" {
				t.Error(recs[0].Error)
			}
		})
	}
}
