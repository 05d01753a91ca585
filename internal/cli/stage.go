package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/transport/dial"
)

const schemaApply = "failback.apply/1"

// stageFlags say where a sync gathers what differs before it is applied.
type stageFlags struct {
	dir    string
	served bool
}

func (s *stageFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.dir, "stage", "", "gather what differs in `DIR`, beside TARGET, and apply it when it is whole: TARGET is never in between; over ssh, a path there")
	f.BoolVar(&s.served, "stage-served", false, "the server of TARGET does that, where its --stage says")
}

func (s *stageFlags) on() bool { return s.dir != "" || s.served }

// check says what does not go together.
func (s *stageFlags) check(r *recoverFlags, target dial.Address) error {
	switch {
	case s.dir != "" && s.served:
		return usagef("--stage and --stage-served do not go together")
	case s.served && target.Local():
		return usagef("--stage-served is for a target that is served: give --stage DIR")
	case s.dir != "" && !target.Local() && target.Scheme != "ssh":
		return usagef("--stage: the server of TARGET says where stages are kept: give --stage-served")
	case s.on() && r.place.noJournal:
		return usagef("--stage: the journal says what is to be finished after a crash: leave out --no-journal")
	case s.on() && r.resume:
		return usagef("--stage: a staged sync is not resumed: it leaves TARGET as it was, or is finished from its stage; leave out --resume")
	}
	return nil
}

// place makes the directory, where the target is here.
func (s *stageFlags) place(dst *side) error {
	if s.dir == "" {
		return nil
	}
	var err error
	if dst.Stage, err = makeStageDir(s.dir, dst.arg); err != nil {
		return err
	}
	return nil
}

// makeStageDir makes a directory for stages and returns its absolute path.
func makeStageDir(dir, volume string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		err = makeDir(abs)
	}
	if err != nil {
		return "", &failback.RefusedError{Volume: volume, Reason: fmt.Sprintf("there is no place for its stage (%v)", err), Next: "name another directory (--stage DIR)"}
	}
	return abs, nil
}

// stageOutcome says what the target holds after a sync that did not finish and was
// staged, or was finishing one that was. Once it was told to apply, only the target knows.
func (r *recoverFlags) stageOutcome(err error, target, next string, c came) error {
	err = &stagedError{err}
	switch {
	case !c.applying && c.redone:
		return &outcomeError{err, target + " was made what an interrupted sync was going to make it; what had come since was only staged", next}
	case !c.applying:
		return &outcomeError{err, target + " is as it was: what had come was only staged", next}
	}
	only := "failback apply TARGET DIR"
	if r.stage.dir != "" && c.moved {
		only = "failback apply TARGET " + r.stage.dir
	}
	next = fmt.Sprintf("run the same command again: what was begun is finished first (or do only that, where TARGET is: %s)", only)
	if r.undo != "" {
		next = fmt.Sprintf("finish what was begun, where TARGET is: %s; what it overwrites is saved. Then sync again, with another undo log", only)
	}
	return &outcomeError{err, target + " is as it was, or is being made what it is to be: its journal says which, and the stage that it names then holds all of it", next}
}

type applyFlags struct {
	out     outputFlags
	place   placeFlags
	discard bool
	written bool // go on though it was, or may have been, written since
}

// applyJSON is what was done with a stage.
type applyJSON struct {
	Schema        string  `json:"schema"`
	Result        string  `json:"result"` // applied, in doubt, discarded
	Target        string  `json:"target"`
	Stage         string  `json:"stage"`
	Source        string  `json:"source"`
	Doubt         string  `json:"doubt"`
	StagedBytes   int64   `json:"staged_bytes"`
	WrittenBytes  int64   `json:"written_bytes"`
	VerifiedBytes int64   `json:"verified_bytes"`
	Seconds       float64 `json:"seconds"`
}

