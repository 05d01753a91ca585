package cli

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
	"github.com/failback/failback/internal/sysfs"
)

// A checkpoint is what a tracker held at some moment, in the state directory:
// NAME.checkpoint beside the record, a line of JSON and behind it a dirty map.
//
// The kernel records without any process and forgets all in a crash. What is left
// then says what was dirty at that moment, and not what was written after it, so
// it stands for nothing (L1). It is a file of its own that is no dirty map as it
// is, and the map in it names no epoch: nothing takes it for what a clean stop has
// saved, nor can it be given to a sync.
type checkpoint struct {
	File           string    `json:"file,omitempty"` // not in the file
	Time           time.Time `json:"time"`
	Seen           time.Time `json:"seen,omitzero"` // not in the file but its time: when this was so still
	Epoch          cbt.Epoch `json:"epoch"`         // since which it had every write then; 0: it could not be trusted
	DirtyBytes     int64     `json:"dirty_bytes"`
	DiscardedBytes int64     `json:"discarded_bytes"`
}

// checkpointHead is the first line of the file.
type checkpointHead struct {
	Version  int       `json:"version"` // 1
	Identity string    `json:"identity"`
	Boot     string    `json:"boot"`    // id of the boot
	Started  time.Time `json:"started"` // when the tracker was
	checkpoint
}

// maxCheckpointHead bounds the first line, bytes.
const maxCheckpointHead = 64 << 10

func checkpointBeside(record string) string {
	return strings.TrimSuffix(record, ".track") + ".checkpoint"
}

// readCheckpoint returns nil if there is none that this version knows.
func readCheckpoint(path string) *checkpointHead {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, maxCheckpointHead)).ReadBytes('\n')
	var h checkpointHead
	if err != nil || json.Unmarshal(line, &h) != nil || h.Version != 1 {
		return nil
	}
	h.File = path
	if info, err := f.Stat(); err == nil && info.ModTime().After(h.Time) {
		h.Seen = info.ModTime()
	}
	return &h
}

// left returns the checkpoint of the recording that a record tells of, nil if there
// is none: one that is left of another is of no interest any more.
func (r *trackRecord) left(record string) *checkpoint {
	h := readCheckpoint(checkpointBeside(record))
	if h == nil || h.Identity != r.Identity || h.Boot != r.Boot || h.Time.Before(r.Started) {
		return nil
	}
	return &h.checkpoint
}

// words says of a checkpoint what it is, and that it is not used.
func (c *checkpoint) words(before string) string {
	at := c.Time.Local().Format(time.DateTime)
	if c.Seen.Sub(c.Time) > time.Second {
		at += ", with nothing new until " + c.Seen.Local().Format(time.DateTime) + ","
	}
	return fmt.Sprintf("there is a checkpoint of %s with %s dirty and %s discarded (%s): it is of before %s, and what was written after it is not known, so it is not used",
		at, humanBytes(c.DirtyBytes), humanBytes(c.DiscardedBytes), c.File, before)
}

// checkpointOf returns the checkpoint of a tracker that is at work, nil for none.
func (f *trackFlags) checkpointOf(s *ebpf.Status) *checkpoint {
	record, err := f.recordPath(s.Identity)
	if err != nil {
		return nil
	}
	h := readCheckpoint(checkpointBeside(record))
	if h == nil || h.Identity != s.Identity || h.Boot != bootID() || !h.Started.Equal(s.Started) {
		return nil
	}
	return &h.checkpoint
}

// minCheckpoint is the shortest time between two checkpoints. Each is a pass over
// the bitmap.
const minCheckpoint = 100 * time.Millisecond

// lockCheckpoint sees to it that there is only one process that makes checkpoints of
// a volume: each would take what the other wrote for its own. The file stays.
func lockCheckpoint(record, device string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(record), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(strings.TrimSuffix(record, ".track")+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &failback.RefusedError{Volume: device, Reason: "another process makes checkpoints of it", Next: "let that go on, or end it first"}
	}
	return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
}

