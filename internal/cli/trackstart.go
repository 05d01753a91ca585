package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

// savedMap is what is known of the last time that a volume was tracked.
type savedMap struct {
	File    string    `json:"file,omitempty"`
	Trusted bool      `json:"trusted"`
	Reason  string    `json:"reason"`
	Stopped time.Time `json:"stopped,omitzero"`

	Checkpoint *checkpoint `json:"checkpoint,omitempty"` // of a recording that did not end in order

	epoch cbt.Epoch
	m     *cbt.Map // nil if there is none that is whole and of this volume
}

// lookSaved returns nil if nothing is known.
func (f *trackFlags) lookSaved(v *failback.Disk, device string) (*savedMap, error) {
	path, err := f.recordPath(v.Identity())
	if err != nil {
		return nil, err
	}
	r, err := readRecord(path)
	if err != nil || r == nil {
		return nil, err
	}
	s := &savedMap{Stopped: r.Stopped, epoch: r.Epoch}
	if r.State == stateEnded {
		s.Reason = "it was tracked for a sync --live, which has ended"
		return s, nil
	}
	if r.State != stateStopped {
		s.Reason = fmt.Sprintf("it was tracked from %s on and not stopped in order", r.Started.Local().Format(time.DateTime))
		if r.Sync {
			s.Reason = fmt.Sprintf("it was tracked from %s on for a sync --live, which did not come to its end", r.Started.Local().Format(time.DateTime))
		}
		before := "the record was lost"
		if r.Boot != bootID() {
			s.Reason += ", and the machine was started anew since"
			before = "the crash"
		}
		s.Reason += ": what was written then is not known"
		if s.Checkpoint = r.left(path); s.Checkpoint != nil {
			s.Reason += "; " + s.Checkpoint.words(before)
		}
		return s, nil
	}
	s.File = mapBeside(path)
	s.m, err = cbt.LoadMap(s.File)
	switch {
	case err != nil:
		s.Reason = "the map that was saved cannot be read: " + err.Error()
		return s, nil
	case s.m.VolumeSize != v.Size():
		s.Reason = fmt.Sprintf("the map that was saved is of %d bytes, the device has %d", s.m.VolumeSize, v.Size())
		s.m = nil
		return s, nil
	}
	return s, s.judge(r, device)
}

// judge compares what the kernel has counted of writes when the recording ended
// with what it counts now.
func (s *savedMap) judge(r *trackRecord, device string) error {
	now, err := diskStamp(device)
	switch {
	case err != nil:
		return err
	case s.m.Epoch == 0:
		s.Reason = "the map that was saved could not be trusted when it was"
	case r.Boot != bootID():
		s.Reason = "the machine was started anew since: whether there was a write in between is not known"
	case r.Stamp == "" || now == "":
		s.Reason = "the kernel does not count writes to this disk, so whether there was one in between is not known"
	case r.Stamp != now:
		s.Reason = "the disk was written to, or replaced, since the recording ended"
	default:
		s.Trusted, s.Reason = true, "it was stopped in order, and the kernel has counted no write since"
	}
	return nil
}

