// Package quiesce brings the writers of a volume to rest for a moment, and makes
// certain that they go on again.
//
// Read it in this order: [Plan] (how, and for how long), [Plan.Begin] and
// [Hold.End] (the pause, as the process that wants it sees it), word.go (what
// its processes tell each other), holder_linux.go (the process that makes the
// pause), guard_linux.go (the process that ends it once the first is gone),
// pause_linux.go (the steps), mounts_linux.go (what lies on what).
package quiesce

import (
	"errors"
	"fmt"
	"time"
)

// A Plan says how the writers of a volume are brought to rest: by freezing the
// file system on it, by commands that the applications' owner gives, or by both.
type Plan struct {
	Device string // the volume, a block device
	Mount  string // mount point of the file system on it that is frozen; "": none is

	// Shell commands (sh -c). OnResume is run whenever OnQuiesce was begun, also
	// when that failed, and may be run twice after a crash: it must bear both.
	OnQuiesce, OnResume string

	Timeout time.Duration // of each step; default 30 s
	Limit   time.Duration // longest pause; then it is ended, whoever still wants it; default 10 s
	Env     []string      // "KEY=value" for the commands, beside our own environment
	Program string        // what has the hold command; default: the program that runs

	// Stopping is called, in this process, when the first step that may make a write
	// wait is about to be taken; nil for nobody. It must not wait for anything.
	Stopping func() `json:"-"`
}

const (
	defaultTimeout = 30 * time.Second
	defaultLimit   = 10 * time.Second
)

// Pause is what the applications saw. Its times are readings of the machine's
// monotonic clock, the same in all processes.
type Pause struct {
	// Writes may have waited from Begun on, the start of the first step that can
	// hold one up, and waited no longer after Ended, the end of the last that
	// lets them go on.
	Begun, Ended time.Duration
	// Frozen is how long, within that, the file system was or was being frozen.
	Frozen  time.Duration
	Overdue bool // it was ended because Limit had passed
}

// Length is how long a write waited at most.
func (p Pause) Length() time.Duration { return p.Ended - p.Begun }

// ErrBroken is a pause that ended before [Hold.End]: what was read in it may be
// of different moments and proves nothing.
var ErrBroken = errors.New("the pause was broken")

// ErrUnsupported is another system than Linux.
var ErrUnsupported = errors.New("bringing a volume's writers to rest is not supported on this system (needs Linux)")

// RefusedError says why a plan will not be carried out, before any step of it.
type RefusedError struct {
	Volume string `json:"volume"` // as the caller named it
	Reason string `json:"reason"`
	Next   string `json:"next"` // what to do about it
}

// Error returns reason and next step in one line.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("refused %s: %s; %s", e.Volume, e.Reason, e.Next)
}

func (p Plan) refuse(next, format string, args ...any) error {
	return &RefusedError{Volume: p.Device, Reason: fmt.Sprintf(format, args...), Next: next}
}

// complete fills in the defaults and refuses what makes no sense on any machine.
func (p Plan) complete() (Plan, error) {
	switch {
	case p.Mount == "" && p.OnQuiesce == "":
		return p, p.refuse("name the mount point of the file system on it, or a command that stops its writers", "there is nothing that brings its writers to rest")
	case p.OnResume != "" && p.OnQuiesce == "":
		return p, p.refuse("give both, or neither", "there is a command to resume its writers and none to quiesce them")
	case p.Timeout < 0 || p.Limit < 0:
		return p, p.refuse("give times above 0", "a time-out of %v and a limit of %v make no sense", p.Timeout, p.Limit)
	}
	if p.Timeout == 0 {
		p.Timeout = defaultTimeout
	}
	if p.Limit == 0 {
		p.Limit = defaultLimit
	}
	return p, nil
}