// dropCheckpoint removes the checkpoint beside a record, and what is left of one that
// was being written when its process was killed.
func dropCheckpoint(record string) error {
	path := checkpointBeside(record)
	err := ignore(os.Remove(path), fs.ErrNotExist)
	if _, none := os.Lstat(tempBeside(path)); none != nil {
		return err
	}
	f, busy := lockCheckpoint(record, "")
	if busy != nil { // it is being written
		return err
	}
	defer f.Close()
	return errors.Join(err, ignore(os.Remove(tempBeside(path)), fs.ErrNotExist))
}

// beside joins a tracker that is at work already, for its checkpoints only: its own
// start was another command's. It returns the error that it was given where this
// command wants more of it.
func (f *trackStartFlags) beside(identity, device string, tracked error) (*trackJSON, error) {
	all, err := ebpf.List(f.options())
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Identity != identity {
			continue
		}
		if f.startedBySync(identity) {
			return nil, &failback.RefusedError{Volume: device, Reason: "it is tracked for a sync --live, and that ends with it", Next: "let that sync end, or give it --keep-tracking; if it was killed, run failback track stop " + device + "; then run this again"}
		}
		other := ""
		switch {
		case f.trustSaved:
			return nil, tracked
		case f.name != "" && f.name != s.Name:
			other = fmt.Sprintf("under the name %q", s.Name)
		case f.block != 0 && int64(f.block) != s.Block:
			other = "in blocks of " + humanBytes(s.Block)
		}
		if other != "" {
			return nil, &failback.RefusedError{Volume: device, Reason: "it is tracked already, " + other, Next: "leave --name and --block out to have checkpoints of that, or stop it first"}
		}
		if err := f.noteBeside(&s, device, func() (bool, error) { return f.tracked(&s) }); err != nil {
			return nil, err
		}
		return &trackJSON{Schema: schemaTrack, Result: "tracked", Volumes: []trackVolume{f.volume(&s)}, number: s.Number}, nil
	}
	return nil, tracked
}

// tracked reports whether a recording goes on.
func (f *trackFlags) tracked(of *ebpf.Status) (bool, error) {
	all, err := ebpf.List(f.options())
	return slices.ContainsFunc(all, func(s ebpf.Status) bool { return s.Number == of.Number && s.Started.Equal(of.Started) }), err
}

// noteBeside sees to it that the state directory knows that the volume is tracked,
// for who reads the checkpoint after a crash. A record of this recording stays, and
// so does one of its end: that may have come since it was seen at work.
func (f *trackFlags) noteBeside(s *ebpf.Status, device string, tracked func() (bool, error)) error {
	path, err := f.recordPath(s.Identity)
	if err != nil {
		return err
	}
	r, err := readRecord(path)
	if err != nil || r != nil && r.State == stateTracking && r.Boot == bootID() {
		return err
	}
	if r != nil && r.Stopped.After(s.Started) {
		if on, err := tracked(); err != nil || !on {
			return errors.Join(err, &failback.RefusedError{Volume: device, Reason: "somebody has just stopped tracking it", Next: "run the same command again"})
		}
	}
	return recordOf(s, device).renew(path)
}

// volume is what is told of a tracked volume.
func (f *trackFlags) volume(s *ebpf.Status) trackVolume {
	v := trackVolumeOf(*s)
	v.bySync, v.Checkpoint = f.startedBySync(s.Identity), f.checkpointOf(s)
	return v
}

