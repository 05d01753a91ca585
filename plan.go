package failback

import (
	"fmt"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// Plan is what a session is going to look at and why. It is known, told and
// recorded before a byte moves (L3).
type Plan struct {
	Rung       Rung
	Reason     string
	Volume     int64 // bytes of the source
	Candidates int64 // bytes to look at
}

// A position is what one side knows of itself when a session begins.
type position struct {
	name      string
	size      int64
	allocated []cbt.Extent // with sparse: ranges that may hold data; normal
	sparse    bool         // allocated is known
	tree      *treeFacts   // a kept tree that can be trusted outside dirty
	dirty     []cbt.Extent // with mapped: what was written since the tree or the sync point; normal
	mapped    bool
	epoch     cbt.Epoch // of the map
}

// treeFacts is what a kept tree says of itself.
type treeFacts struct {
	size      int64 // of the volume it was made of, bytes
	algorithm merkle.Algorithm
	leaf      int64
	root      merkle.Hash
}

func (f *treeFacts) shape() merkle.Shape {
	return merkle.Shape{Size: f.size, Leaf: f.leaf, Algorithm: f.algorithm}
}

// extent is what a range of leaves covers.
func (f *treeFacts) extent(r merkle.Range) cbt.Extent {
	return cbt.Extent{Off: r.First * f.leaf, End: min(r.End*f.leaf, f.size)}
}

// origin says where a side's digests come from. The numbers are on the wire
// for the target's.
type origin uint8

const (
	fromVolume origin = 1 // the volume is read and hashed
	fromTree   origin = 2 // the side's own kept tree tells
	fromPeer   origin = 3 // the source holds the target's tree: the target is not asked
)

// A decision is the whole of a plan: what [Plan] tells, and what the roles need to act on it.
type decision struct {
	Plan
	candidates []cbt.Extent
	leaf       int64            // digests are per leaf of so many bytes; 0: per piece
	digest     merkle.Algorithm // of leaves; 0: the session's own hash
	source     origin
	target     origin
	blind      bool // candidates are not compared: all of them are sent
	skipZero   bool // with blind: the target reads as zeroes there already
}

// request is what the caller of a session wants of the plan.
type request struct {
	mode     mode
	rung     Rung
	leaf     int64         // 0: as the trees have it, or the default
	treeDiff *[]cbt.Extent // what the trees of both sides tell; nil: not compared
	resumed  bool          // an interrupted session has written a part of it
	spent    bool          // the target was written since its tree was made
	doubt    string        // why nothing vouches for what the target holds; "": something may
	repair   bool          // with doubt: a session that has found that goes on, whatever its rung
}

// mode is what a session is for. The numbers are on the wire.
type mode uint8

const (
	modeSync    mode = 1
	modeCompare mode = 2
	modeDigest  mode = 3
)

// comparable reports whether the trees of both sides can be held against each other.
func treesComparable(a, b position) bool {
	return a.tree != nil && b.tree != nil && a.tree.shape() == b.tree.shape()
}

// plan decides what is looked at and why. It is a function of its arguments
// only. The highest rung that can be vouched for wins; a forced rung that
// cannot be vouched for is refused, not replaced (L3).
func plan(source, target position, r request) (decision, error) {
	if r.doubt != "" && r.rung != RungFull {
		return planDoubt(source, target, r)
	}
	switch r.rung {
	case RungAuto:
		return planAuto(source, target, r)
	case RungFull:
		if r.mode != modeSync {
			return decision{}, usagef("rung full is for sync: a comparison reads both sides anyway")
		}
		return planFull(source), nil
	case RungExact:
		if !source.mapped && !target.mapped {
			return decision{}, &RefusedError{Volume: source.name, Reason: "rung exact needs a dirty map and there is none",
				Next: "give the map, or leave the rung out"}
		}
		return planForced(source, target, r)
	case RungMerkle:
		// Asked for against what maps and trees say: only the volumes are believed.
		source.mapped, source.tree = false, nil
		target.mapped, target.tree = false, nil
		return planScan(source, target, r), nil
	case RungAllocated:
		if r.resumed && len(target.allocated) > 0 {
			// What the interrupted session wrote behind its last barrier lies there.
			return planScan(source, target, r), nil
		}
		if !target.sparse || len(target.allocated) > 0 || r.mode != modeSync {
			return decision{}, &RefusedError{Volume: target.name, Reason: "rung allocated needs a target that holds nothing yet",
				Next: "leave the rung out: both sides will be compared"}
		}
		return planAllocated(source, target), nil
	}
	return decision{}, usagef("rung %v cannot be forced", r.rung)
}

// planDoubt is the plan where nothing vouches for what the target holds: no map,
// no tree, no word of a caller's (L1). A forced rung that rests on one is refused;
// but a session that met the doubt itself and is to repair goes on with all it takes.
func planDoubt(source, target position, r request) (decision, error) {
	switch {
	case r.rung == RungAuto, r.rung == RungMerkle:
	case r.rung != RungExact && r.rung != RungAllocated:
		return decision{}, usagef("rung %v cannot be forced", r.rung)
	case !r.repair:
		return decision{}, &RefusedError{Volume: target.name, Reason: fmt.Sprintf("%s, so nothing vouches for rung %v", r.doubt, r.rung),
			Next: "leave the rung out: both sides will be compared"}
	}
	d := planScan(source, target, r)
	d.Reason = r.doubt + ": both sides are read whole and compared by hash"
	return d, nil
}

// planForced is the rung exact, asked for. A map that is kept beside a tree tells
// what was written since that tree was made; it is exact only if the trees are equal.
func planForced(source, target position, r request) (decision, error) {
	for _, p := range []position{source, target} {
		if !p.sinceTree() {
			continue
		}
		if treesComparable(source, target) && r.treeDiff != nil && len(*r.treeDiff) == 0 && source.mapped && target.mapped {
			return planTrees(source, target, nil), nil
		}
		return decision{}, &RefusedError{Volume: p.name,
			Reason: "rung exact needs maps since both sides were equal, and its map is since its tree was made",
			Next:   "leave the tree out if the map is since then, or leave the rung out"}
	}
	return planExact(source, target), nil
}

// sinceTree reports whether the map of p tells what was written since its tree
// was made, and not since both sides were equal.
func (p position) sinceTree() bool { return p.mapped && p.tree != nil }

func planAuto(source, target position, r request) (decision, error) {
	switch {
	case treesComparable(source, target) && r.treeDiff != nil:
		return planTrees(source, target, *r.treeDiff), nil
	case (source.mapped || target.mapped) && !source.sinceTree() && !target.sinceTree():
		return planExact(source, target), nil
	case r.spent && source.tree == nil && target.tree != nil:
		d := planScan(source, target, r)
		d.Reason = "an interrupted sync has written the target since its tree was made: both sides are read once and compared by hash"
		return d, nil
	case source.tree != nil || target.tree != nil:
		if r.spent {
			target.tree = nil // it is not what the target holds
		}
		return planOneTree(source, target, r)
	case r.mode == modeSync && target.sparse && len(target.allocated) == 0:
		return planAllocated(source, target), nil
	}
	return planScan(source, target, r), nil
}

func planFull(source position) decision {
	d := decision{source: fromVolume, target: fromPeer, blind: true}
	d.Rung, d.Reason = RungFull, "asked for: everything is sent, nothing compared"
	return d.over(source, wholeOf(source.size))
}

func planExact(source, target position) decision {
	d := decision{source: fromVolume, target: fromVolume}
	d.Rung = RungExact
	d.Reason = mapWords(source, "source") + "; " + mapWords(target, "target")
	return d.over(source, cbt.Union(source.dirty, target.dirty))
}

func mapWords(p position, side string) string {
	if !p.mapped {
		return side + ": no map of its own, taken as unwritten"
	}
	return fmt.Sprintf("%s: dirty map of epoch %d, %d bytes", side, p.epoch, cbt.Total(p.dirty))
}

// planTrees: both trees are kept, and the roots or a descent told where they differ.
func planTrees(source, target position, diff []cbt.Extent) decision {
	d := decision{source: fromVolume, target: fromVolume}
	d.Rung = RungMerkle
	d.Reason = fmt.Sprintf("kept trees of both sides differ in %d bytes", cbt.Total(diff))
	if len(diff) == 0 {
		d.Reason = "kept trees of both sides have the same root"
		if source.mapped && target.mapped {
			d.Rung = RungExact
		}
	}
	d.Reason += "; " + sinceTree(source, "source") + "; " + sinceTree(target, "target")
	return d.over(source, cbt.Union(diff, cbt.Union(source.dirty, target.dirty)))
}

func sinceTree(p position, side string) string {
	if !p.mapped {
		return side + ": its tree is trusted as it is, as asked for"
	}
	return fmt.Sprintf("%s: %d bytes dirty since its tree", side, cbt.Total(p.dirty))
}

// planOneTree: one side's tree speaks for it, the other side is read.
func planOneTree(source, target position, r request) (decision, error) {
	d := decision{source: fromVolume, target: fromVolume}
	d.Rung = RungMerkle
	keeper := &target
	if target.tree != nil {
		d.target = fromTree
		d.Reason = "kept tree of the target, source read; " + sinceTree(target, "target")
	} else {
		keeper = &source
		d.source = fromTree
		d.Reason = "kept tree of the source, target read; " + sinceTree(source, "source")
		if r.mode == modeCompare && !source.mapped {
			d.Reason = "a digest stands for one side, the other is read"
		}
	}
	if source.tree != nil && target.tree != nil {
		d.Reason = "trees of both sides are not of one shape; " + d.Reason
	}
	if keeper.tree.size != source.size {
		return d, &RefusedError{Volume: keeper.name,
			Reason: fmt.Sprintf("its kept tree is of a volume of %d bytes, not %d", keeper.tree.size, source.size),
			Next:   "leave the tree out"}
	}
	if r.leaf != 0 && r.leaf != keeper.tree.leaf {
		return d, usagef("the kept tree has leaves of %d bytes, not %d", keeper.tree.leaf, r.leaf)
	}
	d.leaf, d.digest = keeper.tree.leaf, keeper.tree.algorithm
	return d.over(source, allocatedOf(source, target)), nil
}

func planAllocated(source, target position) decision {
	d := decision{source: fromVolume, target: fromPeer, blind: true, skipZero: true}
	d.Rung = RungAllocated
	d.Reason = "the target holds nothing yet: what the source has allocated is sent"
	return d.over(source, allocatedOf(source, target))
}

func planScan(source, target position, r request) decision {
	d := decision{source: fromVolume, target: fromVolume}
	d.Rung = RungMerkle
	d.Reason = "no map and no tree vouch for either side: both are read once and compared by hash"
	d.leaf = r.leaf
	if d.leaf == 0 {
		d.leaf = defaultLeaf
	}
	return d.over(source, allocatedOf(source, target))
}

// allocatedOf is where either side may hold data: elsewhere both read as zeroes.
func allocatedOf(a, b position) []cbt.Extent {
	if !a.sparse || !b.sparse {
		return wholeOf(a.size)
	}
	return cbt.Intersect(cbt.Union(a.allocated, b.allocated), wholeOf(a.size))
}

func wholeOf(size int64) []cbt.Extent { return []cbt.Extent{{Off: 0, End: size}} }

// maxCandidates bounds the list both sides hold; a longer one is coarsened,
// which looks at more, never at less (L1).
const maxCandidates = 1 << 20

// over completes d with the candidates, aligned to its grain.
func (d decision) over(source position, candidates []cbt.Extent) decision {
	l := newLayout(source.size, d.leaf, cbt.Coarsen(candidates, maxCandidates))
	d.candidates = l.candidates
	d.Volume = source.size
	d.Candidates = cbt.Total(l.candidates)
	return d
}

func (d decision) layout() *layout { return newLayout(d.Volume, d.leaf, d.candidates) }
