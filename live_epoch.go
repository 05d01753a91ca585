package failback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// What a live session makes of its tracker's epoch: whether the one that it finds
// is of its target, and when it begins another.

// begin takes what the tracker holds, before anything of the volume is read. It
// returns nothing where that cannot be all that differs. Without a tracker the
// writers come to rest instead.
func (v *live) begin(ctx context.Context) (*cbt.Map, error) {
	if !v.rounds() {
		v.last = true
		return nil, v.stand(ctx)
	}
	v.began, v.defers = time.Now(), true
	since, trust := v.l.Since, v.l.Tracker.Trust()
	v.since = since
	switch {
	case since == 0:
		v.doubt = cmp.Or(v.l.Unsynced, "no sync with this target is known")
	case trust.Lost == "" && trust.Since != since:
		// Above it, too: that would be an epoch of a tracker that is no more.
		v.doubt = fmt.Sprintf("it holds what was written since epoch %d, and the last sync with this target was epoch %d", trust.Since, since)
	default:
		var err error
		if v.taken, err = v.l.Tracker.Take(ctx, since); err == nil {
			v.tracked = true
			return v.dirty(since)
		}
		if !errors.Is(err, cbt.ErrEpochLost) {
			return nil, fmt.Errorf("take what was written to %s: %w", v.name, err)
		}
		v.doubt = err.Error()
	}
	// From here on it is to know everything; that the target was equal then is not said.
	start := v.nextEpoch()
	err := v.l.Tracker.Seal(start)
	lost := err != nil
	if !lost {
		v.since = start
		v.taken, err = v.l.Tracker.Take(ctx, start)
		lost = errors.Is(err, cbt.ErrEpochLost) // what no new epoch puts right
	}
	switch {
	case lost:
		return nil, &RefusedError{Volume: v.name, cause: err, Reason: "its tracker cannot vouch for what is written from now on (" + err.Error() + ")",
			Next: "stop tracking it and start anew, or sync it while nobody writes"}
	case err != nil:
		return nil, fmt.Errorf("take what was written to %s: %w", v.name, err)
	}
	return nil, nil
}

// strayed reports whether what the tracker holds may not be all that differs,
// after all: the target says of itself that it is not as it was left.
func (v *live) strayed(info *message.Info) bool {
	if v.l.After == [16]byte{} || info.Kept {
		return false
	}
	v.doubt = "its map stands, but nothing says that the target was not written since"
	v.tracked = false
	return true
}

// dirty is what was taken, as a plan wants it.
func (v *live) dirty(since cbt.Epoch) (*cbt.Map, error) {
	x := v.taken.Extents()
	m, err := cbt.NewMap(v.size, pieceSize, dirtyRuns(cbt.Align(x, pieceSize, v.size)))
	if err != nil {
		return nil, err
	}
	m.Epoch = since
	return m, nil
}

// dirtyRuns yields x as runs that are dirty.
func dirtyRuns(x []cbt.Extent) func(yield func(cbt.Run) bool) {
	return func(yield func(cbt.Run) bool) {
		for _, e := range x {
			if !yield(cbt.Run{Extent: e, State: cbt.Dirty}) {
				return
			}
		}
	}
}

// nextEpoch is above every epoch of the tracker's. It is also the time: a tracker
// that was stopped and started anew counts from 0, and an epoch of its former
// life must not be taken for one of this.
func (v *live) nextEpoch() cbt.Epoch {
	return max(v.l.Tracker.Trust().Since+1, v.l.Since+1, v.l.Above+1, cbt.Epoch(max(0, time.Now().Unix())))
}

// seal ends a take with what is proven, and moves the epoch on: the target is equal
// but for what the tracker then holds, if it still is as the session after left it.
//
// Why the first proof of a session moves the epoch, and in one step. Who holds an
// epoch says of some target: "it differs in what the tracker reports since then, and
// nowhere else". That is true of each holder's own target for as long as a mark only
// goes when that target has proven it (L2). This session proves its own target, and
// the marks go for all. For itself that is right. But the epoch that it found may be
// held by others: a sync point in another state directory, a map that was taken, the
// user's word (--trust-tracker). For them the tracker would report too little (L1)
// from the first mark that goes. So before one does, the epoch has to be another:
//
//	marks, then epoch   killed in between: the old epoch, and marks of it are gone
//	epoch, then marks   killed in between: a new epoch that nobody holds, all marks
//
// The second is what [cbt.Sealer.Advance] promises. Nobody holds the new one before
// Sealed has made it durable: killed before that, the next session finds an epoch
// that is not its sync point's and compares both sides. From then on it is held for
// this target alone, and what later rounds prove goes from it without another.
//
// And why not by Seal, which puts a lost epoch right: what was read, was read since
// the take. A write that passed the tracker by meanwhile may be to what was read
// before it (L1). Only begin may seal, before anything is read.
func (v *live) seal(proven []cbt.Extent, after [16]byte, left string) error {
	e, t := v.nextEpoch(), v.taken
	v.taken = nil
	if err := v.l.Tracker.Advance(t, proven, e); err != nil {
		return fmt.Errorf("begin epoch %d of %s: %w", e, v.name, err)
	}
	v.tracked, v.sealed = true, true
	v.since, v.l.Since, v.l.After, v.l.Left, v.rep.Epoch = e, e, after, left, e
	if v.l.Sealed == nil {
		return nil
	}
	return v.l.Sealed()
}
