package failback

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/failback/failback/transport"
)

// What a source may say to a target, one letter for each frame of the control
// connection, as section 4 of docs/PROTOCOL.md draws it from top to bottom. It
// is written so that every beginning of a session matches.
//
//	s Start  n Nodes  p Plan  e Extents  E the last Extents  w Want  d Data  z Zero  x Discard
//	r Release  b Barrier  P Pass  Q Pass of a round  S Seal  R Report  B Bye  ? anything else
var saidBySource = regexp.MustCompile(`^(s(n*|n*p(e*|e*E[dzxwrb]*(Qe*E[dzxwrb]*)*(Qe*|P(e*|e*Er*))?` +
	`|e*E[dzxwrb]*(Qe*E[dzxwrb]*)*(Pe*Er*)?SR*B?)))?$`)

var sourceLetters = map[transport.Kind]byte{
	kindStart: 's', kindNodes: 'n', kindPlan: 'p', kindExtents: 'e', kindWant: 'w', kindData: 'd', kindZero: 'z',
	kindDiscard: 'x', kindRelease: 'r', kindBarrier: 'b', kindPass: 'P', kindSeal: 'S', kindReport: 'R', kindBye: 'B',
}

// What happens to a source, one letter for each event: it begins, hears Info,
// has weighed trees, has Agree, is through with the candidates, has the last
// Ack, has compared all, has Sealed, has Bye; has a round's last Ack, has Agree to
// another. By what the session is for.
var (
	happensLooking  = regexp.MustCompile(`^(b(i(w(a(m(s(B)?)?)?)?)?)?)?$`)
	happensWriting  = regexp.MustCompile(`^(b(i(w(a(m(k(s(B)?)?)?)?)?)?)?)?$`)
	happensLive     = regexp.MustCompile(`^(b(i(w(a(m(ogm)*(o|og|k(s(B)?)?)?)?)?)?)?)?$`)
	happensChecking = regexp.MustCompile(`^(b(i(w(a(m(k(c(s(B)?)?)?)?)?)?)?)?)?$`)
)

var eventLetters = map[event]byte{
	evStart: 'b', evInfo: 'i', evWeighed: 'w', evAgreed: 'a', evMoved: 'm', evDrained: 'k', evChecked: 'c', evSealed: 's', evClosed: 'B',
	evRound: 'o', evAgain: 'g',
}

// FuzzStep holds the two machines of a session against the drawing of the
// protocol: each alone takes exactly what it allows, in any order that is tried;
// and together, over two lines that keep the order of each direction, neither
// ever gets what it does not take, and both come to their end.
func FuzzStep(f *testing.F) {
	seeds, err := filepath.Glob(filepath.Join("testdata", "fuzz", "FuzzStep", "*"))
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds (%v)", err)
	}
	for _, path := range seeds {
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			f.Fatalf("seed %s is empty (%v)", path, err)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 1<<10 {
			return
		}
		purpose := intent{writes: in[0]&3 > 0, check: in[0]&3 == 2, live: in[0]&3 == 3}
		sourceAlone(t, purpose, in[1:])
		targetAlone(t, in[1:])
		newDialogue(t, purpose, int(in[0]>>2&3)).run(in[1:])
	})
}

// sourceAlone tries events in any order. One that is refused changes nothing.
func sourceAlone(t *testing.T, purpose intent, in []byte) {
	model := happensLooking
	switch {
	case purpose.live:
		model = happensLive
	case purpose.check:
		model = happensChecking
	case purpose.writes:
		model = happensWriting
	}
	s, word := stateIdle, []byte{}
	for _, b := range in {
		ev := event(b) % (evClosed + 1)
		longer := append(word[:len(word):len(word)], eventLetters[ev])
		next, eff, err := step(s, ev, purpose)
		switch may := model.Match(longer); {
		case may != (err == nil):
			t.Fatalf("after %s in state %v, %v: %v; the protocol allows it: %v", word, s, ev, err, may)
		case err == nil:
			s, word = next, longer
		case next != s || eff != doNothing:
			t.Fatalf("%v in state %v is refused and still leads to %v", ev, s, next)
		}
	}
}

