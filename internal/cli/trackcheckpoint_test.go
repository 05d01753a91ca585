package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
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
