package failback

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
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
	var w attempt
	j.o.Events = w.watching(j.o.Events)
	var lost time.Time // when the peer was lost; zero: it was never there
	left, pause := int64(math.MaxInt64), firstPause
	var wrong error // what the attempt before a repair found
	for n := 1; ; n++ {
		w.begin()
		report, err := j.once(ctx, a, b)
		if err == nil {
			report.Attempts = n
			return report, nil
		}
		if planned, worked := w.came(); planned >= 0 {
			j.resume = resumeIfPossible
			// A peer that is there and never gets further is given up in time too.
			if planned < left || worked > j.o.RetryFor {
				left, lost, pause = planned, time.Now(), firstPause
			}
		}
		switch {
		case ctx.Err() != nil:
			if cause := context.Cause(ctx); retryable(err) && !errors.Is(err, cause) {
				err = errors.Join(cause, err) // the end of ctx may reach the link or the peer first
			}
			return nil, errors.Join(err, wrong)
		case isWrong(err) && j.o.Repair && wrong == nil:
			wrong, j.medium, j.resume = err, true, resumeIfPossible
			j.tellRetry(err, 0)
			continue
		case isWrong(err):
			return nil, err // it says so itself
		case lost.IsZero() || !retryable(err) || time.Since(lost) >= j.o.RetryFor:
			return nil, errors.Join(err, wrong)
		}
		wait := min(pause/2+rand.N(pause/2), j.o.RetryFor-time.Since(lost))
		pause = min(2*pause, longestPause)
		j.tellRetry(err, wait)
		if patience(ctx, wait) != nil {
			return nil, errors.Join(context.Cause(ctx), err, wrong)
		}
	}
}

// An attempt is what is seen of one session from outside: how far it came.
type attempt struct {
	mu      sync.Mutex
	began   time.Time
	planned int64 // candidates, bytes; -1: it did not come to its plan
	done    [2]int64
	moved   time.Time // when it was last seen to get anything done
}

func (w *attempt) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began, w.moved, w.planned, w.done = time.Now(), time.Now(), -1, [2]int64{}
}

// watching returns e with us listening in.
func (w *attempt) watching(e Events) Events {
	plan, progress := e.Plan, e.Progress
	e.Plan = func(p Plan) {
		w.mu.Lock()
		w.planned = p.Candidates
		w.mu.Unlock()
		if plan != nil {
			plan(p)
		}
	}
	e.Progress = func(p Progress) {
		w.mu.Lock()
		if now := [2]int64{p.Done, p.Raw}; now != w.done {
			w.done, w.moved = now, time.Now()
		}
		w.mu.Unlock()
		if progress != nil {
			progress(p)
		}
	}
	return e
}

// came returns the candidates of its plan, and how long it got anything done: a
// peer that is alive and does nothing adds nothing to that.
func (w *attempt) came() (planned int64, worked time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.planned, w.moved.Sub(w.began)
}

func (j *job) tellRetry(err error, pause time.Duration) {
	if tell := j.o.Events.Retry; tell != nil {
		tell(err, pause)
	}
}

// retryable reports whether reconnecting can help: a connection that broke, a
// peer that is not there or was told to stop, a volume that the session we lost
// still holds. Refusals, corruption, a peer that is there and does nothing, and
// what is not known do not get better.
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
		errors.As(err, &certificate), errors.As(err, &alert), errors.Is(err, ErrProtocol), garbled(err), errors.Is(err, transport.ErrIdle):
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
