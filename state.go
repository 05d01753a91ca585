package failback

import "fmt"

// The source drives a session. Each state is left by one event; the effect
// named on the arrow is performed on the way.
//
//	idle ──start──▶ greeting ──info──▶ weighing ──weighed──▶ planned
//	      greet               diffTrees           sendPlan      │ agreed
//	                                                            ▼ move
//	     done ◀──closed── closing ◀──sealed── sealing ◀──┐    moving
//	                  say                 seal           │      │ moved
//	                                                     │      ▼ drain
//	                         checking ◀──drained (full)──┼── draining ──round──▶ resting
//	                            │ pass                   │      │        next       │ again: moving
//	                            └──checked───────────────┴──────┘ drained           ▼
//
// A live session goes round: what was written while it moved is moved next, and
// only the last round, with the writers at rest, is drained for good.
//
// A session that only looks (compare, dry run) goes from moving straight to
// sealing: there is nothing to drain. Any error ends the session from any
// state; what the target has acknowledged by then is durable, and the next
// session finds the rest.
type state uint8

const (
	stateIdle state = iota
	stateGreeting
	stateWeighing
	statePlanned
	stateMoving
	stateDraining
	stateResting
	stateChecking
	stateSealing
	stateClosing
	stateDone
)

var stateNames = [...]string{"idle", "greeting", "weighing", "planned", "moving", "draining", "resting", "checking", "sealing", "closing", "done"}

func (s state) String() string { return stateNames[s] }

// An event is what the effect before it came to.
type event uint8

const (
	evStart   event = iota // the caller wants a session
	evInfo                 // the target said what it knows of itself
	evWeighed              // kept trees of both sides are compared, or there are none
	evAgreed               // the target agreed to the plan
	evMoved                // every unit is compared and what differs is sent
	evDrained              // the target acknowledged the last barrier: durable and read back
	evRound                // the same of a round that is not the last
	evAgain                // the target agreed to another round
	evChecked              // both volumes were compared whole, from the medium
	evSealed               // both sides' roots and figures are exchanged
	evClosed               // the report is with the peer
)

var eventNames = [...]string{"start", "info", "weighed", "agreed", "moved", "drained", "round", "again", "checked", "sealed", "closed"}

func (e event) String() string { return eventNames[e] }

// An effect is what the driver does next; it gives one event, or an error.
type effect uint8

const (
	doNothing effect = iota
	doGreet
	doWeigh
	doPlan
	doMove
	doDrain
	doNext
	doCheck
	doSeal
	doClose
)

// intent is what a session is for, as far as the order of its steps depends on it.
type intent struct {
	writes bool // the target is written
	check  bool // both volumes are compared whole afterwards
	live   bool // the source is written meanwhile
}

// step is pure: no I/O, no clock, no goroutine. The caller performs the effect
// and comes back with the event it gave.
func step(s state, ev event, in intent) (state, effect, error) {
	switch {
	case s == stateIdle && ev == evStart:
		return stateGreeting, doGreet, nil
	case s == stateGreeting && ev == evInfo:
		return stateWeighing, doWeigh, nil
	case s == stateWeighing && ev == evWeighed:
		return statePlanned, doPlan, nil
	case s == statePlanned && ev == evAgreed:
		return stateMoving, doMove, nil
	case s == stateMoving && ev == evMoved && in.writes:
		return stateDraining, doDrain, nil
	case s == stateMoving && ev == evMoved:
		return stateSealing, doSeal, nil
	case s == stateDraining && ev == evRound && in.live:
		return stateResting, doNext, nil
	case s == stateResting && ev == evAgain && in.live:
		return stateMoving, doMove, nil
	case s == stateDraining && ev == evDrained && in.check:
		return stateChecking, doCheck, nil
	case s == stateDraining && ev == evDrained, s == stateChecking && ev == evChecked:
		return stateSealing, doSeal, nil
	case s == stateSealing && ev == evSealed:
		return stateClosing, doClose, nil
	case s == stateClosing && ev == evClosed:
		return stateDone, doNothing, nil
	}
	return s, doNothing, fmt.Errorf("event %v in state %v", ev, s)
}
