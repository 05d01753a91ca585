package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
)

const schemaCompare = "failback.compare/1" // as in [failback.Report]

type compareFlags struct {
	out  outputFlags
	link linkFlags
}

func (a *app) diffCommand() *cobra.Command {
	var f compareFlags
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Print the extents in which two volumes differ",
		Long: `Print the extents in which A and B differ, one on a line: offset and length in
bytes. Nothing is written. Either may be a digest file (failback digest); then
extents are whole leaves of it.

The lines are what failback map from-extents reads.

Exit codes: 0 the same, 1 different, 2 usage, 3 could not tell.`,
		Example: `  failback diff backup.img primary.img
  failback diff --json /dev/vg/backup ssh://root@home/dev/vg/primary | jq .divergent_bytes`,
		Args:        exactly(2, "A B"),
		Annotations: map[string]string{schemaKey: schemaCompare, answerKey: "yes"},
	}
	f.link.add(c)
	a.addOutputFlags(c, &f.out)
	return a.runs(c, func(ctx context.Context, args []string) error {
		report, err := a.compare(ctx, &f, args[0], args[1])
		if err != nil {
			return err
		}
		return a.showDiff(report, f.out)
	})
}

func (a *app) verifyCommand() *cobra.Command {
	var f compareFlags
	c := &cobra.Command{
		Use:   "verify A B",
		Short: "Prove that two volumes, or a volume and a digest file, are equal",
		Long: `Find out whether A and B are equal. Each is a volume or a digest file made by
failback digest, which is known by its content. Nothing is written.

Two volumes are compared by a hash keyed anew each time; against a digest file
the volume is hashed as the file says.

Exit codes: 0 the same, 1 different, 2 usage, 3 could not tell.`,
		Example: `  failback verify backup.img primary.img
  failback verify /dev/vg/db db.fbt
  failback verify monday.fbt tuesday.fbt`,
		Args:        exactly(2, "A B, each a volume or a digest file"),
		Annotations: map[string]string{schemaKey: schemaCompare, answerKey: "yes"},
	}
	f.link.add(c)
	a.addOutputFlags(c, &f.out)
	return a.runs(c, func(ctx context.Context, args []string) error {
		report, err := a.compare(ctx, &f, args[0], args[1])
		if err != nil {
			return err
		}
		return a.showVerify(report, f.out)
	})
}

func (a *app) compare(ctx context.Context, f *compareFlags, first, second string) (*failback.Report, error) {
	link, err := f.link.options()
	if err != nil {
		return nil, err
	}
	x, err := openEither(first, link)
	if err != nil {
		return nil, err
	}
	y, err := openEither(second, link)
	if err != nil {
		return nil, closeSides(err, x)
	}
	u := a.ui(f.out)
	report, err := failback.Compare(ctx, x.Side, y.Side, failback.Options{Timeout: f.link.timeout, Idle: f.link.idle, Events: u.events()})
	u.done()
	if err = closeSides(err, x, y); err != nil {
		return nil, &outcomeError{err, "nothing was written; whether they are equal is not known", "see to that, then run the same command again"}
	}
	report.Source, report.Target = first, second
	return report, nil
}

// extent is a divergent range as JSON has it.
type extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// compareJSON is the report of diff and verify with its extents.
type compareJSON struct {
	*failback.Report
	Extents []extent `json:"extents"`
}

func (a *app) writeCompare(r *failback.Report) error {
	j := compareJSON{Report: r, Extents: make([]extent, len(r.Extents))}
	for i, e := range r.Extents {
		j.Extents[i] = extent{e.Off, e.Len()}
	}
	return writeJSON(a.stdout, j)
}

func (a *app) showDiff(r *failback.Report, o outputFlags) error {
	var err error
	if a.json {
		err = a.writeCompare(r)
	} else {
		err = writeExtents(a.stdout, r, len(r.Extents))
	}
	if err != nil {
		return fmt.Errorf("write extents: %w", err)
	}
	if !o.quiet && !a.json {
		fmt.Fprintln(a.stderr, verdict(r))
	}
	return answer(r)
}

// verifyLines is how many extents verify prints.
const verifyLines = 16

func (a *app) showVerify(r *failback.Report, o outputFlags) error {
	if a.json {
		if err := a.writeCompare(r); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
		return answer(r)
	}
	if o.quiet {
		return answer(r)
	}
	if _, err := fmt.Fprintln(a.stdout, verdict(r)); err != nil {
		return fmt.Errorf("write verdict: %w", err)
	}
	if err := writeExtents(a.stdout, r, verifyLines); err != nil {
		return fmt.Errorf("write extents: %w", err)
	}
	if more := len(r.Extents) - verifyLines; more > 0 {
		fmt.Fprintf(a.stdout, "and %s more; failback diff prints all\n", plural(more, "extent"))
	}
	return answer(r)
}

func answer(r *failback.Report) error {
	if r.Equal() {
		return nil
	}
	return errDifferent
}

// verdict is the answer in one line.
func verdict(r *failback.Report) string {
	if r.Equal() {
		return fmt.Sprintf("same: %s and %s are equal (%s)", r.Source, r.Target, humanBytes(r.VolumeBytes))
	}
	coarse := ""
	if r.Coarse {
		coarse = ", some with equal ranges in them"
	}
	return fmt.Sprintf("different: %s and %s differ in %s of %s (%s%s)", r.Source, r.Target,
		humanBytes(r.DivergentBytes), humanBytes(r.VolumeBytes), plural(len(r.Extents), "extent"), coarse)
}

// writeExtents prints at most limit extents, offset and length.
func writeExtents(w io.Writer, r *failback.Report, limit int) error {
	b := bufio.NewWriter(w)
	for _, e := range r.Extents[:min(limit, len(r.Extents))] {
		fmt.Fprintf(b, "%d %d\n", e.Off, e.Len())
	}
	return b.Flush()
}
