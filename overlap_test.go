package failback

import (
	"math/rand/v2"
	"testing"

	"github.com/failback/failback/transport/message"
)

// TestOverlap holds it against counting every piece.
func TestOverlap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		var records []record
		var hits [64]int
		for range r.IntN(6) {
			var one record
			off := int64(0)
			for range r.IntN(4) {
				off += r.Int64N(20)
				end := off + 1 + r.Int64N(3)
				if end > int64(len(hits)) {
					break
				}
				one.spans = append(one.spans, message.Extent{Off: off, End: end})
				for i := off; i < end; i++ {
					hits[i]++
				}
				off = end
			}
			records = append(records, one)
		}
		twice := false
		for _, n := range hits {
			twice = twice || n > 1
		}
		x, found := overlap(records)
		if found != twice {
			t.Fatalf("%v: found %v", records, found)
		}
		for i := x.Off; found && i < x.End; i++ {
			if hits[i] < 2 || x.Len() <= 0 {
				t.Fatalf("%v: %v is not in two", records, x)
			}
		}
	}
	if x, found := overlap(nil); found {
		t.Errorf("found %v in nothing", x)
	}
}
