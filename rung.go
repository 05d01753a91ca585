package failback

import "fmt"

// Rung is how the candidates for divergence were found, best first. The
// numbers are on the wire.
type Rung uint8

// The ladder of rungs. RungAuto is no rung: it asks for the highest that can
// be vouched for.
const (
	RungAuto      Rung = 0
	RungExact     Rung = 1 // the dirty maps since the last sync point are trusted
	RungEpochs    Rung = 2 // the union of the maps of several epochs
	RungResidue   Rung = 3 // one side crashed: its map and what its write intent left open
	RungMerkle    Rung = 4 // hashes of the whole volumes, or kept trees, tell
	RungAllocated Rung = 5 // no map, no tree, an empty target: what the source has allocated
	RungFull      Rung = 6 // everything, because it was asked for
)

var rungNames = [...]string{"auto", "exact", "epochs", "residue", "merkle", "allocated", "full"}

// String returns the word used in reports.
func (r Rung) String() string {
	if int(r) < len(rungNames) {
		return rungNames[r]
	}
	return fmt.Sprintf("rung(%d)", uint8(r))
}

// ParseRung is the inverse of String.
func ParseRung(s string) (Rung, error) {
	for i, n := range rungNames {
		if n == s {
			return Rung(i), nil
		}
	}
	return 0, usagef("no rung %q: auto, exact, merkle, allocated, full", s)
}
