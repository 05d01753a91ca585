package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	killPiece = 4 << 10   // what a session sends at least
	killRate  = "32MiB/s" // at which most of the time goes by while data travels
)

// killVolume is the size of a volume, bytes: 32 MiB, or less where the test must
// be short, as under the race detector.
var killVolume = sync.OnceValue(func() int {
	if testing.Short() {
		return 16 << 20
	}
	return 32 << 20
})

// way is how the two sides are reached.
type way string

const (
	push  way = "push"  // the target is served
	pull  way = "pull"  // the source is served
	relay way = "relay" // both are, and the command only joins them
)

// trip is one way to make the volumes equal.
type trip struct {
	way     way
	dirty   bool // with a dirty map
	limited bool // the command's link, to killRate; the server's always are
	patient bool // a lost peer is tried again
	undo    bool // what is overwritten is saved
}

func (r trip) String() string {
	return fmt.Sprintf("%s dirty=%v limited=%v patient=%v undo=%v", r.way, r.dirty, r.limited, r.patient, r.undo)
}

// arena is a pair of volumes with their server, again and again made different
// and equal.
type arena struct {
	bin, dir               string
	source, target         string // paths
	dirty, socket, journal string
	other                  string // a third volume, empty
	undoDir                string // where undo logs are kept
	server                 *process
	rate, grace            string // of the server
	content, old, dirtyMap []byte // what source, target and map hold
	extents                []killExtent
	usual                  map[trip]time.Duration // how long a run takes that nothing disturbs
	dice                   *rand.Rand
}

type killExtent struct{ off, end int }

// newArena makes volumes that differ in a quarter of their content, or in all of
// it. What differs is in the dirty map.
func newArena(t *testing.T, all bool) *arena {
	t.Helper()
	a := &arena{bin: build(t), dir: t.TempDir(), rate: killRate, grace: "0s", usual: map[trip]time.Duration{}, dice: dice(t)}
	a.source, a.target = a.path("a.img"), a.path("b.img")
	a.dirty, a.socket, a.journal = a.path("dirty.fbm"), a.path("s.sock"), a.target+".fbj"
	a.content = noise(killVolume(), a.dice.Uint64())
	write(t, a.source, a.content)
	write(t, a.target, a.content)
	a.other, a.undoDir = a.path("c.img"), t.TempDir()
	write(t, a.other, nil)
	if err := os.Truncate(a.other, int64(killVolume())); err != nil {
		t.Fatal(err)
	}
	a.old = slices.Clone(a.content)
	var list strings.Builder
	const stride = 1 << 20
	for at := 0; at < killVolume(); at += stride {
		off := at + a.dice.IntN(stride/killPiece/2)*killPiece
		n := (1 + a.dice.IntN(stride/killPiece/2)) * killPiece
		if all {
			off, n = at, stride-killPiece
		}
		a.extents = append(a.extents, killExtent{off, off + n})
		fmt.Fprintln(&list, off, n)
	}
	write(t, a.path("extents"), []byte(list.String()))
	finish(t, 0, a.bin, "map", "from-extents", "--volume", a.target, "-o", a.dirty, a.path("extents"))
	a.dirtyMap = read(t, a.dirty)
	a.serve(t)
	return a
}

func (a *arena) path(name string) string { return filepath.Join(a.dir, name) }

func (a *arena) serve(t *testing.T) {
	t.Helper()
	a.server = serve(t, a.bin, a.socket, "--grace", a.grace, "--limit", a.rate, "--undo", a.undoDir,
		"--volume", "a="+a.source+",ro", "--volume", "b="+a.target+",rw")
}

// sync is the command line of a run.
func (a *arena) sync(r trip, more ...string) []string {
	from, to := a.source, a.target
	if r.way != push {
		from = "unix://" + a.socket + "?volume=a"
	}
	if r.way != pull {
		to = "unix://" + a.socket + "?volume=b"
	}
	args := append([]string{"sync", "--json"}, more...)
	if !r.patient {
		args = append(args, "--retry-for", "0")
	}
	if r.dirty {
		args = append(args, "--dirty", a.dirty)
	}
	switch {
	case r.undo && r.way == pull:
		args = append(args, "--undo", filepath.Join(a.undoDir, "u.fbu"))
	case r.undo:
		args = append(args, "--undo-served")
	}
	if r.limited {
		args = append(args, "--codec", "none", "--limit", a.rate)
	}
	return append(args, from, to)
}

