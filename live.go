package failback

import (
	"context"
	"fmt"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// Live lets a [Sync] copy a volume while it is being written. The session goes in
// rounds:
//
//	round 1      what the plan says may differ
//	round 2...   what the tracker recorded meanwhile, without what is dirty again
//	last round   with the writers at rest: what is left
//
// and comes to the last one when it is going to fit into the pause. Where rounds
// do not get that small it ends with a [ConvergenceError] before anybody is
// paused. However it ends, the tracker holds all that may differ from then on.
type Live struct {
	// Tracker records the writes to the source. Two more methods are used where it
	// has them: Pending(off, n int64) bool, which reports whether the next take
	// would report any of these bytes; and Rest(context.Context) error, which is
	// called when the session takes no more. Where there is none, the writers are
	// at rest from before anything is read until the target is complete: there are
	// no rounds, and of what follows only Quiesce and Untracked count.
	Tracker interface {
		cbt.Tracker
		cbt.Sealer
	}
	// Since is the epoch at which the target was equal to the source but for what
	// the tracker holds, 0 for none: then both sides are compared. After is the
	// session that made it so, and Left the target's stamp when that was over (see
	// [Stamper]), empty if it did not come to its end: where the target is not as it
	// was left, both sides are compared, too. With a Since of the caller's own, After
	// is zero, and the target is believed to be unwritten. A session moves all three
	// on.
	Since cbt.Epoch
	After [16]byte
	Left  string
	// Above is the highest epoch that the volume is known to have had, 0 for none:
	// those that the session begins are above it, whatever the clock says.
	Above cbt.Epoch
	// Pause is how long the writers may be at rest; default 500 ms. It is what is
	// predicted before, not what is enforced: that is up to Quiesce.
	Pause time.Duration
	// Untracked is why there is no Tracker, and Unsynced why Since is 0, for the
	// report; default of that: no sync with this target is known.
	Untracked, Unsynced string
	// Quiesce brings the writers to rest. What they had written lies on the
	// volume when it returns. Two more methods of what it returns are used where
	// there are any: Ended() <-chan struct{}, closed when the writers go on without
	// having been released, which ends the session at once; without it, they wait
	// for a target that says nothing until the session is given up. And Begun()
	// time.Time, since when they are at rest; without it, since Quiesce was called.
	Quiesce func(context.Context) (interface {
		// Held returns nil if the writers were at rest all the time until now.
		Held() error
		// Release lets them go on and returns how long they were at rest. It is
		// called once, also after an error.
		Release() (time.Duration, error)
	}, error)
	// Flush has what the writers have written so far reach the volume, nil where
	// nothing holds it back. It is called before each look at what is dirty: what
	// comes out only when the writers are brought to rest makes the pause longer.
	Flush func(context.Context) error
	// Throttle has the writers write to the volume at no more than so many bytes a
	// second from now on, and returns what they are held to, which may be less; with
	// 0 they go on as they did before the session. It is called where rounds do not
	// get small enough, nil where nobody can, and then again with what they are held
	// to, after each round and where a pause was broken off: Quiesce may lift it, and
	// it may come to an end without us. It is to lift it itself as soon as the context
	// that it was given ends: the session may wait then for what does not come back.
	Throttle func(ctx context.Context, rate int64) (int64, error)
	// Rest is how long the writers take to come to rest and to go on again, to
	// predict the pause; 0 where nobody knows.
	Rest time.Duration
	// Sealed is called each time they were moved on, nil for nobody: whoever wants
	// them in another process makes them durable. Its error ends the session.
	Sealed func() error
	// Round is told of each round when it is over, nil for nobody.
	Round func(Round)
}

// LiveReport is what a live session did.
type LiveReport struct {
	Rounds []Round `json:"rounds"`
	// PauseMS is how long the writers were at rest, in milliseconds, and
	// PredictedMS how long that was going to be when they were brought to rest.
	PauseMS     float64 `json:"pause_ms"`
	PredictedMS float64 `json:"predicted_pause_ms"`
	// Tries is how often they were brought to rest: each time but the last more
	// came out then than fits into the pause.
	Tries int `json:"tries"`
	// Throttle is what the writers were slowed down to at last, bytes a second; 0
	// where they were not.
	Throttle int64 `json:"throttle,omitempty"`
	// Epoch is since when the tracker holds what differs now; 0: it lost that as the
	// writers went on.
	Epoch cbt.Epoch `json:"epoch"`
}

// Round is one pass of a live session.
type Round struct {
	Number   int     `json:"round"`
	Bytes    int64   `json:"bytes"`          // looked at
	Sent     int64   `json:"sent_bytes"`     // of these, what differed
	Deferred int64   `json:"deferred_bytes"` // of these, what was dirty again and left for the next
	Left     int64   `json:"left_bytes"`     // dirty when the round was over
	Seconds  float64 `json:"seconds"`
	Last     bool    `json:"last,omitempty"`
	Throttle int64   `json:"throttle,omitempty"` // what the writers were slowed down to, bytes a second; 0: they were not
	// In and Out are bytes a second: what the writers make dirty, and what rounds
	// get through. More is how many further rounds that is going to take, -1 for
	// never as things are; PauseMS how long the pause would be now, -1 where nobody
	// knows yet.
	In      float64 `json:"in"`
	Out     float64 `json:"out"`
	More    int     `json:"more_rounds"`
	PauseMS float64 `json:"predicted_pause_ms"`
}

const (
	defaultLivePause = 500 * time.Millisecond
	// liveTries is how often the writers are brought to rest in vain.
	liveTries = 3
	// restTime is how long a tracker may take to come to rest after a session.
	restTime = 10 * time.Second
)

// check says what a live session cannot be.
func (l *Live) check(o Options) error {
	switch {
	case l.Quiesce == nil:
		return usagef("a live sync needs a way to bring the writers to rest")
	case l.Pause < 0 || l.Rest < 0:
		return usagef("a pause of %v: more than 0", l.Pause)
	case o.DryRun:
		return usagef("a live sync cannot be a dry run: compare the volumes instead")
	case l.Tracker != nil && (o.Verify == VerifyFull || o.Seal != 0):
		return usagef("a live sync proves what it writes: to compare the whole of both volumes the writers would have to rest all the while; verify afterwards")
	case o.Resume:
		return usagef("a live sync is not resumed: its source was written since; run it again")
	}
	return nil
}

// fits reports an error unless a may be the source of a live session of mode m.
func (l *Live) fits(m mode, a Side) error {
	switch {
	case l == nil:
		return nil
	case m != modeSync:
		return usagef("only a sync can be live")
	case a.Volume == nil:
		return usagef("%s: a live sync runs where its source is, beside the tracker", a.label())
	case a.Dirty != nil || a.Tree != "" || a.TrustTree:
		return usagef("%s: the tracker of a live sync stands for its dirty map, and no tree is true of a volume that is written", a.label())
	}
	return nil
}

// live is what the source's role knows of its live session. Only the driver
// touches it, but for later.
type live struct {
	l       *Live
	session [16]byte
	name    string
	size    int64 // of the source, bytes
	events  Events
	pace    pace
	doubt   string                  // why the tracker's map was not believed; "" where it was
	fail    context.CancelCauseFunc // ends the session

	taken   *cbt.Taken   // what the round under way is to prove; nil: no round is
	began   time.Time    // when it was taken
	bytes   int64        // of the round
	about   []cbt.Extent // what it proves: all else of what was taken stays dirty
	sent    int64        // by all rounds before
	left    extentList   // what it leaves for the next
	defers  bool         // it may leave something
	last    bool
	still   *standstill // nil: the writers are not at rest
	fixed   time.Duration
	tracked bool // the tracker holds all that differs
	staged  bool // the target is as it was until the session is sealed
	waiting []stagedRound
	since   cbt.Epoch // of the tracker, in this session
	sealed  bool      // the epoch was moved on in this session
	slowed  int       // how often the writers were slowed down
	rate    int64     // that they are slowed down to, bytes a second
	vain    int       // times that they were brought to rest in vain, since then
	rep     LiveReport

	unslowed error // why they are not slow any more, though they were
}

func newLive(l *Live, session [16]byte, name string, size int64, ev Events) *live {
	v := &live{l: l, session: session, name: name, size: size, events: ev}
	v.pace.budget = l.Pause
	if v.pace.budget == 0 {
		v.pace.budget = defaultLivePause
	}
	v.pace.rest = l.Rest
	v.rep.Rounds = []Round{}
	return v
}

// rounds reports whether the session goes in rounds, while the source is written.
func (v *live) rounds() bool { return v != nil && v.l.Tracker != nil }

// words is what the plan's reason says of the source's writers.
func (v *live) words() string {
	switch {
	case v == nil:
		return ""
	case !v.rounds() && v.l.Untracked != "":
		return "; the writers of the source are at rest all the time: " + v.l.Untracked
	case !v.rounds():
		return "; the writers of the source are at rest all the time"
	case v.doubt != "":
		return "; the tracker of the source: " + v.doubt
	}
	return ""
}

// later reports whether a piece is dirty again: it will be sent with the next
// round, and may be dirty again by then. Many goroutines call it.
func (v *live) later(x cbt.Extent) bool {
	if !v.defers {
		return false
	}
	t, ok := v.l.Tracker.(interface{ Pending(off, n int64) bool })
	if !ok || !t.Pending(x.Off, x.Len()) {
		return false
	}
	v.left.add(x)
	return true
}

// plans notes what the first round is about: the plan looks at candidates, and
// knows the rest of the volume to be equal but for what may lie in unknown.
func (v *live) plans(candidates, unknown []cbt.Extent) {
	v.bytes = cbt.Total(candidates)
	v.about = cbt.Union(candidates, cbt.Subtract(wholeOf(v.size), unknown))
}

// proven notes that the target has acknowledged all of a round: what was taken
// for it goes from the tracker as far as the round was about it, but for what was
// left (L2).
func (v *live) proven(sent int64, fixed time.Duration) error {
	if !v.rounds() {
		return nil
	}
	left, _ := v.left.result()
	proven := cbt.Subtract(v.about, left)
	v.fixed += fixed
	took := time.Since(v.began)
	r := Round{Number: len(v.rep.Rounds) + 1, Bytes: v.bytes, Sent: sent - v.sent, Deferred: cbt.Total(left), Seconds: took.Seconds(), Last: v.last, Throttle: v.rate}
	v.rep.Rounds = append(v.rep.Rounds, r)
	v.sent = sent
	switch {
	case v.staged:
		v.keep(proven)
		return nil
	case v.last:
	case !v.tracked, v.sent > 0 && v.l.After != v.session:
		// The first time that all that differs is in the tracker; or that the target
		// is not any more as the session left it that we are after. If this one does
		// not come to its end, the next is after this one.
		return v.seal(proven, v.session, "")
	case !v.sealed:
		// The target was not written, so it is as it was left.
		return v.seal(proven, v.l.After, v.l.Left)
	}
	return v.putBack(proven)
}

func (v *live) putBack(proven []cbt.Extent) error {
	if v.taken == nil {
		return nil
	}
	t := v.taken
	v.taken = nil
	if err := v.l.Tracker.PutBack(t, proven); err != nil {
		return fmt.Errorf("put back what was taken of %s: %w", v.name, err)
	}
	return nil
}

// take begins a round: what the tracker holds now.
func (v *live) take(ctx context.Context) ([]cbt.Extent, error) {
	v.began, v.fixed, v.left = time.Now(), 0, extentList{}
	t, err := v.l.Tracker.Take(ctx, v.since)
	if err != nil {
		return nil, fmt.Errorf("take what was written to %s: %w", v.name, err)
	}
	v.taken = t
	x := cbt.Intersect(cbt.Align(t.Extents(), pieceSize, v.size), wholeOf(v.size))
	x = cbt.Coarsen(x, maxCandidates)
	v.bytes, v.about = cbt.Total(x), x
	return x, nil
}

// next returns what the next round is about. It decides whether that is the last.
func (v *live) next(ctx context.Context) ([]cbt.Extent, error) {
	r := &v.rep.Rounds[len(v.rep.Rounds)-1]
	took, fixed := time.Since(v.began), v.fixed
	if err := v.stillSlow(ctx); err != nil {
		return nil, err
	}
	r.Throttle = min(r.Throttle, v.rate)
	if v.l.Flush != nil {
		if err := v.l.Flush(ctx); err != nil {
			return nil, fmt.Errorf("have what was written to %s reach it: %w", v.name, err)
		}
	}
	x, err := v.take(ctx)
	if err != nil {
		return nil, err
	}
	// What was left for later has not been got through, and is not in the last round.
	verdict := v.pace.ended(lap{bytes: r.Bytes - r.Deferred, took: took, fixed: fixed, left: v.bytes})
	predicted := v.pace.pause(v.bytes)
	r.Left, r.In, r.Out, r.More, r.PauseMS = v.bytes, v.pace.in(), v.pace.out(), v.pace.more(), predictedMS(predicted)
	if v.l.Round != nil {
		v.l.Round(*r)
	}
	switch {
	case verdict == goOn:
		return x, nil
	case verdict == cutOver:
		return v.quiesce(ctx, predicted)
	}
	if slower, err := v.slow(ctx); !slower {
		return nil, v.hopeless(ctx, predicted, err)
	}
	return x, nil
}

// predictedMS is a pause as it is reported.
func predictedMS(d time.Duration) float64 {
	if d == forever {
		return -1
	}
	return milliseconds(d)
}

// hopeless is the end of a session; unslowed is why the writers could not be slowed
// down, if that was tried now.
func (v *live) hopeless(ctx context.Context, pause time.Duration, unslowed error) error {
	switch {
	case unslowed == nil:
		unslowed = v.unslowed
	case ctx.Err() != nil:
		return unslowed // it was not tried to the end
	}
	return &ConvergenceError{Volume: v.name, Rounds: len(v.rep.Rounds), Tries: v.rep.Tries, Left: v.bytes, Unslowed: unslowed,
		In: v.pace.in(), Out: v.pace.out(), Budget: v.pace.budget, Pause: pause, Throttle: v.rate,
		throttles: v.l.Throttle != nil, atRest: v.pace.pause(0) > v.pace.budget}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// another begins the next round: what it is about is told to the target as
// another pass.
func (s *source) another(ctx context.Context) error {
	x, err := s.live.next(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	d := &s.facts.d
	*d = decision{Plan: d.Plan, candidates: x, source: fromVolume, target: fromVolume}
	d.candidates = cbt.Intersect(x, wholeOf(d.Volume))
	n := cbt.Total(d.candidates)
	s.facts.looked += n
	s.settled.Store(0)
	s.total.Store(n)
	c := s.comparison(*d)
	s.cmp.Store(c)
	if err := s.send(message.Pass{Purpose: passRound, Leaf: pieceSize}); err != nil {
		return err
	}
	if err := sendExtents(s.links[0], extentsCandidates, c.layout.candidates); err != nil {
		return err
	}
	if _, err := s.agreed(ctx); err != nil {
		return err
	}
	s.live.fixed += time.Since(began)
	return nil
}
