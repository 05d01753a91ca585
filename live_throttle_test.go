package failback

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// sluggish is a busy volume that takes its time to be read, so that a pause that is
// short for it is long enough for all else.
type sluggish struct {
	*busy
	each time.Duration // for a MiB
}

func (v *sluggish) ReadAt(p []byte, off int64) (int, error) {
	<-time.After(v.each * time.Duration(len(p)) / (1 << 20))
	return v.busy.ReadAt(p, off)
}

// throttled is a live session of writers that are too fast, and of what can be done
// about them: with each call they become as fast as the next of fast says, in bytes
// for each byte read.
type throttled struct {
	src   *sluggish
	l     *Live
	calls []int64
	fast  []float64
	was   float64
	least int64 // that they are held to; 0: what is asked for
	now   int64 // what they are held to; 0: nothing
	again int   // calls that asked for what was so already
}

func newThrottled(t *testing.T, fast ...float64) *throttled {
	v := &throttled{src: &sluggish{newBusy(t, liveSize, 4), 50 * time.Millisecond}, fast: fast, was: 4}
	v.l = v.src.live()
	v.l.Pause = 250 * time.Millisecond
	v.l.Throttle = v.throttle
	return v
}

func (v *throttled) throttle(_ context.Context, rate int64) (int64, error) {
	v.src.mu.Lock()
	defer v.src.mu.Unlock()
	if rate == v.now { // as they are already, which is asked for again and again
		v.again++
		return rate, nil
	}
	v.calls = append(v.calls, rate)
	switch {
	case rate == 0:
		v.src.rate = v.was
	case len(v.fast) > 0:
		v.src.rate, v.fast = v.fast[0], v.fast[1:]
	}
	if v.least > 0 {
		rate = min(rate, v.least)
	}
	v.now = rate
	return rate, nil
}

// TestLiveThrottle: where rounds do not get small enough the writers are slowed
// down, by half again where that does not do, and are as they were afterwards.
func TestLiveThrottle(t *testing.T) { synctest.Test(t, liveThrottle) }

func liveThrottle(t *testing.T) {
	v, dst := newThrottled(t, 3, 0.02), randomVolume(2, liveSize)
	r, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dst.b, v.src.resting) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
	if len(v.calls) != 3 || v.calls[1] != v.calls[0]/2 || v.calls[2] != 0 || v.src.rate != v.was {
		t.Errorf("asked for %v, and they write at %v of %v", v.calls, v.src.rate, v.was)
	}
	// The first is half of what rounds got through until then.
	rounds := r.Live.Rounds
	at := slices.IndexFunc(rounds, func(r Round) bool { return r.Throttle > 0 })
	if at < 1 || rounds[at].Throttle != v.calls[0] || rounds[len(rounds)-1].Throttle != v.calls[1] || r.Live.Throttle != v.calls[1] {
		t.Fatalf("slowed down to %v: %+v", v.calls, r.Live)
	}
	if half := rounds[at-1].Out / 2; float64(v.calls[0]) < half*0.99 || float64(v.calls[0]) > half*1.01 {
		t.Errorf("slowed down to %d, rounds got through %.0f", v.calls[0], rounds[at-1].Out)
	}
}

// TestLiveThrottleEnds: writers that nothing slows down are no reason to go on for
// ever; nobody is paused, and all is as it was.
func TestLiveThrottleEnds(t *testing.T) { synctest.Test(t, liveThrottleEnds) }

func liveThrottleEnds(t *testing.T) {
	v, dst := newThrottled(t), randomVolume(2, liveSize)
	v.least = 300 << 10
	_, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l})
	var none *ConvergenceError
	if !errors.As(err, &none) {
		t.Fatal(err)
	}
	if len(v.calls) == 0 || !slices.Equal(v.calls[1:], []int64{150 << 10, 75 << 10, 0}) || none.Throttle != 75<<10 {
		t.Errorf("asked for %v: %v", v.calls, none)
	}
	if !strings.Contains(none.Error(), "the writers were slowed down to") || !strings.Contains(none.Next(), "who else writes") || v.src.rests > 0 {
		t.Errorf("%v; %s; %d pauses", none, none.Next(), v.src.rests)
	}
	v.src.goesOn(t, dst)
}

