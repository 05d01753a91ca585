package cbttest

import (
	"context"
	"io"
	"testing"

	"github.com/failback/failback/cbt"
)

// Volume is what a tracker watches. Its methods may be called at the same
// time, and a read after a write has returned sees what was written.
type Volume interface {
	io.ReaderAt
	io.WriterAt
}

// Subject is a fresh tracker and its volume. Nothing else writes the volume.
type Subject struct {
	Tracker cbt.Tracker // vouches since Epoch, reports nothing yet
	Volume  Volume      // what is written here, the tracker must see
	Size    int64       // of the volume in bytes, at least 66 blocks
	Block   int64       // tracking granularity in bytes
	Epoch   cbt.Epoch   // at least 2

	// Discard gives n bytes at off back to the device; they read as zeroes
	// then. nil: no discards here.
	Discard func(off, n int64) error

	// Lose makes the tracker unable to vouch for Epoch. nil: it cannot be
	// brought about.
	Lose func()

	// Stall starts to write p at off and returns when the tracker knows of the
	// write and the volume does not have it yet. land lets the write reach the
	// volume and returns when it has ended. nil: writes cannot be held.
	Stall func(p []byte, off int64) (land func() error)
}

// check is one clause of the contract. It returns how it was broken.
type check struct {
	name  string
	run   func(context.Context, Subject) error
	needs func(Subject) bool // nil: every subject has it
	lacks string             // what a subject without it lacks
}

// checks are the contract, in the order in which a new tracker will meet it.
var checks = []check{
	{name: "L1/EveryWriteIsTaken", run: everyWriteIsTaken},
	{name: "L1/AnswerIsWellFormed", run: answerIsWellFormed},
	{name: "L1/WriteAfterTake", run: writeAfterTake},
	{name: "L1/InFlight", run: inFlight, needs: canStall, lacks: "Stall"},
	{name: "L1/DiscardIsTaken", run: discardIsTaken, needs: canDiscard, lacks: "Discard"},
	{name: "L1/WriteOverDiscardIsDirty", run: writeOverDiscard, needs: canDiscard, lacks: "Discard"},
	{name: "L1/LateDiscardIsNotTheLastWord", run: lateDiscard, needs: canDiscard, lacks: "Discard"},
	{name: "L2/ProvenIsCleared", run: provenIsCleared},
	{name: "L2/PutBackWhole", run: putBackWhole},
	{name: "L2/PutBackPart", run: putBackPart},
	{name: "L2/PartOfABlockProvesNothing", run: partOfABlock},
	{name: "L2/WrittenAgainIsNotProven", run: writtenAgain},
	{name: "L2/PutBackOnce", run: putBackOnce},
	{name: "Epoch/OlderIsLost", run: olderIsLost},
	{name: "Epoch/LostSaysWhy", run: lostSaysWhy, needs: canLose, lacks: "Lose"},
	{name: "Epoch/SealRises", run: sealRises, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/SealClearsNothing", run: sealClearsNothing, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/SealWaitsForPutBack", run: sealWaits, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/SealEndsLost", run: sealEndsLost, needs: canLoseAndSeal, lacks: "Lose and a cbt.Sealer"},
	{name: "Epoch/AdvanceClearsByProof", run: advanceClearsByProof, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/AdvanceRises", run: advanceRises, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/AdvanceWaitsForPutBack", run: advanceWaits, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/AdvanceOnce", run: advanceOnce, needs: canSeal, lacks: "a Tracker that is a cbt.Sealer"},
	{name: "Epoch/AdvanceRightsNothing", run: advanceRightsNothing, needs: canLoseAndSeal, lacks: "Lose and a cbt.Sealer"},
	{name: "CancelTakesNothing", run: cancelTakesNothing},
	{name: "ReplicaUnderLoad", run: replicaUnderLoad},
}

func canStall(s Subject) bool       { return s.Stall != nil }
func canDiscard(s Subject) bool     { return s.Discard != nil }
func canLose(s Subject) bool        { return s.Lose != nil }
func canSeal(s Subject) bool        { _, ok := s.Tracker.(cbt.Sealer); return ok }
func canLoseAndSeal(s Subject) bool { return canLose(s) && canSeal(s) }

// Run checks the contract of [cbt.Tracker] and, where the tracker is one, of
// [cbt.Sealer]. open is called for each check and cleans up with its TB.
func Run(t *testing.T, open func(testing.TB) Subject) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			s := open(t)
			if s.Block < 1 || s.Size/s.Block < 66 || s.Epoch < 2 {
				t.Fatalf("subject of %d bytes in blocks of %d at epoch %d: want 66 blocks and epoch 2 at least", s.Size, s.Block, s.Epoch)
			}
			if c.needs != nil && !c.needs(s) {
				t.Skipf("the subject lacks %s", c.lacks)
			}
			if err := c.run(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
	}
}
