package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

const schemaTrack = "failback.track/1"

// trackFlags are those of all track commands.
type trackFlags struct {
	bpffs string
	state placeFlags
}

func (a *app) trackCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "track",
		Short: "Have the kernel record what is written to a block device",
		Long: `Have the kernel record what is written to a block device that is in use, from
start until stop, also when no failback runs. The record is in kernel memory: no
death of a process loses a bit of it, a reboot loses all.

The device stays as it is: no module, no remount, no pause.`,
		Example: `  failback track start /dev/vg/orders --name orders
  failback track status
  failback track take orders -o orders.fbm`,
		RunE: a.group,
	}
	c.AddCommand(a.trackStartCommand(), a.trackStatusCommand(), a.trackExtentsCommand(), a.trackTakeCommand(), a.trackStopCommand(), a.trackCheckCommand())
	return c
}

func (a *app) addTrackFlags(c *cobra.Command, f *trackFlags) {
	c.Flags().StringVar(&f.bpffs, "bpffs", "", "`DIR` where the kernel's pins are (default /sys/fs/bpf; mounted by start if it is not)")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
}

func (f *trackFlags) addState(c *cobra.Command) {
	c.Flags().StringVar(&f.state.state, "state", "", "`DIR` for what stop saves (default "+systemState+")")
}

func (f *trackFlags) options() ebpf.Options { return ebpf.Options{FS: f.bpffs} }

// find returns what the tracker library calls a volume: a path as it is given,
// else the number of the tracked volume of that name, which may have no path.
func (f *trackFlags) find(arg string) (string, error) {
	all, err := ebpf.List(f.options())
	if err != nil {
		return "", err
	}
	found := ""
	for _, s := range all {
		switch {
		case s.Device == arg:
			return s.Number, nil
		case s.Name == arg && found != "":
			return "", usagef("several tracked volumes are called %s: give the device", arg)
		case s.Name == arg:
			found = s.Number
		}
	}
	if found == "" && !strings.Contains(arg, "/") {
		return "", &failback.RefusedError{Volume: arg, Reason: "no tracked volume has this name", Next: "see failback track status, or give the path of a device"}
	}
	if found == "" {
		return arg, nil
	}
	return found, nil
}

// tracked runs f with the tracker of arg.
func (a *app) tracked(ctx context.Context, flags *trackFlags, arg string, f func(*ebpf.Tracker) error) error {
	path, err := flags.find(arg)
	if err != nil {
		return err
	}
	t, err := ebpf.Open(path, flags.options())
	if err != nil {
		return err
	}
	if err := f(t); err != nil {
		return errors.Join(err, leave(ctx, t))
	}
	rest, cancel := context.WithTimeout(ctx, restTime)
	defer cancel()
	err = t.Rest(rest)
	if errors.Is(err, ebpf.ErrBusy) {
		fmt.Fprintln(a.stderr, "note: "+err.Error())
		err = nil
	}
	return errors.Join(err, t.Close(rest))
}

// restTime is how long a command waits for a quiet moment of the device.
const restTime = 300 * time.Millisecond

func (a *app) trackStatusCommand() *cobra.Command {
	var f trackFlags
	c := &cobra.Command{
		Use:   "status [DEVICE|NAME]",
		Short: "Say what is recorded, since when, and whether it can be trusted",
		Long: `Say what is recorded of all tracked volumes or of one: since when, how much is
dirty, whether the record can be trusted and if not, why, and how much kernel
memory it takes. For a DEVICE that is not tracked it says what is known of the
last time it was.`,
		Example: `  failback track status
  failback track status --json /dev/vg/orders`,
		Args:        cobra.MaximumNArgs(1),
		Annotations: map[string]string{schemaKey: schemaTrack},
	}
	f.addState(c)
	a.addTrackFlags(c, &f)
	return a.runs(c, func(_ context.Context, args []string) error { return a.trackStatus(&f, args) })
}

func (a *app) trackStatus(f *trackFlags, args []string) error {
	all, err := ebpf.List(f.options())
	if err != nil {
		return err
	}
	j := trackJSON{Schema: schemaTrack, Result: "tracked", Volumes: []trackVolume{}}
	want := ""
	if len(args) > 0 {
		if want, err = f.find(args[0]); err != nil {
			return err
		}
	}
	for _, s := range all {
		if want == "" || s.Number == want {
			j.Volumes = append(j.Volumes, f.volume(&s))
		}
	}
	if want != "" && len(j.Volumes) == 0 {
		return a.notTracked(f, args[0])
	}
	return a.showTrack(&j)
}

// notTracked says what is known of a device that nothing records.
func (a *app) notTracked(f *trackFlags, device string) error {
	v, err := failback.Open(device, failback.OpenOptions{})
	if err != nil {
		return err
	}
	saved, err := f.lookSaved(v, device)
	if err := errors.Join(err, v.Close()); err != nil {
		return err
	}
	e := &failback.RefusedError{Volume: device, Reason: "it is not tracked", Next: "start with failback track start " + device}
	if saved != nil {
		e.Reason += "; " + saved.Reason
	}
	return e
}

func (a *app) trackExtentsCommand() *cobra.Command {
	var f trackFlags
	c := &cobra.Command{
		Use:   "extents DEVICE|NAME",
		Short: "List what is dirty now, and clear nothing",
		Long: `List what is dirty or discarded now: offset, length and state, one run on a
line. Nothing is cleared, and another process may have the tracker open; what
that one has taken counts as dirty.`,
		Example:     "  failback track extents --json /dev/vg/orders",
		Args:        exactly(1, "DEVICE or NAME"),
		Annotations: map[string]string{schemaKey: schemaTrack},
	}
	a.addTrackFlags(c, &f)
	return a.runs(c, func(_ context.Context, args []string) error {
		path, err := f.find(args[0])
		if err != nil {
			return err
		}
		m, err := ebpf.Peek(path, f.options())
		if err != nil {
			return err
		}
		return a.showExtents(m)
	})
}

