package cbttest

import (
	"context"
	"errors"
	"fmt"

	"github.com/failback/failback/cbt"
)

// wantLost wants a take since e to be refused as lost and to take nothing.
func (s Subject) wantLost(ctx context.Context, e cbt.Epoch) error {
	t, err := s.Tracker.Take(ctx, e)
	if err == nil {
		return errors.Join(fmt.Errorf("take since epoch %d was answered", e), s.settle(t))
	}
	if !errors.Is(err, cbt.ErrEpochLost) {
		return fmt.Errorf("take since epoch %d: got %v, want ErrEpochLost", e, err)
	}
	if err.Error() == cbt.ErrEpochLost.Error() {
		return fmt.Errorf("take since epoch %d: %q gives no reason", e, err)
	}
	return nil
}

func olderIsLost(ctx context.Context, s Subject) error {
	if err := s.write(0, 1, 1); err != nil {
		return err
	}
	if trust := s.Tracker.Trust(); trust != (cbt.Trust{Since: s.Epoch}) {
		return fmt.Errorf("trust is %+v, want since epoch %d", trust, s.Epoch)
	}
	if err := s.wantLost(ctx, s.Epoch-1); err != nil {
		return err
	}
	// A later epoch is a smaller question: it may be over-reported.
	t, err := s.Tracker.Take(ctx, s.Epoch+1)
	if err != nil {
		return fmt.Errorf("take since a later epoch: %w", err)
	}
	if err := s.settle(t); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0))
}

func lostSaysWhy(ctx context.Context, s Subject) error {
	s.Lose()
	if s.Tracker.Trust().Lost == "" {
		return errors.New("trust gives no reason for a lost epoch")
	}
	if err := s.Tracker.Trust().Check(s.Epoch); !errors.Is(err, cbt.ErrEpochLost) {
		return fmt.Errorf("trust of a lost epoch: got %v, want ErrEpochLost", err)
	}
	return s.wantLost(ctx, s.Epoch)
}

func (s Subject) seal(e cbt.Epoch) error {
	if err := s.Tracker.(cbt.Sealer).Seal(e); err != nil {
		return fmt.Errorf("seal epoch %d after %d: %w", e, s.Epoch, err)
	}
	return nil
}

func sealRises(ctx context.Context, s Subject) error {
	for _, e := range []cbt.Epoch{0, s.Epoch - 1, s.Epoch} {
		if s.seal(e) == nil {
			return fmt.Errorf("sealed epoch %d after %d: epochs rise", e, s.Epoch)
		}
	}
	if err := s.seal(s.Epoch + 3); err != nil {
		return err
	}
	if trust := s.Tracker.Trust(); trust != (cbt.Trust{Since: s.Epoch + 3}) {
		return fmt.Errorf("trust is %+v after epoch %d was sealed", trust, s.Epoch+3)
	}
	return s.wantLost(ctx, s.Epoch)
}

func sealClearsNothing(ctx context.Context, s Subject) error {
	if err := s.write(9*s.Block, 1, 1); err != nil {
		return err
	}
	if err := s.seal(s.Epoch + 1); err != nil {
		return err
	}
	s.Epoch++
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(9))
}

// sealWaits: what is out is not proven. Sealed now and put back later it would
// be right, lost with its session it would be missing in the new epoch.
func sealWaits(ctx context.Context, s Subject) error {
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if s.seal(s.Epoch+1) == nil {
		return errors.New("sealed while a taken map was out")
	}
	if err := s.settle(t); err != nil {
		return err
	}
	return s.seal(s.Epoch + 1)
}

func sealEndsLost(ctx context.Context, s Subject) error {
	if err := s.write(0, 1, 1); err != nil {
		return err
	}
	s.Lose()
	if err := s.seal(s.Epoch + 1); err != nil {
		return err
	}
	if err := s.wantLost(ctx, s.Epoch); err != nil {
		return err
	}
	s.Epoch++
	if err := s.write(s.Block, 1, 1); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(1))
}

func cancelTakesNothing(ctx context.Context, s Subject) error {
	if err := s.write(0, 1, 1); err != nil {
		return err
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	t, err := s.Tracker.Take(ended, s.Epoch)
	if err == nil {
		return errors.Join(errors.New("took with a context that had ended"), s.settle(t))
	}
	if !errors.Is(err, context.Canceled) {
		return fmt.Errorf("take with an ended context: got %v, want %v", err, context.Canceled)
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0))
}