func (a *app) applyCommand() *cobra.Command {
	var f applyFlags
	c := &cobra.Command{
		Use:   "apply TARGET DIR",
		Short: "Finish a staged sync that a crash interrupted while it was applied",
		Long: `Finish a staged sync (sync --stage DIR) onto TARGET that a crash interrupted
while it was applied: TARGET becomes what it was going to be, is synced and read
back from the medium. The next sync onto TARGET does so by itself, first.

The stage is read as a whole before the first byte is written: a damaged one is
refused, with the place. Interrupted at any moment, the same command again
finishes it. A sync that had only gathered leaves TARGET as it was and nothing to
apply.

Only a sync that came to record how it left TARGET lets us see that nobody has
written it since. Where something has, or after a kill or a power cut, when
nothing tells, it is refused before the first byte: what was written since would
be lost where something is staged. On a device what tells counts all that lies on
its disk, so another volume's writes are taken for such.

  --though-written  goes on all the same and says first what is lost; TARGET stays
                    in doubt until a sync onto it has compared all of it, and as
                    a source it is taken only with --allow-inconsistent
  --discard         gives the stage up: TARGET stays as the crash has left it, marked
                    inconsistent, until a sync has made it equal to something

Exit codes: 0 done, 1 done but TARGET is in doubt, 2 usage, 3 failed, 4 refused
(nothing was touched).`,
		Example:     "  failback apply /dev/vg/standby /var/lib/failback/stage",
		Args:        exactly(2, "TARGET DIR"),
		Annotations: map[string]string{schemaKey: schemaApply},
	}
	c.Flags().BoolVar(&f.discard, "discard", false, "give up the stage of TARGET and remove it")
	c.Flags().BoolVar(&f.written, "though-written", false, "apply it though TARGET was, or may have been, written since: what was is lost where something is staged")
	c.Flags().StringVar(&f.place.state, "state", "", "`DIR` where the journal of TARGET is, if the sync was told one")
	a.addOutputFlags(c, &f.out)
	return a.runs(c, func(ctx context.Context, args []string) error { return a.apply(ctx, &f, args[0], args[1]) })
}

func (a *app) apply(ctx context.Context, f *applyFlags, target, dir string) (err error) {
	if f.discard && f.written {
		return usagef("--discard and --though-written do not go together")
	}
	d, err := failback.Open(target, failback.OpenOptions{Write: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	s := failback.Side{Volume: d, Name: target, ThoughWritten: f.written}
	if s.Stage, err = filepath.Abs(dir); err != nil {
		return err
	}
	if s.Journal, err = f.place.journal(d, target, false); err != nil {
		return err
	}
	u := a.ui(f.out)
	r, err := s.ApplyStage(ctx, failback.Options{Events: u.events()}, f.discard)
	u.done()
	var refused *failback.RefusedError
	switch {
	case errors.As(err, &refused):
		return err
	case err != nil:
		return &outcomeError{&stagedError{err}, target + " holds a part of the change and equals neither its old content nor the source; its stage holds all of it", "see to that, then run the same command again"}
	}
	err = a.showApply(&applyJSON{Schema: schemaApply, Target: target, Stage: dir}, r, f.out)
	if err == nil && r != nil && r.Doubt != "" {
		return errDifferent
	}
	return err
}

// showApply tells what was done; r is nil of a stage that was given up.
func (a *app) showApply(j *applyJSON, r *failback.Report, o outputFlags) error {
	j.Result = "discarded"
	words := "its stage is given up; it stays marked inconsistent until a sync has made it equal to something"
	if r != nil {
		j.Result, j.Source, j.StagedBytes, j.Seconds = "applied", r.Source, r.StagedBytes, r.Seconds.Apply
		j.WrittenBytes, j.VerifiedBytes = r.TargetWrittenBytes, r.TargetVerifiedBytes
		words = "what was staged is applied, proven by reading it back"
		if j.Doubt = r.Doubt; j.Doubt != "" {
			j.Result = "in doubt"
			words += "; but it may hold more than that: " + j.Doubt
		}
	}
	if a.json {
		return writeJSON(a.stdout, j)
	}
	if o.quiet && j.Doubt == "" {
		return nil
	}
	lines := []line{{"target", j.Target}, {"result", words}}
	if j.Doubt != "" {
		lines = append(lines, line{"next", "sync onto it: all of it is compared, on its medium; or, if you know that nobody has written it, take it as it is (--allow-inconsistent)"})
	}
	if r != nil {
		lines = append(lines, line{"sync from", j.Source},
			line{"applied", fmt.Sprintf("%s, %s written and %s read back in %s", humanBytes(j.StagedBytes), humanBytes(j.WrittenBytes), humanBytes(j.VerifiedBytes), seconds(j.Seconds))})
	}
	return writeLines(a.stdout, lines)
}

// stageLine says what a sync has staged.
func stageLine(r *failback.Report) string {
	if r.StagedBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%s gathered beside the target, then applied in %s", humanBytes(r.StagedBytes), seconds(r.Seconds.Apply))
}
