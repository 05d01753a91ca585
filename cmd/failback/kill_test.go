package main

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKill kills either side at 50 random moments; ten with -short, as under
// the race detector. Whatever the moment, only the target has changed, each piece
// of it is old or new, and the same command run again makes it equal.
func TestKill(t *testing.T) {
	a := newArena(t, false)
	moments := 50
	if testing.Short() {
		moments = 10
	}
	stages := map[string]int{}
	for i := range moments {
		r := a.anyTrip(i)
		r.limited = r.limited || i%2 == 0
		a.duration(t, r)
		a.spoil(t)
		p := start(t, a.bin, a.sync(r)...)
		at := a.moment(t, r, p)
		victim, name := p, "the command"
		if i/3%2 == 1 {
			victim, name = a.server, "the server"
		}
		t.Logf("%d: %v: %s is killed after %v", i, r, name, at.Round(time.Millisecond))
		victim.signal(t, syscall.SIGKILL)
		victim.wait(t)
		if victim == a.server {
			a.afterServer(t, r, p)
		}
		a.idle(t)
		a.untouched(t)
		switch missing, arrived := a.missing(t); {
		case arrived == 0:
			stages["before the first write"]++
		case missing > 0:
			stages["in between"]++
		default:
			stages["after the last write"]++
		}
		a.again(t, r)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("killed: %v", stages)
	if moments == 50 && stages["in between"] < 5 {
		t.Errorf("killed: %v; too few moments in between to show anything", stages)
	}
	a.close(t)
}

// TestTerminate asks either side to end, at random moments (L6).
func TestTerminate(t *testing.T) {
	a := newArena(t, false)
	moments := 9
	if testing.Short() {
		moments = 6
	}
	for i := range moments {
		r := a.anyTrip(i)
		r.limited = true
		a.duration(t, r)
		a.spoil(t)
		p := start(t, a.bin, a.sync(r)...)
		at := a.moment(t, r, p)
		victim, name, word := p, "the command", "interrupted"
		if i/3%2 == 1 {
			victim, name, word = a.server, "the server", ""
		}
		t.Logf("%d: %v: %s is asked to end after %v", i, r, name, at.Round(time.Millisecond))
		victim.signal(t, syscall.SIGTERM)
		if victim == a.server {
			if code := victim.wait(t); code != 0 {
				t.Errorf("the server's exit code is %d; it said:\n%s", code, victim.said.String())
			}
			if _, err := os.Lstat(a.socket); err == nil {
				t.Error("the server's socket is still there")
			}
			a.afterServer(t, r, p)
		}
		switch code := p.wait(t); code {
		case 0, 3:
			if code == 3 {
				a.failed(t, p, word)
			}
		default:
			// Before it could set up its handler the signal ends it.
			early := code == -1 && at < patience/100
			if _, arrived := a.missing(t); !early || arrived > 0 {
				t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
			}
		}
		a.idle(t)
		a.untouched(t)
		a.again(t, r)
	}
	a.close(t)
}

// TestKillFar kills a session once its journal says that something is done. The
// next one neither reads, nor sends, nor writes any of that again.
func TestKillFar(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the 5 s from one barrier to the next")
	}
	for name, r := range map[string]trip{
		"push, the command":           {way: push, dirty: true, limited: true},
		"pull, the server, patiently": {way: pull, limited: true, patient: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newArena(t, true)
			a.close(t)
			a.rate = "4MiB/s"
			a.serve(t)
			a.spoil(t)
			// What is under way comes before a barrier: let it be little.
			p := start(t, a.bin, a.sync(r, "--window", "2MiB")...)
			eventually(t, "a journal that says that something is done", func() bool {
				var info struct {
					Done int `json:"done_bytes"`
				}
				j := start(t, a.bin, "resume-info", "--json", a.journal)
				return j.wait(t) == 0 && json.Unmarshal(j.stdout.Bytes(), &info) == nil && info.Done > 0
			})
			victim := p
			if strings.Contains(name, "server") {
				victim = a.server
			}
			victim.signal(t, syscall.SIGKILL)
			victim.wait(t)
			a.rate = killRate
			if victim == p {
				a.idle(t)
				a.interrupted(t)
				p = finish(t, 0, a.bin, a.sync(r, "--resume")...)
			} else {
				a.serve(t)
				if code := p.wait(t); code != 0 {
					t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
				}
			}
			a.spared(t, p)
			a.equal(t)
			a.close(t)
		})
	}
}

// TestTerminateGently: a server that is asked to end lets a session come to its
// end within the time of grace.
func TestTerminateGently(t *testing.T) {
	a := newArena(t, false)
	a.close(t)
	a.grace, a.rate = "20s", "4MiB/s"
	a.serve(t)
	r := trip{way: push, dirty: true, limited: true}
	a.spoil(t)
	p := start(t, a.bin, a.sync(r)...)
	eventually(t, "data to arrive", func() bool { return a.begun(t) })
	a.server.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d; it said:\n%s", code, p.said.String())
	}
	a.equal(t)
	a.server.wait(t)
	if said := a.server.said.String(); !strings.Contains(said, "stopping; 1 connection may go on") {
		t.Errorf("the server said:\n%s", said)
	}
	a.serve(t)
	a.close(t)
}