// TestLiveThrottleFails: who cannot be slowed down, or was so in a session that
// fails for another reason.
func TestLiveThrottleFails(t *testing.T) { synctest.Test(t, liveThrottleFails) }

func liveThrottleFails(t *testing.T) {
	v, dst := newThrottled(t), &faulty{memory: randomVolume(2, liveSize)}
	slow := v.l.Throttle
	v.l.Throttle = func(ctx context.Context, rate int64) (int64, error) {
		if _, err := slow(ctx, rate); err != nil || rate == 0 {
			return 0, err
		}
		return 0, errLive
	}
	_, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l})
	var none *ConvergenceError
	if !errors.As(err, &none) || !errors.Is(err, errLive) || len(v.calls) != 2 || v.calls[1] != 0 {
		t.Fatalf("asked for %v: %v", v.calls, err)
	}
	if !strings.Contains(none.Next(), "see why the writers could not be slowed down") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v; %s", none, none.Next())
	}
	v.l.Throttle = func(ctx context.Context, rate int64) (int64, error) {
		dst.write = func(int64) error { return errLive }
		return slow(ctx, rate)
	}
	v.calls = nil
	if _, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l}); !errors.Is(err, errLive) || len(v.calls) != 2 || v.calls[1] != 0 {
		t.Errorf("asked for %v: %v", v.calls, err)
	}
}

// TestLiveThrottleLost: a limit that does not hold any more is put in force again; it
// is told where it cannot be, and no round says that it was.
func TestLiveThrottleLost(t *testing.T) { synctest.Test(t, liveThrottleLost) }

func liveThrottleLost(t *testing.T) {
	for name, back := range map[string]bool{"back again": true, "for good": false} {
		v, dst := newThrottled(t, 3), randomVolume(2, liveSize)
		slow, lost := v.l.Throttle, 0
		v.l.Throttle = func(ctx context.Context, rate int64) (int64, error) {
			switch {
			case rate > 0 && rate == v.now && lost == 0:
				lost, v.fast, v.src.rate = 1, []float64{0.02}, v.was // it was killed
				return 0, errLive
			case rate > 0 && lost > 0 && !back:
				lost++
				return 0, errLive
			case rate > 0 && lost == 1:
				lost, v.now = 2, 0
			}
			return slow(ctx, rate)
		}
		var notes []string
		r, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l, Events: Events{Note: func(s string) { notes = append(notes, s) }}})
		if lost != 2 || !slices.ContainsFunc(notes, func(s string) bool { return strings.Contains(s, "they are not slowed down any more") }) {
			t.Errorf("%s: lost %d, told %q", name, lost, notes)
		}
		if !back {
			var none *ConvergenceError
			if !errors.As(err, &none) || none.Throttle != 0 || !errors.Is(none.Unslowed, errLive) || !strings.Contains(none.Next(), "see why the writers could not be slowed down") {
				t.Errorf("%s: %v", name, err)
			}
			v.src.goesOn(t, dst)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(v.calls) != 3 || v.calls[1] != v.calls[0] || v.calls[2] != 0 {
			t.Errorf("%s: asked for %v", name, v.calls)
		}
		var was []bool
		for _, r := range r.Live.Rounds {
			if slow := r.Throttle > 0; len(was) == 0 || was[len(was)-1] != slow {
				was = append(was, slow)
			}
		}
		// The round in which it was lost was not slow all the time.
		if !slices.Equal(was, []bool{false, true}) || r.Live.Throttle != v.calls[0] {
			t.Errorf("%s: slow %v, %+v", name, was, r.Live)
		}
	}
}

// TestLiveThrottleInVain: pauses that are broken off have the writers slowed down as
// well, and nobody is at rest while that takes its time (L6).
func TestLiveThrottleInVain(t *testing.T) { synctest.Test(t, liveThrottleInVain) }