// checkpoints saves what a tracker holds again and again, until ctx ends or the
// recording does. Nothing is cleared, and who wants the tracker may open it.
func (a *app) checkpoints(ctx context.Context, f *trackStartFlags, j *trackJSON) error {
	v := &j.Volumes[0]
	record, err := f.recordPath(v.Identity)
	if err != nil {
		return err
	}
	c := &checkpointer{
		flags: &f.trackFlags, every: f.checkpoint, number: j.number, device: v.Device,
		record: record, path: checkpointBeside(record), volume: v,
		head: checkpointHead{Version: 1, Identity: v.Identity, Boot: bootID(), Started: v.Started},
	}
	c.disk = diskNow(c.number)
	if c.began, err = readRecord(record); err != nil {
		return err
	}
	j.every, j.path = c.every, c.path
	if !a.json {
		if err := a.showTrack(j); err != nil {
			return err
		}
	}
	stopped, err := c.run(ctx)
	if err != nil {
		return c.explain(err)
	}
	j.Result = "tracked"
	note := fmt.Sprintf("no more checkpoints: the kernel records on; the last one is of %s", c.head.Time.Local().Format(time.DateTime))
	if stopped {
		j.Result, v.Checkpoint = "stopped", nil
		note = fmt.Sprintf("no more checkpoints: %s is not tracked any more", c.device)
	}
	fmt.Fprintln(a.stderr, note)
	if a.json {
		return a.showTrack(j)
	}
	return nil
}

// checkpointer is the checkpoints of one tracker, as long as they are made.
type checkpointer struct {
	flags          *trackFlags
	every          time.Duration
	number, device string
	disk           string // what the kernel calls the disk behind the number
	record, path   string
	began          *trackRecord // what the record was at first; nil: none
	volume         *trackVolume // as it was last seen
	head           checkpointHead
	sum            [sha256.Size]byte // of the map that the file holds
	noted          fs.FileInfo       // of the record, when it was last looked at
}

// glance is how often it is looked whether the record was written, as it is by who
// stops the recording.
const glance = time.Second

// run returns when ctx has ended, or when there is nothing left to save: then it
// reports that the recording was stopped.
func (c *checkpointer) run(ctx context.Context) (stopped bool, err error) {
	due, look := time.NewTicker(c.every), time.NewTicker(glance)
	defer due.Stop()
	defer look.Stop()
	c.noted, _ = os.Stat(c.record)
	for {
		if stopped, err := c.save(); stopped || err != nil {
			return stopped, err
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return c.save()
			case <-due.C:
				waiting = false
			case <-look.C:
				waiting = !c.rewritten()
			}
		}
	}
}

// rewritten reports whether somebody has written the record since the last look.
func (c *checkpointer) rewritten() bool {
	was := c.noted
	c.noted, _ = os.Stat(c.record)
	return was == nil || c.noted == nil || !os.SameFile(was, c.noted) || !was.ModTime().Equal(c.noted.ModTime())
}

// look returns what the tracker holds and what is known of it; [ebpf.ErrNotTracked]
// if it is no more, also where the volume is tracked anew: the map is looked at
// first, so that it is not the new one's.
func (c *checkpointer) look() (*cbt.Map, *ebpf.Status, error) {
	m, err := ebpf.Peek(c.number, c.flags.options())
	if err != nil {
		return nil, nil, err
	}
	all, err := ebpf.List(c.flags.options())
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all {
		if s.Number == c.number && s.Started.Equal(c.head.Started) {
			return m, &s, nil
		}
	}
	return nil, nil, ebpf.ErrNotTracked
}

// save writes a checkpoint if it differs from the last. It reports whether the
// recording was stopped.
func (c *checkpointer) save() (stopped bool, err error) {
	m, s, err := c.look()
	switch {
	case errors.Is(err, ebpf.ErrNotTracked):
		if err := c.ordered(); err != nil {
			return false, err
		}
		return true, c.forget()
	case err != nil:
		return false, err
	case diskNow(c.number) != c.disk:
		return false, &goneError{c.device}
	}
	h := c.head
	h.Epoch, m.Epoch = m.Epoch, 0 // see checkpoint
	h.DirtyBytes, h.DiscardedBytes = m.Bytes()
	if err := c.write(h, m); err != nil {
		return false, fmt.Errorf("write checkpoint: %w", err)
	}
	*c.volume = trackVolumeOf(*s)
	now := c.head.checkpoint
	now.File = c.path
	c.volume.Checkpoint = &now
	return false, nil
}

