package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/throttle"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/dial"
)

const schemaSync = "failback.sync/1" // as in [failback.Report]

type syncFlags struct {
	out  outputFlags
	link linkFlags
	fall recoverFlags
	live liveFlags

	dirty, targetDirty     []string
	sourceTree, targetTree string
	trustTree              bool
	seal                   hashName
	verify, rung, codec    string
	dryRun, allowLarger    bool
	limit                  byteRate
	window, leaf           byteSize
	streams                int
}

func (a *app) syncCommand() *cobra.Command {
	var s syncFlags
	c := &cobra.Command{
		Use:   "sync SOURCE TARGET",
		Short: "Make TARGET equal to SOURCE; only what differs travels",
		Long: `Make TARGET equal to SOURCE. Only blocks that differ travel, compressed, and what
was written is read back from the medium and checked.

Where to look is told by dirty maps (--dirty), by kept trees (--source-tree,
--target-tree), or, without either, by comparing both sides by hash. Which of
these it is (the rung), and why, is printed before a byte moves.

SOURCE is only read. TARGET is refused, with the reason, if it is mounted or in
use, of another size, or the source itself.

A peer that is lost is tried again for --retry-for. A sync that was interrupted
for good leaves a journal beside TARGET (for devices in --state) and goes on where
it was with --resume; until then TARGET counts as inconsistent.

Exit codes: 0 done and proven, 2 usage, 3 failed, 4 refused (nothing was touched).`,
		Example: `  failback sync backup.img primary.img
  failback sync --dirty since-failover.fbm /dev/vg/backup ssh://root@home/dev/vg/primary
  failback sync --verify full --seal --json unix:///run/failback.sock?volume=db /dev/vg/db`,
		Args:        exactly(2, "SOURCE TARGET"),
		Annotations: map[string]string{schemaKey: schemaSync},
	}
	s.addFlags(c)
	s.link.add(c)
	s.fall.add(c)
	s.live.add(c)
	a.addOutputFlags(c, &s.out)
	return a.runs(c, func(ctx context.Context, args []string) error { return a.sync(ctx, &s, args[0], args[1]) })
}

func (s *syncFlags) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&s.dirty, "dirty", nil, "dirty map `FILE`: what was written at the source (or, without --target-dirty, at either) since both were equal; repeated: their union")
	f.StringArrayVar(&s.targetDirty, "target-dirty", nil, "dirty map `FILE` of what was written at the target; may be repeated")
	f.StringVar(&s.sourceTree, "source-tree", "", "digest `FILE` of the source, and the maps say what was written since")
	f.StringVar(&s.targetTree, "target-tree", "", "digest `FILE` of the target, likewise")
	f.BoolVar(&s.trustTree, "trust-tree", false, "there was no write since the digest files were made, though no map says so")
	f.Var(&s.seal, "seal", "make a tree of both sides afterwards and compare the roots: blake3 or sha256")
	f.Lookup("seal").NoOptDefVal = "blake3"
	f.StringVar(&s.verify, "verify", "changed", "`WHAT` is read back and proven: changed or full")
	f.BoolVarP(&s.dryRun, "dry-run", "n", false, "print the plan, find what differs and report it; write nothing, and do not ask whether TARGET may be written")
	f.StringVar(&s.rung, "rung", "auto", "`HOW` to find what differs: auto, exact, merkle, allocated, full")
	f.StringVar(&s.codec, "codec", "auto", "compression `NAME`: auto, none, lz4, zstd-fast, zstd")
	f.Var(&s.limit, "limit", "at most so many bytes a second onto the link, such as 50MiB/s (default: no limit)")
	f.IntVar(&s.streams, "streams", 1, "`N` connections for this one session, 1 to 16; more help on long links")
	f.Var(&s.window, "window", "bytes that may be under way (default 16MiB)")
	f.Var(&s.leaf, "leaf", "bytes under one hash, 4KiB to 4MiB, a power of two (default 64KiB, or that of a kept tree)")
	f.BoolVar(&s.allowLarger, "allow-larger", false, "TARGET may be larger than SOURCE; its end is not touched")
}

