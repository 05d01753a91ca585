package quiesce

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// step is how far a pause has come. What must be undone when the process that
// makes it is gone follows from it alone, so each step is told before it is
// taken.
//
//	starting ─▶ syncing ─▶ quiescing ─▶ freezing ─▶ resting ─▶ thawing ─▶ resuming ─▶ ended
//
// Quiescing and resuming are there with commands only, freezing and thawing
// with a mount point only; from each a failure leads to the first step on the
// right that undoes something.
type step string

const (
	stepStarting  step = "starting"  // nothing has been done
	stepSyncing   step = "syncing"   // so too: what is not written out yet is
	stepQuiescing step = "quiescing" // OnQuiesce runs, or has run
	stepFreezing  step = "freezing"  // the file system is being frozen
	stepResting   step = "resting"   // the writers rest
	stepThawing   step = "thawing"   // the file system is being thawed
	stepResuming  step = "resuming"  // OnResume runs
	stepEnded     step = "ended"     // there is nothing left to undo
)

// A word is what the holder tells its parent and its guard, and the guard the
// parent, once the holder is gone: one line of JSON. Each one says all that is
// known, so that the last one is enough.
type word struct {
	Step   step          `json:"step"`
	Within time.Duration `json:"within,omitempty"` // the next word comes within this time; 0: whenever it comes
	Stuck  bool          `json:"stuck,omitempty"`  // the kernel does not come back from this step; it goes on when that does
	Group  int           `json:"group,omitempty"`  // process group of the command that runs
	Holder int           `json:"holder,omitempty"` // process that makes the pause
	Spared string        `json:"spared,omitempty"` // oom_score_adj that the commands get back; "": as it is

	// Readings of the monotonic clock; 0: not yet.
	Begun  time.Duration `json:"begun,omitempty"`
	Froze  time.Duration `json:"froze,omitempty"`
	Thawed time.Duration `json:"thawed,omitempty"`
	Ended  time.Duration `json:"ended,omitempty"`

	Rested  bool          `json:"rested,omitempty"`  // resting was reached
	Overdue bool          `json:"overdue,omitempty"` // Limit passed
	Broken  string        `json:"broken,omitempty"`  // why the pause ended before it was asked to
	Failed  string        `json:"failed,omitempty"`  // what went wrong
	Refused *RefusedError `json:"refused,omitempty"`
}

// fail adds to what went wrong. The first cause comes first.
func (w *word) fail(err error) {
	if err == nil {
		return
	}
	var refused *RefusedError
	if errors.As(err, &refused) && w.Refused == nil {
		w.Refused = refused
		return
	}
	if w.Failed != "" {
		w.Failed += "; "
	}
	w.Failed += err.Error()
}

// breakOff notes why the pause ended by itself. The first cause counts.
func (w *word) breakOff(format string, args ...any) {
	if w.Broken == "" {
		w.Broken = fmt.Sprintf(format, args...)
	}
}

// err is what the word means for who wanted the pause.
func (w *word) err() error {
	switch {
	case w.Refused != nil && w.Failed != "":
		return fmt.Errorf("%w; %s", w.Refused, w.Failed)
	case w.Refused != nil:
		return w.Refused
	case w.Broken != "" && w.Failed != "":
		return fmt.Errorf("%w: %s; %s", ErrBroken, w.Broken, w.Failed)
	case w.Broken != "":
		return fmt.Errorf("%w: %s", ErrBroken, w.Broken)
	case w.Failed != "":
		return errors.New(w.Failed)
	}
	return nil
}

func (w *word) pause() Pause {
	p := Pause{Begun: w.Begun, Ended: w.Ended, Overdue: w.Overdue}
	if w.Froze > 0 && w.Thawed > 0 {
		p.Frozen = w.Thawed - w.Froze
	}
	return p
}

// maxLine bounds a plan and a word, bytes.
const maxLine = 1 << 20

// tell writes one line in one write, so that lines of two writers do not mix.
func tell(to io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(line) >= maxLine {
		return fmt.Errorf("a line of %d bytes, at most %d", len(line), maxLine)
	}
	_, err = to.Write(append(line, '\n'))
	return err
}

// lines reads what tell has written.
func lines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	return s
}

// hear reads the next line into v; io.EOF after the last.
func hear(s *bufio.Scanner, v any) error {
	if !s.Scan() {
		if err := s.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	return json.Unmarshal(s.Bytes(), v)
}

// words passes on what is heard until the other end is gone or senseless.
func words(s *bufio.Scanner, to chan<- word) {
	defer close(to)
	for {
		var w word
		if hear(s, &w) != nil {
			return
		}
		to <- w
	}
}
