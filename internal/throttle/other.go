//go:build !linux

package throttle

import (
	"context"
	"io"
)

// Limit is a limit that may be in force; there is none on this system.
type Limit struct{}

// Find returns [ErrUnsupported].
func Find(group, device string) (*Group, error) { return nil, ErrUnsupported }

// claim is the right to limit; there is none on this system.
type claim struct{}

// Claim returns [ErrUnsupported].
func (g *Group) Claim() (int64, error) { return 0, ErrUnsupported }

// Release does nothing.
func (g *Group) Release() error { return nil }

// Begin returns [ErrUnsupported].
func (g *Group) Begin() (*Limit, error) { return nil, ErrUnsupported }

// Set returns [ErrUnsupported].
func (l *Limit) Set(context.Context, int64) (int64, error) { return 0, ErrUnsupported }

// Lift does nothing.
func (l *Limit) Lift() {}

// End returns [ErrUnsupported].
func (l *Limit) End() error { return ErrUnsupported }

// Serve returns [ErrUnsupported].
func Serve(io.Reader, io.Writer) error { return ErrUnsupported }