// write writes a checkpoint, or where it is the last one still only when that was
// seen. The map is encoded twice rather than kept: it may be large.
func (c *checkpointer) write(h checkpointHead, m *cbt.Map) error {
	sum := sha256.New()
	if _, err := m.WriteTo(sum); err != nil {
		return err
	}
	now := time.Now().UTC()
	if !c.head.Time.IsZero() && [sha256.Size]byte(sum.Sum(nil)) == c.sum && h.Epoch == c.head.Epoch {
		c.head.Seen = now
		return ignore(os.Chtimes(c.path, now, now), fs.ErrNotExist) // it was stopped: the next look says so
	}
	h.Time, h.Seen = now, time.Time{}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	err = replaceBy(c.path, func(w io.Writer) error {
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
		_, err := m.WriteTo(w)
		return err
	})
	if err == nil {
		c.head, c.sum = h, [sha256.Size]byte(sum.Sum(nil))
	}
	return err
}

// ordered returns nil if somebody has ended the recording: the record says so soon
// after. Else it was lost, and nothing knows what is written from then on.
func (c *checkpointer) ordered() error {
	late := time.After(orderedTime)
	for {
		r, err := readRecord(c.record)
		switch {
		case err != nil:
			return err
		case r != nil && c.began != nil && (r.State != stateTracking || !r.Started.Equal(c.began.Started)):
			return nil
		}
		select {
		case <-time.After(orderedTime / 100):
		case <-late:
			return &lostError{c.device}
		}
	}
}

// orderedTime is how long who has ended a recording may take to note that: it saves
// the map before.
var orderedTime = 10 * time.Second

// lostError says that a recording is no more, and that nobody has ended it.
type lostError struct{ device string }

// Error says what became of the recording.
func (e *lostError) Error() string {
	return e.device + " is not tracked any more, and it was not stopped in order: what the kernel has kept of it is gone"
}

// forget removes the checkpoint of a recording that was stopped: who stopped it has
// saved what there is to know. One of a recording that has begun since stays.
func (c *checkpointer) forget() error {
	h := readCheckpoint(c.path)
	if h == nil || !h.Started.Equal(c.head.Started) {
		return nil
	}
	if err := ignore(os.Remove(c.path), fs.ErrNotExist); err != nil {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return nil
}

// ignore is err, unless it is of that kind.
func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}

// goneError says that the device of a tracker is no more.
type goneError struct{ device string }

// Error says what became of the device.
func (e *goneError) Error() string {
	return e.device + " is gone, or its number is another disk's now: what is written is not recorded any more"
}

// explain adds to an error what holds now.
func (c *checkpointer) explain(err error) error {
	state := "no checkpoint was written"
	if !c.head.Time.IsZero() {
		state = "the last checkpoint is of " + c.head.Time.Local().Format(time.DateTime)
	}
	var gone *goneError
	var lost *lostError
	switch {
	case errors.As(err, &lost):
		return &outcomeError{err, state + ", and what was written since is not known", "run the same command again to have it tracked from then on, and compare the volumes by hash"}
	case errors.As(err, &gone):
		return &outcomeError{err, state, "end the recording (failback track stop " + c.device + "), and compare the volumes by hash when the device is back"}
	}
	return &outcomeError{err, c.device + " is tracked on; " + state, "see to that, then run the same command again"}
}

// diskNow names the disk that has a device number now, with its number in sequence
// where the kernel counts; "" for none, or an empty one.
func diskNow(number string) string {
	n, ok := sysfs.ParseDevno(number)
	if !ok || sysfs.Number(sysfs.This.Dir(n), "size") == 0 {
		return ""
	}
	disk, _ := sysfs.This.Disk(n)
	return disk.String() + " " + sysfs.Attr(sysfs.This.Dir(disk), "diskseq")
}
