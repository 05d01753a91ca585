package failback

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// seal answers with this side's root and figures.
func (t *target) seal(ctx context.Context, g *errgroup.Group, p []byte) error {
	var m message.Seal
	if err := m.Decode(p); err != nil {
		return err
	}
	if err := t.sealable(&m); err != nil {
		return err
	}
	t.respond.Load().stop()
	out := message.Sealed{Algorithm: m.Algorithm}
	if m.Algorithm != 0 {
		if t.sealer == nil || merkle.Algorithm(t.pass.Digest) != merkle.Algorithm(m.Algorithm) {
			return protocolf("seal without a pass over the volume")
		}
		root, err := t.sealer.root(ctx)
		if err != nil {
			return err
		}
		out.Root = root
		if out.Root == m.Root {
			t.root = &root
		}
	}
	if t.stage != nil {
		return t.sealStaged(ctx, g, out, out.Root == m.Root)
	}
	if t.writes() {
		if err := t.settled(out.Root == m.Root); err != nil {
			return err
		}
		stamp, err := t.vol.stamp()
		if err != nil {
			return err
		}
		out.Stamp = clip(stamp)
	}
	out.Stats = stats(t.vol)
	return t.link.Send(kindSealed, out.Append(nil))
}

// settled makes it durable that the session has come to its end, before the
// source hears of it. A crash before the last step leaves the mark: the next
// session finds little or nothing to do and ends the journal then.
//
//  1. end the undo log: it holds all that was overwritten
//  2. end the journal: the volume is consistent
func (t *target) settled(equal bool) error {
	if !t.apply.Load().settled.Load() {
		return protocolf("the end of a session whose data is not all acknowledged")
	}
	if !equal {
		return nil // the source sees it too, and the mark stays
	}
	if t.undo != nil {
		if err := t.undo.finish(); err != nil {
			return err
		}
	}
	return t.log.complete(t.span())
}

// progress is how far the session is, as this side sees it.
func (t *target) progress() Progress {
	p := Progress{Phase: "plan", Elapsed: time.Since(t.began)}
	if r := t.respond.Load(); r != nil {
		p.Phase = "transfer"
		if r.medium {
			p.Phase = "verify"
		}
		p.Done, p.Total = r.progress()
	}
	if a := t.apply.Load(); a != nil {
		p.Raw = a.received.Load()
		p.Divergent = p.Raw
	}
	for _, applied := range []*stageProgress{&t.redoing, &t.applied} {
		if applied.began.Load() != 0 && applied.ended.Load() == 0 {
			p = applied.progress(t.began)
		}
	}
	st := t.link.Stats()
	p.Wire = st.BytesIn + st.BytesOut
	return p
}

// isWrong reports whether err says that the target's medium does not hold what was written.
func isWrong(err error) bool {
	var mine *VerifyError
	var theirs *PeerError
	return errors.As(err, &mine) || errors.As(err, &theirs) && theirs.Code == message.CodeVerification
}
