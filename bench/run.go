package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"time"

	"github.com/failback/failback/cbt"
)

// A Case is one of the things that take turns in a [Scenario]: a command line, or a function of this process.
type Case struct {
	Name    string
	Args    []string                        // command line, or
	Func    func(context.Context) error     // what to call
	Servers []Server                        // run meanwhile; started in this order
	Prepare func(context.Context) error     // before every run, not timed
	Reads   bool                            // only reads: the target stays as it was
	Exit    int                             // exit code of a run that went well
	Facts   func(out []byte) map[string]any // reads what the command printed on its standard output
}

// A Scenario is a state of the target and of the page cache, and what is run in it.
type Scenario struct {
	Name       string
	Divergence Divergence
	Cold       bool     // nothing of both images is in the page cache before a run; else all of both is
	Chill      []string // files dropped with them, such as a kept tree
	Cases      []Case
	Against    string // the case that ratios are taken to; default the first
	// Check compares volumes that are not the set's, in the place of the harness. The set is left alone then.
	Check func(context.Context) error
	Open  func(context.Context) error // called before the first run, where there is one
	Close func() error                // called once all runs are over, also when Open failed
}

// A Record is one run: a line of the raw figures.
type Record struct {
	Schema   int            `json:"schema"`
	Time     time.Time      `json:"time"`
	Scenario string         `json:"scenario"`
	Case     string         `json:"case"`
	Against  string         `json:"against"`
	Round    int            `json:"round"`
	Figures  Figures        `json:"figures"`
	Server   *Figures       `json:"server,omitempty"` // of the first server, where there is one
	Differ   Differ         `json:"differ"`           // what truly differed before
	Facts    map[string]any `json:"facts,omitempty"`  // what the command said of itself
	Error    string         `json:"error,omitempty"`  // why the figures do not count; empty where they do
}

// Differ is how much differs before a run, in bytes.
type Differ struct {
	Pieces int64 `json:"pieces_bytes"`
	Leaves int64 `json:"leaves_bytes"`
}

// recordSchema numbers the form of a Record.
const recordSchema = 1

// A Harness runs scenarios on one set of images.
type Harness struct {
	Set    *Set
	Rounds int       // runs of every case; default 5
	Raw    io.Writer // gets every record as a JSON line; default nobody
	Log    io.Writer // told what runs; default nobody
}

