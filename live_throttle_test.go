package failback

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
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
	return rate, nil
}

// TestLiveThrottle: where rounds do not get small enough the writers are slowed
// down, by half again where that does not do, and are as they were afterwards.
func TestLiveThrottle(t *testing.T) {
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
func TestLiveThrottleEnds(t *testing.T) {
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
func TestLiveThrottleFails(t *testing.T) {
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
		t.Errorf("asked for %v: %v", v.calls, err)
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
	v.slowed, v.vain = 0, 0
	for i := range liveTries {
		if more, err := v.slowAgain(t.Context()); more != (i < liveTries-1) || err != nil {
			t.Error(i, more, err)
		}
	}
}
