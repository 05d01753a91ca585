package failback

import (
	"context"
	"fmt"
)

const (
	// throttleSteps is how often the writers are slowed down in a session, each time
	// to half of before: down to a 64th of what rounds get through. Where that does
	// not do, it is not the ones that are slowed down who write.
	throttleSteps = 6
	// throttleFloor is the least that they are slowed down to, bytes a second, unless
	// the caller's own choice is less: an application with less than that is one that
	// has been stopped.
	throttleFloor = 64 << 10
)

// slow has the writers slowed down: to half of what rounds get through, or, if they
// are slow already, to half of that. It reports whether that was done. Where no
// pause would do even with nothing left, it is not.
func (v *live) slow(ctx context.Context) (bool, error) {
	if v.l.Throttle == nil || v.slowed == throttleSteps || v.pace.pause(0) > v.pace.budget {
		return false, nil
	}
	want := max(int64(v.pace.out()/2), throttleFloor)
	switch {
	case v.rate > 0:
		if want = v.rate / 2; want < throttleFloor {
			return false, nil
		}
	case v.slowed > 0: // that did not last
		want = v.rep.Throttle
	}
	v.slowed++ // whatever comes of it: it may be in force after an error, too
	if err := v.throttle(ctx, want); err != nil {
		return false, err
	}
	v.pace.again()
	return true, nil
}

// throttle has the writers write no faster than that from now on.
func (v *live) throttle(ctx context.Context, rate int64) error {
	now, err := v.l.Throttle(ctx, rate)
	switch {
	case err != nil:
		return fmt.Errorf("slow down the writers of %s: %w", v.name, err)
	case now <= 0:
		return fmt.Errorf("slow down the writers of %s: to %d bytes a second", v.name, now)
	}
	v.rate, v.rep.Throttle, v.unslowed = now, now, nil
	return nil
}

// stillSlow sees to it that the writers are as slow as they were made: who holds
// them may be gone, or somebody else may have let them go. Where that cannot be put
// right they are not slow any more, which is no error before it matters.
func (v *live) stillSlow(ctx context.Context) error {
	if v.rate == 0 {
		return nil
	}
	err := v.throttle(ctx, v.rate)
	if err == nil || ctx.Err() != nil {
		return err
	}
	v.rate, v.unslowed = 0, err
	if v.events.Note != nil {
		v.events.Note(fmt.Sprintf("note: %v: they are not slowed down any more", err))
	}
	return nil
}

// slowAgain is called after a pause that was broken off. The writers are to be as
// slow as they were; slower, where that was the last such attempt. It reports whether
// there may be another.
func (v *live) slowAgain(ctx context.Context) (bool, error) {
	if v.vain++; v.vain < liveTries {
		return true, v.stillSlow(ctx)
	}
	v.vain = 0
	return v.slow(ctx)
}

// unthrottle lets the writers go on as they were before the session.
func (v *live) unthrottle(ctx context.Context) error {
	if v.slowed == 0 {
		return nil
	}
	v.slowed = 0
	if _, err := v.l.Throttle(context.WithoutCancel(ctx), 0); err != nil {
		return fmt.Errorf("let the writers of %s go on as fast as they were: %w", v.name, err)
	}
	return nil
}
