package cbttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/failback/failback/cbt"
)

// seed makes the random checks repeatable.
const seed = 20261123

// write writes n bytes of fill at off.
func (s Subject) write(off, n int64, fill byte) error {
	_, err := s.Volume.WriteAt(bytes.Repeat([]byte{fill}, int(n)), off)
	if err != nil {
		return fmt.Errorf("write %d bytes at %#x: %w", n, off, err)
	}
	return nil
}

// take takes since the subject's epoch and returns the map and its runs.
func (s Subject) take(ctx context.Context) (*cbt.Taken, []cbt.Run, error) {
	t, err := s.Tracker.Take(ctx, s.Epoch)
	if err != nil {
		return nil, nil, fmt.Errorf("take since epoch %d: %w", s.Epoch, err)
	}
	return t, slices.Collect(t.Runs()), nil
}

// settle ends a take with the given extents proven.
func (s Subject) settle(t *cbt.Taken, proven ...cbt.Extent) error {
	if err := s.Tracker.PutBack(t, proven); err != nil {
		return fmt.Errorf("put back with %v proven: %w", proven, err)
	}
	return nil
}

// mustHold takes and wants every byte of want in the answer, in a state that
// is at least as high as the given one. It puts all back.
func (s Subject) mustHold(ctx context.Context, least cbt.State, want ...cbt.Extent) error {
	t, runs, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer s.Tracker.PutBack(t, nil) // only tidies up: t is out
	if missing := cbt.Subtract(cbt.Normalize(want), extents(runs, least)); len(missing) > 0 {
		return fmt.Errorf("under-reported: %v not %v in %v", missing, least, runs)
	}
	return nil
}

// extents returns the bytes of runs whose state is at least as high.
func extents(runs []cbt.Run, least cbt.State) []cbt.Extent {
	var out []cbt.Extent
	for _, r := range runs {
		if r.State == cbt.Dirty || least == cbt.Discarded {
			out = append(out, r.Extent)
		}
	}
	return cbt.Normalize(out)
}

// all is the whole volume.
func (s Subject) all() cbt.Extent { return cbt.Extent{Off: 0, End: s.Size} }

// blockAt returns block i.
func (s Subject) blockAt(i int64) cbt.Extent {
	return cbt.Extent{Off: i * s.Block, End: min((i+1)*s.Block, s.Size)}
}

func everyWriteIsTaken(ctx context.Context, s Subject) error {
	// Edges first, each in a take of its own: nothing covers for it.
	edges := []cbt.Extent{
		{Off: 0, End: 1},
		{Off: s.Block - 1, End: s.Block},
		{Off: s.Block - 1, End: s.Block + 1},
		{Off: 63*s.Block + 5, End: 64*s.Block + 1},
		{Off: s.Size - 1, End: s.Size},
		s.all(),
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 50 {
		off := rng.Int64N(s.Size)
		n := 1 + rng.Int64N(min(s.Size-off, 3*s.Block))
		edges = append(edges, cbt.Extent{Off: off, End: off + n})
	}
	for _, e := range edges {
		if err := s.write(e.Off, e.Len(), 1); err != nil {
			return err
		}
		if err := s.mustHold(ctx, cbt.Dirty, e); err != nil {
			return err
		}
		if err := s.clear(ctx); err != nil {
			return err
		}
	}
	for _, e := range edges {
		if err := s.write(e.Off, e.Len(), 2); err != nil {
			return err
		}
	}
	return s.mustHold(ctx, cbt.Dirty, edges...)
}

// clear takes all and proves it.
func (s Subject) clear(ctx context.Context) error {
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	return s.settle(t, s.all())
}

func answerIsWellFormed(ctx context.Context, s Subject) error {
	for _, i := range []int64{0, 1, 5, 40, s.Size/s.Block - 1} {
		if err := s.write(i*s.Block, 1, 1); err != nil {
			return err
		}
	}
	t, runs, err := s.take(ctx)
	if err != nil {
		return err
	}
	last := cbt.Run{Extent: cbt.Extent{Off: -1, End: -1}}
	for _, r := range runs {
		switch {
		case r.Empty() || r.Off < 0 || r.End > s.Size:
			return fmt.Errorf("%v is empty or out of the volume of %d bytes", r, s.Size)
		case r.State != cbt.Dirty && r.State != cbt.Discarded:
			return fmt.Errorf("%v is in a state that is not taken", r)
		case r.Off < last.End || r.Off == last.End && r.State == last.State:
			return fmt.Errorf("%v after %v: runs overlap, are out of order or are one", r, last)
		case r.Off%s.Block != 0 || r.End%s.Block != 0 && r.End != s.Size:
			return fmt.Errorf("%v does not lie on blocks of %d", r, s.Block)
		}
		last = r
	}
	if again := slices.Collect(t.Runs()); !slices.Equal(again, runs) {
		return fmt.Errorf("a taken map changed from %v to %v", runs, again)
	}
	return s.settle(t)
}

func writeAfterTake(ctx context.Context, s Subject) error {
	if err := s.write(0, s.Block, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.write(2*s.Block, s.Block, 1); err != nil {
		return err
	}
	// Beside the map that is out, and after it.
	if err := s.mustHold(ctx, cbt.Dirty, s.blockAt(2)); err != nil {
		return err
	}
	if err := s.settle(t, s.all()); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(2))
}

// inFlight is the race that loses a write for ever: the mark is taken, the
// block is read before the write lands, and nothing says that it did.
func inFlight(ctx context.Context, s Subject) error {
	land := s.Stall([]byte("late"), 3*s.Block)
	t, _, err := s.take(ctx)
	if err != nil {
		return errors.Join(err, land())
	}
	if err := s.settle(t, s.all()); err != nil {
		return errors.Join(err, land())
	}
	if err := land(); err != nil {
		return fmt.Errorf("write that was held: %w", err)
	}
	if err := s.mustHold(ctx, cbt.Dirty, s.blockAt(3)); err != nil {
		return fmt.Errorf("write landed after the take that had its mark: %w", err)
	}
	return nil
}

func discardIsTaken(ctx context.Context, s Subject) error {
	// Half of block 4, blocks 5 to 8, half of block 9.
	off, n := 4*s.Block+s.Block/2, 5*s.Block
	if err := s.Discard(off, n); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if err := s.mustHold(ctx, cbt.Discarded, cbt.Extent{Off: off, End: off + n}); err != nil {
		return err
	}
	// The halves were changed, and what lies beside them is still data.
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(4), s.blockAt(9))
}

