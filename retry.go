package failback

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// The pause before a peer is tried again doubles from the first to the longest,
// and is drawn from its upper half: many sessions that lost one server do not
// all come back at once.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 30 * time.Second
)

// persist runs sessions until one ends well, an error is final, or the peer was
// not to be reached for too long. Each goes on where the one before it was.
func (j *job) persist(ctx context.Context, a, b Side) (*Report, error) {
	// This attempt's candidates; -1: it did not come to its plan.
	var planned atomic.Int64
	tell := j.o.Events.Plan
	j.o.Events.Plan = func(p Plan) {
		planned.Store(p.Candidates)
		if tell != nil {
			tell(p)
		}
	}
	var lost time.Time // when the peer was lost; zero: it was never there
	left, pause, repaired := int64(math.MaxInt64), firstPause, false
	for attempt := 1; ; attempt++ {
		planned.Store(-1)
		began := time.Now()
		report, err := j.once(ctx, a, b)
		if err == nil {
			report.Attempts = attempt
			return report, nil
		}
		if n := planned.Load(); n >= 0 {
			j.resume = resumeIfPossible
			// A peer that is there and never gets further is given up in time too.
			if n < left || time.Since(began) > j.o.RetryFor {
				left, lost, pause = n, time.Now(), firstPause
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, err
		case isWrong(err) && j.o.Repair && !repaired:
			repaired, j.medium, j.resume = true, true, resumeIfPossible
			j.tellRetry(err, 0)
			continue
		case lost.IsZero() || !retryable(err) || time.Since(lost) >= j.o.RetryFor:
			return nil, err
		}
		wait := min(pause/2+rand.N(pause/2), j.o.RetryFor-time.Since(lost))
		pause = min(2*pause, longestPause)
		j.tellRetry(err, wait)
		if patience(ctx, wait) != nil {
			return nil, errors.Join(context.Cause(ctx), err)
		}
	}
}

func (j *job) tellRetry(err error, pause time.Duration) {
	if tell := j.o.Events.Retry; tell != nil {
		tell(err, pause)
	}
}

// retryable reports whether reconnecting can help: a connection that broke, a
// peer that is not there or was told to stop, a volume that the session we lost
// still holds. Refusals, corruption, and what is not known do not get better.
func retryable(err error) bool {
	var refused *RefusedError
	var peer *PeerError
	var verify *VerifyError
	var malformed *message.ErrMalformed
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var certificate *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.As(err, &refused):
		return refused.busy
	case errors.As(err, &peer):
		return peer.Code == message.CodeCancelled
	case errors.As(err, &verify), errors.As(err, &malformed), errors.As(err, &authority), errors.As(err, &invalid),
		errors.As(err, &certificate), errors.As(err, &alert), errors.Is(err, ErrProtocol), errors.Is(err, transport.ErrCorrupt):
		return false
	}
	var link *linkError
	var reach *reachError
	return errors.As(err, &link) || errors.As(err, &reach)
}

// A reachError is a peer that could not be reached.
type reachError struct {
	name string
	err  error
}

func (e *reachError) Error() string { return "reach " + e.name + ": " + e.err.Error() }
func (e *reachError) Unwrap() error { return e.err }

// patience waits, and gives why it did not wait to the end.
func patience(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
