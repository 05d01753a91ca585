package cli

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

// given is a tracker whose next epoch may not come.
type given struct {
	*cbt.Writer
	size   int64
	killed bool
	lost   string // "" or for what the epoch is lost meanwhile
}

var errKilled = errors.New("killed")

func (g *given) Status() (ebpf.Status, error) {
	return ebpf.Status{Device: "/dev/x", Identity: "x", Size: g.size, Block: cbt.MinBlock, Trust: g.Trust()}, nil
}

func (g *given) Advance(t *cbt.Taken, proven []cbt.Extent, e cbt.Epoch) error {
	switch {
	case g.killed:
		return errors.Join(errKilled, g.PutBack(t, nil)) // as if it were out when the process died
	case g.lost != "":
		g.Lose(g.lost)
	}
	return g.Writer.Advance(t, proven, e)
}

type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func newGiven(t *testing.T) *given {
	t.Helper()
	const size = 1 << 20
	w, err := cbt.Wrap(nowhere{}, size, cbt.WriterOptions{Identity: "x"})
	if err != nil {
		t.Fatal(err)
	}
	return &given{Writer: w, size: size}
}

func (g *given) dirty(t *testing.T) {
	t.Helper()
	if _, err := g.WriteAt([]byte("x"), 5*cbt.MinBlock); err != nil {
		t.Fatal(err)
	}
}

func stateIn(dir string) trackFlags { return trackFlags{state: placeFlags{state: dir}} }

// A take that dies when the map is in the file leaves a tracker that is as it was: a
// session that asks since the old epoch finds all.
func TestTakeWithoutEpoch(t *testing.T) {
	g, dir := newGiven(t), t.TempDir()
	if err := g.Seal(7); err != nil {
		t.Fatal(err)
	}
	g.dirty(t)
	f, output := stateIn(dir), filepath.Join(dir, "x.fbm")
	g.killed = true
	if _, err := f.take(t.Context(), g, output); !errors.Is(err, errKilled) {
		t.Fatalf("take: %v", err)
	}
	m, err := cbt.LoadMap(output)
	if err != nil || m.Epoch != 7 || len(m.Extents()) != 1 {
		t.Errorf("the file has %+v, %v", m, err)
	}
	if left, err := g.Take(t.Context(), 7); err != nil || len(left.Extents()) != 1 {
		t.Errorf("the tracker has %+v, %v", left, err)
	}
}

// What a take does not know of is not put right by it.
func TestTakeOfTheLost(t *testing.T) {
	g, dir := newGiven(t), t.TempDir()
	if err := g.Seal(7); err != nil {
		t.Fatal(err)
	}
	g.dirty(t)
	f, output := stateIn(dir), filepath.Join(dir, "x.fbm")
	g.lost = "somebody wrote around it"
	_, err := f.take(t.Context(), g, output)
	var told *outcomeError
	if !errors.As(err, &told) || !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(told.state, output) {
		t.Fatalf("take: %v", err)
	}
	if trust := g.Trust(); trust.Lost != g.lost {
		t.Errorf("afterwards: %+v", trust)
	}
}

// What fails before leaves it as it was.
func TestTakeWithoutFile(t *testing.T) {
	g, dir := newGiven(t), t.TempDir()
	if err := g.Seal(7); err != nil {
		t.Fatal(err)
	}
	g.dirty(t)
	f := stateIn(dir)
	if _, err := f.take(t.Context(), g, dir+"/none/x.fbm"); err == nil {
		t.Fatal("took into a directory that is not there")
	}
	if err := g.Trust().Check(7); err != nil {
		t.Error(err)
	}
	if m, err := f.take(t.Context(), g, dir+"/x.fbm"); err != nil || len(m.Extents()) != 1 {
		t.Errorf("took %+v, %v", m, err)
	}
	if trust := g.Trust(); trust.Since != 8 || trust.Lost != "" {
		t.Errorf("afterwards: %+v", trust)
	}
}