// mustLack takes and wants no byte of not in the answer. It puts all back.
func (s Subject) mustLack(ctx context.Context, not cbt.Extent) error {
	t, runs, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer s.Tracker.PutBack(t, nil) // only tidies up: t is out
	if more := cbt.Intersect([]cbt.Extent{not}, extents(runs, cbt.Discarded)); len(more) > 0 {
		return fmt.Errorf("proven, and reported again: %v in %v", more, runs)
	}
	return nil
}

// advance takes a map of a write to block 0, writes block 1, and advances.
func (s Subject) advance(ctx context.Context, e cbt.Epoch, before func(*cbt.Taken)) error {
	if err := s.write(0, 1, 1); err != nil {
		return err
	}
	t, _, err := s.take(ctx)
	if err != nil {
		return err
	}
	if err := s.write(s.Block, 1, 1); err != nil {
		return err
	}
	before(t)
	return s.Tracker.(cbt.Sealer).Advance(t, []cbt.Extent{s.all()}, e)
}

func (s Subject) asItIs(*cbt.Taken) {}

func advanceClearsByProof(ctx context.Context, s Subject) error {
	old := s.Epoch
	if err := s.advance(ctx, s.Epoch+2, s.asItIs); err != nil {
		return fmt.Errorf("advance: %w", err)
	}
	if s.Epoch += 2; s.Tracker.Trust() != (cbt.Trust{Since: s.Epoch}) {
		return fmt.Errorf("trust is %+v after an advance to epoch %d", s.Tracker.Trust(), s.Epoch)
	}
	if err := s.wantLost(ctx, old); err != nil {
		return err
	}
	if err := s.mustLack(ctx, s.blockAt(0)); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(1))
}

// mustRefuse wants an advance to fail, and to prove nothing.
func (s Subject) mustRefuse(ctx context.Context, e cbt.Epoch, before func(*cbt.Taken)) error {
	if s.advance(ctx, e, before) == nil {
		return fmt.Errorf("advanced to epoch %d after %d", e, s.Epoch)
	}
	if trust := s.Tracker.Trust(); trust != (cbt.Trust{Since: s.Epoch}) {
		return fmt.Errorf("trust is %+v after an advance that was refused, want since epoch %d", trust, s.Epoch)
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0), s.blockAt(1))
}

func advanceRises(ctx context.Context, s Subject) error {
	for _, e := range []cbt.Epoch{0, s.Epoch - 1, s.Epoch} {
		if err := s.mustRefuse(ctx, e, s.asItIs); err != nil {
			return err
		}
	}
	return nil
}

// advanceWaits: what is out of another take is not proven.
func advanceWaits(ctx context.Context, s Subject) error {
	var other *cbt.Taken
	var err error
	refused := s.advance(ctx, s.Epoch+1, func(*cbt.Taken) { other, err = s.Tracker.Take(ctx, s.Epoch) })
	if err != nil {
		return fmt.Errorf("take beside another: %w", err)
	}
	if refused == nil {
		return errors.New("advanced while another taken map was out")
	}
	if err := s.settle(other); err != nil {
		return err
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0), s.blockAt(1))
}

func advanceOnce(ctx context.Context, s Subject) error {
	var spent error
	err := s.advance(ctx, s.Epoch+1, func(t *cbt.Taken) { spent = s.settle(t) })
	if spent != nil || !errors.Is(err, cbt.ErrSpent) {
		return errors.Join(fmt.Errorf("advance with a map that was put back: got %v, want ErrSpent", err), spent)
	}
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0), s.blockAt(1))
}

// advanceRightsNothing: who compares all since the take has not seen what the
// tracker was lost for.
func advanceRightsNothing(ctx context.Context, s Subject) error {
	err := s.advance(ctx, s.Epoch+1, func(*cbt.Taken) { s.Lose() })
	if !errors.Is(err, cbt.ErrEpochLost) {
		return fmt.Errorf("advance of a tracker that was lost since the take: got %v, want ErrEpochLost", err)
	}
	if err := s.wantLost(ctx, s.Epoch+1); err != nil {
		return err
	}
	if err := s.seal(s.Epoch + 2); err != nil {
		return err
	}
	s.Epoch += 2
	return s.mustHold(ctx, cbt.Dirty, s.blockAt(0), s.blockAt(1))
}