func liveThrottleInVain(t *testing.T) {
	for _, c := range []struct {
		vain, calls int // pauses; calls before the end
		none        bool
	}{{liveTries - 1, 0, false}, {2 * liveTries, 2, false}, {liveTries, 0, true}} {
		v, dst := newThrottled(t), randomVolume(2, liveSize)
		v.src.rate, v.was, v.src.each = 0.1, 0.1, 400*time.Millisecond
		vain := c.vain
		v.src.onRest = func() {
			if vain--; vain < 0 {
				return
			}
			if _, err := v.src.tracker.WriteAt(bytes.Repeat([]byte{byte(vain)}, liveSize), 0); err != nil {
				t.Error(err)
			}
			v.src.resting = bytes.Clone(v.src.b)
		}
		slow := v.l.Throttle
		v.l.Throttle = func(ctx context.Context, rate int64) (int64, error) {
			v.src.mu.Lock()
			atRest := v.src.atRest
			v.src.mu.Unlock()
			if atRest {
				t.Errorf("%+v: they are at rest while they are slowed down", c)
			}
			return slow(ctx, rate)
		}
		if c.none {
			v.l.Throttle = nil
		}
		r, err := Sync(t.Context(), Side{Volume: v.src, Name: "src"}, Side{Volume: dst}, Options{Live: v.l})
		if c.none {
			var none *ConvergenceError
			if !errors.As(err, &none) || none.Tries != c.vain {
				t.Errorf("%+v: %v", c, err)
			}
			v.src.goesOn(t, dst)
			continue
		}
		if err != nil || r.Live.Tries != c.vain+1 || !bytes.Equal(dst.b, v.src.resting) {
			t.Fatalf("%+v: %v, %+v, %v", c, err, r.Live, bytes.Equal(dst.b, v.src.resting))
		}
		if n := len(v.calls); c.calls == 0 && n != 0 || c.calls > 0 && (n != c.calls+1 || v.calls[1] != v.calls[0]/2 || v.calls[n-1] != 0 || v.again < liveTries-1) {
			t.Errorf("%+v: asked for %v, and %d times for the same", c, v.calls, v.again)
		}
	}
}

// TestConvergenceNext: what to do about it is for the reason.
func TestConvergenceNext(t *testing.T) {
	for _, c := range []struct {
		e    ConvergenceError
		next string
	}{
		{ConvergenceError{}, "slow the writers down (--throttle)"},
		{ConvergenceError{throttles: true, Throttle: 5}, "who else writes there"},
		{ConvergenceError{throttles: true, Throttle: 5, atRest: true}, "with the writers at rest"},
		{ConvergenceError{throttles: true, atRest: true}, "with the writers at rest"},
		{ConvergenceError{throttles: true, Unslowed: errLive}, "see why the writers could not be slowed down"},
	} {
		if next := c.e.Next(); !strings.Contains(next, c.next) {
			t.Errorf("%+v: %s", c.e, next)
		}
	}
}

// liveSteps is a session that has had some rounds, for what depends on times.
func liveSteps(t *testing.T, rate func(int64) int64) (v *live, asked *[]int64) {
	t.Helper()
	asked = new([]int64)
	v = newLive(&Live{Throttle: func(_ context.Context, n int64) (int64, error) {
		*asked = append(*asked, n)
		return rate(n), nil
	}}, [16]byte{}, "x", 1<<30, Events{})
	for range 4 {
		v.pace.ended(lap{bytes: 100 << 20, took: time.Second, fixed: time.Millisecond, left: 100 << 20})
	}
	return v, asked
}

