package main

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kill begins a run and kills either side at a random moment of it. It returns
// in words how far the target had come.
func (a *arena) kill(t *testing.T, i int, r trip) string {
	t.Helper()
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
	return a.stage(t)
}

// stage is how far the target is from what it held to what the source holds.
func (a *arena) stage(t *testing.T) string {
	t.Helper()
	switch missing, arrived := a.missing(t); {
	case arrived == 0:
		return "before the first write"
	case missing > 0:
		return "in between"
	}
	return "after the last write"
}

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
		stages[a.kill(t, i, r)]++
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

// TestKillThenUndo kills either side of a sync that saves what it overwrites, at
// 20 random moments. At every second one the sync, if it has not come to its
// end, first goes on. Undo puts back what the target held before, bit for bit.
func TestKillThenUndo(t *testing.T) {
	t.Parallel()
	a := newArena(t, false)
	moments := 20
	if testing.Short() {
		moments = 6
	}
	stages := map[string]int{}
	for i := range moments {
		r := trip{way: []way{push, pull, relay}[i%3], dirty: true, limited: true, patient: i%4 < 2, undo: true}
		stage := a.kill(t, i, r)
		if missing, _ := a.missing(t); missing > 0 && i%2 == 1 {
			a.again(t, r)
			stage += ", resumed"
		}
		stages[stage]++
		a.undo(t)
		a.forget(t)
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("killed, and undone: %v", stages)
	if moments == 20 && stages["in between"]+stages["in between, resumed"] < 3 {
		t.Errorf("killed: %v; too few moments in between to show anything", stages)
	}
	a.close(t)
}

// TestKillUndo kills undo at ten random moments. The target is marked as long as
// it is neither the one nor the other, and undo run again makes it what it was.
func TestKillUndo(t *testing.T) {
	t.Parallel()
	a := newArena(t, true)
	a.spoil(t)
	r := trip{way: pull, undo: true}
	finish(t, 0, a.bin, a.sync(r)...)
	a.equal(t)
	begin := time.Now()
	a.undo(t)
	length := time.Since(begin)
	moments := 10
	if testing.Short() {
		moments = 3
	}
	stages := map[string]int{}
	for i := range moments {
		f, err := os.OpenFile(a.target, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(a.content, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		p := start(t, a.bin, "undo", a.target, a.logs(t)[0])
		at := time.Duration(a.dice.Int64N(int64(length)))
		select {
		case <-time.After(at):
		case <-p.ended:
		}
		p.signal(t, syscall.SIGKILL)
		if code := p.wait(t); code > 0 {
			t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
		}
		stage := map[string]string{
			"before the first write": "all is put back", "in between": "some is put back", "after the last write": "nothing is put back",
		}[a.stage(t)]
		t.Logf("%d: killed after %v: %s", i, at.Round(time.Millisecond), stage)
		stages[stage]++
		if _, found := a.interrupted(t); found {
			// A sync cannot go on with what is not its own.
			q := finish(t, 4, a.bin, a.sync(r, "--resume")...)
			if said := q.said.String(); !strings.Contains(said, "sync without --resume") {
				t.Errorf("as a sync to go on with it was refused with:\n%s", said)
			}
		}
		a.undo(t)
	}
	t.Logf("undo killed: %v", stages)
	a.forget(t)
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
		t.Skip("takes several seconds of a limited link")
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
			p := start(t, a.bin, a.sync(r, "--window", "2MiB", "--checkpoint", "300ms")...)
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
	a.grace, a.rate = "20s", "2MiB/s"
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
