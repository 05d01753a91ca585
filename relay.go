package failback

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

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
	var source *reached
	// To reach the source may take a login: the target hears meanwhile that we are here.
	err = target.conns[0].During(ctx, func(context.Context) error {
		if source, err = j.dialAll(ctx, a, roleSource); err != nil {
			return err
		}
		if err := j.assign(ctx, source, a, b, target.info); err != nil {
			return errors.Join(err, source.close())
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, target.close())
	}
	return j.relayOver(ctx, source.conns, target.conns, target.info.Size)
}

// relayOver passes frames until both sides have parted; the target has size bytes.
// Every goroutine it starts has returned when it returns, and every link is closed.
func (j *job) relayOver(ctx context.Context, from, to []*transport.Conn, size int64) (*Report, error) {
	within, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g, within := errgroup.WithContext(within)
	r := relayed{job: j, fail: cancel, from: newRelayEnd(from), to: newRelayEnd(to)}
	g.Go(func() error {
		r.part(within)
		return nil
	})
	for i := range from {
		for _, c := range []*transport.Conn{from[i], to[i]} {
			// The links outlive ctx: they still have to carry why.
			g.Go(func() error { return r.ended(i, linked(c.Run(context.WithoutCancel(ctx)))) })
		}
		g.Go(func() error { return r.from.readOn(i, r.ended(i, r.pass(from[i], to[i], i == 0))) })
		g.Go(func() error { return r.to.readOn(i, r.ended(i, r.back(to[i], from[i]))) })
	}
	if err := g.Wait(); err != nil {
		if told := r.told.Load(); told != nil {
			return nil, *told // what the links say came after
		}
		return nil, context.Cause(within)
	}
	report, err := r.report.decode()
	if err == nil {
		err = j.believe(report, evidence{start: &r.start, plan: &r.plan, size: size})
	}
	if err != nil {
		return nil, err
	}
	return report, nil
}

// A relayed is what the initiator sees of a session between two peers.
type relayed struct {
	job      *job // what we asked for
	start    message.Start
	plan     message.Plan
	report   reportReader
	fail     context.CancelCauseFunc
	from, to *relayEnd
	parted   atomic.Bool           // the source has said good-bye: its further streams may close
	done     atomic.Bool           // so has the target, after it
	told     atomic.Pointer[error] // why one of the peers stopped, in its words
}

// A relayEnd is one of the peers.
type relayEnd struct {
	conns []*transport.Conn // the first carries control
	gone  chan struct{}     // closed when control has been read to its end
	hears atomic.Bool       // its last word is on its way to it
}

func newRelayEnd(conns []*transport.Conn) *relayEnd {
	return &relayEnd{conns: conns, gone: make(chan struct{})}
}

// readOn reads connection i to its end, so that the peer comes to read what it is
// told, and passes err on.
func (e *relayEnd) readOn(i int, err error) error {
	e.conns[i].Discard()
	if i == 0 {
		close(e.gone)
	}
	return err
}

// part waits for the end of the session and closes every link. Closing at once
// could overtake a peer's last word: it closes when it has read that. A peer that
// has said why it stops waits for us.
//
//	Bye both ways ──▶ until both close, or partingTime ──▶ close
//	a peer's Error ──▶ passed on ──▶ until the other closes, or partingTime ──▶ close
//	ours fails ──▶ Error to both ──▶ until both close, or partingTime ──▶ close
//	a link breaks ──▶ close
func (r *relayed) part(ctx context.Context) {
	<-ctx.Done()
	stuck := time.AfterFunc(partingTime, r.close)
	defer stuck.Stop()
	ends := []*relayEnd{r.from, r.to}
	if cause := context.Cause(ctx); !r.done.Load() && firsthand(cause) {
		for _, end := range ends {
			end.hears.Store(true)
			sendError(end.conns[0], cause)
		}
	}
	for _, end := range ends {
		if end.hears.Load() {
			<-end.gone
		}
	}
	r.close()
}

// close closes every link: what they say of a session that is over changes nothing.
func (r *relayed) close() {
	_ = closeAll(r.from.conns)
	_ = closeAll(r.to.conns)
}

// ended notes why link i is not served any more. That is no error once the
// session, or the stream, has come to its end.
func (r *relayed) ended(i int, err error) error {
	if err == nil || r.done.Load() || i > 0 && r.parted.Load() {
		return nil
	}
	r.fail(err)
	return err
}

// pass forwards what the source says until it parts, and looks at its plan and
// its report.
func (r *relayed) pass(from, to *transport.Conn, control bool) error {
	for {
		f, err := from.Read()
		if err != nil {
			return newLinkError(err)
		}
		kind := f.Kind
		if control {
			err = r.see(f)
		}
		switch kind {
		case kindBye:
			r.parted.Store(true)
		case kindError:
			r.to.hears.Store(true)
		}
		if err == nil || kind == kindError {
			err = errors.Join(err, linked(to.Forward(f)))
		}
		f.Release()
		if err != nil || kind == kindBye {
			return err
		}
	}
}

// back forwards what the target says until it parts.
func (r *relayed) back(to, from *transport.Conn) error {
	for {
		f, err := to.Read()
		if err != nil {
			return newLinkError(err)
		}
		kind, text := f.Kind, error(nil)
		switch kind {
		case kindError:
			r.from.hears.Store(true)
			text = r.tell(f.Payload())
		case kindInfo:
			text = r.holdInfo(f.Payload())
		case kindAck:
			var m message.Ack
			if text = m.Decode(f.Payload()); text == nil && m.ID == 0 {
				r.applies()
			}
		}
		if err = text; err == nil || kind == kindError {
			err = errors.Join(err, linked(from.Forward(f)))
		}
		f.Release()
		if err != nil {
			return err
		}
		if kind == kindBye {
			r.done.Store(true)
			r.from.hears.Store(true)
			r.to.hears.Store(true)
			r.fail(nil)
			return nil
		}
	}
}

// holdInfo refuses a target that does not stage what it was asked to.
func (r *relayed) holdInfo(p []byte) error {
	var m message.Info
	err := m.Decode(p)
	if err == nil && r.job.o.Stage && r.job.writes() && !m.Staged {
		err = protocolf("a target that does not stage, as it was asked to")
	}
	return err
}

// applies tells that a stage is going to be applied, or is: of this session, or of one
// before that its target finishes first.
func (r *relayed) applies() {
	if tell := r.job.o.Events.Progress; tell != nil {
		tell(Progress{Phase: phaseApply})
	}
}

// tell notes what a peer says of its error, and returns it.
func (r *relayed) tell(p []byte) error {
	err := peerError(p)
	r.told.CompareAndSwap(nil, &err)
	return err
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
	case kindSeal:
		if r.job.o.Stage {
			r.applies()
		}
	case kindReport:
		return r.report.add(f.Payload())
	case kindStart:
		if err := r.start.Decode(f.Payload()); err != nil {
			return err
		}
		return r.job.holdStart(&r.start)
	case kindPlan:
		m := &r.plan
		if err := m.Decode(f.Payload()); err != nil {
			return err
		}
		if err := r.job.holdPlan(m); err != nil {
			return err
		}
		if tell := r.job.o.Events.Plan; tell != nil {
			tell(Plan{Rung: Rung(m.Rung), Reason: m.Reason, Volume: r.start.Volume.Size, Candidates: m.Candidates})
		}
	}
	return nil
}
