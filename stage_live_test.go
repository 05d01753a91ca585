package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/failback/failback/cbt"
)

// stagedTarget is a target that tells when it is written, and can be made to fail.
type stagedTarget struct {
	stamped
	write func() error // before a write; nil: it goes well
	wrote atomic.Int64
}

func (v *stagedTarget) WriteAt(p []byte, off int64) (int, error) {
	v.wrote.Add(1)
	if v.write != nil {
		if err := v.write(); err != nil {
			return 0, err
		}
	}
	return v.stamped.WriteAt(p, off)
}

func newStagedTarget(t *testing.T) (*stagedTarget, Side) {
	t.Helper()
	dst := &stagedTarget{stamped: stamped{memory: randomVolume(2, liveSize)}}
	dir := t.TempDir()
	return dst, Side{Volume: dst, Name: "dst", Journal: filepath.Join(dir, "j.fbj"), Stage: dir}
}

// TestStageLive: rounds that write the same blocks again go into one stage, of which
// the later write wins; the target is written once, after the writers went on, and is
// what the source was when they were at rest. The next sync looks at no more than
// what was written since.
func TestStageLive(t *testing.T) {
	for _, rate := range []float64{0, 0.3} {
		t.Run(fmt.Sprintf("rate=%g", rate), func(t *testing.T) {
			src := newBusy(t, liveSize, rate)
			src.area = liveSize / 4 // again and again
			dst, b := newStagedTarget(t)
			dst.write = func() error {
				src.mu.Lock()
				defer src.mu.Unlock()
				if src.atRest {
					return errors.New("the writers wait while the stage is applied")
				}
				return nil
			}
			l := src.live()
			seals := 0
			l.Sealed = func() error {
				seals++
				if !bytes.Equal(dst.b, src.resting) {
					t.Error("L2: the source heard that it is sealed, and the target is not what it was")
				}
				return nil
			}
			l.Round = func(r Round) {
				if n := dst.wrote.Load(); n > 0 && !r.Last {
					t.Errorf("round %d: the target was written %d times", r.Number, n)
				}
			}
			for i, rung := range []Rung{RungMerkle, RungExact} {
				dst.wrote.Store(0)
				r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, Options{Live: l})
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst.b, src.resting) {
					t.Fatal("the target is not what the source was when its writers were at rest")
				}
				src.goesOn(t, dst.memory)
				if r.Rung != rung.String() || len(r.Live.Rounds) < 2 || seals != 1+2*i || r.Live.PauseMS <= 0 {
					t.Errorf("rung %s (%s), sealed %d times: %+v", r.Rung, r.Reason, seals, r.Live)
				}
			}
			dirty, err := src.tracker.Map()
			if err != nil {
				t.Fatal(err)
			}
			if n := cbt.Total(dirty.Extents()); n != 0 {
				t.Errorf("%d bytes are dirty, and nobody has written since the writers went on", n)
			}
		})
	}
}

// TestStageLiveFails (L1, L2): until the stage is applied the tracker holds all that
// a round has sent, too. What was staged when the session failed is nowhere: a target
// that nobody has written is as the tracker knows it, and the next sync, which
// believes that, must find everything.
func TestStageLiveFails(t *testing.T) {
	type rig struct {
		src *busy
		dst *stagedTarget
		l   *Live
	}
	for name, c := range map[string]struct {
		spoil func(*rig)
		rung  Rung // of the next sync
	}{
		"between two rounds": {func(r *rig) {
			r.l.Flush = func(context.Context) error { return errLive }
		}, RungExact},
		"in the pause": {func(r *rig) { r.src.onRest = func() { r.src.broken = errLive } }, RungExact},
		"while it is applied": {func(r *rig) {
			r.dst.write = func() error {
				if r.dst.wrote.Load() > 3 {
					return errLive
				}
				return nil
			}
		}, RungExact},
	} {
		t.Run(name, func(t *testing.T) {
			dst, b := newStagedTarget(t)
			r := &rig{src: newBusy(t, liveSize, 0.3), dst: dst}
			r.l = r.src.live()
			a := Side{Volume: r.src, Name: "src"}
			if _, err := Sync(t.Context(), a, b, Options{Live: r.l}); err != nil {
				t.Fatal(err)
			}
			dst.wrote.Store(0)
			was := bytes.Clone(dst.b)
			for range 200 {
				r.src.write()
			}
			c.spoil(r)
			if report, err := Sync(t.Context(), a, b, Options{Live: r.l}); err == nil {
				t.Fatalf("it ended well: %+v", report)
			}
			if dst.wrote.Load() == 0 && !bytes.Equal(dst.b, was) {
				t.Error("L5: the target is not what it was")
			}
			r.src.goesOn(t, dst.memory)
			r.l.Flush, r.src.onRest, r.src.broken, dst.write = nil, nil, nil, nil
			report, err := Sync(t.Context(), a, b, Options{Live: r.l})
			if err != nil {
				t.Fatal(err)
			}
			if report.Rung != c.rung.String() {
				t.Errorf("the next sync: rung %s (%s)", report.Rung, report.Reason)
			}
			if !bytes.Equal(dst.b, r.src.resting) {
				t.Error("the target is not what the source was when its writers were at rest")
			}
			r.src.goesOn(t, dst.memory)
		})
	}
}

// heldElsewhere is a tracker whose epoch somebody holds for another target: no mark of
// it may go.
type heldElsewhere struct {
	*cbt.Writer
	t     *testing.T
	epoch cbt.Epoch
}

func (h *heldElsewhere) PutBack(t *cbt.Taken, proven []cbt.Extent) error {
	if len(proven) > 0 && h.Trust().Since == h.epoch {
		h.t.Errorf("L1: marks go while the tracker is at epoch %d, which is held for another target", h.epoch)
	}
	return h.Writer.PutBack(t, proven)
}

// TestStageLiveEpoch (L1): no mark goes from the epoch that a staged session finds.
func TestStageLiveEpoch(t *testing.T) {
	for _, strayed := range []bool{false, true} {
		src := newBusy(t, liveSize, 0.1)
		dst, b := newStagedTarget(t)
		l := src.live()
		run := func() {
			t.Helper()
			if _, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, Options{Live: l}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(dst.b, src.resting) {
				t.Error("the target is not what the source was when its writers were at rest")
			}
			src.goesOn(t, dst.memory)
		}
		run()
		for range 100 {
			src.write()
		}
		if strayed {
			if _, err := dst.WriteAt(make([]byte, 4096), 8192); err != nil {
				t.Fatal(err)
			}
		}
		l.Tracker = &heldElsewhere{src.tracker, t, l.Since}
		run()
	}
}
