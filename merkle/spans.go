package merkle

import "slices"

const (
	maxSpans  = 1 << 20 // spans of one request; more are merged
	leafSpans = 1 << 12 // ranges of leaves collected before they are emitted
)

// spanList collects ascending spans of a level. When it holds twice its limit,
// full is called if there is one, else spans are merged over their smallest
// gaps until half are left: then the list covers more than was added.
type spanList struct {
	spans  []Range
	limit  int
	full   func(*spanList) error // takes all spans; none of them can grow any more
	merged bool
}

// exact reports whether the list covers just what was added.
func (l *spanList) exact() bool { return !l.merged }

// total returns the nodes that the list covers.
func (l *spanList) total() int64 {
	n := int64(0)
	for _, r := range l.spans {
		n += r.Len()
	}
	return n
}

// add appends a span that begins where the last one ends or later.
func (l *spanList) add(r Range) error {
	if n := len(l.spans); n > 0 && l.spans[n-1].End == r.First {
		l.spans[n-1].End = r.End
		return nil
	}
	if len(l.spans) >= 2*l.limit {
		if l.full != nil {
			if err := l.full(l); err != nil {
				return err
			}
		} else {
			l.merge()
		}
	}
	l.spans = append(l.spans, r)
	return nil
}

// merge closes the smallest gaps so that limit spans are left. It sorts the
// gaps: n·log n for n spans, once in every limit additions.
func (l *spanList) merge() {
	gaps := make([]int64, 0, len(l.spans)-1)
	for i := range len(l.spans) - 1 {
		gaps = append(gaps, l.spans[i+1].First-l.spans[i].End)
	}
	slices.Sort(gaps)
	cut := gaps[len(l.spans)-1-l.limit] // close all smaller, and of these as many as it takes
	below, _ := slices.BinarySearch(gaps, cut)
	equal := len(l.spans) - l.limit - below
	out := l.spans[:1]
	for _, r := range l.spans[1:] {
		gap := r.First - out[len(out)-1].End
		if gap == cut && equal > 0 {
			equal--
			gap = -1
		}
		if gap < cut {
			out[len(out)-1].End = r.End
		} else {
			out = append(out, r)
		}
	}
	l.spans, l.merged = out, true
}

// What stride weighs, in nodes.
const (
	tripNodes = 1024 // a request costs as much as 32 KiB: 2.6 ms at 100 Mbit/s
	fewNodes  = 16   // differing nodes to plan for, if fewer are seen yet
)

// stride returns how many levels the next request descends from a level, of
// whose nodes some differ, so that the leaves are reached with at most trips
// requests and the fewest nodes. It assumes that the number of nodes that
// differ stays what it is, and ties go to the long stride first, where nodes
// are few. level and trips are at least 1.
func stride(s Shape, level, trips int, differ int64) int {
	step, _ := bestStride(s, level, trips, differ)
	return step
}

// bestStride returns the stride and what the whole way down costs with it, in nodes.
func bestStride(s Shape, level, trips int, differ int64) (step int, cost int64) {
	for st := level; st >= 1; st-- {
		if st < level && trips == 1 {
			break
		}
		c := tripNodes + min(differ<<(4*st), s.Width(level-st))
		if st < level {
			_, rest := bestStride(s, level-st, trips-1, min(max(differ, fewNodes), s.Width(level-st)))
			c += rest
		}
		if step == 0 || c < cost {
			step, cost = st, c
		}
	}
	return step, cost
}