// spoil writes to the target, anywhere in what the dirty map holds.
func (a *arena) spoil(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile(a.target, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range a.extents {
		p := a.old[e.off:e.end]
		copy(p, noise(len(p), a.dice.Uint64()))
		if _, err := f.WriteAt(p, int64(e.off)); err != nil {
			t.Fatal(err)
		}
	}
}

// duration is what a run takes, measured once, which also shows that it works.
func (a *arena) duration(t *testing.T, r trip) time.Duration {
	t.Helper()
	r.patient = false
	if d, ok := a.usual[r]; ok {
		return d
	}
	a.spoil(t)
	begin := time.Now()
	finish(t, 0, a.bin, a.sync(r)...)
	a.usual[r] = time.Since(begin)
	a.equal(t)
	a.forget(t)
	t.Logf("%v takes %v", r, a.usual[r].Round(time.Millisecond))
	return a.usual[r]
}

// moment lets time pass up to a random moment of a run, or until it has ended.
func (a *arena) moment(t *testing.T, r trip, p *process) time.Duration {
	t.Helper()
	d := time.Duration(a.dice.Int64N(int64(a.duration(t, r))))
	select {
	case <-time.After(d):
	case <-p.ended:
	}
	return d
}

// untouched requires that nothing but the target has changed.
func (a *arena) untouched(t *testing.T) {
	t.Helper()
	if !bytes.Equal(read(t, a.source), a.content) {
		t.Error("the source has changed (L4)")
	}
	if !bytes.Equal(read(t, a.dirty), a.dirtyMap) {
		t.Error("the dirty map has changed (L2)")
	}
}

// missing counts the bytes of pieces in which the target is not yet the source.
// Each must be what the target held, or what the source holds.
func (a *arena) missing(t *testing.T) (missing, arrived int) {
	t.Helper()
	got := read(t, a.target)
	if len(got) != len(a.content) {
		t.Fatalf("the target has %d bytes now", len(got))
	}
	for off := 0; off < len(got); off += killPiece {
		piece, want, before := got[off:off+killPiece], a.content[off:off+killPiece], a.old[off:off+killPiece]
		switch same := bytes.Equal(piece, want); {
		case !same && !bytes.Equal(piece, before):
			t.Fatalf("piece at %#x is neither what the target held nor what the source holds", off)
		case !same:
			missing += killPiece
		case !bytes.Equal(want, before):
			arrived += killPiece
		}
	}
	return missing, arrived
}

func (a *arena) equal(t *testing.T) {
	t.Helper()
	if missing, _ := a.missing(t); missing > 0 {
		t.Fatalf("%d bytes still differ", missing)
	}
	if _, err := os.Lstat(a.journal); err == nil {
		t.Error("the journal is still there")
	}
	a.untouched(t)
}

// idle waits until the server has noticed that its peer is gone.
func (a *arena) idle(t *testing.T) {
	t.Helper()
	eventually(t, "the server to let go of the target", func() bool {
		dir := fmt.Sprintf("/proc/%d/fd", a.server.cmd.Process.Pid)
		open, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return !slices.ContainsFunc(open, func(e os.DirEntry) bool {
			to, err := os.Readlink(filepath.Join(dir, e.Name()))
			return err == nil && to == a.target
		})
	})
}

// interrupted looks at the journal, if there is one: what it says is done is
// done, and the target counts as inconsistent (L5).
func (a *arena) interrupted(t *testing.T) (done int, found bool) {
	t.Helper()
	if _, err := os.Lstat(a.journal); errors.Is(err, fs.ErrNotExist) {
		if _, arrived := a.missing(t); arrived > 0 {
			if missing, _ := a.missing(t); missing > 0 {
				t.Error("the target holds a part of the change and no journal says so (L5)")
			}
		}
		return 0, false
	}
	var info struct {
		Result  string
		Done    int `json:"done_bytes"`
		Touched bool
		Left    string `json:"target_stamp"`
	}
	p := finish(t, 0, a.bin, "resume-info", "--json", a.journal)
	if err := json.Unmarshal(p.stdout.Bytes(), &info); err != nil {
		t.Fatal(err)
	}
	got := read(t, a.target)
	if !bytes.Equal(got[:info.Done], a.content[:info.Done]) {
		t.Errorf("the journal says that %d bytes are done; they are not", info.Done)
	}
	if _, arrived := a.missing(t); arrived > 0 && !info.Touched {
		t.Errorf("%d bytes have arrived, and the journal says that the target was not written", arrived)
	}
	if info.Touched && info.Result != "complete" {
		p := finish(t, 4, a.bin, "sync", a.target, a.other)
		if said := p.said.String(); !strings.Contains(said, "interrupted") {
			t.Errorf("as a source the target was refused with:\n%s", said)
		}
	}
	if info.Result == "complete" && info.Left == "" {
		return 0, true // who knows since when: all is compared again
	}
	return info.Done, true
}

// again goes on with a run, or begins it anew where there is nothing to go on
// from, and requires that it makes the rest equal and sends no more than the rest.
func (a *arena) again(t *testing.T, r trip) {
	t.Helper()
	a.idle(t)
	missing, _ := a.missing(t)
	done, found := a.interrupted(t)
	var more []string
	if found && (r.undo || a.dice.IntN(4) > 0) {
		more = append(more, "--resume")
	} else {
		done = 0
	}
	p := finish(t, 0, a.bin, a.sync(r, more...)...)
	var report struct {
		Raw  int `json:"raw_bytes"`
		Zero int `json:"zero_bytes"`
		From int `json:"resumed_from"`
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if sent := report.Raw + report.Zero; sent != missing {
		t.Errorf("next run, %v %q: %d bytes were sent, %d were missing", r, more, sent, missing)
	}
	if report.From != done {
		t.Errorf("next run, %v %q: resumed from %d, the journal said %d", r, more, report.From, done)
	}
	a.equal(t)
}

// logs are the undo logs that there are.
func (a *arena) logs(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(a.undoDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// forget removes the undo logs.
func (a *arena) forget(t *testing.T) {
	t.Helper()
	for _, name := range a.logs(t) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// undo puts back what the runs since spoil have overwritten, and requires that
// this is all, that no mark stays and that the logs do not change.
func (a *arena) undo(t *testing.T) {
	t.Helper()
	for _, name := range a.logs(t) { // one that was killed early saved nothing
		log := read(t, name)
		finish(t, 0, a.bin, "undo", "-q", a.target, name)
		if !bytes.Equal(read(t, name), log) {
			t.Errorf("undo has changed its log %s", name)
		}
	}
	if _, arrived := a.missing(t); arrived > 0 {
		t.Errorf("%d bytes are not what the target held", arrived)
	}
	if _, err := os.Lstat(a.journal); err == nil {
		t.Error("the target is still marked")
	}
	a.untouched(t)
}

// failed requires that a run that was disturbed says what it leaves behind, and
// that this is true.
func (a *arena) failed(t *testing.T, p *process, word string) {
	t.Helper()
	var told struct{ Result, Error, State, Next string }
	if err := json.Unmarshal(p.stdout.Bytes(), &told); err != nil {
		t.Fatalf("%v; stdout %q, it said:\n%s", err, p.stdout.String(), p.said.String())
	}
	if told.Result != "failed" || told.State == "" || told.Next == "" || !strings.Contains(told.Error, word) {
		t.Errorf("told %+v; want a failure with %q, a state and a next step", told, word)
	}
	if _, arrived := a.missing(t); arrived > 0 && strings.Contains(told.State, "nothing was written") {
		t.Errorf("told %q, but %d bytes have arrived (L3)", told.State, arrived)
	}
}

// close stops the server and requires that nothing is left.
func (a *arena) close(t *testing.T) {
	t.Helper()
	a.server.signal(t, syscall.SIGTERM)
	if code := a.server.wait(t); code != 0 {
		t.Errorf("the server's exit code is %d; it said:\n%s", code, a.server.said.String())
	}
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"a.img", "b.img", "c.img", "dirty.fbm", "extents"}; !slices.Equal(names, want) {
		t.Errorf("left in the directory: %q, want %q", names, want)
	}
}

// begun reports whether the first of the data has arrived.
func (a *arena) begun(t *testing.T) bool {
	t.Helper()
	f, err := os.Open(a.target)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e := a.extents[0]
	piece := make([]byte, killPiece)
	if _, err := f.ReadAt(piece, int64(e.off)); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(piece, a.content[e.off:e.off+killPiece])
}

// anyTrip is the i-th of the runs, in a way of its own, else as the dice fall.
func (a *arena) anyTrip(i int) trip {
	return trip{way: []way{push, pull, relay}[i%3], dirty: a.dice.IntN(2) == 0, limited: a.dice.IntN(2) == 0, patient: a.dice.IntN(2) == 0}
}

// afterServer starts the server again. A command that is patient goes on with it,
// if it ever had reached it; any other has ended.
func (a *arena) afterServer(t *testing.T, r trip, p *process) {
	t.Helper()
	if r.patient {
		a.serve(t)
	}
	code := p.wait(t)
	if !r.patient {
		a.serve(t)
	}
	switch {
	case code == 0:
		a.idle(t)
		a.equal(t)
	case code == 3 && (!r.patient || !strings.Contains(p.said.String(), "plan: ")):
		a.failed(t, p, "")
	default:
		t.Fatalf("the command left alone ended with %d; it said:\n%s", code, p.said.String())
	}
}

// spared requires that a run left alone what was done before it.
func (a *arena) spared(t *testing.T, p *process) {
	t.Helper()
	var report struct {
		From       int `json:"resumed_from"`
		Candidates int `json:"candidate_bytes"`
		Read       int `json:"source_read_bytes"`
		Hashed     int `json:"target_read_bytes"`
		Raw        int `json:"raw_bytes"`
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	rest := killVolume() - report.From
	if report.From == 0 || max(report.Candidates, report.Read, report.Hashed, report.Raw) > rest {
		t.Errorf("%+v: more than the %d bytes that were left", report, rest)
	}
	t.Logf("resumed from %d of %d bytes", report.From, killVolume())
}
