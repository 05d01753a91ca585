package faulty

import (
	"errors"
	"io/fs"
	"slices"
	"sync"
	"syscall"
	"time"
)

// ErrPower is what every operation returns once the power is cut.
var ErrPower = errors.New("power cut")

// Faults are the faults of one machine: everything that was made with them shares
// their rules, their log and the power. A nil *Faults has no rules and keeps no
// log. All methods are safe for concurrent use.
type Faults struct {
	mu    sync.Mutex
	rules []*armed
	log   []Event
	count map[counted]int
	steps int
	dead  bool
}

// armed is a rule and how often it fitted and fired.
type armed struct {
	Rule
	seen, fired int
}

type counted struct {
	op Op
	on string
}

// New returns a machine with rules.
func New(rules ...Rule) *Faults {
	f := &Faults{count: map[counted]int{}}
	f.Add(rules...)
	return f
}

// Add adds rules, which count from now on.
func (f *Faults) Add(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range rules {
		f.rules = append(f.rules, &armed{Rule: r})
	}
}

// Cut ends the power now.
func (f *Faults) Cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
}

// Dead reports whether the power was cut.
func (f *Faults) Dead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

// Log returns what was done so far, in the order in which it happened.
func (f *Faults) Log() []Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// Steps returns the operations of the log that are steps and were done.
func (f *Faults) Steps() []Event {
	return slices.DeleteFunc(f.Log(), func(e Event) bool { return !e.Op.Durable() || !e.Done })
}

// Unfired returns the rules that never came to anything: a test that has one
// has tested something else.
func (f *Faults) Unfired() []Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rest []Rule
	for _, r := range f.rules {
		if r.fired == 0 {
			rest = append(rest, r.Rule)
		}
	}
	return rest
}

// alteration is how an operation's effect differs from what was asked for.
type alteration struct {
	short, lost, flip bool
	bit               int64
}

// run does one operation as the rules have it. effect is called once or, where
// the operation does not happen, never. It is called with the machine's lock
// held: what happens on a machine happens in one order, with the cut in it.
func (f *Faults) run(e Event, effect func(alteration) error) error {
	if f == nil {
		return effect(alteration{})
	}
	hits := f.begin(&e)
	attend(hits, false)
	err := f.perform(e, hits, effect)
	attend(hits, true)
	return err
}

// begin numbers an operation and returns the rules for it.
func (f *Faults) begin(e *Event) []Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[counted{e.Op, e.On}]++
	e.N = f.count[counted{e.Op, e.On}]
	if e.Op.Durable() {
		f.steps++
		e.Step = f.steps
	}
	var hits []Rule
	for _, r := range f.rules {
		if !r.matches(*e) {
			continue
		}
		r.seen++
		if r.N == 0 || r.seen == r.N || (r.Onward && r.seen > r.N) {
			r.fired++
			hits = append(hits, r.Rule)
		}
	}
	return hits
}

// attend waits and calls as the rules say that have their turn before, or after.
func attend(hits []Rule, after bool) {
	for _, r := range hits {
		if r.After != after {
			continue
		}
		switch r.Kind {
		case Slow:
			<-time.After(r.For)
		case Stuck:
			<-r.Until
		}
		if r.Do != nil {
			r.Do()
		}
	}
}

// perform does the operation, unless a rule or the power is against it.
func (f *Faults) perform(e Event, hits []Rule, effect func(alteration) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	how, before, after := judge(&e, hits)
	switch {
	case f.dead:
		e.Err = ErrPower
	case before != nil:
		f.dead = before == ErrPower
		e.Err = before
	default:
		e.Err = effect(how)
		e.Done = e.Err == nil || how.short
		if after != nil {
			f.dead = after == ErrPower
			e.Err = after
		}
	}
	f.log = append(f.log, e)
	return e.Err
}

// judge adds up what the rules make of an operation: how its effect differs, why
// it does not happen, and what its caller hears although it happened.
func judge(e *Event, hits []Rule) (how alteration, before, after error) {
	for _, r := range hits {
		var err error
		switch r.Kind {
		case Fail:
			err = &fs.PathError{Op: string(e.Op), Path: e.On, Err: syscall.EIO}
		case NoSpace:
			err = &fs.PathError{Op: string(e.Op), Path: e.On, Err: syscall.ENOSPC}
		case Cut:
			err = ErrPower
		case Short:
			how.short = true
		case Lost:
			how.lost = true
		case Flip:
			how.flip, how.bit = true, r.Bit
		}
		answer := &before
		if r.After {
			answer = &after
		}
		if err == ErrPower || *answer == nil {
			*answer = err
		}
	}
	return how, before, after
}
