package failback

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// another admits a further round: all of the one before it is acknowledged. What
// it is about follows as a list.
func (t *target) another() error {
	switch {
	case t.asked != nil:
		return protocolf("a round of a source that was not asked for any")
	case t.plan.Resume > 0:
		// What the session before found equal may have been written since.
		return protocolf("a round of a session that was resumed at %d", t.plan.Resume)
	case t.pass.Digest != 0:
		return protocolf("a round with digest %d", t.pass.Digest)
	}
	return t.apply.Load().rest()
}

// round begins the work on what was written to the source meanwhile.
func (t *target) round(ctx context.Context, g *errgroup.Group) error {
	l, err := t.list.layout(0)
	if err != nil {
		return err
	}
	r := &responder{layout: l, conn: t.link, vol: t.vol, key: t.key, from: fromVolume, scans: t.o.Workers}
	r.medium = t.respond.Load().medium
	r.prepare()
	t.respond.Store(r)
	t.apply.Load().goOn(l)
	if err := t.link.Send(kindAgree, message.Agree{Window: uint32(t.o.Window)}.Append(nil)); err != nil {
		return err
	}
	g.Go(func() error { return r.run(ctx) })
	return nil
}

// rest reports an error unless everything that came is acknowledged and more may come.
func (a *applier) rest() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.settled.Load() || a.acked+1 != a.newest.id {
		return protocolf("a round before the one before it is acknowledged")
	}
	for _, in := range a.streams {
		if in.gen != a.newest || in.frames != in.closed {
			return protocolf("a round in the middle of another")
		}
	}
	return nil
}

// goOn lets the source send what lies in l, too. Nothing is under way: see rest.
func (a *applier) goOn(l *layout) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.layout = l
	a.most = a.covered.Load() + cbt.Total(l.candidates)
}