// targetAlone tries frames in any order.
func targetAlone(t *testing.T, in []byte) {
	s, word := targetWaiting, []byte{}
	for _, b := range in {
		k, marked := transport.Kind(b%32), b&32 != 0
		letter, known := sourceLetters[k]
		switch {
		case !known:
			letter = '?'
		case k == kindExtents && marked:
			letter = 'E'
		case k == kindPass && marked:
			letter = 'Q'
		}
		longer := append(word[:len(word):len(word)], letter)
		next, err := targetStep(s, k, marked)
		switch may := saidBySource.Match(longer); {
		case may != (err == nil):
			t.Fatalf("after %s in state %v, kind %d (marked %v): %v; the protocol allows it: %v", word, s, k, marked, err, may)
		case err == nil:
			s, word = next, longer
		case next != s:
			t.Fatalf("kind %d in state %v is refused and still leads to %v", k, s, next)
		}
	}
}

// said is a frame under way.
type said struct {
	kind   transport.Kind
	marked bool // the last Extents; a Pass of a round
}

// A dialogue is a session of both machines. What they do of themselves, and
// when what they say gets there, is chosen byte by byte.
type dialogue struct {
	t       *testing.T
	purpose intent
	units   int // that are compared; their digests come in any order
	rounds  int // that a live source has before its last

	s      state
	eff    effect // under way at the source
	asked  int    // answers that are due before it is over
	listed bool   // the target's lists have come
	sealed bool   // its last answer has come
	word   []byte // what the source has said

	g       targetState
	lists   int // Extents that the target has still to send
	digests int // that it has still to send
	due     []said

	down, up []said // to the target, to the source
}

func newDialogue(t *testing.T, purpose intent, units int) *dialogue {
	d := &dialogue{t: t, purpose: purpose, units: units, rounds: units + 1}
	d.happen(evStart)
	return d
}

// run has every byte choose a move, and then makes moves until both are at their end.
func (d *dialogue) run(in []byte) {
	for _, b := range in {
		d.move(b)
	}
	for range 200 + len(in) { // with the moves that end things; all that was said has to arrive
		for b := range byte(8) {
			d.move(b << 2)
		}
	}
	if d.s != stateDone || d.g != targetOver || len(d.down)+len(d.up)+len(d.due) > 0 {
		d.t.Fatalf("the source stays in %v, the target in %v, after %s", d.s, d.g, d.word)
	}
}

// move is one step of whoever b names: a frame arrives, or is sent.
func (d *dialogue) move(b byte) {
	switch b >> 2 & 3 {
	case 0:
		if len(d.down) > 0 {
			m := d.down[0]
			d.down = d.down[1:]
			d.hearTarget(m)
		}
	case 1:
		if len(d.up) > 0 {
			m := d.up[0]
			d.up = d.up[1:]
			d.hearSource(m)
		}
	case 2:
		d.answer(int(b >> 4))
	case 3:
		d.speak(b)
	}
}

// say has the source send, and holds it against the protocol.
func (d *dialogue) say(k transport.Kind, marked bool) {
	letter := sourceLetters[k]
	switch {
	case k == kindExtents && marked:
		letter = 'E'
	case k == kindPass && marked:
		letter = 'Q'
	}
	if d.word = append(d.word, letter); !saidBySource.Match(d.word) {
		d.t.Fatalf("in state %v the source says %s", d.s, d.word)
	}
	d.down = append(d.down, said{k, marked})
}

// happen gives the source an event and begins what follows from it.
func (d *dialogue) happen(ev event) {
	next, eff, err := step(d.s, ev, d.purpose)
	if err != nil {
		d.t.Fatal(err)
	}
	d.s, d.eff, d.asked, d.sealed = next, eff, 0, false
	switch eff {
	case doGreet:
		d.say(kindStart, false)
	case doPlan:
		d.asked = d.units
		d.say(kindPlan, false)
	case doDrain:
		d.asked++
		d.say(kindBarrier, false)
	case doNext:
		d.asked = d.units
		d.say(kindPass, true)
		d.say(kindExtents, true)
	case doCheck:
		d.asked = d.units
		d.say(kindPass, false)
		d.say(kindExtents, true)
	case doSeal:
		d.say(kindSeal, false)
	}
}

