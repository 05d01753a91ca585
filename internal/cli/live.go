package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt/ebpf"
	"github.com/failback/failback/internal/quiesce"
	"github.com/failback/failback/transport/dial"
)

// liveFlags are those of a sync whose source is written meanwhile.
type liveFlags struct {
	on, still, keep     bool
	trust               bool
	pause, limit, step  time.Duration
	freeze              string
	onQuiesce, onResume string
	bpffs               string
	throttle            throttleFlag
	limited             func() bool // the limit was given
}

func (l *liveFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&l.on, "live", false, "SOURCE, a block device, is being written: copy it in rounds, and bring its writers to rest only for the last one")
	f.DurationVar(&l.pause, "pause", 500*time.Millisecond, "with --live: the longest pause that the last round may be going to take")
	f.StringVar(&l.freeze, "freeze", "", "with --live: the file system mounted at `DIR`, which lies on SOURCE, is frozen for the last round")
	f.StringVar(&l.onQuiesce, "on-quiesce", "", "with --live: shell `COMMAND` that brings the writers to rest, before the freeze if there is one")
	f.StringVar(&l.onResume, "on-resume", "", "with --live: shell `COMMAND` that lets them go on; it may be run twice after a crash")
	f.DurationVar(&l.limit, "pause-limit", 10*time.Second, "with --live: after so long the writers go on, whatever the last round is at")
	f.DurationVar(&l.step, "quiesce-timeout", 30*time.Second, "with --live: how long a freeze, a thaw or a command may take")
	f.BoolVar(&l.keep, "keep-tracking", false, "with --live: leave the tracker on that was started for this sync; the next one looks only at what was written since")
	f.BoolVar(&l.trust, "trust-tracker", false, "with --live: what the tracker of SOURCE holds is all in which TARGET differs, though no sync of the two says so")
	f.BoolVar(&l.still, "or-at-rest", false, "with --live: where SOURCE cannot be tracked, sync it while its writers rest all the time; takes a --pause-limit that is long enough for all of it")
	f.StringVar(&l.bpffs, "bpffs", "", "with --live: `DIR` where the kernel's pins are (default /sys/fs/bpf; mounted if it is not)")
	f.Var(&l.throttle, "throttle", "with --live: where rounds do not get small enough, slow down what the control group `CGROUP[=RATE]` (cgroup v2) writes to the disk of SOURCE, to RATE or half of what rounds get through, until the sync ends")
	l.limited = func() bool { return f.Changed("pause-limit") }
}

// check says what does not go together.
func (l *liveFlags) check(s *syncFlags, source dial.Address) error {
	given := l.freeze != "" || l.onQuiesce != "" || l.onResume != "" || l.keep || l.still || l.trust || l.bpffs != "" || l.throttle.group != ""
	switch {
	case !l.on && given:
		return usagef("--freeze, --on-quiesce, --on-resume, --keep-tracking, --trust-tracker, --or-at-rest, --throttle and --bpffs go with --live")
	case !l.on:
		return nil
	case !source.Local():
		return usagef("--live: SOURCE is not on this machine: run the sync where it is, beside its tracker, and let TARGET be the far one")
	case l.freeze == "" && l.onQuiesce == "":
		return usagef("--live: say how the writers of SOURCE are brought to rest for the last round: --freeze MOUNTPOINT, --on-quiesce COMMAND, or both")
	case l.pause <= 0 || l.limit < l.pause || l.step <= 0:
		return usagef("--pause %v, --pause-limit %v, --quiesce-timeout %v: more than 0, and the limit not below the pause", l.pause, l.limit, l.step)
	case l.still && !l.limited():
		return usagef("--or-at-rest: the writers may rest for all of the sync: say with --pause-limit how long they may, and it ends")
	case len(s.dirty) > 0 || len(s.targetDirty) > 0 || s.sourceTree != "" || s.targetTree != "":
		return usagef("--live: the tracker says what was written; no map and no tree is true of a volume that is being written")
	}
	return nil
}