func writeOverDiscard(ctx context.Context, s Subject) error {
	if err := s.Discard(0, 8*s.Block); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	if err := s.write(3*s.Block+7, 1, 1); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(3))
}

// lateDiscard puts a discard back after a write over it was proven. The block
// holds data, so the discard must not be the last word.
func lateDiscard(ctx context.Context, s Subject) error {
	if err := s.Discard(0, 8*s.Block); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	first, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.write(3*s.Block, 1, 1); err != nil {
		return err
	}
	second, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.settle(second, s.all()); err != nil {
		return err
	}
	if err := s.settle(first); err != nil {
		return err
	}
	t, runs, err := s.take(ctx)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.State == cbt.Discarded && r.Overlaps(s.blockAt(3)) {
			return fmt.Errorf("%v came back over a block that was written since", r)
		}
	}
	return s.settle(t)
}

func provenIsCleared(ctx context.Context, s Subject) error {
	if err := s.write(0, s.Block, 1); err != nil {
		return err
	}
	// Twice: a tracker may report a write that it saw the end of late.
	for range 2 {
		if err := s.clear(ctx); err != nil {
			return err
		}
	}
	t, runs, err := s.take(ctx)
	if err != nil {
		return err
	}
	if len(runs) > 0 {
		return fmt.Errorf("still reports %v of a quiet volume: rounds would never end", runs)
	}
	return s.settle(t)
}

func putBackWhole(ctx context.Context, s Subject) error {
	want := []cbt.Extent{s.blockAt(1), s.blockAt(30), s.blockAt(s.Size/s.Block - 1)}
	for _, e := range want {
		if err := s.write(e.Off, e.Len(), 1); err != nil {
			return err
		}
	}
	for range 3 {
		t, _, err := s.take(ctx)
		if err != nil {
			return err
		}
		if err := s.settle(t); err != nil {
			return err
		}
	}
	return s.mustHold(ctx, cbt.Dirty, want...)
}

func putBackPart(ctx context.Context, s Subject) error {
	if err := s.write(0, 20*s.Block, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	// Out of order and in pieces, as acknowledgements come.
	proven := []cbt.Extent{
		{Off: 10 * s.Block, End: 12 * s.Block},
		{Off: 2 * s.Block, End: 3*s.Block - 1},
		{Off: 3*s.Block - 1, End: 4 * s.Block},
	}
	if err := s.settle(t, proven...); err != nil {
		return err
	}
	rest := []cbt.Extent{
		{Off: 0, End: 2 * s.Block},
		{Off: 4 * s.Block, End: 10 * s.Block},
		{Off: 12 * s.Block, End: 20 * s.Block},
	}
	return s.mustHold(ctx, cbt.Dirty, rest...)
}

func partOfABlock(ctx context.Context, s Subject) error {
	if err := s.write(6*s.Block, s.Block, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	b := s.blockAt(6)
	if err := s.settle(t, cbt.Extent{Off: b.Off + 1, End: b.End}); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, b)
}

func writtenAgain(ctx context.Context, s Subject) error {
	if err := s.write(5*s.Block, 1, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.write(5*s.Block, 1, 2); err != nil {
		return err
	}
	if err := s.settle(t, s.all()); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(5))
}

func putBackOnce(ctx context.Context, s Subject) error {
	if err := s.write(0, 1, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.settle(t); err != nil {
		return err
	}
	if err := s.Tracker.PutBack(t, []cbt.Extent{s.all()}); !errors.Is(err, cbt.ErrSpent) {
		return fmt.Errorf("second put back of one take: got %v, want ErrSpent", err)
	}
	other, err := cbt.NewDirtyMap(s.Size, s.Block)
	if err != nil {
		return err
	}
	if err := s.Tracker.PutBack(other.Take(), nil); !errors.Is(err, cbt.ErrSpent) {
		return fmt.Errorf("put back of what was taken elsewhere: got %v, want ErrSpent", err)
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0))
}