// Run runs the cases of a scenario by turns, A B A B, each from the same state, and compares the images after every run.
// A case that fails has records that say so and ends nothing else; the error is one of the harness itself.
func (h *Harness) Run(ctx context.Context, sc Scenario) (all []Record, err error) {
	rounds := h.Rounds
	if rounds == 0 {
		rounds = 5
	}
	if err := sc.valid(); err != nil {
		return nil, err
	}
	if sc.Close != nil {
		defer func() { err = errors.Join(err, sc.Close()) }()
	}
	if sc.Open != nil {
		if err := sc.Open(ctx); err != nil {
			return nil, fmt.Errorf("scenario %s: %w", sc.Name, err)
		}
	}
	for round := range rounds {
		for _, c := range sc.Cases {
			rec := Record{Schema: recordSchema, Time: time.Now().UTC(), Scenario: sc.Name, Case: c.Name, Against: sc.Against, Round: round}
			if err := h.once(ctx, sc, c, &rec); err != nil {
				return all, fmt.Errorf("scenario %s: case %s: round %d: %w", sc.Name, c.Name, round, err)
			}
			all = append(all, rec)
			if err := h.tell(rec); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

func (sc *Scenario) valid() error {
	if len(sc.Cases) == 0 {
		return fmt.Errorf("scenario %s: nothing to run", sc.Name)
	}
	if sc.Against == "" {
		sc.Against = sc.Cases[0].Name
	}
	for i, c := range sc.Cases {
		if (c.Func == nil) == (c.Args == nil) {
			return fmt.Errorf("scenario %s: case %s: want a command line or a function", sc.Name, c.Name)
		}
		same := func(o Case) bool { return o.Name == c.Name }
		if slices.ContainsFunc(sc.Cases[:i], same) {
			return fmt.Errorf("scenario %s: two cases are called %s", sc.Name, c.Name)
		}
	}
	return nil
}

func (h *Harness) tell(rec Record) error {
	if h.Log != nil {
		fmt.Fprintf(h.Log, "%-24s %-30s %d: %7.3f + %.3f s %s\n", rec.Scenario, rec.Case, rec.Round, rec.Figures.Wall, rec.Figures.Flush, rec.Error)
	}
	if h.Raw == nil {
		return nil
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if _, err := h.Raw.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// once prepares, runs and checks one case. What goes wrong with the case itself is written into rec.
func (h *Harness) once(ctx context.Context, sc Scenario, c Case, rec *Record) error {
	div, err := h.prepare(ctx, sc, c)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if div != nil {
		rec.Differ = Differ{Pieces: cbt.Total(div.Pieces), Leaves: cbt.Total(div.Leaves)}
	}
	if err := c.measure(ctx, rec); err != nil {
		rec.Error = err.Error()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if sc.Check != nil {
		if err := sc.Check(ctx); err != nil && rec.Error == "" {
			rec.Error = err.Error()
		}
		return nil
	}
	if rec.Figures.Flush, err = flush(h.Set.Target); err != nil {
		return err
	}
	want := div.Pieces
	if !c.Reads {
		want = nil
	}
	got, err := differing(ctx, h.Set.Source, h.Set.Target)
	if err != nil {
		return err
	}
	if slices.Equal(got, want) {
		if !c.Reads {
			h.Set.Converged()
		}
		return nil
	}
	if rec.Error == "" {
		rec.Error = fmt.Sprintf("wrong result: the images differ in %d bytes, want %d", cbt.Total(got), cbt.Total(want))
	}
	return h.Set.Repair(ctx)
}

// prepare brings the images and the page cache into the scenario's state.
func (h *Harness) prepare(ctx context.Context, sc Scenario, c Case) (*Divergent, error) {
	var div *Divergent
	if sc.Check == nil {
		var err error
		if div, err = h.Set.Diverge(ctx, sc.Divergence); err != nil {
			return nil, err
		}
	}
	if c.Prepare != nil {
		if err := c.Prepare(ctx); err != nil {
			return nil, err
		}
	}
	switch {
	case sc.Check != nil:
		return div, nil
	case sc.Cold:
		return div, chill(append([]string{h.Set.Source, h.Set.Target}, sc.Chill...)...)
	default:
		return div, warm(ctx, h.Set.Source, h.Set.Target)
	}
}

// measure runs the case and takes its figures and what it says of itself.
func (c Case) measure(ctx context.Context, rec *Record) (err error) {
	for i, srv := range c.Servers {
		p, startErr := srv.start(ctx)
		if startErr != nil {
			return startErr
		}
		defer func() {
			f, stopErr := srv.stop(p)
			if i == 0 {
				rec.Server = &f
			}
			err = errors.Join(err, stopErr)
		}()
	}
	if c.Func != nil {
		rec.Figures, err = measureFunc(ctx, c.Func)
		return err
	}
	p, err := startProcess(ctx, c.Args)
	if err != nil {
		return err
	}
	rec.Figures, err = p.wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == c.Exit {
		err = nil
	}
	if err == nil && p.cmd.ProcessState.ExitCode() != c.Exit {
		err = fmt.Errorf("%s: exit code %d, want %d", c.Args[0], p.cmd.ProcessState.ExitCode(), c.Exit)
	}
	if c.Facts != nil && err == nil {
		rec.Facts = c.Facts(p.out.Bytes())
	}
	return err
}

// jsonFacts reads the last JSON object that a command printed.
func jsonFacts(out []byte) map[string]any {
	var m map[string]any
	if json.Unmarshal(out, &m) == nil {
		return m
	}
	if json.Unmarshal([]byte(lastLine(out)), &m) == nil {
		return m
	}
	return nil
}