// liveSync is the source's side of a live sync, as long as it runs.
type liveSync struct {
	u       *ui
	flags   *liveFlags
	device  string
	plan    quiesce.Plan
	tracker *ebpf.Tracker // nil: it cannot be tracked, and untold says why
	untold  string
	ours    bool // started for this sync, or for one that was killed
	fresh   bool // started for this sync
	record  *liveRecord
	point   *pointFile
	brake   *brake // nil: nobody may be slowed down
}

// begin checks how the writers are brought to rest, and tracks the source.
func (l *liveFlags) begin(ctx context.Context, u *ui, s *syncFlags, src, dst *side) (begun *liveSync, err error) {
	if info, err := os.Stat(src.arg); err != nil {
		return nil, err
	} else if info.Mode().IsRegular() {
		return nil, &failback.RefusedError{Volume: src.arg, Reason: "it is a file: the writes of others to a file are not seen",
			Next: "attach it to a loop device (losetup --find --show " + src.arg + "), have the applications use that, and name it as the source"}
	}
	v := &liveSync{u: u, flags: l, device: src.arg, plan: quiesce.Plan{
		Device: src.arg, Mount: l.freeze, OnQuiesce: l.onQuiesce, OnResume: l.onResume, Timeout: l.step, Limit: l.limit,
	}}
	if err := v.plan.Check(); err != nil {
		return nil, err
	}
	if err := v.plan.Outside(v.written(s, dst)...); err != nil {
		return nil, err
	}
	if v.brake, err = newBrake(u, &l.throttle, src.arg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.brake.end())
		}
	}()
	if v.point, err = newPoint(&s.fall.place, src.disk, dst.arg); err != nil {
		return nil, err
	}
	if v.record, err = newLiveRecord(&s.fall.place, src.disk.Identity(), src.arg); err != nil {
		return nil, err
	}
	v.fresh, err = v.track(ctx, src.disk.Identity())
	switch {
	case err == nil && v.fresh && l.trust:
		return nil, errors.Join(v.stop(), &failback.RefusedError{Volume: src.arg, Reason: "it was not tracked until now, so its tracker knows nothing (--trust-tracker)",
			Next: "leave --trust-tracker out: both sides will be compared"})
	case err == nil:
		return v, nil
	case l.still && untrackable(err) && ctx.Err() == nil:
		v.untold = fmt.Sprintf("%s cannot be tracked (%v)", src.arg, err)
		u.note(v.untold + ": its writers rest all the time")
		if v.brake != nil {
			u.note("so nobody is slowed down (--throttle)")
		}
		return v, nil
	}
	return nil, l.refuse(src.arg, err)
}

// track opens the tracker of the source, or starts one. Without an error v.tracker
// is there, else it is nil.
func (v *liveSync) track(ctx context.Context, identity string) (started bool, err error) {
	o := ebpf.Options{FS: v.flags.bpffs, Identity: identity}
	v.tracker, err = ebpf.Open(v.device, o)
	if !errors.Is(err, ebpf.ErrNotTracked) && !errors.Is(err, fs.ErrNotExist) {
		v.ours = err == nil && v.record.adopts
		if err == nil {
			v.settle(ctx)
		}
		return false, err
	}
	if err := v.record.starts(); err != nil {
		return false, err
	}
	if v.tracker, err = ebpf.Start(ctx, v.device, o); err != nil {
		return false, errors.Join(err, v.record.ends())
	}
	v.ours = true
	if v.settle(ctx); !v.flags.still {
		return true, nil
	}
	// It is seen now that its tracker will vouch for nothing: later is too late.
	st, err := v.tracker.Status()
	if err == nil && !st.Drained && !st.Reading {
		err = errUndrained
	}
	if err != nil {
		return false, errors.Join(err, v.stop())
	}
	return true, nil
}

// settle waits for the writes that were under way when tracking began, where that
// has not been seen yet. If they do not end, the session is refused with the reason.
func (v *liveSync) settle(ctx context.Context) {
	st, err := v.tracker.Status()
	if err != nil || st.Drained || st.Reading {
		return
	}
	v.u.note("waiting for writes to " + v.device + " that are under way")
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	_ = v.tracker.Drain(ctx)
}

