package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

// Only a checkpoint of the recording that a record tells of is told of with it.
func TestCheckpointOfAnother(t *testing.T) {
	record := filepath.Join(t.TempDir(), "x.track")
	at := time.Now()
	r := &trackRecord{Version: 1, State: stateTracking, Identity: "x", Boot: "b", Started: at}
	good := checkpointHead{Version: 1, Identity: "x", Boot: "b", Started: at, checkpoint: checkpoint{Time: at.Add(time.Minute), DirtyBytes: 4096}}
	for name, c := range map[string]struct {
		change func(h *checkpointHead)
		cut    bool
		pad    int // blanks before it
		want   bool
	}{
		"the one":             {change: func(*checkpointHead) {}, want: true},
		"of another volume":   {change: func(h *checkpointHead) { h.Identity = "y" }},
		"of another boot":     {change: func(h *checkpointHead) { h.Boot = "c" }},
		"of one before":       {change: func(h *checkpointHead) { h.Time = at.Add(-time.Minute) }},
		"of a later version":  {change: func(h *checkpointHead) { h.Version = 2 }},
		"cut short":           {change: func(*checkpointHead) {}, cut: true},
		"a line without end":  {change: func(*checkpointHead) {}, pad: maxCheckpointHead},
		"of a tracker joined": {change: func(h *checkpointHead) { h.Started = at.Add(-time.Hour) }, want: true},
	} {
		h := good
		c.change(&h)
		line, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		line = append(bytes.Repeat([]byte(" "), c.pad), append(line, '\n')...)
		if c.cut {
			line = line[:len(line)/2]
		}
		if err := os.WriteFile(checkpointBeside(record), line, 0o600); err != nil {
			t.Fatal(err)
		}
		got := r.left(record)
		if (got != nil) != c.want {
			t.Errorf("%s: %+v", name, got)
		}
		if got != nil && (got.DirtyBytes != 4096 || got.File != checkpointBeside(record)) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if err := os.Remove(checkpointBeside(record)); err != nil {
		t.Fatal(err)
	}
	if got := r.left(record); got != nil {
		t.Errorf("without a file: %+v", got)
	}
}

// A checkpoint goes with its recording, and not with another.
func TestCheckpointForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.checkpoint")
	for _, ours := range []bool{true, false} {
		h := checkpointHead{Version: 1, Identity: "x", Started: time.Now()}
		line, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(line, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &checkpointer{path: path, head: h}
		if !ours {
			c.head.Started = h.Started.Add(-time.Second)
		}
		err = c.forget()
		if left := readCheckpoint(path) != nil; err != nil || left == ours {
			t.Errorf("ours %v: %v, left %v", ours, err, left)
		}
	}
}

// One process makes checkpoints; what was left of one that was killed goes with the
// checkpoint, but not while it is being written.
func TestCheckpointLock(t *testing.T) {
	record := filepath.Join(t.TempDir(), "state", "x.track")
	lock, err := lockCheckpoint(record, "/dev/x")
	if err != nil {
		t.Fatal(err)
	}
	var refused *failback.RefusedError
	if _, err := lockCheckpoint(record, "/dev/x"); !errors.As(err, &refused) || refused.Volume != "/dev/x" {
		t.Errorf("twice: %v", err)
	}
	path := checkpointBeside(record)
	for _, held := range []bool{true, false} {
		for _, p := range []string{path, tempBeside(path)} {
			if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := dropCheckpoint(record); err != nil {
			t.Fatal(err)
		}
		_, file := os.Stat(path)
		_, temp := os.Stat(tempBeside(path))
		if file == nil || (temp == nil) != held {
			t.Errorf("while it is held %v: %v, %v", held, file, temp)
		}
		lock.Close()
	}
	if err := dropCheckpoint(record); err != nil {
		t.Errorf("nothing to drop: %v", err)
	}
}

// What has not changed is not written again, but it is told when that was so still.
func TestCheckpointSeen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.checkpoint")
	m := &cbt.Map{VolumeSize: 1 << 20, BlockSize: 4096}
	c := &checkpointer{path: path}
	write := func(h checkpointHead) (time.Time, *checkpointHead) {
		t.Helper()
		h.Version = 1
		if err := c.write(h, m); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(left) != 1 {
			t.Fatalf("left: %v, %v", left, err)
		}
		return c.head.Time, readCheckpoint(path)
	}
	first, h := write(checkpointHead{})
	if h == nil || !h.Time.Equal(first) {
		t.Fatalf("%+v", h)
	}
	back := first.Add(-time.Hour)
	if err := os.Chtimes(path, back, back); err != nil {
		t.Fatal(err)
	}
	same, h := write(checkpointHead{})
	if !same.Equal(first) || h == nil || !h.Time.Equal(first) || h.Seen.Before(first) || c.head.Seen.Before(first) {
		t.Errorf("nothing new: %+v", h)
	}
	if other, h := write(checkpointHead{checkpoint: checkpoint{Epoch: 2}}); other.Equal(first) || h.Epoch != 2 {
		t.Errorf("another epoch: %+v", h)
	}
	if words := (&checkpoint{Time: first, Seen: first.Add(time.Minute)}).words("x"); !strings.Contains(words, "with nothing new until") {
		t.Error(words)
	}
	if words := (&checkpoint{Time: first, Seen: first.Add(time.Millisecond)}).words("x"); strings.Contains(words, "nothing new") {
		t.Error(words)
	}
}

// A recording that is no more was stopped if its record says so, and else was lost.
func TestCheckpointOrdered(t *testing.T) {
	defer func(d time.Duration) { orderedTime = d }(orderedTime)
	orderedTime = 200 * time.Millisecond
	at := time.Now().UTC()
	began := trackRecord{Version: 1, State: stateTracking, Identity: "x", Started: at}
	stopped, anew := began, began
	stopped.State, anew.Started = stateStopped, at.Add(time.Second)
	for name, c := range map[string]struct {
		first, then *trackRecord
		lost        bool
	}{
		"lost":           {first: &began, lost: true},
		"stopped":        {first: &stopped},
		"begun anew":     {first: &anew},
		"stopped later":  {first: &began, then: &stopped},
		"without record": {lost: true},
	} {
		c2 := &checkpointer{record: filepath.Join(t.TempDir(), "x.track"), began: &began}
		if c.first != nil {
			if err := c.first.write(c2.record); err != nil {
				t.Fatal(err)
			}
		}
		if c.then != nil {
			late := time.AfterFunc(orderedTime/10, func() { _ = c.then.write(c2.record) })
			defer late.Stop()
		}
		var lost *lostError
		if err := c2.ordered(); c.lost != errors.As(err, &lost) || !c.lost && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who joins a recording makes a record of it where there is none, and not where
// somebody has just stopped it.
func TestCheckpointNoteBeside(t *testing.T) {
	at := time.Now().UTC()
	s := &ebpf.Status{Identity: "x", Started: at}
	for name, c := range map[string]struct {
		before *trackRecord
		on     bool
		state  string
		refuse bool
	}{
		"none":                   {state: stateTracking},
		"of one before":          {before: &trackRecord{State: stateStopped, Stopped: at.Add(-time.Hour)}, state: stateTracking},
		"of another boot":        {before: &trackRecord{State: stateTracking, Boot: "another"}, state: stateTracking},
		"just stopped":           {before: &trackRecord{State: stateStopped, Stopped: at.Add(time.Second)}, state: stateStopped, refuse: true},
		"the clock was set back": {before: &trackRecord{State: stateStopped, Stopped: at.Add(time.Second)}, on: true, state: stateTracking},
	} {
		f := &trackFlags{}
		f.state.state = t.TempDir()
		path, err := f.recordPath("x")
		if err != nil {
			t.Fatal(err)
		}
		if c.before != nil {
			c.before.Version, c.before.Identity = 1, "x"
			if err := c.before.write(path); err != nil {
				t.Fatal(err)
			}
		}
		err = f.noteBeside(s, "/dev/x", func() (bool, error) { return c.on, nil })
		var refused *failback.RefusedError
		if c.refuse != errors.As(err, &refused) || !c.refuse && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		r, err := readRecord(path)
		if err != nil || r == nil || r.State != c.state || !c.refuse && (!r.Started.Equal(at) || r.Boot != bootID()) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}