// diskStamp is the stamp of the whole disk: what is written through it to where a
// partition lies does not count for the partition.
func diskStamp(device string) (stamp string, err error) {
	disk, err := ebpf.DiskOf(device)
	if err != nil {
		return "", err
	}
	v, err := failback.Open(disk, failback.OpenOptions{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	return v.Stamp()
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return string(b[:len(b)-1])
}

type trackStartFlags struct {
	trackFlags
	block      byteSize
	name       string
	trustSaved bool
	checkpoint time.Duration
}

func (a *app) trackStartCommand() *cobra.Command {
	var f trackStartFlags
	c := &cobra.Command{
		Use:   "start DEVICE",
		Short: "Record every write to a device from now on",
		Long: `Record every write to a device from now on, also after this command has ended,
until stop or a reboot. A disk is recorded with its partitions, a partition alone.

Commands that are passed through to the disk or its controller and send it no data
are not noticed though they may change it: WRITE ZEROES and FORMAT of nvme, WRITE
SAME without data and FORMAT UNIT of sg3_utils, sanitize. Do not use them meanwhile.

If the device was tracked before, it says whether what stop saved can be trusted:
it is if the kernel has counted no write in between. Then it is taken over, and
the epoch goes on; else a new one begins.

With --checkpoint the command goes on running, for a service, and saves what is
dirty to the state directory at that interval, until it is ended by SIGTERM or
SIGINT (the recording goes on) or tracking is stopped. It also joins a recording
that is under way. A checkpoint tells after a crash what was dirty at that moment;
it is not believed, for what was written after it is not known.`,
		Example: `  failback track start /dev/vg/orders --name orders
  failback track start /dev/sdb1 --block 64KiB
  failback track start /dev/vg/orders --checkpoint 30s`,
		Args:        exactly(1, "DEVICE"),
		Annotations: map[string]string{schemaKey: schemaTrack},
	}
	fl := c.Flags()
	fl.Var(&f.block, "block", "bytes of a block, 4KiB to 1MiB, a power of two (default: by the size)")
	fl.StringVar(&f.name, "name", "", "`NAME` for the volume, at most 255 bytes and without a slash")
	fl.BoolVar(&f.trustSaved, "trust-saved", false, "take over what stop has saved: there was no write in between, though nothing proves it")
	fl.DurationVar(&f.checkpoint, "checkpoint", 0, "go on running, and save what is dirty after each such time; after a crash it is not believed (default: not at all)")
	f.addState(c)
	a.addTrackFlags(c, &f.trackFlags)
	return a.runs(c, func(ctx context.Context, args []string) error {
		if fl.Changed("checkpoint") && f.checkpoint < minCheckpoint {
			return usagef("--checkpoint %v: at least %v", f.checkpoint, minCheckpoint)
		}
		return a.trackStart(ctx, &f, args[0])
	})
}

// trackStart begins.
//
//  1. the kernel records
//  2. what was saved is judged, and taken over if it is trusted
//  3. the epoch is sealed: the record can be trusted
//  4. the state directory says that the volume is tracked
//
// A crash before 3 leaves a record that vouches for nothing. One between 3 and 4
// leaves what was saved: it is judged again if the record is ever lost.
func (a *app) trackStart(ctx context.Context, f *trackStartFlags, device string) error {
	identity, err := f.checkStart(device)
	if err != nil {
		return err
	}
	if f.checkpoint > 0 {
		record, err := f.recordPath(identity)
		if err != nil {
			return err
		}
		lock, err := lockCheckpoint(record, device)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	o := f.options()
	o.Block, o.Name, o.Identity = int64(f.block), f.name, identity
	t, err := ebpf.Start(ctx, device, o)
	if errors.Is(err, ebpf.ErrTracked) {
		t, err = openUnsealed(ctx, device, o, err)
	}
	var j *trackJSON
	switch {
	case err == nil:
		j, err = a.trackStarted(ctx, f, t, device)
		err = errors.Join(err, leave(ctx, t))
	case f.checkpoint > 0 && (errors.Is(err, ebpf.ErrTracked) || errors.Is(err, ebpf.ErrOpen)):
		j, err = f.beside(identity, device, err)
	}
	switch {
	case err != nil:
		return err
	case f.checkpoint > 0:
		return a.checkpoints(ctx, f, j)
	}
	return a.showTrack(j)
}

// leave closes a tracker. It is at rest afterwards, if the device is.
func leave(ctx context.Context, t *ebpf.Tracker) error {
	rest, cancel := context.WithTimeout(ctx, restTime)
	defer cancel()
	return t.Close(rest)
}

// checkStart refuses what can be known before, and returns the volume's identity.
func (f *trackStartFlags) checkStart(device string) (identity string, err error) {
	if f.name != "" && filepath.Base(f.name) != f.name || len(f.name) > cbt.MaxIdentity {
		return "", usagef("--name %.40q: it must have no slash and at most %d bytes", f.name, cbt.MaxIdentity)
	}
	v, err := failback.Open(device, failback.OpenOptions{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if f.block != 0 {
		if _, err := cbt.NewDirtyMap(v.Size(), int64(f.block)); err != nil {
			return "", &usageError{fmt.Errorf("--block: %w", err)}
		}
	}
	all, err := ebpf.List(f.options())
	if err != nil {
		return "", err
	}
	for _, s := range all {
		if f.name != "" && s.Name == f.name && s.Identity != v.Identity() {
			return "", &failback.RefusedError{Volume: device, Reason: "another tracked volume, " + s.Device + ", is called " + f.name, Next: "give another --name"}
		}
	}
	if !f.trustSaved {
		return v.Identity(), nil
	}
	saved, err := f.lookSaved(v, device)
	if err != nil {
		return "", err
	}
	if saved == nil || saved.m == nil || saved.m.Epoch == 0 {
		e := &failback.RefusedError{Volume: device, Reason: "nothing was saved that could be taken over", Next: "leave --trust-saved out"}
		if saved != nil {
			e.Reason += "; " + saved.Reason
		}
		return "", e
	}
	return v.Identity(), nil
}

// openUnsealed opens a tracker whose start was interrupted; for any other it
// returns the error that it was given.
func openUnsealed(ctx context.Context, device string, o ebpf.Options, tracked error) (*ebpf.Tracker, error) {
	t, err := ebpf.Open(device, o)
	if err != nil {
		return nil, err
	}
	if trust := t.Trust(); trust.Since != 0 || trust.Lost != "" {
		return nil, errors.Join(tracked, leave(ctx, t))
	}
	return t, nil
}

// drainTime is how long a start waits for writes that are under way, where it has
// to.
const drainTime = 10 * time.Second

func (a *app) trackStarted(ctx context.Context, f *trackStartFlags, t *ebpf.Tracker, device string) (*trackJSON, error) {
	s, err := t.Status()
	if err != nil {
		return nil, err
	}
	if !s.Drained && !s.Reading {
		fmt.Fprintf(a.stderr, "waiting for writes to %s that are under way\n", device)
		wait, cancel := context.WithTimeout(ctx, drainTime)
		defer cancel()
		if err := t.Drain(wait); err != nil {
			return nil, &outcomeError{err, device + " is tracked, and the record vouches for nothing yet", "pause the writers for a moment and run the same command again"}
		}
	}
	saved, err := f.takeOver(t, device)
	if err != nil {
		return nil, err
	}
	if s, err = t.Status(); err != nil {
		return nil, err
	}
	path, err := f.recordPath(s.Identity)
	if err != nil {
		return nil, err
	}
	if err := recordOf(&s, device).renew(path); err != nil {
		return nil, &outcomeError{err, device + " is tracked, but what is known of it could not be noted", "see to that, then run failback track stop " + device}
	}
	return &trackJSON{Schema: schemaTrack, Result: "started", Volumes: []trackVolume{trackVolumeOf(s)}, Saved: saved, number: s.Number}, nil
}

// takeOver seals the first epoch of a tracker, or goes on with the saved one.
func (f *trackStartFlags) takeOver(t *ebpf.Tracker, device string) (*savedMap, error) {
	v, err := failback.Open(device, failback.OpenOptions{})
	if err != nil {
		return nil, err
	}
	saved, err := f.lookSaved(v, device)
	if err := errors.Join(err, v.Close()); err != nil {
		return nil, err
	}
	s, err := t.Status()
	if err != nil {
		return nil, err
	}
	epoch := cbt.Epoch(1)
	if saved != nil {
		epoch = saved.epoch + 1
		if saved.Trusted && !s.Drained {
			saved.Trusted, saved.Reason = false, "writes to the device may be under way"
		}
		if f.trustSaved && saved.m != nil && saved.m.Epoch > 0 && !saved.Trusted {
			saved.Trusted, saved.Reason = true, "because of --trust-saved, although "+saved.Reason
		}
	}
	if saved != nil && saved.Trusted {
		epoch = saved.m.Epoch
		if err := t.Add(saved.m); err != nil {
			return nil, err
		}
	}
	return saved, t.Seal(epoch)
}

// trackStop ends a recording.
//
//  1. save the map: if there is no room, nothing has ended
//  2. note what the kernel has counted of writes: one that comes later makes the
//     map one that is not believed
//  3. end the recording, and save the map as it is then
//  4. note the clean stop
//
// A crash between 3 and 4 leaves a map that is not believed.
func (a *app) trackStop(ctx context.Context, f *trackFlags, arg string) error {
	path, err := f.find(arg)
	if err != nil {
		return err
	}
	t, err := ebpf.Open(path, f.options())
	if err != nil {
		return err
	}
	s, record, err := f.saveFirst(t)
	if err != nil {
		return errors.Join(err, leave(ctx, t))
	}
	r := trackRecord{
		Version: 1, State: stateStopped, Device: s.Device, Name: s.Name, Identity: s.Identity,
		Boot: bootID(), Epoch: s.Trust.Since, Started: s.Started, Stopped: time.Now(),
	}
	if s.Trust.Lost == "" {
		if r.Stamp, err = diskStamp(s.Device); err != nil {
			return errors.Join(err, leave(ctx, t))
		}
	}
	m, err := t.Stop()
	if err != nil {
		return err
	}
	if err := errors.Join(m.Save(mapBeside(record)), r.renew(record)); err != nil {
		return &outcomeError{err, s.Device + " is not tracked any more, and what was dirty is not known", "compare the volumes by hash"}
	}
	if err := dropCheckpoint(record); err != nil {
		fmt.Fprintf(a.stderr, "note: a checkpoint is left, which nothing uses any more: %v\n", err)
	}
	saved := &savedMap{File: mapBeside(record), Trusted: m.Epoch > 0, Reason: "it was stopped in order", Stopped: r.Stopped}
	if !saved.Trusted {
		saved.Reason = s.Trust.Lost
	}
	v := trackVolumeOf(s)
	v.DirtyBytes, v.DiscardedBytes = m.Bytes()
	return a.showTrack(&trackJSON{Schema: schemaTrack, Result: "stopped", Volumes: []trackVolume{v}, Saved: saved})
}

// saveFirst saves the map while it is still recorded.
func (f *trackFlags) saveFirst(t *ebpf.Tracker) (s ebpf.Status, record string, err error) {
	if s, err = t.Status(); err != nil {
		return s, "", err
	}
	if record, err = f.recordPath(s.Identity); err != nil {
		return s, "", err
	}
	if err := os.MkdirAll(filepath.Dir(record), 0o700); err != nil {
		return s, "", err
	}
	m, err := t.Map()
	if err != nil {
		return s, "", err
	}
	return s, record, m.Save(mapBeside(record))
}
