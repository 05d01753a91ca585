package faulty

import (
	"path"
	"time"
)

// Op is what was done to a volume, a file or a folder.
type Op string

// The operations, as they are in a log.
const (
	Read       Op = "read"
	ReadMedium Op = "read medium"
	Write      Op = "write"
	Zero       Op = "zero"
	Truncate   Op = "truncate"
	Sync       Op = "sync"
	Open       Op = "open"   // of a file that is there
	Create     Op = "create" // of one that is not
	Rename     Op = "rename"
	Remove     Op = "remove"
	SyncDir    Op = "sync directory"

	// Step, in a rule, is any operation but Read, ReadMedium and Open: one
	// without which a power cut leaves something else.
	Step Op = "step"
)

// Durable reports whether o is a step: whether it changes what a power cut leaves.
func (o Op) Durable() bool { return o != Read && o != ReadMedium && o != Open }

// Kind is how an operation, or a place in a stream, goes wrong.
type Kind string

// What can happen to an operation. Stuck, Slow and Flip happen to links too.
const (
	// Fail is EIO. A Sync that fails so forgets what it was to make durable, as
	// Linux does: the cache still has it, no later Sync will save it.
	Fail Kind = "input/output error"
	// NoSpace is ENOSPC.
	NoSpace Kind = "no space"
	// Short writes or reads the first half, in whole sectors, and says so.
	Short Kind = "short"
	// Flip turns a bit, silently: of what a write brings to the medium while
	// the cache is right, or of what a read returns.
	Flip Kind = "flip"
	// Lost says yes and does nothing: a write reaches the cache and never the
	// medium; a Sync leaves all in the device's cache, where reads from the
	// medium see it and a power cut does not spare it.
	Lost Kind = "lost"
	// Slow takes Rule.For longer.
	Slow Kind = "slow"
	// Stuck waits for Rule.Until.
	Stuck Kind = "stuck"
	// Cut is the end of the power: this operation and all later ones of the
	// machine fail with [ErrPower], and only this one may still have happened.
	Cut Kind = "power cut"
)

// Rule says that something goes wrong with certain operations. The zero value
// of a field asks for nothing. Of several rules for one operation all apply.
type Rule struct {
	Op       Op
	On       string           // identity of the volume, path of the file, or the last element of that
	Off, End int64            // bytes: only what touches [Off, End); End 0 is anywhere
	When     func(Event) bool // asked last, under a lock: it may not use the machine
	N        int              // only the n-th that all of the above fits, from 1
	Onward   bool             // and those after it

	Kind Kind // "": nothing goes wrong, for rules that only Do
	// After says that the operation happens and only its answer is lost, or late.
	// Short, Flip and Lost are what happens itself, and do not look at it.
	After bool
	For   time.Duration   // of Slow
	Until <-chan struct{} // of Stuck; made inside the bubble where there is one
	Bit   int64           // of Flip: number in the range, from 0, modulo the range
	Do    func()          // called before the operation, or after it with After
}

// Event is one operation that was asked for.
type Event struct {
	Op       Op
	On       string // identity or path
	To       string // other path of a Rename
	Off, Len int64  // bytes; a Truncate has the new size in Off
	N        int    // the how-manieth of its Op and On, from 1
	Step     int    // the how-manieth step of the machine, from 1; 0 if it is none
	Done     bool   // it happened, whatever Err says
	Err      error  // what the caller got
}

// matches reports whether e is what the rule is about, leaving aside N.
func (r *Rule) matches(e Event) bool {
	switch {
	case r.Op == Step && !e.Op.Durable():
		return false
	case r.Op != "" && r.Op != Step && r.Op != e.Op:
		return false
	case r.On != "" && r.On != e.On && r.On != path.Base(e.On):
		return false
	case r.End > 0 && (e.Off >= r.End || e.Off+e.Len <= r.Off):
		return false
	}
	return r.When == nil || r.When(e)
}