// newLive is the record of volume x during a live sync, as its process has it.
func newLive(t *testing.T, f *trackFlags) (l *liveRecord, now func() *trackRecord) {
	t.Helper()
	l, err := newLiveRecord(&f.state, "x", "/dev/x")
	if err != nil {
		t.Fatal(err)
	}
	return l, func() *trackRecord {
		t.Helper()
		r, err := readRecord(l.path)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// A sync that is killed leaves a record, and no later epoch is below its last.
func TestLiveRecordOfTheKilled(t *testing.T) {
	f := stateIn(t.TempDir())
	l, now := newLive(t, &f)
	if err := errors.Join(l.starts(), l.sealed(1000)); err != nil {
		t.Fatal(err)
	}
	if r := now(); r.State != stateTracking || r.Epoch != 1000 || !f.startedBySync("x") {
		t.Errorf("killed: %+v", r)
	}
	v := trackVolume{Device: "/dev/x", bySync: f.startedBySync("x")}
	var text bytes.Buffer
	if err := writeLines(&text, trackLines(&trackJSON{}, v)); err != nil || !strings.Contains(text.String(), "for a sync --live; if none runs any more, the next one ends it, or failback track stop /dev/x") {
		t.Errorf("status says %q, %v", text.String(), err)
	}
	if l, _ := newLive(t, &f); !l.adopts || l.was != nil {
		t.Errorf("the next one does not take it over: %+v", l)
	}
	// The user's own take goes on above, also if the tracker is a new one.
	g := newGiven(t)
	if err := g.Seal(1); err != nil {
		t.Fatal(err)
	}
	if _, err := f.take(t.Context(), g, t.TempDir()+"/x.fbm"); err != nil || g.Trust().Since != 1001 || now().Epoch != 1001 {
		t.Errorf("take began epoch %d, noted %d: %v", g.Trust().Since, now().Epoch, err)
	}
	// A record with a lower epoch does not lower it.
	r := trackRecord{Version: 1, State: stateTracking, Identity: "x", Epoch: 3}
	if err := r.renew(l.path); err != nil || now().Epoch != 1001 || f.startedBySync("x") {
		t.Errorf("renewed: %+v, %v", now(), err)
	}
}

func TestLiveRecordEnds(t *testing.T) {
	stopped := &trackRecord{Version: 1, State: stateStopped, Identity: "x", Epoch: 4, Stamp: "s"}
	for name, c := range map[string]struct {
		was   *trackRecord
		seal  cbt.Epoch
		keep  bool
		state string // "": no record
		epoch cbt.Epoch
	}{
		"nothing before":         {seal: 9, state: stateEnded, epoch: 9},
		"it could not start":     {},
		"stopped before":         {was: stopped, seal: 9, state: stateStopped, epoch: 9},
		"stopped, and no start":  {was: stopped, state: stateStopped, epoch: 4},
		"the clock was set back": {was: stopped, seal: 2, state: stateStopped, epoch: 4},
		"kept":                   {was: stopped, seal: 9, keep: true, state: stateTracking, epoch: 9},
	} {
		f := stateIn(t.TempDir())
		l, now := newLive(t, &f)
		if c.was != nil {
			if err := c.was.write(l.path); err != nil {
				t.Fatal(err)
			}
			l, now = newLive(t, &f)
		}
		err := l.starts()
		if c.seal > 0 {
			err = errors.Join(err, l.sealed(c.seal))
		}
		if c.keep {
			err = errors.Join(err, l.keeps())
		} else {
			err = errors.Join(err, l.ends())
		}
		switch r := now(); {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case r == nil:
			if c.state != "" {
				t.Errorf("%s: no record", name)
			}
		case r.State != c.state || r.Epoch != c.epoch || r.Sync || r.State == stateStopped && r.Stamp != "s":
			t.Errorf("%s: %+v", name, r)
		}
	}
}
