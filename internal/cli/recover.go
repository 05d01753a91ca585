package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/transport/dial"
)

// journalSuffix is what the names of resume journals end in.
const journalSuffix = ".fbj"

// placeFlags say where the resume journals of targets here are kept.
type placeFlags struct {
	state     string
	noJournal bool
}

func (p *placeFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.state, "state", "", "`DIR` for resume journals (default: beside an image file; for devices "+systemState+", or for a user $XDG_STATE_HOME/failback)")
	f.BoolVar(&p.noJournal, "no-journal", false, "keep no resume journal: an interrupted sync is not marked and cannot be resumed")
}

// systemState is where root's journals of devices are kept.
const systemState = "/var/lib/failback"

// journal is the path of the resume journal of a volume here, "" for none. The
// directory for one that will be written is made.
func (p *placeFlags) journal(d *failback.Disk, path string, write bool) (string, error) {
	at, err := p.where(d, path)
	if err == nil && write {
		err = p.finished(d, path, at)
	}
	if err != nil || at == "" || !write {
		return at, err
	}
	if err := makeDir(filepath.Dir(at)); err != nil {
		return "", &failback.RefusedError{Volume: path, Reason: fmt.Sprintf("there is no place for its resume journal (%v)", err),
			Next: "give one (--state DIR), or do without (--no-journal)"}
	}
	return at, nil
}

// finished refuses to write a volume, with its journal at another place or with none,
// while the one at its usual place says that a stage is being applied to it: whoever
// finishes that would lay what is staged over what was written.
func (p *placeFlags) finished(d *failback.Disk, path, at string) error {
	usual, err := (&placeFlags{}).where(d, path)
	if err != nil || usual == at {
		return nil // there is none that could be asked
	}
	rec, err := journal.Read(journal.Disk, usual)
	if err != nil || rec.Stage == "" || !rec.Touched || rec.Complete {
		return nil
	}
	return &failback.RefusedError{Volume: path, Reason: fmt.Sprintf("its journal %s says that a staged sync was being applied to it when it was interrupted", usual),
		Next: fmt.Sprintf("if nothing else has written it since, finish that first (failback apply %s %s), or give it up (--discard)", path, filepath.Dir(rec.Stage))}
}

// where is the path of the resume journal of a volume here, "" for none.
func (p *placeFlags) where(d *failback.Disk, path string) (string, error) {
	if p.noJournal {
		return "", nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if p.state == "" && info.Mode().IsRegular() {
		// One place for a file, by whatever link it is named.
		real, err := filepath.EvalSymlinks(path)
		return real + journalSuffix, err
	}
	dir, err := p.stateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, fmt.Sprintf("%016x%s", xxhash.Sum64String(d.Identity()), journalSuffix)), nil
}

func (p *placeFlags) stateDir() (string, error) {
	switch {
	case p.state != "":
		return p.state, nil
	case os.Geteuid() == 0:
		return systemState, nil
	case filepath.IsAbs(os.Getenv("XDG_STATE_HOME")):
		return filepath.Join(os.Getenv("XDG_STATE_HOME"), "failback"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state", "failback"), err
}

// recoverFlags say what a sync does about interruptions and faults.
type recoverFlags struct {
	place                                   placeFlags
	resume, repair                          bool
	retryFor, checkpoint                    time.Duration
	undo                                    string
	undoServed, undoBest, allowInconsistent bool
	stage                                   stageFlags
}

func (r *recoverFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&r.resume, "resume", false, "go on with a sync of these two that was interrupted, from its journal at TARGET; neither side must have been written since")
	f.DurationVar(&r.retryFor, "retry-for", 10*time.Minute, "how long to go on trying to reach a peer that was lost; 0: not at all")
	f.DurationVar(&r.checkpoint, "checkpoint", 5*time.Second, "how often, at least, what is done is made durable and recorded in the journal")
	f.BoolVar(&r.repair, "repair", false, "if what is read back is not what was written, compare all of it with the medium and send what differs, once")
	f.StringVar(&r.undo, "undo", "", "save what is overwritten at TARGET to `FILE` (a directory: a new file in it); over ssh, a path there. failback undo puts it back")
	f.BoolVar(&r.undoServed, "undo-served", false, "the server of TARGET saves what is overwritten, where its --undo says")
	f.BoolVar(&r.undoBest, "undo-best-effort", false, "go on without when no more can be saved, and say so")
	f.BoolVar(&r.allowInconsistent, "allow-inconsistent", false, "take SOURCE though a sync onto it was interrupted")
	r.stage.add(c)
	r.place.add(c)
}

// check says which of the flags do not go together, and with which target.
func (r *recoverFlags) check(target dial.Address) error {
	switch {
	case r.checkpoint <= 0:
		return usagef("--checkpoint %v: more than 0", r.checkpoint)
	case r.retryFor < 0:
		return usagef("--retry-for %v: 0 or more", r.retryFor)
	case r.undo != "" && r.undoServed:
		return usagef("--undo and --undo-served do not go together")
	case r.undoBest && r.undo == "" && !r.undoServed:
		return usagef("--undo-best-effort without --undo")
	case r.undoServed && target.Local():
		return usagef("--undo-served is for a target that is served: give --undo FILE")
	case r.undo != "" && !target.Local() && target.Scheme != "ssh":
		return usagef("--undo: the server of TARGET says where undo logs are kept: give --undo-served")
	}
	return r.stage.check(r, target)
}

// options adds to those of a session.
func (r *recoverFlags) options(o *failback.Options, remote bool) {
	o.Resume, o.Repair, o.RetryFor, o.Checkpoint = r.resume, r.repair, r.retryFor, r.checkpoint
	if remote {
		o.Undo, o.UndoBestEffort = r.undo != "" || r.undoServed, r.undoBest
		o.Stage = r.stage.on()
	}
}

// remoteArgs are for failback on the other side of ssh, where the target is.
func (r *recoverFlags) remoteArgs() []string {
	var args []string
	if r.place.noJournal {
		args = append(args, "--no-journal")
	}
	if r.undo != "" {
		args = append(args, "--undo", r.undo)
	}
	if r.stage.dir != "" {
		args = append(args, "--stage", r.stage.dir)
	}
	return args
}

// sides adds to both what is kept beside the volumes that are here.
func (r *recoverFlags) sides(src, dst *side, write bool) error {
	var err error
	if src.disk != nil {
		src.AllowInconsistent = r.allowInconsistent
		if src.Journal, err = r.place.journal(src.disk, src.arg, false); err != nil {
			return err
		}
	}
	if dst.disk == nil {
		return nil
	}
	dst.Undo, dst.UndoBestEffort = r.undo, r.undoBest
	if write {
		if err := r.stage.place(dst); err != nil {
			return err
		}
	}
	dst.Journal, err = r.place.journal(dst.disk, dst.arg, write)
	return err
}
