package failback

import (
	"context"
	"errors"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// relay opens both sides at their peers and passes frames between them, as they
// are. The source's peer drives; what it tells the target, we see too.
func (j *job) relay(ctx context.Context, a, b Side) (*Report, error) {
	if a.Tree != "" || b.Tree != "" {
		return nil, usagef("trees of volumes at peers belong beside them: give them to their servers")
	}
	target, err := j.dialAll(ctx, b, roleTarget)
	if err != nil {
		return nil, err
	}
	source, err := j.dialAll(ctx, a, roleSource)
	if err != nil {
		return nil, errors.Join(err, target.close())
	}
	if err := j.assign(ctx, source, a, b, target.info); err != nil {
		return nil, errors.Join(err, source.close(), target.close())
	}
	from, to := source.conns, target.conns
	all := append(append([]*transport.Conn(nil), from...), to...)
	r := relayed{plan: j.o.Events.Plan}
	g, gctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(gctx, func() { _ = closeAll(all) })
	defer stop()
	for i := range from {
		g.Go(func() error { return r.over(linked(from[i].Run(gctx))) })
		g.Go(func() error { return r.over(linked(to[i].Run(gctx))) })
		g.Go(func() error { return r.stream(i, r.pass(from[i], to[i], i == 0)) })
		g.Go(func() error { return r.stream(i, r.back(to[i], from[i], all)) })
	}
	if err := g.Wait(); err != nil {
		if told := r.told.Load(); told != nil {
			return nil, *told // what the links say came after
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx) // the links only say that they are closed
		}
		return nil, err
	}
	return r.report.decode()
}

// A relayed is what the initiator sees of a session between two peers.
type relayed struct {
	plan   func(Plan)
	start  message.Start
	report reportReader
	parted atomic.Bool // the source has said good-bye: its further streams may close
	done   atomic.Bool
	told   atomic.Pointer[error] // why one of the peers stopped, in its words
}

// tell notes what a peer says of its error, and returns it.
func (r *relayed) tell(p []byte) error {
	err := peerError(p)
	r.told.CompareAndSwap(nil, &err)
	return err
}

// over forgets the error of a link that was closed because the session is over.
func (r *relayed) over(err error) error {
	if r.done.Load() {
		return nil
	}
	return err
}

// stream forgets the error of a further stream that ends because its session does.
func (r *relayed) stream(i int, err error) error {
	if i > 0 && r.parted.Load() {
		return nil
	}
	return err
}

// pass forwards what the source says, and looks at its plan and its report.
func (r *relayed) pass(from, to *transport.Conn, control bool) error {
	for {
		f, err := from.Read()
		if err != nil {
			return r.over(newLinkError(err))
		}
		kind := f.Kind
		if control {
			err = r.see(f)
		}
		if kind == kindBye {
			r.parted.Store(true)
		}
		if err == nil || kind == kindError {
			err = errors.Join(err, linked(to.Forward(f)))
		}
		f.Release()
		if err != nil || kind == kindBye {
			return r.over(err)
		}
	}
}

// back forwards what the target says until it parts.
func (r *relayed) back(to, from *transport.Conn, all []*transport.Conn) error {
	for {
		f, err := to.Read()
		if err != nil {
			return r.over(newLinkError(err))
		}
		kind, text := f.Kind, error(nil)
		if kind == kindError {
			text = r.tell(f.Payload())
		}
		err = linked(from.Forward(f))
		f.Release()
		switch {
		case text != nil:
			return text
		case err != nil:
			return r.over(err)
		case kind == kindBye:
			r.done.Store(true)
			return closeAll(all)
		}
	}
}

// linked is the error of a connection: reconnecting may help.
func linked(err error) error {
	if err == nil {
		return nil
	}
	return newLinkError(err)
}

// see notes what the initiator wants to know of the frames it forwards.
func (r *relayed) see(f *transport.Frame) error {
	switch f.Kind {
	case kindError:
		return r.tell(f.Payload())
	case kindReport:
		return r.report.add(f.Payload())
	case kindStart:
		return r.start.Decode(f.Payload())
	case kindPlan:
		var m message.Plan
		if err := m.Decode(f.Payload()); err != nil {
			return err
		}
		if r.plan != nil {
			r.plan(Plan{Rung: Rung(m.Rung), Reason: m.Reason, Volume: r.start.Volume.Size, Candidates: m.Candidates})
		}
	}
	return nil
}
