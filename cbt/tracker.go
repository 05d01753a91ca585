package cbt

import (
	"context"
	"errors"
	"fmt"
)

// Epoch numbers the life of a pair of volumes. It rises at each seal,
// promotion and forced step. 0 is before the first.
type Epoch uint64

// ErrEpochLost says that a tracker cannot prove that it knows every write
// since the epoch asked for. What changed must be found in another way.
var ErrEpochLost = errors.New("epoch lost")

// A Tracker records what is written to one volume. It may report too much,
// never too little (L1). All methods may be called at the same time, and
// beside writes. Package cbttest checks an implementation.
type Tracker interface {
	// Take empties the tracker and returns what was written since the given
	// epoch: every write that ended before Take was called and is not proven
	// yet. A write that is under way is reported by this take, and by the next
	// one too if it may have ended after this take returned: whoever read the
	// block in between read its old content.
	//
	// Take returns an error that wraps [ErrEpochLost] and says why when it
	// cannot prove that its answer is complete, and the error of ctx when that
	// ended first. After any error nothing is taken.
	Take(ctx context.Context, since Epoch) (*Taken, error)

	// PutBack ends a take: what is not proven is reported again by the next
	// one, see [DirtyMap.PutBack]. It has no context, for a cancelled session
	// must still put back. A tracker that ends with maps out counts them as
	// put back whole (L2).
	PutBack(t *Taken, proven []Extent) error

	// Trust says since when the tracker can vouch. The answer may be out of
	// date as soon as it is there; the one of Take is binding.
	Trust() Trust
}

// A Sealer is a [Tracker] that can start a new epoch.
type Sealer interface {
	// Seal makes e the epoch that the tracker vouches for: every write from
	// here on, and all it holds already, is reported for epoch e. It clears
	// nothing. A tracker that has lost its epoch is put right by it, whatever it
	// was lost for: the caller says that it relies on nothing from before, because
	// it is going to look at everything, or knows better.
	//
	// Seal refuses an epoch that is not above the last one, and to seal while
	// a taken map is out.
	Seal(e Epoch) error

	// Advance ends a take as PutBack does, and makes e the epoch: the other side
	// is equal but for what the tracker then holds. Who relies on the epoch before
	// relies on marks that are gone now, so the new one comes first: the process
	// may die at any moment of it, and whoever finds the tracker finds e, or all
	// the marks (L1).
	//
	// It puts nothing right: if the tracker has lost the epoch since the take,
	// Advance returns an error that wraps [ErrEpochLost]. It also refuses an epoch
	// that is not above the last one, and while another taken map is out. After
	// an error nothing is proven, and t was put back whole if it was out.
	Advance(t *Taken, proven []Extent, e Epoch) error
}

// Trust is what a tracker can vouch for. The zero value vouches for nothing.
type Trust struct {
	Since Epoch  // every write since is recorded; 0: nothing was ever sealed
	Lost  string // why the tracker can vouch for nothing; "" when it can
}

// Check returns nil if every write since the given epoch is recorded, else an
// error that wraps [ErrEpochLost] and says why not.
func (t Trust) Check(since Epoch) error {
	switch {
	case t.Lost != "":
		return fmt.Errorf("%w: %s", ErrEpochLost, t.Lost)
	case t.Since == 0:
		return fmt.Errorf("%w: no epoch was ever sealed", ErrEpochLost)
	case since < t.Since:
		return fmt.Errorf("%w: asked for writes since epoch %d, recorded since epoch %d", ErrEpochLost, since, t.Since)
	}
	return nil
}
