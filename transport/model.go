package transport

import "math"

// rate is a quotient of two sums that forget: bytes by seconds, or by bytes.
type rate struct{ n, d float64 }

// A rate looks back over so many bytes, and so many seconds if those are more:
// on a fast link a hiccup of the machine is longer than many megabytes take.
const (
	rateSpan    = 8 << 20
	rateSeconds = 0.2
)

func (r *rate) add(n, d float64) {
	r.n += n
	r.d += d
	if r.n > rateSpan && r.d > rateSeconds {
		r.n /= 2
		r.d /= 2
	}
}

// per is the quotient, 0 if it is not known.
func (r *rate) per() float64 {
	if r.d <= 0 {
		return 0
	}
	return r.n / r.d
}

// samples is a rate that looks back over 16 samples.
type samples struct{ rate }

func (s *samples) add(raw, stored float64) {
	s.n += raw
	s.d += stored
	if s.n > 16*sampleBlocks*sampleBlock {
		s.n /= 2
		s.d /= 2
	}
}

// gauge is what is known of one level.
type gauge struct {
	raw, stored int64 // bytes of bodies stored in this way
	speed       rate  // raw bytes/s of one encoder, where it did compress
	ratio       rate  // raw by stored, bodies that stayed raw included
	moved       rate  // raw bytes/s that connections took while it was in use
	until       int64 // the figures are good until so many raw bytes went out
	hold        int64 // for how many they were the last time
}

// What is assumed of a level before it was used: figures of a common core.
var assumed = [levels]struct {
	speed float64 // bytes/s
	gain  float64 // of the ratio over 1, relative to that of lz4
}{
	levelLZ4:     {speed: 400e6, gain: 1},
	levelFast:    {speed: 270e6, gain: 1.5},
	levelDefault: {speed: 190e6, gain: 1.63},
}

// The steps of the chooser. A level that compresses is judged by bytes, for its
// first writes still wait for what was sent before; none is judged by time, for
// on a fast link a hiccup of the machine is longer than many frames.
const (
	trialBytes   = 4 << 20  // raw bytes before a level that compresses is judged
	trialSeconds = 0.05     // in writes before none is judged, and
	trialLeast   = 1 << 20  // raw bytes, to judge none or to believe a speed
	holdFirst    = 64 << 20 // raw bytes before a level that lost is tried again,
	holdMost     = 1 << 30  // at most, after doubling
	heavierGain  = 1.08     // a heavier level must promise so much more,
	lighterLoss  = 0.97     // a lighter one may cost so much
	changed      = 1.6      // worth or samples so much better or worse than they were
)

// start sets what a chooser assumes of data it has not seen.
func (c *Chooser) start() {
	c.guess.add(2*sampleBlock, sampleBlock)
}

// speed is the raw bytes/s that all encoders compress with l.
func (c *Chooser) speed(l level) float64 {
	if l == levelNone {
		return math.Inf(1)
	}
	g := &c.gauges[l]
	if g.speed.n < trialLeast || g.speed.d <= 0 {
		return assumed[l].speed * c.encoders
	}
	return g.speed.per() * c.encoders
}

// ratio is how many times smaller l makes the data, by what it did if that was
// lately, else by what the samples say.
func (c *Chooser) ratio(l level) float64 {
	if l == levelNone {
		return 1
	}
	g := &c.gauges[l]
	if l == c.now && g.ratio.n >= trialLeast || c.known(l) {
		return max(1, g.ratio.per())
	}
	lz4 := max(1, min(c.guess.per(), 8))
	return 1 + (lz4-1)*assumed[l].gain
}

// known says whether what l moved was measured lately enough to stand.
func (c *Chooser) known(l level) bool {
	return l != c.now && c.gauges[l].until > c.total
}

// moves is the raw bytes/s that connections take with l.
func (c *Chooser) moves(l level) float64 {
	g := &c.gauges[l]
	if l == c.now || c.known(l) {
		return unknownIsFast(g.moved.per())
	}
	return unknownIsFast(c.gauges[c.now].moved.per()) * c.ratio(l) / c.ratio(c.now)
}

// unknownIsFast: writes that took no time set no limit.
func unknownIsFast(r float64) float64 {
	if r <= 0 {
		return math.Inf(1)
	}
	return r
}

// worth is the raw bytes/s of the whole pipeline with l.
func (c *Chooser) worth(l level) float64 {
	return min(c.speed(l), c.moves(l))
}

// couldHelp says whether some level compresses faster than bodies now go out
// as they are; if none does, samples would tell nothing.
func (c *Chooser) couldHelp() bool {
	return c.speed(levelLZ4) > heavierGain*c.moves(levelNone)
}

// decide takes another level if the present one had its trial and another is
// worth more.
func (c *Chooser) decide() {
	if c.now != levelNone && c.run.n < trialBytes ||
		c.now == levelNone && (c.run.n < trialLeast || c.run.d < trialSeconds) {
		return
	}
	worth := c.worth(c.now)
	if c.ref > 0 && (differ(worth, c.ref) || differ(c.guess.per(), c.seen)) {
		c.forget()
	}
	if c.ref == 0 {
		c.ref, c.seen = worth, c.guess.per()
	}
	best, most := c.now, worth
	for l := range level(levels) {
		w := c.worth(l)
		switch {
		case l < best && w >= most*lighterLoss, l > best && w > most*heavierGain:
			best, most = l, w
		}
	}
	if best != c.now {
		c.take(best)
	}
}

func differ(a, b float64) bool { return a > b*changed || a < b/changed }

// forget drops what is known of the levels not in use: something has changed.
func (c *Chooser) forget() {
	for l := range c.gauges {
		c.gauges[l].until, c.gauges[l].hold = 0, 0
	}
	c.ref = 0
}

// take makes l the level in use. The figures of the one that was stand for a
// while, the longer the oftener it lost.
func (c *Chooser) take(l level) {
	g := &c.gauges[c.now]
	g.hold = max(holdFirst, min(g.hold*2, holdMost))
	g.until = c.total + g.hold
	if !c.known(l) {
		c.gauges[l].moved, c.gauges[l].ratio = rate{}, rate{}
	}
	c.now, c.run, c.ref = l, rate{}, 0
}
