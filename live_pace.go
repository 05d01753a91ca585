package failback

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// A pace watches the rounds of a live sync and says what comes next: another
// round, the pause, or the end without one. It is a function of what it was
// told: no clock, no I/O.
//
// What it knows of a round is how much it got through, how long it took, and how
// much was dirty when it ended. From that it tells two rates: out,
// how fast rounds get through what is dirty, and in, how fast the writers make
// blocks dirty that were not. The last round takes, with the writers at rest,
//
//	pause(left) = rest + fixed + left / out
//
// where fixed is what a round takes however little it has to do: round trips, a
// sync of the target. Nobody can tell it from the work in a round's wait for the
// target, which syncs and reads back there: the least wait of all rounds is taken
// for it, and the rest of each is work.
type pace struct {
	budget time.Duration // the longest pause
	rest   time.Duration // that it takes to bring the writers to rest and up again
	rounds []lap
	stale  int   // rounds that brought the rest no further down, since least
	least  int64 // bytes that a round left
}

// A lap is one round, as far as the pace depends on it.
type lap struct {
	bytes int64 // looked at
	took  time.Duration
	fixed time.Duration // of that, what is not in proportion to bytes
	left  int64         // bytes that were dirty when it ended
}

// A verdict is what a pace says comes next.
type verdict uint8

const (
	goOn      verdict = iota // another round while the writers write
	cutOver                  // the rest fits into the pause
	notTheWay                // rounds get no smaller, and the rest does not fit
)

// staleRounds is how many rounds may bring the rest no further down. Writers do
// not write evenly: one such round says little.
const staleRounds = 3

// forever is a pause of which nobody knows how long it would be.
const forever = time.Duration(math.MaxInt64 / 2)

// ended notes a round, and says what comes next.
func (p *pace) ended(l lap) verdict {
	p.rounds = append(p.rounds, l)
	if len(p.rounds) == 1 {
		// The first round is not like the others: it reads all that may differ,
		// for minutes or hours, and what was dirtied meanwhile is no measure.
		p.least = l.left
		return goOn
	}
	if p.pause(l.left) <= p.budget {
		return cutOver
	}
	before := p.rounds[len(p.rounds)-2].left
	switch {
	case l.left < p.least-p.least/10:
		p.least, p.stale = l.left, 0
	case l.left < before-before/10:
		// It comes down again after a burst. That counts for nothing, but not against
		// it: one that goes up and down ends when it has gone up so often.
	default:
		if p.stale++; p.stale == staleRounds {
			return notTheWay
		}
	}
	return goOn
}

// again is told that the writers have been slowed down: the rounds before say
// nothing about whether those that come will bring the rest down.
func (p *pace) again() { p.stale = 0 }

// out is how fast rounds get through what is dirty, bytes a second; 0 while
// nothing is known. The later rounds count: the first compares more than it sends.
func (p *pace) out() float64 {
	var n, t float64
	fixed := p.fixed()
	for i := len(p.rounds) - 1; i >= 0 && (i > 0 || n == 0); i-- {
		n += float64(p.rounds[i].bytes)
		t += max(0, p.rounds[i].took-fixed).Seconds()
	}
	return n / max(t, time.Microsecond.Seconds())
}

// in is how fast blocks get dirty that are not, bytes a second, as the last round saw it.
func (p *pace) in() float64 {
	if len(p.rounds) == 0 {
		return 0
	}
	l := p.rounds[len(p.rounds)-1]
	if l.took <= 0 {
		return 0
	}
	return float64(l.left) / l.took.Seconds()
}

// fixed is what the quickest round took besides the work.
func (p *pace) fixed() time.Duration {
	later := p.rounds[min(1, max(0, len(p.rounds)-1)):]
	if len(later) == 0 {
		return 0
	}
	return slices.MinFunc(later, func(a, b lap) int { return cmp.Compare(a.fixed, b.fixed) }).fixed
}

// pause predicts how long a last round over so many bytes keeps the writers at
// rest: forever, where it is not known how long anything takes.
func (p *pace) pause(left int64) time.Duration {
	out, least := p.out(), p.rest+p.fixed()
	switch {
	case left == 0:
		return least
	case out == 0:
		return forever
	}
	work := float64(left) / out * float64(time.Second)
	return min(forever, least+time.Duration(min(work, float64(forever/2))))
}

// more predicts how many further rounds it takes until the rest fits, -1 if it
// never will as things are. The rest shrinks by in/out each time.
func (p *pace) more() int {
	if len(p.rounds) == 0 {
		return -1
	}
	left := float64(p.rounds[len(p.rounds)-1].left)
	out, room := p.out(), (p.budget - p.rest - p.fixed()).Seconds()
	ratio := p.in() / out
	switch {
	case p.pause(int64(left)) <= p.budget:
		return 0
	case room <= 0:
		return -1
	case out == 0:
		return 1 // that will tell
	case ratio >= 1:
		return -1
	}
	return int(math.Ceil(math.Log(room*out/left) / math.Log(ratio)))
}

// ConvergenceError says that the rounds of a live sync do not get small enough
// for the pause that is allowed. The writers go on; what is dirty is still in the
// tracker.
type ConvergenceError struct {
	Volume string
	Rounds int
	Tries  int           // how often the writers were paused in vain
	Left   int64         // bytes that are dirty again after the last round
	In     float64       // bytes a second that the writers make dirty
	Out    float64       // bytes a second that rounds get through
	Budget time.Duration // the longest pause that was allowed
	Pause  time.Duration // that a last round would take now
	// Throttle is what the writers were slowed down to, bytes a second; 0: they were
	// not.
	Throttle int64
	Unslowed error // why they could not be slowed down; nil: that was not tried, or was done

	throttles bool // they could have been
	atRest    bool // with nothing dirty it would take too long as well
}

// Error tells how fast the volume is written and copied, and the pause it would take.
func (e *ConvergenceError) Error() string {
	s := fmt.Sprintf("the rounds of %s do not get small enough: %s are dirty again after %d rounds, with %s/s dirtied and %s/s copied; the pause would take %s, allowed are %v",
		e.Volume, sizeWords(e.Left), e.Rounds, sizeWords(int64(e.In)), sizeWords(int64(e.Out)), pauseWords(e.Pause), e.Budget)
	if e.Tries > 0 {
		s += fmt.Sprintf("; pauses that were broken off, for they were going to take too long: %d", e.Tries)
	}
	if e.Throttle > 0 {
		s += fmt.Sprintf("; the writers were slowed down to %s/s", sizeWords(e.Throttle))
	}
	if e.Unslowed != nil {
		s += fmt.Sprintf("; %v", e.Unslowed)
	}
	return s
}

// Unwrap returns why the writers could not be slowed down.
func (e *ConvergenceError) Unwrap() error { return e.Unslowed }

func pauseWords(d time.Duration) string {
	if d == forever {
		return "nobody knows how long"
	}
	return d.Round(time.Millisecond).String()
}

// Next says what can be done about it.
func (e *ConvergenceError) Next() string {
	choice := "slow the writers down (--throttle)"
	switch {
	case e.Unslowed != nil:
		choice = "see why the writers could not be slowed down"
	case e.atRest:
		choice = "find out what takes so long with the writers at rest: slowing them down would not help"
	case e.throttles:
		choice = "see who else writes there than those who were slowed down"
	}
	return fmt.Sprintf("allow a pause of %v (--pause), come back when less is written, or %s; the target is marked inconsistent until a sync ends",
		(e.Pause + e.Pause/4).Round(10*time.Millisecond), choice)
}

// sizeWords tells bytes with three digits or so.
func sizeWords(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < 4; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