// stop ends the tracking that is for this sync.
func (v *liveSync) stop() error {
	_, err := v.tracker.Stop()
	v.tracker = nil
	if err != nil {
		return err // it may be tracked yet, as the record says
	}
	return v.record.ends()
}

var errUndrained = errors.New("writes that were under way when tracking began did not end, or nobody counts them")

// untrackable reports whether an error of [liveSync.track] is about the device or
// this machine. That somebody else has the tracker is neither: another sync of the
// same source runs, and this one must not stop its writers.
func untrackable(err error) bool {
	var refused *ebpf.RefusedError
	switch {
	case errors.Is(err, ebpf.ErrOpen), errors.Is(err, ebpf.ErrTracked):
		return false
	}
	return errors.As(err, &refused) || errors.Is(err, ebpf.ErrUnsupported) || errors.Is(err, errUndrained) || errors.Is(err, fs.ErrPermission)
}

// refuse says why there is no live sync.
func (l *liveFlags) refuse(source string, err error) error {
	refused := &failback.RefusedError{Volume: source, Reason: fmt.Sprintf("it cannot be tracked: %v", err), Next: "see failback track check"}
	switch {
	case errors.Is(err, ebpf.ErrOpen), errors.Is(err, ebpf.ErrTracked):
		refused.Reason = fmt.Sprintf("another live sync of it, or a track command, is running (%v)", err)
		refused.Next = "let that end, then run this again"
	case untrackable(err) && !l.still:
		refused.Next += "; or sync it while its writers rest all the time (--or-at-rest)"
	}
	return refused
}

// written is what this process writes during the pause.
func (v *liveSync) written(s *syncFlags, dst *side) []string {
	paths := []string{dst.Journal, s.fall.undo, dst.Stage}
	if dst.disk != nil {
		paths = append(paths, dst.arg)
	}
	if dir, err := s.fall.place.stateDir(); err == nil {
		paths = append(paths, dir)
	}
	for _, fd := range []string{"/proc/self/fd/1", "/proc/self/fd/2"} {
		if path, err := os.Readlink(fd); err == nil && filepath.IsAbs(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// sync runs the session.
func (v *liveSync) sync(ctx context.Context, src, dst *side, o failback.Options) (*failback.Report, error) {
	o.Live = &failback.Live{
		Pause: v.flags.pause, Round: v.round,
		Quiesce: func(ctx context.Context) (interface {
			Held() error
			Release() (time.Duration, error)
		}, error) {
			h, err := v.plan.Begin(ctx)
			if err != nil {
				return nil, err
			}
			return &held{Hold: h}, nil
		},
	}
	if v.tracker == nil {
		return v.atRest(ctx, src, dst, o)
	}
	o.Live.Tracker = patient{v.tracker, v.u}
	o.Live.Above = v.record.highest()
	switch {
	case v.fresh: // a sync point is of an epoch that is no more
		o.Live.Unsynced = "it was not tracked until now" + v.record.unstopped()
	case v.flags.trust:
		o.Live.Since = v.tracker.Trust().Since
	default:
		o.Live.Unsynced = v.point.load(o.Live)
	}
	o.Live.Sealed = func() error {
		if err := v.record.sealed(o.Live.Since); err != nil {
			return err
		}
		return v.point.save(o.Live)
	}
	if v.brake != nil {
		o.Live.Throttle, v.plan.Stopping = v.brake.slow, v.brake.lift
	}
	if v.flags.freeze != "" {
		o.Live.Rest = freezeTime
		o.Live.Flush = func(ctx context.Context) error {
			return v.flush(ctx, func() error { return syncFS(v.flags.freeze) })
		}
	}
	return failback.Sync(ctx, src.Side, dst.Side, o)
}

// freezeTime is what freezing and thawing an idle file system takes: Linux waits
// for all of its processors, three times.
const freezeTime = 60 * time.Millisecond

// abandon does what the kernel cannot be called back from, and leaves it behind
// when ctx ends: somebody else may have frozen the file system.
func abandon(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush has the file system write out what it holds. Where the writers are slowed
// down what is theirs comes out at that rate, which may take hours: as before the
// pause, there is an end to that.
func (v *liveSync) flush(ctx context.Context, sync func() error) error {
	said := time.AfterFunc(slowFlush, func() { v.u.note("waiting for " + v.flags.freeze + " to write out what it holds") })
	defer said.Stop()
	if !v.brake.holds() {
		return abandon(ctx, sync)
	}
	bounded, cancel := context.WithTimeout(ctx, v.flags.step)
	defer cancel()
	err := abandon(bounded, sync)
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("what %s has in the page cache was not written out within %v (--quiesce-timeout), for it is slowed down: see that it has less there (memory.high), or give it a higher rate", v.brake.name, v.flags.step)
	}
	return err
}

// slowFlush is how long a flush takes of which the user is told.
var slowFlush = 5 * time.Second

func syncFS(mount string) error {
	f, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync the file system at %s: %w", mount, err)
	}
	return nil
}

// patient is a tracker that need not come to rest after a sync: where the device
// is never quiet, the marks at the end of writes go on, and that is no error.
type patient struct {
	*ebpf.Tracker
	u *ui
}

// Rest waits for a quiet moment.
func (p patient) Rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restTime)
	defer cancel()
	err := p.Tracker.Rest(ctx)
	if errors.Is(err, ebpf.ErrBusy) {
		p.u.note("note: " + err.Error())
		return nil
	}
	return err
}

