package failback

import (
	"errors"
	"fmt"

	"github.com/failback/failback/cbt"
)

// UsageError says that what the caller asked for makes no sense, whatever the volumes hold.
type UsageError struct{ Reason string }

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

func (e *VerifyError) Error() string {
	return fmt.Sprintf("verify %s: the medium does not hold what was written at %v (%d bytes wrong): check the device, then sync again",
		e.Volume, e.Extent, e.Bytes)
}

// PeerVersionError is a peer that speaks no version of the protocol that we do.
type PeerVersionError struct{ Ours, Min, Max uint16 }

func (e *PeerVersionError) Error() string {
	return fmt.Sprintf("the peer speaks versions %d to %d of the protocol, we speak %d: use the same failback on both sides",
		e.Min, e.Max, e.Ours)
}

// A PeerError is an error that the other end met and reported.
type PeerError struct {
	Code   PeerCode
	Text   string
	Next   string // what to do about it, may be empty
	Volume string // the peer's volume it is about, may be empty
}

func (e *PeerError) Error() string {
	s := "peer: " + e.Text
	if e.Next != "" {
		s += ": " + e.Next
	}
	return s
}

// PeerCode classifies a [PeerError]. The numbers are on the wire.
type PeerCode uint8

// What went wrong at the peer.
const (
	PeerRefused   PeerCode = 1
	PeerUsage     PeerCode = 2
	PeerCorrupt   PeerCode = 3
	PeerVolume    PeerCode = 4
	PeerProtocol  PeerCode = 5
	PeerInternal  PeerCode = 6
	PeerCancelled PeerCode = 7
	PeerVerify    PeerCode = 8
	PeerVersion   PeerCode = 9
)
