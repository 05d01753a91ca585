package transport

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// level is a codec and how hard it tries. Heavier levels have higher numbers.
type level uint8

const (
	levelNone    level = 0
	levelLZ4     level = 1
	levelFast    level = 2 // zstd, fastest
	levelDefault level = 3 // zstd, default
	levels             = 4
)

// levelNames are the names that NewChooser takes, besides auto.
var levelNames = [levels]string{"none", "lz4", "zstd-fast", "zstd"}

func (l level) codec() Codec {
	return [levels]Codec{None, LZ4, Zstd, Zstd}[l]
}

// Chooser decides which codec the next body gets. It is safe for concurrent use
// and shared by the encoders and the connections of one direction of a session.
//
// For auto it holds a model of the pipeline, from what it measures: a level
// moves at most as many raw bytes per second as the encoders compress with it,
// and at most as many as connections took while the level was in use. The
// level with the largest minimum is taken, the lighter of two that are equal.
// A level that was not in use lately is expected to do as the present one
// does, by the ratio of their compression; where that promises more, it is
// tried for 4 MiB, and then its own figures count. So where the peer and not
// the link is slow, compression that does not help is found out and left, and
// is tried again only after a while, ever longer. A [Pipe] has no link: over
// one, auto is none.
type Chooser struct {
	auto     bool
	encoders float64 // that really run at the same time

	mu     sync.Mutex
	now    level // in use
	gauges [levels]gauge
	link   rate    // bytes as written
	guess  samples // how compressible the data is
	frames int     // advised since the last sample

	writers int       // writes under way
	mark    time.Time // up to which their time is accounted for

	total int64   // raw bytes written
	run   rate    // raw bytes written since the level was taken
	ref   float64 // what the level was worth at the end of its trial; 0 in it
	seen  float64 // what samples gave at that time

	encs [2]*zstd.Encoder // fastest, default; made on first use
}

// NewChooser returns a chooser for a session with so many encoders. The name is
// none, lz4, zstd-fast or zstd for a fixed codec, or auto.
func NewChooser(name string, encoders int) (*Chooser, error) {
	encoders = max(1, min(encoders, runtime.GOMAXPROCS(0)))
	c := &Chooser{auto: name == "auto", encoders: float64(encoders)}
	if c.auto {
		c.start()
		return c, nil
	}
	for l, n := range levelNames {
		if n == name {
			c.now = level(l)
			return c, nil
		}
	}
	return nil, fmt.Errorf("unknown codec %q: none, lz4, zstd-fast, zstd or auto", name)
}

// zstd returns the shared encoder of a zstd level. It compresses as many bodies
// at once as there are encoders, and holds about 3 MiB for each that ever did.
func (c *Chooser) zstd(l level) *zstd.Encoder {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := &c.encs[l-levelFast]
	if *e == nil {
		speed := zstd.SpeedFastest
		if l == levelDefault {
			speed = zstd.SpeedDefault
		}
		var err error
		*e, err = zstd.NewWriter(nil,
			zstd.WithEncoderLevel(speed),
			zstd.WithEncoderConcurrency(int(c.encoders)),
			zstd.WithWindowSize(MaxRaw),
			zstd.WithLowerEncoderMem(true),
			zstd.WithSingleSegment(true), // so that every frame states its size
			zstd.WithEncoderCRC(false))   // the frame has a checksum
		if err != nil {
			panic(err) // the options are constants
		}
	}
	return *e
}

// LevelStats are the figures of one level.
type LevelStats struct {
	Name   string  // none, lz4, zstd-fast, zstd
	Raw    int64   // bytes of bodies that were stored in this way, before
	Stored int64   // and after
	Speed  float64 // raw bytes/s that one encoder compresses; 0 unknown
}

// ChooserStats say what a chooser decided and what it knows.
type ChooserStats struct {
	Level  string  // in use now
	Link   float64 // bytes/s that connections take; 0 unknown
	Levels []LevelStats
}

// Stats returns the figures so far.
func (c *Chooser) Stats() ChooserStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ChooserStats{Level: levelNames[c.now], Link: c.link.per()}
	for l := range c.gauges {
		g := &c.gauges[l]
		s.Levels = append(s.Levels, LevelStats{
			Name: levelNames[l], Raw: g.raw, Stored: g.stored, Speed: g.speed.per(),
		})
	}
	return s
}

// advise returns the level for a body of n bytes, and whether the encoder is to
// try a sample first. The sample is compared with the level: on a miss the body
// goes raw at once; at level none it only tells how things are.
func (c *Chooser) advise(n int) (l level, probe bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.auto {
		return c.now, false
	}
	if n < sampleLeast {
		if n < bodyLeast {
			return levelNone, false
		}
		return c.now, false
	}
	c.frames++
	if c.now != levelNone || c.frames >= sampleEvery && c.couldHelp() {
		c.frames = 0
		return c.now, true
	}
	return c.now, false
}

const (
	bodyLeast   = 512      // bytes; less is not worth compressing
	sampleLeast = 64 << 10 // bytes; less is compressed without a sample
	sampleEvery = 8        // frames, while nothing is compressed
)

// sampled takes in what a sample gave.
func (c *Chooser) sampled(raw, stored int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guess.add(float64(raw), float64(stored))
}

// finished takes in what became of a body for which l was advised: it was
// stored as it is if raw and stored are equal. Compressing it took so long, 0
// if that was not tried.
func (c *Chooser) finished(l level, raw, stored int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	as := l
	if raw == stored {
		as = levelNone
	}
	c.gauges[as].raw += int64(raw)
	c.gauges[as].stored += int64(stored)
	if l == levelNone {
		return
	}
	c.gauges[l].ratio.add(float64(raw), float64(stored))
	if took > 0 {
		c.gauges[l].speed.add(float64(raw), took.Seconds())
	}
}

// begin and end surround every write of a packet. The time that counts is that
// in which at least one write is under way, on any connection.
func (c *Chooser) begin(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writers++; c.writers == 1 {
		c.mark = now
	}
}

func (c *Chooser) end(now time.Time, l level, raw, wire int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writers--
	busy := max(0, now.Sub(c.mark).Seconds())
	c.mark = now
	c.total += int64(raw)
	c.link.add(float64(wire), busy)
	if !c.auto {
		return
	}
	if l == c.now { // else it was made before the level was taken
		c.gauges[l].moved.add(float64(raw), busy)
		c.run.add(float64(raw), busy)
		c.decide()
	}
}
