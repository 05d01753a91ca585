package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

// trackJSON is what the track commands tell, but for take, which tells of a map.
type trackJSON struct {
	Schema   string         `json:"schema"`
	Result   string         `json:"result"` // started, tracked, stopped; check: works, lacking, unknown
	Volumes  []trackVolume  `json:"volumes,omitempty"`
	Saved    *savedMap      `json:"saved,omitempty"`
	Features []trackFeature `json:"features,omitempty"`

	number string        // of the volume, "major:minor"
	every  time.Duration // between checkpoints; 0: none are made
	path   string        // of the checkpoint
}

type trackVolume struct {
	Device         string    `json:"device"`
	Name           string    `json:"name,omitempty"`
	Identity       string    `json:"identity"`
	VolumeBytes    int64     `json:"volume_bytes"`
	BlockBytes     int64     `json:"block_bytes"`
	Started        time.Time `json:"started"`
	Trusted        bool      `json:"trusted"`
	Epoch          uint64    `json:"epoch"`
	Reason         string    `json:"reason"` // why it is not trusted
	DirtyBytes     int64     `json:"dirty_bytes"`
	DiscardedBytes int64     `json:"discarded_bytes"`
	Writes         uint64    `json:"writes"`
	Discards       uint64    `json:"discards"`
	WrittenBytes   uint64    `json:"written_bytes"`
	Passthrough    uint64    `json:"passthrough"`
	Unmarked       uint64    `json:"unmarked"`
	Reading        bool      `json:"reading"`
	KernelBytes    int64     `json:"kernel_bytes"`

	Checkpoint *checkpoint `json:"checkpoint,omitempty"` // of this recording, the last

	bySync    bool // started for the time of a live sync
	uncounted bool
	holds     bool
}

type trackFeature struct {
	Name     string `json:"name"`
	Support  string `json:"support"` // yes, no, unknown
	Required bool   `json:"required"`
	Since    string `json:"since,omitempty"`
	Config   string `json:"config,omitempty"`
	Detail   string `json:"detail,omitempty"`
}

type trackExtentsJSON struct {
	Schema  string      `json:"schema"`
	Result  string      `json:"result"` // always "listed"
	Extents []mapExtent `json:"extents"`
}

func trackVolumeOf(s ebpf.Status) trackVolume {
	v := trackVolume{
		Device: s.Device, Name: s.Name, Identity: s.Identity, VolumeBytes: s.Size, BlockBytes: s.Block, Started: s.Started.UTC(),
		Trusted: s.Trust.Check(s.Trust.Since) == nil, Epoch: uint64(s.Trust.Since), Reason: s.Trust.Lost,
		DirtyBytes: s.Dirty, DiscardedBytes: s.Discarded, Writes: s.Writes, Discards: s.Discards, WrittenBytes: s.Written,
		Passthrough: s.Passthrough, Unmarked: s.Unmarked, Reading: s.Reading, KernelBytes: s.Memory,
		uncounted: s.Uncounted, holds: s.Holds,
	}
	if !v.Trusted && v.Reason == "" {
		v.Reason = "its start did not come to its end: run failback track start again"
	}
	return v
}

func (a *app) showTrack(j *trackJSON) error {
	if a.json {
		return writeJSON(a.stdout, j)
	}
	if len(j.Features) > 0 {
		return writeFeatures(a.stdout, j)
	}
	if len(j.Volumes) == 0 {
		_, err := fmt.Fprintln(a.stdout, "nothing is tracked")
		return err
	}
	for i, v := range j.Volumes {
		if i > 0 {
			fmt.Fprintln(a.stdout)
		}
		if err := writeLines(a.stdout, trackLines(j, v)); err != nil {
			return err
		}
	}
	return nil
}

