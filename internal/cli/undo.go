package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
)

const schemaUndo = "failback.undo/1"

type undoFlags struct {
	out          outputFlags
	place        placeFlags
	list, verify bool
	export       string
	allowGaps    bool
	anyway       bool
}

// undoJSON is what an undo log is, and what was done with it.
type undoJSON struct {
	Schema string `json:"schema"`
	Result string `json:"result"` // restored, exported, verified, listed
	File   string `json:"file"`

	Target         string    `json:"target"`
	TargetIdentity string    `json:"target_identity"`
	Source         string    `json:"source"`
	VolumeBytes    int64     `json:"volume_bytes"`
	Run            string    `json:"run"`
	Made           time.Time `json:"made"`
	Records        int       `json:"records"`
	SavedBytes     int64     `json:"saved_bytes"`
	StoredBytes    int64     `json:"stored_bytes"`
	Complete       bool      `json:"complete"`
	TornBytes      int64     `json:"torn_bytes"`
	Gaps           []string  `json:"gaps"`
	Inconsistent   bool      `json:"inconsistent"`
	Image          string    `json:"image,omitempty"`
	Extents        []extent  `json:"extents,omitempty"`
	Coarse         bool      `json:"extents_coarse,omitempty"`
}

func (a *app) undoCommand() *cobra.Command {
	var f undoFlags
	c := &cobra.Command{
		Use:   "undo TARGET FILE | undo --export IMG TARGET FILE | undo --list FILE | undo --verify FILE [TARGET]",
		Short: "Put back what a sync has overwritten, or look at it",
		Long: `Put back what a sync has overwritten at TARGET, bit for bit, from FILE, the undo
log that sync --undo made. FILE is checked as a whole before the first byte is
written; what was written is read back from the medium and compared. FILE does
not change: interrupted at any moment, the same command again makes it whole.

  --export IMG   writes an image of TARGET as it was, with holes; TARGET is only read
  --list         prints what FILE holds, offset and length
  --verify       reads all of FILE and checks it; with TARGET, that it is TARGET's

Exit codes: 0 done, 2 usage, 3 failed, 4 refused (nothing was touched).`,
		Example: `  failback undo /dev/vg/primary before-failback.fbu
  failback undo --export tail.img /dev/vg/primary before-failback.fbu`,
		Args:        f.args,
		Annotations: map[string]string{schemaKey: schemaUndo},
	}
	fl := c.Flags()
	fl.BoolVar(&f.list, "list", false, "print the extents that FILE holds")
	fl.BoolVar(&f.verify, "verify", false, "read all of FILE and check it")
	fl.StringVar(&f.export, "export", "", "write TARGET as it was to a new `IMG`, and leave TARGET alone")
	fl.BoolVar(&f.allowGaps, "allow-gaps", false, "go on with a FILE that does not hold all that was overwritten (sync --undo-best-effort)")
	fl.BoolVar(&f.anyway, "allow-inconsistent", false, "go on though another sync onto TARGET was interrupted; its mark stays")
	f.place.add(c)
	a.addOutputFlags(c, &f.out)
	return a.runs(c, func(ctx context.Context, args []string) error { return a.undo(ctx, &f, args) })
}

// args says how many there must be: it depends on what is done.
func (f *undoFlags) args(c *cobra.Command, args []string) error {
	switch {
	case f.list && (f.verify || f.export != "") || f.verify && f.export != "":
		return errors.New("--list, --verify and --export do not go together")
	case f.list:
		return exactly(1, "FILE")(c, args)
	case f.verify:
		if len(args) != 1 && len(args) != 2 {
			return fmt.Errorf("got %s, want FILE [TARGET]", plural(len(args), "argument"))
		}
		return nil
	}
	return exactly(2, "TARGET FILE")(c, args)
}

