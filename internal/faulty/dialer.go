package faulty

import (
	"context"
	"io"
	"slices"
	"sync"
)

// Dialer reaches a peer over links that fail by plan: the n-th connection is made
// as the n-th of Calls says, and later ones are without faults.
type Dialer struct {
	Dial  func(context.Context) (io.ReadWriteCloser, error) // the peer
	Calls []Call

	mu    sync.Mutex
	links []*Link
	made  int
}

// Call is one attempt to connect.
type Call struct {
	Err   error                                             // it fails with that
	Dial  func(context.Context) (io.ReadWriteCloser, error) // it reaches another peer
	Rules []LinkRule
}

// Connect makes the next connection. It is what code under test dials with.
func (d *Dialer) Connect(ctx context.Context) (io.ReadWriteCloser, error) {
	d.mu.Lock()
	var c Call
	if d.made < len(d.Calls) {
		c = d.Calls[d.made]
	}
	d.made++
	d.mu.Unlock()
	if c.Err != nil {
		return nil, c.Err
	}
	if c.Dial == nil {
		c.Dial = d.Dial
	}
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	l := NewLink(conn, c.Rules...)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.links = append(d.links, l)
	return l, nil
}

// Made returns how many connections were asked for.
func (d *Dialer) Made() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

// Links returns the links there were, in the order they were made.
func (d *Dialer) Links() []*Link {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.links)
}
