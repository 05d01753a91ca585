package failback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/failback/failback/cbt"
)

// hold is what [Live.Quiesce] returns.
type hold = interface {
	Held() error
	Release() (time.Duration, error)
}

// A standstill is the writers at rest, from when they came to rest until they are
// let go. That happens once: when the last round is over, or as soon as the
// session's context ends, for what a session does after that may take its time,
// and nobody is to wait for it (L6).
type standstill struct {
	begun time.Time
	letGo func() (time.Duration, error) // once; whoever comes later gets the same
	over  chan struct{}                 // closed when the writers are let go
	watch sync.WaitGroup

	mu   sync.Mutex // held while the hold is asked: it need not bear two at once
	hold hold
}

// newStandstill looks after h, which came of a call at the time called. fail ends
// the session when the writers go on by themselves.
func newStandstill(ctx context.Context, h hold, called time.Time, fail func(error)) *standstill {
	s := &standstill{hold: h, begun: called, over: make(chan struct{})}
	if b, ok := h.(interface{ Begun() time.Time }); ok {
		s.begun = b.Begun()
	}
	s.letGo = sync.OnceValues(func() (time.Duration, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.over)
		return h.Release()
	})
	context.AfterFunc(ctx, func() { _, _ = s.letGo() }) // who asks for it later has the error
	if e, ok := h.(interface{ Ended() <-chan struct{} }); ok {
		s.watch.Go(func() {
			select {
			case <-s.over:
			case <-e.Ended():
				s.broke(fail)
			}
		})
	}
	return s
}

// broke ends the session unless it was us who let the writers go.
func (s *standstill) broke(fail func(error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.over:
		return
	default:
	}
	err := s.hold.Held()
	if err == nil {
		err = errors.New("they went on by themselves")
	}
	fail(err)
}

// held returns nil if the writers have been at rest all the time.
func (s *standstill) held() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.over:
		return errors.New("they were let go, for the session has ended")
	default:
		return s.hold.Held()
	}
}

// stand brings the writers to rest.
func (v *live) stand(ctx context.Context) error {
	v.rep.Tries++
	called := time.Now()
	h, err := v.l.Quiesce(ctx)
	if err != nil {
		return fmt.Errorf("bring the writers of %s to rest: %w", v.name, err)
	}
	v.still = newStandstill(ctx, h, called, func(err error) { v.fail(v.unrest(err)) })
	return nil
}

func (v *live) unrest(err error) error {
	return fmt.Errorf("the writers of %s did not stay at rest: %w", v.name, err)
}

// quiesce brings the writers to rest, and returns what the last round is about. If
// that does not fit into what is left of the pause, because more came out than was
// going to or because it took so long, the round is one like the others.
func (v *live) quiesce(ctx context.Context, predicted time.Duration) ([]cbt.Extent, error) {
	if err := v.putBack(nil); err != nil {
		return nil, err
	}
	if err := v.stand(ctx); err != nil {
		return nil, err
	}
	x, err := v.take(ctx)
	if err != nil {
		return nil, err
	}
	// How long it takes is known now: the next one is not going to be quicker.
	v.pace.rest = max(v.pace.rest, time.Since(v.still.begun))
	again := v.pace.pause(v.bytes)
	if again <= v.pace.budget {
		v.last, v.defers = true, false
		v.rep.PredictedMS = milliseconds(predicted)
		return x, nil
	}
	// Slowing them down may take a while: nobody is to be at rest for that (L6).
	if _, err := v.letGo(); err != nil {
		return nil, err
	}
	if more, err := v.slowAgain(ctx); err != nil || !more {
		return nil, v.hopeless(ctx, again, err)
	}
	if v.events.Note != nil {
		v.events.Note(fmt.Sprintf("%s: with its writers at rest %s were dirty, which makes a pause of %s: they write on, and another round begins",
			v.name, sizeWords(v.bytes), pauseWords(again)))
	}
	return x, nil
}

// held reports an error unless the writers have been at rest since the last
// round began: only then is the target the source at one point in time. The
// tracker is asked, too: what somebody's hooks bring to rest need not be all.
func (v *live) held(ctx context.Context) error {
	if v.still == nil {
		return errors.New("the writers are not at rest at the end of a live sync")
	}
	var first []cbt.Extent
	var err error
	if v.rounds() {
		if first, err = v.take(ctx); err != nil { // it stays out until release: see there
			return err
		}
	}
	if held := v.still.held(); held != nil {
		return v.unrest(held)
	}
	if len(first) > 0 {
		err = fmt.Errorf("%s was written while its writers were to be at rest: %s are dirty, the first at offset %d; see that all of them are paused, and sync again", v.name, sizeWords(v.bytes), first[0].Off)
	}
	return err
}

// release lets the writers go on: both sides were equal when held has looked, and
// what was written since is in the tracker, or it says that it cannot vouch. Then
// it is no fault of this session, which is over, but the next has to compare.
func (v *live) release(left string) (*LiveReport, error) {
	if !v.staged {
		if err := v.rest(); err != nil {
			return nil, err
		}
	}
	if !v.rounds() {
		return &v.rep, nil
	}
	if v.l.Round != nil {
		v.l.Round(v.rep.Rounds[len(v.rep.Rounds)-1])
	}
	err := v.unkeep(true)
	if err == nil {
		err = v.seal(nil, v.session, left)
	}
	if errors.Is(err, cbt.ErrEpochLost) {
		v.rep.Epoch, err = 0, nil
		if v.events.Note != nil {
			v.events.Note(fmt.Sprintf("%s: %s: the next sync will compare both sides", v.name, v.l.Tracker.Trust().Lost))
		}
	}
	if err != nil {
		return nil, err
	}
	return &v.rep, nil
}

// letGo lets the writers go on, if they do not yet.
func (v *live) letGo() (time.Duration, error) {
	s := v.still
	v.still = nil
	if s == nil {
		return 0, nil
	}
	pause, err := s.letGo()
	s.watch.Wait()
	if err != nil {
		return pause, fmt.Errorf("let the writers of %s go on: %w", v.name, err)
	}
	return pause, nil
}

// over ends what is left of the session, however it ended: the writers go on,
// and what was taken and is not proven is the tracker's again (L2, L6).
func (v *live) over(ctx context.Context) error {
	_, err := v.letGo()
	err = errors.Join(err, v.unthrottle(ctx))
	if !v.rounds() {
		return err
	}
	err = errors.Join(err, v.putBack(nil), v.unkeep(false))
	if t, ok := v.l.Tracker.(interface{ Rest(context.Context) error }); ok {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restTime)
		defer cancel()
		err = errors.Join(err, t.Rest(ctx))
	}
	return err
}