// speak is what the source does of itself in the effect under way.
func (d *dialogue) speak(b byte) {
	more := b >> 4
	switch d.eff {
	case doWeigh:
		if more > 8 {
			d.asked++
			d.say(kindNodes, false)
		} else if d.asked == 0 {
			d.happen(evWeighed)
		}
	case doPlan:
		// Digests may come before the list's end is answered, not before it is sent.
		if d.listed || d.s != statePlanned {
			return
		}
		if d.listed = more <= 8; !d.listed {
			d.say(kindExtents, false)
			return
		}
		d.say(kindExtents, true)
	case doMove:
		d.speakMoving(more)
	case doCheck:
		if more > 8 {
			d.say(kindRelease, false)
		} else if d.asked == 0 {
			d.happen(evChecked)
		}
	case doClose:
		if d.sealed {
			return
		}
		d.say(kindReport, false)
		if d.sealed = more <= 8; d.sealed {
			d.say(kindBye, false)
		}
	}
}

// speakMoving sends what moves, or ends it: acknowledgements may still be due.
func (d *dialogue) speakMoving(more byte) {
	switch {
	case more == 9:
		d.asked++ // its pieces
		d.say(kindWant, false)
	case more == 10:
		d.say(kindRelease, false)
	case more == 11 && d.purpose.writes:
		d.say(kindBarrier, false)
	case more > 11 && d.purpose.writes:
		d.say([]transport.Kind{kindData, kindZero, kindDiscard, kindData}[more-12], false)
	case d.asked == 0:
		d.happen(evMoved)
	}
}

// hearTarget is a frame that gets to the target.
func (d *dialogue) hearTarget(m said) {
	next, err := targetStep(d.g, m.kind, m.marked)
	if err != nil {
		d.t.Fatalf("the target does not take what the source may say (%s): %v", d.word, err)
	}
	d.g = next
	switch m.kind {
	case kindStart:
		d.lists = 2
		d.due = append(d.due, said{kind: kindInfo})
	case kindNodes:
		d.due = append(d.due, said{kind: kindNodeHashes})
	case kindExtents:
		if m.marked && next == targetMoving {
			d.due = append(d.due, said{kind: kindAgree})
		}
		if m.marked {
			d.digests = d.units
		}
	case kindWant:
		d.due = append(d.due, said{kind: kindPieces})
	case kindData, kindZero, kindDiscard:
		d.due = append(d.due, said{kind: kindCredit})
	case kindBarrier:
		d.due = append(d.due, said{kind: kindAck}) // after the credit of all before it
	case kindSeal:
		d.due = append(d.due, said{kind: kindSealed})
	case kindBye:
		d.due = append(d.due, said{kind: kindBye})
	}
}

// answer sends what the target owes: digests at any time, the rest in order.
func (d *dialogue) answer(choice int) {
	switch {
	case d.digests > 0 && (choice&1 == 0 || len(d.due) == 0):
		d.digests--
		d.up = append(d.up, said{kind: kindDigests})
	case len(d.due) > 0:
		m := d.due[0]
		d.due = d.due[1:]
		if d.up = append(d.up, m); m.kind == kindInfo {
			for i := range d.lists {
				d.up = append(d.up, said{kindExtents, i == d.lists-1})
			}
		}
	}
}

// hearSource is a frame that gets to the source.
func (d *dialogue) hearSource(m said) {
	if !accepts(d.s, m.kind) {
		d.t.Fatalf("the source, in state %v, does not take kind %d; it has said %s", d.s, m.kind, d.word)
	}
	switch m.kind {
	case kindExtents:
		if m.marked {
			d.happen(evInfo)
		}
	case kindDigests, kindPieces, kindNodeHashes:
		d.asked--
	case kindAgree:
		left, ev := d.asked, evAgreed // digests that are still to come
		if d.s == stateResting {
			ev = evAgain
		}
		d.happen(ev)
		d.asked = left
	case kindAck:
		d.heardAck()
	case kindSealed:
		d.happen(evSealed)
	case kindBye:
		d.happen(evClosed)
	}
}

// heardAck ends draining with the last barrier's answer.
func (d *dialogue) heardAck() {
	if d.s != stateDraining {
		return
	}
	acks := 0
	for _, m := range append(append(append([]said(nil), d.down...), d.due...), d.up...) {
		if m.kind == kindBarrier || m.kind == kindAck {
			acks++
		}
	}
	switch {
	case acks > 0:
	case d.purpose.live && d.rounds > 0:
		d.rounds--
		d.happen(evRound)
	default:
		d.happen(evDrained)
	}
}