func (a *app) trackTakeCommand() *cobra.Command {
	var f trackFlags
	var output string
	c := &cobra.Command{
		Use:   "take DEVICE|NAME -o MAP",
		Short: "Take what is dirty as a dirty map file, and clear it",
		Long: `Take what is dirty as a dirty map file, and clear it. The file is durable before
anything is cleared; from then on it is the only place that knows. It says since
which epoch it has every write, and a new epoch begins.

Refused if the record cannot be trusted: then it does not have every write.`,
		Example:     "  failback track take orders -o orders.fbm",
		Args:        exactly(1, "DEVICE or NAME"),
		Annotations: map[string]string{schemaKey: schemaMap},
	}
	f.addState(c)
	a.addTrackFlags(c, &f)
	c.Flags().StringVarP(&output, "output", "o", "", "the map `FILE` to write (required); one that is there is replaced")
	return a.runs(c, func(ctx context.Context, args []string) error {
		if output == "" {
			return usagef("no file to write: give -o MAP")
		}
		var m *cbt.Map
		err := a.tracked(ctx, &f, args[0], func(t *ebpf.Tracker) (err error) {
			m, err = f.take(ctx, t, output)
			return err
		})
		if err != nil {
			return err
		}
		return a.showMap(output, m, false)
	})
}

// givingTracker is what take asks of a tracker.
type givingTracker interface {
	cbt.Tracker
	cbt.Sealer
	Status() (ebpf.Status, error)
}

// take empties a tracker into a file.
//
//  1. take: the bits are in the kernel's memory as taken and not proven
//  2. save the map, durably
//  3. note the new epoch
//  4. advance to it: whoever asks for what was written since the old one is refused
//     from here on, for then the bits go
//
// A crash before 4 leaves a tracker that is as it was, and one in the middle of it
// the new epoch with all bits: the file has them, too.
func (f *trackFlags) take(ctx context.Context, t givingTracker, output string) (*cbt.Map, error) {
	trust := t.Trust()
	taken, err := t.Take(ctx, trust.Since)
	if err != nil {
		return nil, err
	}
	s, err := t.Status()
	if err != nil {
		return nil, errors.Join(err, t.PutBack(taken, nil))
	}
	m, err := cbt.NewMap(s.Size, s.Block, taken.Runs())
	if err != nil {
		return nil, errors.Join(err, t.PutBack(taken, nil))
	}
	m.Identity, m.Epoch = s.Identity, trust.Since
	if err := m.Save(output); err != nil {
		return nil, errors.Join(err, t.PutBack(taken, nil))
	}
	record, noted, err := f.notedEpoch(s.Identity)
	next := max(trust.Since, noted) + 1
	if err == nil {
		err = noteEpoch(record, next)
	}
	if err != nil {
		return nil, errors.Join(err, t.PutBack(taken, nil))
	}
	if err := t.Advance(taken, taken.Extents(), next); err != nil {
		return nil, &outcomeError{err, s.Device + " is tracked, and nothing was cleared; what was dirty until now is in " + output + " as well", "see failback track status"}
	}
	return m, nil
}

func (a *app) trackStopCommand() *cobra.Command {
	var f trackFlags
	c := &cobra.Command{
		Use:   "stop DEVICE|NAME",
		Short: "End the recording, and save what is dirty with a clean-stop mark",
		Long: `End the recording, and save what is dirty to the state directory, with a mark
that it was ended in order and with what the kernel has counted of writes. Writes
from now on are seen by nobody: the next start trusts the file only if there were
none.`,
		Example:     "  failback track stop orders",
		Args:        exactly(1, "DEVICE or NAME"),
		Annotations: map[string]string{schemaKey: schemaTrack},
	}
	f.addState(c)
	a.addTrackFlags(c, &f)
	return a.runs(c, func(ctx context.Context, args []string) error { return a.trackStop(ctx, &f, args[0]) })
}

func (a *app) trackCheckCommand() *cobra.Command {
	var f trackFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Say what this kernel can do",
		Long: `Try what tracking needs of this kernel, and change nothing: yes, no (with the
Linux version or the configuration that has it), or unknown (with the reason).

Exit codes: 0 tracking works here, 1 it does not, 2 usage, 3 could not tell.`,
		Example:     "  failback track check",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{schemaKey: schemaTrack, answerKey: "yes"},
	}
	a.addTrackFlags(c, &f)
	return a.runs(c, func(context.Context, []string) error { return a.trackCheck(&f) })
}

func (a *app) trackCheck(f *trackFlags) error {
	j := trackJSON{Schema: schemaTrack, Result: "works"}
	for _, x := range ebpf.Probe(f.bpffs) {
		j.Features = append(j.Features, trackFeature{
			Name: x.Name, Support: x.Support.String(), Required: x.Required, Since: x.Since, Config: x.Config, Detail: x.Detail,
		})
		switch {
		case x.Required && x.Support == ebpf.No:
			j.Result = "lacking"
		case x.Required && x.Support == ebpf.Unknown && j.Result == "works":
			j.Result = "unknown"
		}
	}
	if err := a.showTrack(&j); err != nil {
		return err
	}
	switch j.Result {
	case "lacking":
		return errDifferent
	case "unknown":
		return errUntold
	}
	return nil
}
