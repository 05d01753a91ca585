package failback

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestPace: the rounds of some kinds of writers, and what comes of them.
func TestPace(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name   string
		in     float64 // bytes a second that the writers make dirty
		out    float64 // bytes a second that a round gets through
		fixed  time.Duration
		budget time.Duration
		set    int64 // bytes that the writers ever touch; 0: all
		want   verdict
		rounds int // at most
	}{
		{"idle", 0, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 0, cutOver, 2},
		{"a fifth", 20 * mib, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 0, cutOver, 4},
		{"nine tenths", 90 * mib, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 0, cutOver, 60},
		{"faster than we are", 200 * mib, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 0, notTheWay, 8},
		{"fast on a small set", 200 * mib, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 20 * mib, cutOver, 4},
		{"fast on a large set", 200 * mib, 100 * mib, 10 * time.Millisecond, 500 * time.Millisecond, 900 * mib, notTheWay, 8},
		{"no pause is short enough", 1 * mib, 100 * mib, 600 * time.Millisecond, 500 * time.Millisecond, 0, notTheWay, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pace{budget: c.budget}
			bytes, v := int64(1000*mib), goOn
			for v == goOn && len(p.rounds) < 1000 {
				took := c.fixed + time.Duration(float64(bytes)/c.out*float64(time.Second))
				left := int64(c.in * took.Seconds())
				if c.set > 0 {
					left = min(left, c.set)
				}
				v = p.ended(lap{bytes: bytes, took: took, fixed: c.fixed, left: left})
				bytes = left
			}
			if v != c.want || len(p.rounds) > c.rounds {
				t.Errorf("verdict %d after %d rounds, want %d after at most %d; the last left %d", v, len(p.rounds), c.want, c.rounds, bytes)
			}
			if v == cutOver && p.pause(bytes) > c.budget {
				t.Errorf("a pause of %v is predicted, %v allowed", p.pause(bytes), c.budget)
			}
			if more := p.more(); (more == 0) != (v == cutOver) {
				t.Errorf("%d more rounds are predicted at verdict %d", more, v)
			}
		})
	}
}

// TestPaceEnds: whatever the rounds are like, it comes to an end, and never to a
// pause longer than is allowed.
func TestPaceEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := pace{budget: time.Duration(rapid.Int64Range(0, 1e10).Draw(t, "budget"))}
		least, since := int64(1)<<62, 0
		for {
			l := lap{
				bytes: rapid.Int64Range(0, 1<<45).Draw(t, "bytes"),
				took:  time.Duration(rapid.Int64Range(0, 1e12).Draw(t, "took")),
				left:  rapid.Int64Range(0, 1<<45).Draw(t, "left"),
			}
			l.fixed = min(l.took, time.Duration(rapid.Int64Range(0, 1e10).Draw(t, "fixed")))
			if l.left < least {
				least, since = l.left, 0
			}
			since++
			v := p.ended(l)
			_ = p.more()
			if v == cutOver && p.pause(l.left) > p.budget {
				t.Fatalf("cut over with a pause of %v, allowed are %v", p.pause(l.left), p.budget)
			}
			if v != goOn {
				return
			}
			if since > 2+staleRounds*400 { // each step down is by a tenth at least
				t.Fatalf("after %d rounds that came no further down it goes on", since)
			}
		}
	})
}

// TestPaceDrain: a target that syncs and reads back slowly does that in the wait
// for it, and the forecast knows that this grows with what there is to do.
func TestPaceDrain(t *testing.T) {
	const mib = 1 << 20
	p := pace{budget: 500 * time.Millisecond, rest: 60 * time.Millisecond}
	cost := func(n int64) (took, waited time.Duration) {
		waited = 5*time.Millisecond + time.Duration(float64(n)/(100*mib)*1e9)
		return waited + time.Duration(float64(n)/(1024*mib)*1e9), waited
	}
	bytes := int64(1000 * mib)
	for _, left := range []int64{400 * mib, 200 * mib, 2 * mib} {
		took, waited := cost(bytes)
		p.ended(lap{bytes: bytes, took: took, fixed: waited, left: left})
		bytes = left
	}
	took, waited := cost(bytes)
	bytes = 250 * mib
	v := p.ended(lap{bytes: 2 * mib, took: took, fixed: waited, left: bytes})
	last, _ := cost(bytes)
	if got, want := p.pause(bytes), last+p.rest; v == cutOver || got < want*9/10 || got > want*11/10 {
		t.Errorf("verdict %d, predicted %v of %v", v, got, want)
	}
}

// TestPaceUnknown: where nothing was ever dirty, nobody knows how long it takes.
func TestPaceUnknown(t *testing.T) {
	p := pace{budget: 500 * time.Millisecond}
	p.ended(lap{took: time.Second, fixed: time.Millisecond})
	if v := p.ended(lap{took: time.Millisecond, fixed: time.Millisecond, left: 100 << 30}); v != goOn || p.pause(1) != forever || p.more() != 1 {
		t.Errorf("verdict %d, a pause of %v, %d more rounds", v, p.pause(1), p.more())
	}
	if v := p.ended(lap{took: time.Millisecond, fixed: time.Millisecond}); v != cutOver {
		t.Errorf("with nothing left: verdict %d", v)
	}
	// However much there is and however slow it goes: it does not come round to nothing.
	p.ended(lap{bytes: 1, took: 1000 * time.Hour, left: 1 << 60})
	if got := p.pause(1 << 60); got <= p.budget {
		t.Errorf("an EiB is predicted to take %v", got)
	}
}

// TestPaceBurst: after a round that is small by chance, rounds that shrink to a
// third each time are let get on; those that only go up and down are not.
func TestPaceBurst(t *testing.T) {
	const mib = 1 << 20
	run := func(left []int64) (v verdict, n int) {
		p := pace{budget: 500 * time.Millisecond}
		bytes := int64(mib)
		for n, l := range left {
			took := 5*time.Millisecond + time.Duration(float64(bytes)/(100*mib)*1e9)
			if v = p.ended(lap{bytes: bytes, took: took, fixed: 5 * time.Millisecond, left: l}); v != goOn {
				return v, n
			}
			bytes = l
		}
		return v, len(left)
	}
	if v, n := run([]int64{mib, 9000 * mib, 3000 * mib, 1000 * mib, 333 * mib, 111 * mib, 37 * mib}); v != cutOver {
		t.Errorf("a burst: verdict %d after %d rounds", v, n)
	}
	var upAndDown []int64
	for range 20 {
		upAndDown = append(upAndDown, 200*mib, 100*mib)
	}
	if v, n := run(upAndDown); v != notTheWay || n > 8 {
		t.Errorf("up and down: verdict %d after %d rounds", v, n)
	}
}