func trackLines(j *trackJSON, v trackVolume) []line {
	volume := v.Device
	if v.Name != "" {
		volume += ", " + v.Name
	}
	trust := "no: " + v.Reason
	if v.Trusted {
		trust = fmt.Sprintf("yes: it has every write since epoch %d", v.Epoch)
	}
	kernel := humanBytes(v.KernelBytes) + " of memory"
	switch {
	case v.Reading && v.holds:
		kernel += "; writes are marked at their end as well until tracking is stopped, because the driver may hold writes that the kernel does not count as under way"
	case v.Reading:
		kernel += "; writes are marked at their end as well, because a session reads or the device was never quiet"
	}
	if v.uncounted && !v.holds {
		kernel += "; the io statistics of the disk are off, or were, so no quiet moment can be seen until they are on (queue/iostats in sysfs) and tracking is stopped and started"
	}
	tracked := "since " + v.Started.Local().Format(time.DateTime)
	if v.bySync {
		tracked += ", for a sync --live; if none runs any more, the next one ends it, or failback track stop " + v.Device
	}
	lines := []line{
		{"volume", fmt.Sprintf("%s (%s, %s)", volume, humanBytes(v.VolumeBytes), v.Identity)},
		{"tracked", tracked},
		{"trusted", trust},
		{"dirty", fmt.Sprintf("%s, discarded %s, in blocks of %s", humanBytes(v.DirtyBytes), humanBytes(v.DiscardedBytes), humanBytes(v.BlockBytes))},
		{"seen", fmt.Sprintf("%s of %s, %d of them discards", plural(int64(v.Writes), "write"), humanBytes(int64(v.WrittenBytes)), v.Discards)},
		{"kernel", kernel},
	}
	if j.Result == "stopped" {
		lines[1] = line{"tracked", "not any more"}
		return append(lines[:4:4], line{"saved", j.Saved.File})
	}
	if j.Saved != nil {
		word := "not taken over: "
		if j.Saved.Trusted {
			word = "taken over: "
		}
		lines = append(lines, line{"before", word + j.Saved.Reason})
	}
	switch c := v.Checkpoint; {
	case j.every > 0:
		lines = append(lines, line{"checkpoint", fmt.Sprintf("every %v to %s, as long as this command runs; after a crash it is not believed", j.every, j.path)})
	case c != nil:
		lines = append(lines, line{"checkpoint", fmt.Sprintf("of %s, %s dirty, discarded %s; after a crash it is not believed", c.Time.Local().Format(time.DateTime), humanBytes(c.DirtyBytes), humanBytes(c.DiscardedBytes))})
	}
	return lines
}

func writeFeatures(w io.Writer, j *trackJSON) error {
	b := bufio.NewWriter(w)
	for _, f := range j.Features {
		fmt.Fprintf(b, "%-8s %s%s\n", f.Support, f.Name, featureNote(f))
	}
	fmt.Fprintln(b, map[string]string{
		"works":   "tracking works here",
		"lacking": "tracking does not work here",
		"unknown": "whether tracking works here is not known",
	}[j.Result])
	return b.Flush()
}

func featureNote(f trackFeature) string {
	var notes []string
	if f.Support != "yes" && f.Since != "" {
		notes = append(notes, "needs Linux "+f.Since)
	}
	if f.Support != "yes" && f.Config != "" {
		notes = append(notes, "needs "+f.Config)
	}
	if f.Support != "yes" && f.Detail != "" {
		notes = append(notes, f.Detail)
	}
	if f.Support != "yes" && !f.Required {
		notes = append(notes, "not required")
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, "; ") + ")"
}

func (a *app) showExtents(m *cbt.Map) error {
	j := trackExtentsJSON{Schema: schemaTrack, Result: "listed", Extents: []mapExtent{}}
	b := bufio.NewWriter(a.stdout)
	for r := range m.Runs() {
		if a.json {
			j.Extents = append(j.Extents, mapExtent{extent{r.Off, r.Len()}, r.State.String()})
			continue
		}
		fmt.Fprintln(b, r.Off, r.Len(), r.State)
	}
	if a.json {
		return writeJSON(a.stdout, j)
	}
	return b.Flush()
}

// classifyTrack knows the errors of the tracker; it returns false for others.
func (f *failure) classifyTrack(err error) bool {
	var refused *ebpf.RefusedError
	var unsupported *ebpf.UnsupportedError
	switch {
	case errors.As(err, &refused):
		f.refuse(refused.Device, refused.Reason, refused.Next)
	case errors.As(err, &unsupported):
		f.refuse("", unsupported.Error(), "see failback track check")
	case errors.Is(err, ebpf.ErrTracked):
		f.refuse("", ebpf.ErrTracked.Error(), "see failback track status")
	case errors.Is(err, ebpf.ErrNotTracked):
		f.refuse("", ebpf.ErrNotTracked.Error(), "begin with failback track start")
	case errors.Is(err, ebpf.ErrOpen):
		f.refuse("", ebpf.ErrOpen.Error(), "wait until it has ended; failback track status and extents work beside it")
	case errors.Is(err, cbt.ErrEpochLost):
		_, why, _ := strings.Cut(err.Error(), cbt.ErrEpochLost.Error())
		var out *outcomeError
		if errors.As(err, &out) { // it was lost on the way
			f.Reason = cbt.ErrEpochLost.Error() + why
			break
		}
		f.refuse("", cbt.ErrEpochLost.Error()+why, "stop and start tracking, and compare the volumes by hash: sync without --dirty")
	default:
		return false
	}
	return true
}
