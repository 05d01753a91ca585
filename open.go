package failback

import (
	"context"
	"errors"
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// Roles a server is asked to play, as they are on the wire.
const (
	roleSource = 1
	roleTarget = 2
	roleJoin   = 3
)

// dialAll opens every stream of a session at a peer and asks it to play role.
func (j *job) dialAll(ctx context.Context, s Side, role uint8) ([]*transport.Conn, error) {
	var conns []*transport.Conn
	for i := range j.o.Streams {
		c, err := j.dial(ctx, s, role, uint8(i))
		if err != nil {
			return nil, errors.Join(err, closeAll(conns))
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func (j *job) dial(ctx context.Context, s Side, role, stream uint8) (*transport.Conn, error) {
	rw, err := s.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("reach %s: %w", s.label(), err)
	}
	c := transport.New(rw, j.o.transport())
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	m := message.Open{
		MinVersion: message.Version, MaxVersion: message.Version, Session: j.session,
		Role: role, Volume: s.Name, Write: role == roleTarget && j.writes(),
	}
	if stream > 0 {
		m.Role, m.Stream = roleJoin, stream
	}
	if err := j.open(c, m); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", s.label(), err), c.Close())
	}
	return c, nil
}

// open says who we are and waits for the peer's word.
func (j *job) open(c *transport.Conn, m message.Open) error {
	if err := c.Send(kindOpen, m.Append(nil)); err != nil {
		return err
	}
	f, err := c.Read()
	if err != nil {
		return newLinkError(err)
	}
	defer f.Release()
	switch f.Kind {
	case kindError:
		return peerError(f.Payload())
	case kindOpened:
		var o message.Opened
		if err := o.Decode(f.Payload()); err != nil {
			return err
		}
		if o.Version != message.Version {
			return fmt.Errorf("the peer speaks version %d of the protocol, we speak %d: use the same failback on both sides", o.Version, message.Version)
		}
		return nil
	}
	return protocolf("frame of kind %d in answer to Open", f.Kind)
}

// assign tells a served source what to do.
func (j *job) assign(c *transport.Conn, a, b Side) error {
	t := message.Task{
		Mode: uint8(j.mode), Codec: j.o.Codec, Limit: j.o.Limit, Streams: uint8(j.o.Streams), Window: uint32(j.o.Window),
		Leaf: uint32(j.o.Leaf), Verify: uint8(j.o.Verify), Seal: uint8(j.o.Seal), Rung: uint8(j.o.Rung),
		AllowLarger: j.o.AllowLarger, DryRun: j.o.DryRun, Dirty: a.Dirty != nil,
	}
	if err := c.Send(kindTask, t.Append(nil)); err != nil {
		return err
	}
	if a.Dirty == nil {
		return nil
	}
	return sendExtents(c, extentsDirty, cbt.Coarsen(a.Dirty.Extents(), maxListed))
}

func closeAll(conns []*transport.Conn) error {
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
