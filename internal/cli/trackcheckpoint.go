package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

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
	Epoch          cbt.Epoch `json:"epoch"` // since which it had every write then; 0: it could not be trusted
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
	return fmt.Sprintf("there is a checkpoint of %s with %s dirty and %s discarded (%s): it is of before %s, and what was written after it is not known, so it is not used",
		c.Time.Local().Format(time.DateTime), humanBytes(c.DirtyBytes), humanBytes(c.DiscardedBytes), c.File, before)
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
		if err := f.noteBeside(&s, device); err != nil {
			return nil, err
		}
		return &trackJSON{Schema: schemaTrack, Result: "tracked", Volumes: []trackVolume{f.volume(&s)}, number: s.Number}, nil
	}
	return nil, tracked
}

// noteBeside sees to it that the state directory knows that the volume is tracked,
// for who reads the checkpoint after a crash. A record of this recording stays.
func (f *trackFlags) noteBeside(s *ebpf.Status, device string) error {
	path, err := f.recordPath(s.Identity)
	if err != nil {
		return err
	}
	r, err := readRecord(path)
	if err != nil || r != nil && r.State == stateTracking && r.Boot == bootID() {
		return err
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
		return true, c.forget()
	case err != nil:
		return false, err
	case diskNow(c.number) != c.disk:
		return false, &goneError{c.device}
	}
	h := c.head
	h.Epoch, m.Epoch = m.Epoch, 0 // see checkpoint
	h.DirtyBytes, h.DiscardedBytes = m.Bytes()
	var body bytes.Buffer
	if _, err := m.WriteTo(&body); err != nil {
		return false, err
	}
	sum := sha256.Sum256(body.Bytes())
	if c.head.Time.IsZero() || sum != c.sum || h.Epoch != c.head.Epoch {
		h.Time = time.Now().UTC()
		line, err := json.Marshal(h)
		if err != nil {
			return false, err
		}
		if err := replaceFile(c.path, append(append(line, '\n'), body.Bytes()...)); err != nil {
			return false, fmt.Errorf("write checkpoint: %w", err)
		}
		c.head, c.sum = h, sum
	}
	*c.volume = trackVolumeOf(*s)
	now := c.head.checkpoint
	now.File = c.path
	c.volume.Checkpoint = &now
	return false, nil
}

// forget removes the checkpoint of a recording that was stopped: who stopped it has
// saved what there is to know. One of a recording that has begun since stays.
func (c *checkpointer) forget() error {
	h := readCheckpoint(c.path)
	if h == nil || !h.Started.Equal(c.head.Started) {
		return nil
	}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return nil
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
	if errors.As(err, &gone) {
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