// TestLiveThrottleSteps: to what the writers are slowed down, and when that ends.
func TestLiveThrottleSteps(t *testing.T) {
	same := func(n int64) int64 { return n }
	for name, c := range map[string]struct {
		rate  func(int64) int64
		out   int64 // bytes of a round of a second
		times int
	}{
		"by half, six times":            {same, 1 << 30, throttleSteps},
		"as far as the floor":           {same, 1 << 20, 4}, // 512, 256, 128, 64 KiB
		"a slow link":                   {same, 100 << 10, 1},
		"the caller's own is less":      {func(int64) int64 { return 1000 }, 1 << 30, 1},
		"they were slow before already": {func(n int64) int64 { return min(n, 1<<20) }, 1 << 30, 5}, // 1 MiB ... 64 KiB
	} {
		v, asked := liveSteps(t, c.rate)
		v.pace.rounds = nil
		for range 3 {
			v.pace.ended(lap{bytes: c.out, took: time.Second, fixed: time.Millisecond, left: c.out})
		}
		for slower := true; slower; {
			var err error
			if slower, err = v.slow(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if len(*asked) != c.times {
			t.Errorf("%s: asked for %v, want %d", name, *asked, c.times)
		}
		for i, n := range *asked {
			if n < throttleFloor || i > 0 && n != c.rate((*asked)[i-1])/2 {
				t.Errorf("%s: asked for %v", name, *asked)
			}
		}
		if err := v.unthrottle(t.Context()); err != nil || (*asked)[len(*asked)-1] != 0 {
			t.Errorf("%s: in the end asked for %v, %v", name, *asked, err)
		}
	}
	// A pause that is too short for nothing at all.
	v, asked := liveSteps(t, same)
	v.pace.rest = time.Hour
	if slower, err := v.slow(t.Context()); slower || err != nil || len(*asked) > 0 {
		t.Errorf("%v, %v: asked for %v", slower, err, *asked)
	}
	// What it begins anew is counted from there.
	v, _ = liveSteps(t, same)
	v.pace.stale = staleRounds
	if _, err := v.slow(t.Context()); err != nil || v.pace.stale != 0 || v.pace.ended(lap{bytes: 100 << 20, took: time.Second, left: 99 << 20}) != goOn {
		t.Errorf("%v, %+v", err, v.pace)
	}
}

// TestLiveThrottleTries: pauses in vain slow the writers down, too, and those who
// are slow are so again before they go on.
func TestLiveThrottleTries(t *testing.T) {
	v, asked := liveSteps(t, func(n int64) int64 { return n })
	var sizes []int
	for range 3 * liveTries {
		if more, err := v.slowAgain(t.Context()); !more || err != nil {
			t.Fatal(more, err)
		}
		sizes = append(sizes, len(*asked))
	}
	if a := *asked; !slices.Equal(sizes, []int{0, 0, 1, 2, 3, 4, 5, 6, 7}) || a[1] != a[0] || a[2] != a[0] || a[3] != a[0]/2 || a[6] != a[0]/4 {
		t.Errorf("asked for %v: %v", a, sizes)
	}
	v.l.Throttle = nil
	v.slowed, v.rate, v.vain = 0, 0, 0
	for i := range liveTries {
		if more, err := v.slowAgain(t.Context()); more != (i < liveTries-1) || err != nil {
			t.Error(i, more, err)
		}
	}
}

// TestLiveThrottleUnslowed: what is told of a limit that was lost for good.
func TestLiveThrottleUnslowed(t *testing.T) {
	v, _ := liveSteps(t, func(n int64) int64 { return n })
	v.slowed, v.rate = throttleSteps, 5
	v.l.Throttle = func(context.Context, int64) (int64, error) { return 0, errLive }
	ctx, cancel := context.WithCancel(t.Context())
	if more, err := v.slowAgain(ctx); !more || err != nil || v.rate != 0 {
		t.Errorf("%v, %v, %d", more, err, v.rate)
	}
	if more, err := v.slow(ctx); more || err != nil {
		t.Errorf("%v, %v", more, err)
	}
	var none *ConvergenceError
	if err := v.hopeless(ctx, time.Second, nil); !errors.As(err, &none) || !errors.Is(err, errLive) {
		t.Errorf("in the end: %v", err)
	}
	cancel() // that it was cancelled is no reason to speak of convergence
	if err := v.hopeless(ctx, time.Second, ctx.Err()); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}