// options checks the flags that are words; the library checks the numbers.
func (s *syncFlags) options(events failback.Events) (failback.Options, error) {
	o := failback.Options{
		Seal: merkle.Algorithm(s.seal), Leaf: int64(s.leaf), Codec: s.codec, Limit: int64(s.limit), Streams: s.streams,
		Window: int64(s.window), Timeout: s.link.timeout, Idle: s.link.idle, AllowLarger: s.allowLarger, DryRun: s.dryRun, Events: events,
	}
	switch s.verify {
	case "changed":
		o.Verify = failback.VerifyChanged
	case "full":
		o.Verify = failback.VerifyFull
	default:
		return o, usagef("--verify %s: changed or full", s.verify)
	}
	if s.streams < 1 {
		return o, usagef("--streams %d: 1 to 16", s.streams)
	}
	if s.trustTree && s.sourceTree == "" && s.targetTree == "" {
		return o, usagef("--trust-tree without a tree: give --source-tree or --target-tree")
	}
	var err error
	o.Rung, err = failback.ParseRung(s.rung)
	return o, err
}

func (a *app) sync(ctx context.Context, s *syncFlags, source, target string) error {
	u := a.ui(s.out)
	options, err := s.options(u.events())
	if err != nil {
		return err
	}
	link, err := s.link.options()
	if err != nil {
		return err
	}
	far, err := dial.Parse(target)
	if err != nil {
		return err
	}
	if err := s.fall.check(far); err != nil {
		return err
	}
	near, err := dial.Parse(source)
	if err != nil {
		return err
	}
	if err := s.live.check(s, near); err != nil {
		return err
	}
	s.fall.options(&options, !far.Local())
	src, dst, err := s.open(source, target, link)
	if err != nil {
		return err
	}
	report, err := s.session(ctx, u, src, dst, options)
	u.done()
	closed := closeSides(nil, src, dst)
	if report != nil {
		report.Source, report.Target = source, target
	}
	var left *leftoverError
	switch {
	case err == nil && closed == nil:
		return a.showSync(report, s.out)
	case errors.As(err, &left) && closed == nil:
		return a.leftover(left, s.out)
	}
	return s.outcome(errors.Join(err, closed), target, came{moved: u.started() && !s.dryRun, applying: u.applies(), redone: u.finished(), far: dst.disk == nil})
}

// leftoverError says that a sync was done and proven, and what was set up for it could
// not be taken down.
type leftoverError struct {
	error
	report *failback.Report
}

func (e *leftoverError) Unwrap() error { return e.error }

// leftover shows what was done all the same.
func (a *app) leftover(left *leftoverError, o outputFlags) error {
	var err error = left
	r := left.report
	if !a.json { // else it is in the one object
		err = errors.Join(err, a.showSync(r, o))
	}
	out := &outcomeError{err, r.Target + " is equal to " + r.Source + " as of the pause, and proven: what failed came after that", "see to that; the sync need not be run again"}
	var limit *throttle.LeftError
	if errors.As(err, &limit) {
		out.state += "; the limit of " + limit.Group + " is still in force"
		out.next = limit.Next() + "; the sync need not be run again"
	}
	return out
}

// session runs the sync of two sides that are open.
func (s *syncFlags) session(ctx context.Context, u *ui, src, dst *side, o failback.Options) (*failback.Report, error) {
	if !s.live.on {
		return failback.Sync(ctx, src.Side, dst.Side, o)
	}
	v, err := s.live.begin(ctx, u, s, src, dst)
	if err != nil {
		return nil, err
	}
	report, err := v.sync(ctx, src, dst, o)
	ended := v.end(ctx)
	if err == nil && ended != nil {
		return report, &leftoverError{ended, report}
	}
	return report, errors.Join(err, ended)
}

