package failback

import (
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/message"
)

// Who begins a session whose source is a peer has asked for it in a Task. The
// peer drives: it says Start, Plan, Pass and the report, and each is held against
// what was asked for, and what happened here. Its word stands only for what it
// alone can know: what its volume holds, and what it has counted.

// holdStart refuses a session that is another one than j asked for.
func (j *job) holdStart(m *message.Start) error {
	switch {
	case mode(m.Mode) != j.mode, m.DryRun != j.o.DryRun:
		return protocolf("start of %s, asked for was %s", sessionWord(mode(m.Mode), m.DryRun), sessionWord(j.mode, j.o.DryRun))
	case m.Resume != j.resume:
		return protocolf("start with resume %d, asked for was %d", m.Resume, j.resume)
	case m.Medium != j.medium:
		return protocolf("start with a comparison of the medium %t, asked for was %t", m.Medium, j.medium)
	case m.Stage != j.o.Stage:
		return protocolf("start with stage %t, asked for was %t", m.Stage, j.o.Stage)
	case m.Undo != j.o.undo():
		return protocolf("start with undo %d, asked for was %d", m.Undo, j.o.undo())
	}
	return nil
}

func sessionWord(m mode, dry bool) string {
	switch {
	case m == modeCompare:
		return "a comparison"
	case m == modeDigest:
		return "a digest"
	case dry:
		return "a dry run"
	}
	return "a sync"
}

// holdPlan refuses a plan that proves less than j asked for, or looks at what
// differs in another way (L3).
func (j *job) holdPlan(m *message.Plan) error {
	rung := Rung(m.Rung)
	// All of both sides is compared where a forced rung cannot be gone on with.
	instead := rung == RungMerkle && (m.Resume > 0 || j.medium)
	switch {
	case j.o.Rung != RungAuto && rung != j.o.Rung && !instead:
		return protocolf("plan of rung %v, asked for was %v", rung, j.o.Rung)
	case Verification(m.Verify) != j.o.Verify:
		return protocolf("plan with verification %v, asked for was %v", Verification(m.Verify), j.o.Verify)
	case merkle.Algorithm(m.Seal) != j.o.Seal:
		return protocolf("plan with a seal of algorithm %d, asked for was %d", m.Seal, j.o.Seal)
	}
	return nil
}

// checks reports whether j reads both volumes again at its end.
func (j *job) checks() bool { return j.writes() && (j.o.Verify == VerifyFull || j.o.Seal != 0) }

// holdPass refuses a pass that is not the one j asked for.
func (j *job) holdPass(m *message.Pass) error {
	leaf := j.o.Leaf
	if leaf == 0 {
		leaf = defaultLeaf
	}
	switch {
	case !j.checks():
		return protocolf("a pass that was not asked for")
	case merkle.Algorithm(m.Digest) != j.o.Seal, int64(m.Leaf) != leaf:
		return protocolf("a pass of algorithm %d with leaves of %d bytes, asked for was %d with %d", m.Digest, m.Leaf, j.o.Seal, leaf)
	}
	return nil
}

// evidence is what the initiator knows of a session beside its source's report.
type evidence struct {
	start  *message.Start
	plan   *message.Plan
	size   int64  // bytes of the target
	target *meter // nil: it is at a peer too
	name   string // of the target
	staged *stageProgress
	root   *merkle.Hash // of a target here that was sealed and agreed; else nil
}

// believe holds a peer's report against what j asked for and what is known
// besides, and puts what was counted here in the place of the peer's figures.
func (j *job) believe(r *Report, e evidence) error {
	if err := j.possible(r, e); err != nil {
		return protocolf("report: %v", err)
	}
	r.Rung, r.Reason, r.Attempts = Rung(e.plan.Rung).String(), e.plan.Reason, 0
	if m := e.target; m != nil {
		r.Target = e.name
		r.StagedBytes, r.Seconds.Apply = e.staged.total.Load(), float64(e.staged.nanoseconds())/1e9
		r.TargetReadBytes, r.TargetWrittenBytes, r.TargetVerifiedBytes = m.read.Load(), m.written.Load(), m.verified.Load()
		r.UndoBytes, r.UnsavedBytes = m.saved.Load(), m.unsaved.Load()
	}
	return nil
}

// possible says what in a report cannot be.
func (j *job) possible(r *Report, e evidence) error {
	span, most := min(e.start.Volume.Size, e.size), max(e.start.Volume.Size, e.size)
	schema, result, verified := schemaSync, ResultEqual, j.o.Verify.String()
	switch {
	case j.mode == modeCompare:
		schema, verified = schemaCompare, ""
		if r.DivergentBytes > 0 {
			result = ResultDifferent
		}
	case j.o.DryRun:
		result, verified = ResultPlanned, ""
	}
	switch {
	case r.Schema != schema, r.Result != result, r.Verified != verified:
		return fmt.Errorf("%q %q, verified %q, where %q %q, verified %q belongs", r.Schema, r.Result, r.Verified, schema, result, verified)
	case r.VolumeBytes != span:
		return fmt.Errorf("of %d bytes, where the volumes share %d", r.VolumeBytes, span)
	case r.CandidateBytes != e.plan.Candidates, r.ResumedFrom != e.plan.Resume:
		return fmt.Errorf("%d candidate bytes from %d on, where the plan had %d from %d on", r.CandidateBytes, r.ResumedFrom, e.plan.Candidates, e.plan.Resume)
	case r.DivergentBytes > r.CandidateBytes+most-span:
		return fmt.Errorf("%d bytes divergent of %d", r.DivergentBytes, r.CandidateBytes+most-span)
	case r.ZeroBytes > r.DivergentBytes, r.RawBytes > r.DivergentBytes-r.ZeroBytes:
		return fmt.Errorf("%d bytes sent and %d made zero, of %d divergent", r.RawBytes, r.ZeroBytes, r.DivergentBytes)
	case j.mode == modeCompare && span != most && r.DivergentBytes < most-span:
		return fmt.Errorf("%d bytes divergent, where one volume is %d longer", r.DivergentBytes, most-span)
	}
	if err := j.possibleExtents(r, most); err != nil {
		return err
	}
	return j.possibleRoot(r, e)
}

// possibleExtents holds the ranges that a report names against its figure.
func (j *job) possibleExtents(r *Report, size int64) error {
	x := r.Extents
	switch total := cbt.Total(x); {
	case j.mode != modeCompare && (len(x) > 0 || r.Coarse):
		return fmt.Errorf("extents, which only a comparison tells")
	case len(x) > 0 && x[len(x)-1].End > size:
		return fmt.Errorf("extent %v in %d bytes", x[len(x)-1], size)
	case j.mode == modeCompare && total != r.DivergentBytes && (!r.Coarse || r.DivergentBytes == 0 || total < r.DivergentBytes):
		return fmt.Errorf("extents of %d bytes, where %d are divergent", total, r.DivergentBytes)
	}
	return nil
}

// possibleRoot holds a report's root against the target's, where there is one.
func (j *job) possibleRoot(r *Report, e evidence) error {
	sealed := j.writes() && j.o.Seal != 0
	switch {
	case r.Root == nil && !sealed:
		return nil
	case r.Root == nil:
		return fmt.Errorf("no root, and a seal was asked for")
	case !j.writes():
		return fmt.Errorf("a root, where no tree is made")
	}
	root, err := merkle.ParseHash(*r.Root)
	switch {
	case err != nil:
		return fmt.Errorf("root: %w", err)
	case sealed && e.target != nil && (e.root == nil || root != *e.root):
		return fmt.Errorf("root %v, which is not that of the target", root)
	}
	return nil
}
