package failback

import (
	"fmt"
	"strings"
	"testing"

	"github.com/failback/failback/transport"
)

// TestStepTranscripts holds every whole session the source can have.
func TestStepTranscripts(t *testing.T) {
	for _, c := range []struct {
		name string
		in   intent
		want string
	}{
		{"looks", intent{}, "idle greeting weighing planned moving sealing closing done"},
		{"writes", intent{writes: true}, "idle greeting weighing planned moving draining sealing closing done"},
		{"writes and checks", intent{writes: true, check: true}, "idle greeting weighing planned moving draining checking sealing closing done"},
		{"is live", intent{writes: true, live: true}, "idle greeting weighing planned moving draining resting moving draining resting moving draining sealing closing done"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// What an effect comes to when nothing goes wrong.
			comes := map[effect]event{doGreet: evInfo, doWeigh: evWeighed, doPlan: evAgreed, doMove: evMoved,
				doDrain: evDrained, doNext: evAgain, doCheck: evChecked, doSeal: evSealed, doClose: evClosed}
			rounds := 2 // before the last
			s, ev := stateIdle, evStart
			path := []string{s.String()}
			for s != stateDone {
				next, eff, err := step(s, ev, c.in)
				if err != nil {
					t.Fatal(err)
				}
				path = append(path, next.String())
				if s, ev = next, comes[eff]; ev == evDrained && c.in.live && rounds > 0 {
					rounds, ev = rounds-1, evRound
				}
			}
			if got := strings.Join(path, " "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestStepRefuses: of all pairs of state and event only the drawn arrows exist.
func TestStepRefuses(t *testing.T) {
	arrows := map[string]bool{
		"idle start": true, "greeting info": true, "weighing weighed": true, "planned agreed": true, "moving moved": true,
		"draining drained": true, "checking checked": true, "sealing sealed": true, "closing closed": true,
	}
	live := map[string]bool{"draining round": true, "resting again": true}
	for s := stateIdle; s <= stateDone; s++ {
		for ev := evStart; ev <= evClosed; ev++ {
			for _, in := range []intent{{}, {writes: true}, {writes: true, check: true}, {writes: true, live: true}} {
				next, eff, err := step(s, ev, in)
				key := fmt.Sprintf("%v %v", s, ev)
				if may := arrows[key] || in.live && live[key]; may != (err == nil) {
					t.Errorf("%s with %+v: %v, %v", key, in, next, err)
				}
				if err != nil && (next != s || eff != doNothing) {
					t.Errorf("%v on %v is refused and still leads to %v, %v", s, ev, next, eff)
				}
			}
		}
	}
}

// TestTargetSteps holds every frame the target takes, by state, against the drawing.
func TestTargetSteps(t *testing.T) {
	names := map[transport.Kind]string{
		kindStart: "Start", kindNodes: "Nodes", kindPlan: "Plan", kindExtents: "Extents", kindData: "Data", kindZero: "Zero",
		kindDiscard: "Discard", kindBarrier: "Barrier", kindWant: "Want", kindRelease: "Release", kindPass: "Pass",
		kindSeal: "Seal", kindReport: "Report", kindBye: "Bye",
	}
	want := map[string]string{
		"waiting Start": "greeted", "greeted Nodes": "greeted", "greeted Plan": "listing",
		"listing Extents": "listing", "listing Extents marked": "moving",
		"moving Data": "moving", "moving Zero": "moving", "moving Discard": "moving", "moving Barrier": "moving",
		"moving Want": "moving", "moving Release": "moving", "moving Pass": "relisting", "moving Pass marked": "listing", "moving Seal": "sealed",
		"relisting Extents": "relisting", "relisting Extents marked": "checking",
		"checking Release": "checking", "checking Seal": "sealed",
		"sealed Report": "sealed", "sealed Bye": "over",
	}
	for s := targetWaiting; s <= targetOver; s++ {
		for k := range transport.Kind(40) {
			for _, marked := range []bool{false, true} {
				if marked && k != kindExtents && k != kindPass {
					continue
				}
				key := fmt.Sprintf("%v %s", s, names[k])
				if marked {
					key += " marked"
				}
				next, err := targetStep(s, k, marked)
				if to, ok := want[key]; ok != (err == nil) || ok && to != next.String() {
					t.Errorf("%s (kind %d): %v, %v", key, k, next, err)
				}
			}
		}
	}
}

// TestSourceAccepts: the source takes no frame of its own kind, and none before a session or after it.
func TestSourceAccepts(t *testing.T) {
	for s := stateIdle; s <= stateDone; s++ {
		for _, k := range []transport.Kind{kindOpen, kindOpened, kindTask, kindStart, kindPlan, kindWant, kindRelease, kindData, kindZero, kindBarrier, kindNodes, kindPass, kindSeal, kindReport} {
			if accepts(s, k) {
				t.Errorf("%v accepts kind %d", s, k)
			}
		}
		if !accepts(s, kindError) {
			t.Errorf("%v does not take an error", s)
		}
	}
	for _, k := range []transport.Kind{kindInfo, kindAgree, kindDigests, kindPieces, kindAck, kindCredit, kindSealed, kindBye} {
		if accepts(stateIdle, k) || accepts(stateDone, k) {
			t.Errorf("kind %d is taken outside a session", k)
		}
	}
}
