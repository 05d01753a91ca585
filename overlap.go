package failback

import (
	"cmp"
	"slices"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport/message"
)

// overlap returns a range that is in two spans of a generation's records. What
// is written twice between two barriers may end as either: the protocol forbids
// it, and reading back would lay the blame on the medium. Cost: n log n for n
// spans, which applier.keep bounds.
func overlap(records []record) (cbt.Extent, bool) {
	n := 0
	for i := range records {
		n += len(records[i].spans)
	}
	spans := make([]message.Extent, 0, n)
	for i := range records {
		spans = append(spans, records[i].spans...)
	}
	slices.SortFunc(spans, func(a, b message.Extent) int { return cmp.Compare(a.Off, b.Off) })
	end := int64(0)
	for _, x := range spans {
		if x.Off < end {
			return cbt.Extent{Off: x.Off, End: min(x.End, end)}, true
		}
		end = x.End
	}
	return cbt.Extent{}, false
}
