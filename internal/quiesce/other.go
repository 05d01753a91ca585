//go:build !linux

package quiesce

import (
	"context"
	"io"
	"time"
)

// Hold is a pause that has begun; there is none on this system.
type Hold struct{}

// Check returns [ErrUnsupported].
func (p Plan) Check() error { return ErrUnsupported }

// Outside returns [ErrUnsupported].
func (p Plan) Outside(...string) error { return ErrUnsupported }

// Begin returns [ErrUnsupported].
func (p Plan) Begin(context.Context) (*Hold, error) { return nil, ErrUnsupported }

// Begun is never.
func (h *Hold) Begun() time.Time { return time.Time{} }

// Ended never happens.
func (h *Hold) Ended() <-chan struct{} { return nil }

// End returns [ErrUnsupported].
func (h *Hold) End() (Pause, error) { return Pause{}, ErrUnsupported }

// Serve returns [ErrUnsupported].
func Serve(string, io.Reader, io.Writer) error { return ErrUnsupported }
