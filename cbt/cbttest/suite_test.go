package cbttest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/failback/failback/cbt"
)

const (
	testBlock = cbt.MinBlock
	testSize  = 80*testBlock - 512 // the last block is short
	testEpoch = 7
)

// plain is a tracker made of a map and nothing else: every line that makes it
// sound is one that a broken variant leaves out.
type plain struct {
	mu    sync.Mutex
	m     *cbt.DirtyMap
	vol   *Memory
	trust cbt.Trust
	out   int
	takes int

	broken string // the clause it breaks, "" for none
}

func (p *plain) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	before := p.takes
	n := int64(len(b))
	switch {
	case p.broken == "drops the last byte":
		n--
	case p.broken == "ignores the first block":
		if off < testBlock {
			n = 0
		}
	case p.broken == "marks behind a discard" && p.m.State(off) == cbt.Discarded:
		n = 0
	case p.broken == "forgets while out" && p.out > 0:
		n = 0
	}
	p.m.Mark(off, n)
	p.mu.Unlock()
	k, err := p.vol.WriteAt(b, off)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.takes != before && p.broken != "in flight" {
		p.m.Mark(off, n)
	}
	return k, err
}

func (p *plain) discard(off, n int64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.broken {
	case "discards nothing":
	case "discards part of a block":
		first, end := off/testBlock*testBlock, (off+n+testBlock-1)/testBlock*testBlock
		p.m.Discard(first, end-first)
	default:
		p.m.Discard(off, n)
	}
	return p.vol.Discard(off, n)
}

func (p *plain) Take(ctx context.Context, since cbt.Epoch) (*cbt.Taken, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken == "clears on cancel" && ctx.Err() != nil {
		p.m.PutBack(p.m.Take(), []cbt.Extent{{Off: 0, End: testSize}})
	}
	if p.broken != "ignores cancel" && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := p.trust.Check(since); err != nil {
		switch p.broken {
		case "answers for a lost epoch":
			return p.m.Take(), nil
		case "loses without a reason":
			return nil, cbt.ErrEpochLost
		}
		return nil, err
	}
	p.takes++
	p.out++
	if p.broken == "says all is dirty" {
		p.m.Mark(0, testSize)
	}
	return p.m.Take(), nil
}

func (p *plain) PutBack(t *cbt.Taken, proven []cbt.Extent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.broken {
	case "puts nothing back":
		proven = []cbt.Extent{{Off: 0, End: testSize}}
	case "proves all when some is":
		if len(proven) > 0 {
			proven = []cbt.Extent{{Off: 0, End: testSize}}
		}
	case "proves blocks in part":
		proven = cbt.Align(cbt.Normalize(slices.Clone(proven)), testBlock, testSize)
	case "clears what was written since":
		if len(proven) > 0 {
			p.m.PutBack(p.m.Take(), proven)
		}
	}
	err := p.m.PutBack(t, proven)
	if err == nil {
		p.out--
	}
	if p.broken == "puts back twice" {
		return nil
	}
	return err
}

func (p *plain) Trust() cbt.Trust {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trust
}

func (p *plain) Seal(e cbt.Epoch) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e <= p.trust.Since && p.broken != "seals backward" {
		return errors.New("epochs rise")
	}
	if p.out > 0 && p.broken != "seals with maps out" {
		return errors.New("a taken map is out")
	}
	if p.broken == "seal clears" {
		p.m.PutBack(p.m.Take(), []cbt.Extent{{Off: 0, End: testSize}})
	}
	if p.broken == "stays lost" {
		return nil
	}
	p.trust = cbt.Trust{Since: e}
	return nil
}

func (p *plain) Advance(t *cbt.Taken, proven []cbt.Extent, e cbt.Epoch) error {
	err := p.Trust().Check(p.Trust().Since)
	switch {
	case p.broken == "advances what is lost":
		err = nil
	case err != nil:
	case e <= p.trust.Since && p.broken != "advances backward":
		err = errors.New("epochs rise")
	case p.out > 1 && p.broken != "advances with maps out":
		err = errors.New("another taken map is out")
	}
	if err != nil && p.broken != "proves what it refuses" {
		proven = nil
	}
	if spent := p.PutBack(t, proven); spent != nil && p.broken != "advances twice" {
		return errors.Join(err, spent)
	}
	if err == nil && p.broken != "stays behind" {
		p.trust = cbt.Trust{Since: e}
	}
	return err
}

func (p *plain) ReadAt(b []byte, off int64) (int, error) { return p.vol.ReadAt(b, off) }

func openPlain(t testing.TB, broken string) Subject {
	m, err := cbt.NewDirtyMap(testSize, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	p := &plain{m: m, vol: NewMemory(testSize), trust: cbt.Trust{Since: testEpoch}, broken: broken}
	return Subject{
		Tracker: p, Volume: p, Size: testSize, Block: testBlock, Epoch: testEpoch,
		Discard: p.discard,
		Lose: func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.trust.Lost = "told to"
		},
		Stall: p.vol.Stall(p),
	}
}

func TestPlainTracker(t *testing.T) {
	Run(t, func(t testing.TB) Subject { return openPlain(t, "") })
}

// TestSuiteCatches runs every check on trackers that each break one clause: a
// suite that passes them would prove nothing.
func TestSuiteCatches(t *testing.T) {
	for broken, want := range map[string]string{
		"drops the last byte":           "L1/EveryWriteIsTaken",
		"ignores the first block":       "L1/EveryWriteIsTaken",
		"forgets while out":             "L1/WriteAfterTake",
		"in flight":                     "L1/InFlight",
		"discards nothing":              "L1/DiscardIsTaken",
		"discards part of a block":      "L1/DiscardIsTaken",
		"marks behind a discard":        "L1/WriteOverDiscardIsDirty",
		"says all is dirty":             "L2/ProvenIsCleared",
		"puts nothing back":             "L2/PutBackWhole",
		"proves all when some is":       "L2/PutBackPart",
		"proves blocks in part":         "L2/PartOfABlockProvesNothing",
		"clears what was written since": "L2/WrittenAgainIsNotProven",
		"puts back twice":               "L2/PutBackOnce",
		"answers for a lost epoch":      "Epoch/OlderIsLost",
		"loses without a reason":        "Epoch/LostSaysWhy",
		"seals backward":                "Epoch/SealRises",
		"seal clears":                   "Epoch/SealClearsNothing",
		"seals with maps out":           "Epoch/SealWaitsForPutBack",
		"stays lost":                    "Epoch/SealEndsLost",
		"stays behind":                  "Epoch/AdvanceClearsByProof",
		"advances backward":             "Epoch/AdvanceRises",
		"proves what it refuses":        "Epoch/AdvanceRises",
		"advances with maps out":        "Epoch/AdvanceWaitsForPutBack",
		"advances twice":                "Epoch/AdvanceOnce",
		"advances what is lost":         "Epoch/AdvanceRightsNothing",
		"ignores cancel":                "CancelTakesNothing",
		"clears on cancel":              "CancelTakesNothing",
	} {
		t.Run(strings.ReplaceAll(broken, " ", "_"), func(t *testing.T) {
			for _, c := range checks {
				if c.name != want {
					continue
				}
				err := c.run(t.Context(), openPlain(t, broken))
				if err == nil {
					t.Errorf("%s passes a tracker that %s", want, broken)
				}
				return
			}
			t.Errorf("no check %s", want)
		})
	}
}
