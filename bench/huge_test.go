package bench

import (
	"context"
	"os"
	"testing"

	"github.com/failback/failback/bench/floor"
	"github.com/failback/failback/cbt"
)

func TestHugePair(t *testing.T) {
	s := testSet(t, 32)
	h, err := s.openHuge(t.Context(), 1<<33, 4*leaf, 50)
	if err != nil {
		t.Skipf("no room for a sparse file of 8 GiB: %v", err)
	}
	if got := cbt.Total(h.dirty); got != 2*piece {
		t.Errorf("%d bytes are dirty, want one piece in each hundredth of 200 leaves", got)
	}
	if err := h.check(t.Context()); err != nil {
		t.Errorf("a new pair: %v", err)
	}
	if err := h.diverge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.check(t.Context()); err == nil {
		t.Error("a pair that differs passes")
	}
	if _, err := floor.Send(t.Context(), floor.SendOptions{Source: h.source, Target: h.target, Extents: h.dirty}); err != nil {
		t.Fatal(err)
	}
	if err := h.check(t.Context()); err != nil {
		t.Errorf("after sending what differs: %v", err)
	}
	if err := h.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.source); err == nil {
		t.Error("the files are still there")
	}
}

func TestHarnessChecksOtherVolumes(t *testing.T) {
	h := &Harness{Rounds: 1}
	closed := 0
	check := func(context.Context) error { return os.ErrInvalid }
	recs, err := h.Run(t.Context(), Scenario{Name: "other", Check: check, Close: func() error { closed++; return nil },
		Cases: []Case{{Name: "a", Func: func(context.Context) error { return nil }}}})
	if err != nil {
		t.Fatal(err)
	}
	if closed != 1 || recs[0].Error == "" {
		t.Errorf("closed %d times, record %+v", closed, recs[0])
	}
}