// held is a pause, as a session sees it.
type held struct {
	*quiesce.Hold
	told bool // that it was broken
}

func (h *held) Held() error {
	select {
	case <-h.Ended():
		_, err := h.End()
		h.told = err != nil
		return err
	default:
		return nil
	}
}

func (h *held) Release() (time.Duration, error) {
	p, err := h.End()
	if h.told { // an End returns the same as the one before it
		err = nil
	}
	return p.Length(), err
}

// atRest syncs a source that cannot be tracked: without a tracker its writers are
// at rest from before the first look until both sides are equal, and once only.
func (v *liveSync) atRest(ctx context.Context, src, dst *side, o failback.Options) (*failback.Report, error) {
	o.RetryFor = 0
	o.Live.Untracked = v.untold
	return failback.Sync(ctx, src.Side, dst.Side, o)
}

// end gives the tracker back, or ends it if it was started for this sync.
func (v *liveSync) end(ctx context.Context) error {
	if v == nil {
		return nil
	}
	err := v.brake.end()
	if v.tracker == nil {
		return err
	}
	if v.ours && !v.flags.keep {
		return errors.Join(err, v.stop(), v.point.forget())
	}
	if v.ours {
		err = errors.Join(err, v.record.keeps())
	}
	return errors.Join(err, leave(context.WithoutCancel(ctx), v.tracker))
}

// next says what to do after a live sync that did not finish.
func (l *liveFlags) next(err error, staged bool) string {
	var none *failback.ConvergenceError
	if errors.As(err, &none) {
		return none.Next()
	}
	if staged {
		return "the writers go on; see to that, then run the same command again"
	}
	return "the writers go on; see to that, then run the same command again: what has arrived is not sent again"
}

// round tells a round.
func (v *liveSync) round(r failback.Round) {
	if r.Last {
		v.u.note(fmt.Sprintf("last round: %s looked at, %s sent in %s", humanBytes(r.Bytes), humanBytes(r.Sent), seconds(r.Seconds)))
		return
	}
	text := fmt.Sprintf("round %d: %s looked at, %s sent in %s; %s dirty again", r.Number, humanBytes(r.Bytes), humanBytes(r.Sent), seconds(r.Seconds), humanBytes(r.Left))
	if r.Number > 1 && r.PauseMS < 0 {
		text += "; nothing tells yet how long the pause would take"
	} else if r.Number > 1 {
		if r.Throttle > 0 {
			text += fmt.Sprintf("; writers slowed down to %s/s", humanBytes(r.Throttle))
		}
		text += fmt.Sprintf("; %s/s written, %s/s copied; the pause would take %s", humanBytes(int64(r.In)), humanBytes(int64(r.Out)), seconds(r.PauseMS/1e3))
		switch {
		case r.More > 0:
			text += fmt.Sprintf(", and fits after about %d more", r.More)
		case r.More < 0:
			text += ", and will not fit as things are"
		}
	}
	v.u.note(text)
}
