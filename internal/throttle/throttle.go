// Package throttle slows down what the processes of a control group write to a
// disk, and makes certain that it ends.
//
// Read it in this order: [Find] and [Group] (whose writes, to which disk),
// [Group.Claim] (one at a time), [Group.Begin], [Limit.Set], [Limit.Lift] and
// [Limit.End] (the limit, as the process that wants it sees it), keeper_linux.go (the
// process that takes the limit away again, whatever happens), claim_linux.go (what
// is done where that was killed, too), group_linux.go (what is refused),
// iomax_linux.go (the file of the kernel's that it is all about).
package throttle

import (
	"errors"
	"fmt"
)

// A Group is the processes of a control group and of all groups below it, as far as
// they write to one disk. Make one with [Find].
//
// The limit is the kernel's io.max of cgroup v2: a bio of a write waits when it
// enters the queue of the disk. So it holds for what the processes write
// themselves, and for what the kernel writes out for them from the page cache where
// the memory controller is on, too; not for what it writes for all, such as the
// journal of a file system.
type Group struct {
	Dir  string // of the control group, absolute
	Disk string // "major:minor" of the disk; of the one that a partition is a part of
	// Direct tells that only writes past the page cache are slowed down: the memory
	// controller is not on in the group.
	Direct  bool
	Program string // what has the throttle command; default: the program that runs

	claims string // where the files of claims are; default /run/failback
	claim  *claim // nil: not claimed
}

// ErrUnsupported is another system than Linux.
var ErrUnsupported = errors.New("slowing down the writers of a disk is not supported on this system (needs Linux)")

// ErrGone is a limit that does not hold any more: the process that looks after it
// has ended, or the group or its disk is no more.
var ErrGone = errors.New("the limit of what is written does not hold any more")

// LeftError says that a limit is still in force that should not be.
type LeftError struct {
	Group string // directory
	Order string // what to write into io.max
	Err   error
}

// Error says what to do by hand.
func (e *LeftError) Error() string {
	return fmt.Sprintf("take the limit of %s away: %v; %s", e.Group, e.Err, e.Next())
}

// Next is what to do by hand.
func (e *LeftError) Next() string {
	return fmt.Sprintf("do it by hand: echo %q > %s/io.max", e.Order, e.Group)
}

// Unwrap returns what was in the way.
func (e *LeftError) Unwrap() error { return e.Err }

// RefusedError says why a group cannot be slowed down. Nothing has been touched.
type RefusedError struct {
	Group  string // as the caller named it
	Reason string
	Next   string // what to do about it
}

// Error returns reason and next step in one line.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("refused %s: %s; %s", e.Group, e.Reason, e.Next)
}

func refuse(group, next, format string, args ...any) error {
	return &RefusedError{Group: group, Reason: fmt.Sprintf(format, args...), Next: next}
}
