package failback

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

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

// A reached is a volume at a peer: every stream of the session, and what the
// peer says of it.
type reached struct {
	conns []*transport.Conn
	info  message.VolumeInfo
}

func (r *reached) close() error { return closeAll(r.conns) }

// openedTimeout is how long a server that is alive may take to answer an Open:
// it may have to wait for a session that we have lost to come to its end.
const openedTimeout = taskTimeout + openTimeout

// dialsAtOnce is how many further streams are dialed at a time: an sshd turns
// away whom it has no place for, by default from the eleventh login under way.
const dialsAtOnce = 4

// dialAll opens every stream of a session at a peer and asks it to play role.
// The first says meanwhile that we are here: the others may have to log in.
func (j *job) dialAll(ctx context.Context, s Side, role uint8) (*reached, error) {
	r := &reached{}
	first, err := j.dial(ctx, s, role, 0, &r.info)
	if err != nil {
		return nil, err
	}
	r.conns = make([]*transport.Conn, j.o.Streams)
	r.conns[0] = first
	err = first.During(ctx, func(context.Context) error {
		var g errgroup.Group
		g.SetLimit(dialsAtOnce)
		var failed atomic.Bool // whoever has not begun by then does not
		for i := 1; i < len(r.conns) && !failed.Load(); i++ {
			g.Go(func() (err error) {
				if r.conns[i], err = j.dial(ctx, s, role, uint8(i), nil); err != nil {
					failed.Store(true)
				}
				return err
			})
		}
		return g.Wait()
	})
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// dial opens one stream; the first brings what the peer says of the volume.
func (j *job) dial(ctx context.Context, s Side, role, stream uint8, info *message.VolumeInfo) (*transport.Conn, error) {
	rw, err := s.Dial(ctx)
	if err != nil {
		return nil, &reachError{s.label(), err}
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
	opened, err := j.open(ctx, c, m)
	switch {
	case ctx.Err() != nil: // what the connection says of that is only that it is closed
		return nil, errors.Join(context.Cause(ctx), c.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("open %s: %w", s.label(), err), c.Close())
	}
	if stream == 0 {
		*info = opened.Volume
		info.Name = s.label()
		// Further streams carry data only, and none for as long as all is equal.
		c.LimitIdle(max(0, j.o.Idle))
	}
	return c, nil
}

// open says who we are and waits for the peer's word: while the peer is alive,
// and not for ever.
func (j *job) open(ctx context.Context, c *transport.Conn, m message.Open) (o message.Opened, err error) {
	late := time.AfterFunc(openedTimeout, func() { _ = c.Close() })
	err = c.During(ctx, func(context.Context) error {
		if err := c.Send(kindOpen, m.Append(nil)); err != nil {
			return linked(err)
		}
		return expectOn(c, kindOpened, &o)
	})
	if !late.Stop() && err != nil {
		err = newLinkError(fmt.Errorf("%w: it is alive and has not answered for %v", transport.ErrIdle, openedTimeout))
	}
	if err != nil {
		return o, err
	}
	if o.Version != message.Version {
		return o, fmt.Errorf("the peer speaks version %d of the protocol, we speak %d: use the same failback on both sides", o.Version, message.Version)
	}
	return o, nil
}

// assign tells a served source what to do. What was written on both sides goes
// as one list; b is the target's side where its peer does not hear from us what
// we know of it. A map that is of neither volume is refused here: the peer only
// gets its extents.
func (j *job) assign(ctx context.Context, far *reached, a, b Side, target message.VolumeInfo) error {
	c := far.conns[0]
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var dirty []cbt.Extent
	for _, m := range []*cbt.Map{a.Dirty, b.Dirty} {
		if m == nil {
			continue
		}
		if err := mapFits(m, far.info, target); err != nil {
			return err
		}
		dirty = cbt.Union(dirty, m.Extents())
	}
	t := message.Task{
		Mode: uint8(j.mode), Codec: j.o.Codec, Limit: j.o.Limit, Streams: uint8(j.o.Streams), Window: uint32(j.o.Window),
		Leaf: uint32(j.o.Leaf), Verify: uint8(j.o.Verify), Seal: uint8(j.o.Seal), Rung: uint8(j.o.Rung),
		AllowLarger: j.o.AllowLarger, DryRun: j.o.DryRun, Dirty: a.Dirty != nil || b.Dirty != nil,
		Resume: j.resume, Medium: j.medium, Undo: j.o.undo(), Stage: j.o.Stage, Checkpoint: uint32(min(j.o.Checkpoint.Milliseconds(), math.MaxUint32)),
	}
	err := c.During(ctx, func(context.Context) error { // it may not read
		err := c.Send(kindTask, t.Append(nil))
		if err == nil && t.Dirty {
			// A map of a larger target reaches past the source, where nothing is compared.
			dirty = cbt.Intersect(dirty, wholeOf(far.info.Size))
			err = sendExtents(c, extentsDirty, cbt.Coarsen(dirty, maxListed))
		}
		return linked(err)
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// closeAll closes what is there of conns: a stream that was not reached is nil.
func closeAll(conns []*transport.Conn) error {
	var errs []error
	for _, c := range conns {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