// open opens both sides. The source comes first: nothing at the target is
// touched for the sake of a source that cannot be read.
func (s *syncFlags) open(source, target string, link dial.Options) (src, dst *side, err error) {
	src, err = openVolume(source, false, link)
	if err != nil {
		return nil, nil, err
	}
	link.RemoteArgs = s.fall.remoteArgs()
	dst, err = openVolume(target, !s.dryRun, link)
	if err != nil {
		return nil, nil, closeSides(err, src)
	}
	if err := errors.Join(s.describe(src, dst), s.fall.sides(src, dst, !s.dryRun)); err != nil {
		return nil, nil, closeSides(err, src, dst)
	}
	return src, dst, nil
}

// describe adds what is known of each side.
func (s *syncFlags) describe(src, dst *side) error {
	if src.disk != nil && dst.disk != nil {
		if err := failback.CheckPair(src.disk, dst.disk); err != nil {
			return err
		}
	}
	src.Tree, dst.Tree = s.sourceTree, s.targetTree
	src.TrustTree, dst.TrustTree = s.trustTree && s.sourceTree != "", s.trustTree && s.targetTree != ""
	var err error
	if src.Dirty, err = loadMaps(s.dirty); err != nil {
		return err
	}
	if dst.Dirty, err = loadMaps(s.targetDirty); err != nil {
		return err
	}
	// Without a map of the target, --dirty may well be of either side.
	if dst.Dirty == nil {
		return refuseMap(src.Dirty, "--dirty", src, dst)
	}
	if err := refuseMap(src.Dirty, "--dirty", src); err != nil {
		return err
	}
	return refuseMap(dst.Dirty, "--target-dirty", dst)
}

// refuseMap refuses a map that is of none of the volumes: it would hide what
// was written to them (L1). What a volume elsewhere is, is not known here.
func refuseMap(m *cbt.Map, flag string, of ...*side) error {
	if m == nil {
		return nil
	}
	for _, s := range of {
		if s.disk == nil || m.VolumeSize == s.disk.Size() && (m.Identity == "" || m.Identity == s.disk.Identity()) {
			return nil
		}
	}
	d := of[0].disk
	return &failback.RefusedError{
		Volume: of[0].arg,
		Reason: fmt.Sprintf("the dirty map given with %s is of another volume (%d bytes, %q; this one: %d bytes, %q)",
			flag, m.VolumeSize, m.Identity, d.Size(), d.Identity()),
		Next: "give this volume's map, or none; if it is this one under an older identity: failback map show --extents MAP | failback map from-extents --volume VOLUME -o NEW",
	}
}

// came is how far a sync came that did not finish.
type came struct {
	moved    bool // its plan was told: before that not a byte moves (L3)
	applying bool // a stage is being applied, or may be: its own, or one that it finishes first
	redone   bool // it has finished one of an interrupted sync
	far      bool // the target is at a peer: what that does last is not always heard
}

// outcome says what the target holds after a sync that did not finish.
func (s *syncFlags) outcome(err error, target string, c came) error {
	var refused *failback.RefusedError
	again := "see to that, then run the same command again"
	switch {
	case errors.As(err, &refused):
		return err
	case c.applying || s.fall.stage.on() && c.moved:
		if s.live.on {
			again = s.live.next(err, s.fall.stage.on())
		}
		return s.fall.stageOutcome(err, target, again, c)
	case !c.moved && c.far:
		return &outcomeError{err, "nothing of this sync was written to " + target, again}
	case !c.moved:
		return &outcomeError{err, target + " is as it was: nothing was written", again}
	}
	next := "run the same command again with --resume: it goes on where it was (without: both sides are compared, and what has arrived is not sent again)"
	if s.live.on {
		next = s.live.next(err, false)
	}
	if s.fall.undo != "" || s.fall.undoServed {
		next += "; or put back what was there: failback undo"
	}
	return &outcomeError{
		err, target + " may hold a part of the change and equals neither its old content nor the source; the source is as it was",
		next,
	}
}
