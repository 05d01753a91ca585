package failback

import (
	"errors"
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// UsageError says that what the caller asked for makes no sense, whatever the volumes hold.
type UsageError struct{ Reason string }

// Error returns the reason.
func (e *UsageError) Error() string { return e.Reason }

func usagef(format string, args ...any) error {
	return &UsageError{Reason: fmt.Sprintf(format, args...)}
}

// ErrProtocol is a peer that says what it may not say at this point.
var ErrProtocol = errors.New("protocol violation")

func protocolf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// VerifyError says that what was read back is not what was sent: the target's
// medium holds something else at Extent (L7).
type VerifyError struct {
	Volume string
	Extent cbt.Extent // the first range found wrong
	Bytes  int64      // how many bytes were found wrong before the session stopped
}

// Error returns what is wrong, where, and the next step.
func (e *VerifyError) Error() string {
	return fmt.Sprintf("verify %s: the medium does not hold what was written at %v (%d bytes wrong): check the device, then sync again",
		e.Volume, e.Extent, e.Bytes)
}

// A PeerError is an error that the other end met and reported.
type PeerError struct {
	Code   message.Code // class of the error; the numbers are on the wire
	Text   string
	Next   string // what to do about it, may be empty
	Volume string // the peer's volume it is about, may be empty
}

// Error returns what the other end said.
func (e *PeerError) Error() string {
	s := "peer: " + e.Text
	if e.Next != "" {
		s += ": " + e.Next
	}
	return s
}