func (a *app) undo(ctx context.Context, f *undoFlags, args []string) (err error) {
	file, target := args[len(args)-1], ""
	switch {
	case f.verify:
		file = args[0]
		if len(args) == 2 {
			target = args[1]
		}
	case !f.list:
		target = args[0]
	}
	log, err := failback.OpenUndo(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	log.AllowGaps, log.AllowInconsistent = f.allowGaps, f.anyway
	j := undoJSON{
		Schema: schemaUndo, File: file, Target: log.Target, TargetIdentity: log.TargetIdentity, Source: log.Source, VolumeBytes: log.TargetSize,
		Run: log.Session, Made: log.Made, Records: log.Records, SavedBytes: log.Saved, StoredBytes: log.Stored, Complete: log.Whole,
		TornBytes: log.Torn, Inconsistent: log.Inconsistent, Gaps: append([]string{}, log.Gaps...),
	}
	switch {
	case f.list:
		return a.undoList(log, &j)
	case target == "":
		err = a.undoVerify(ctx, f, log, &j)
	default:
		err = a.undoOn(ctx, f, log, target, &j)
	}
	if err != nil {
		return err
	}
	return a.showUndo(&j, f.out)
}

func (a *app) undoVerify(ctx context.Context, f *undoFlags, log *failback.UndoLog, j *undoJSON) error {
	u := a.ui(f.out)
	err := log.Verify(ctx, func(done int64) { u.step("check", done, log.Saved) })
	u.done()
	j.Result = "verified"
	return err
}

// undoOn does what needs the target.
func (a *app) undoOn(ctx context.Context, f *undoFlags, log *failback.UndoLog, target string, j *undoJSON) (err error) {
	restore := !f.verify && f.export == ""
	d, err := failback.Open(target, failback.OpenOptions{Write: restore})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	u := a.ui(f.out)
	defer u.done()
	step := func(phase string, done int64) { u.step(phase, done, log.Saved) }
	switch {
	case f.verify:
		if err := log.Belongs(d); err != nil {
			return err
		}
		return a.undoVerify(ctx, f, log, j)
	case f.export != "":
		j.Result, j.Image = "exported", f.export
		return log.Export(ctx, d, f.export, step)
	}
	j.Result = "restored"
	if log.Journal, err = f.place.journal(d, target, true); err != nil {
		return err
	}
	wrote := false
	err = log.Restore(ctx, d, func(phase string, done int64) {
		wrote = wrote || phase != "check"
		step(phase, done)
	})
	var refused *failback.RefusedError
	if err == nil || errors.As(err, &refused) {
		return err
	}
	if !wrote {
		return &outcomeError{err, target + " is as it was: nothing was written", "see to that, then run the same command again"}
	}
	return &outcomeError{err, target + " is restored in part and is neither what the sync made of it nor what it was before", "run the same command again: the log has not changed"}
}

func (a *app) undoList(log *failback.UndoLog, j *undoJSON) error {
	list, coarse, err := log.Extents()
	if err != nil {
		return err
	}
	j.Result, j.Coarse = "listed", coarse
	if a.json {
		for _, x := range list {
			j.Extents = append(j.Extents, extent{x.Off, x.Len()})
		}
		return writeJSON(a.stdout, j)
	}
	b := bufio.NewWriter(a.stdout)
	for _, x := range list {
		fmt.Fprintf(b, "%d %d\n", x.Off, x.Len())
	}
	return b.Flush()
}

func (a *app) showUndo(j *undoJSON, o outputFlags) error {
	if a.json {
		return writeJSON(a.stdout, j)
	}
	if o.quiet {
		return nil
	}
	words := map[string]string{
		"restored": "what the sync had overwritten is back, proven by reading it back",
		"exported": j.Image + " is " + filepath.Base(j.Target) + " as it was before the sync",
		"verified": "the log is whole",
	}
	state := ""
	switch {
	case len(j.Gaps) > 0:
		state = "has gaps: " + strings.Join(j.Gaps, "; ")
	case !j.Complete:
		state = "the sync was interrupted; the log holds all that it had overwritten"
		if j.TornBytes > 0 {
			state += fmt.Sprintf(" (%s at its end are not whole and stand for nothing that was)", humanBytes(j.TornBytes))
		}
	}
	before := ""
	if j.Inconsistent {
		before = "what was there had been left by another sync that was interrupted: the target stays marked inconsistent"
	}
	return writeLines(a.stdout, []line{
		{"undo log", j.File},
		{"target", j.Target + " (" + j.TargetIdentity + ")"},
		{"sync from", j.Source + ", " + j.Made.Local().Format(time.DateTime)},
		{"result", words[j.Result]},
		{"state", state},
		{"before", before},
		{"saved", fmt.Sprintf("%s in %s, %s", humanBytes(j.SavedBytes), humanBytes(j.StoredBytes), plural(j.Records, "record"))},
	})
}
