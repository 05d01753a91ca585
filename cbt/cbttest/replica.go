package cbttest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/failback/failback/cbt"
)

const (
	loadWriters = 4
	loadWrites  = 400 // by each writer
	minRounds   = 20
)

// replicaUnderLoad does what trackers are for: it copies a volume that is
// being written, round after round, proves some of each round and puts the
// rest back, and wants the copy equal in the end.
func replicaUnderLoad(ctx context.Context, s Subject) error {
	c := copier{Subject: s, replica: make([]byte, s.Size), rng: rand.New(rand.NewPCG(seed, 2))}
	if _, err := s.Volume.ReadAt(c.replica, 0); err != nil {
		return fmt.Errorf("read the volume: %w", err)
	}
	writing := startLoad(s)
	quiet, err := false, error(nil)
	for round := 0; err == nil && (round < minRounds || !quiet); round++ {
		select {
		case err = <-writing:
			quiet, writing = true, nil
		default:
		}
		if err == nil {
			err = c.round(ctx)
		}
	}
	if !quiet { // a round failed: the writers still use the volume
		<-writing
	}
	if err != nil {
		return err
	}
	return c.finish(ctx)
}

// startLoad writes the volume from several goroutines. The channel delivers
// their first error, or nil, once all have ended.
func startLoad(s Subject) <-chan error {
	done := make(chan error, 1)
	var group sync.WaitGroup
	var first sync.Once
	var failed error
	for id := range uint64(loadWriters) {
		group.Go(func() {
			if err := load(s, rand.New(rand.NewPCG(seed, 100+id))); err != nil {
				first.Do(func() { failed = err })
			}
		})
	}
	go func() { // ends with the writers; done has room, so it never blocks
		group.Wait()
		done <- failed
	}()
	return done
}

func load(s Subject, rng *rand.Rand) error {
	for range loadWrites {
		off := rng.Int64N(s.Size)
		n := 1 + rng.Int64N(min(s.Size-off, 2*s.Block))
		if s.Discard != nil && rng.IntN(8) == 0 {
			if err := s.Discard(off, n); err != nil {
				return fmt.Errorf("discard: %w", err)
			}
			continue
		}
		if err := s.write(off, n, byte(1+rng.IntN(255))); err != nil {
			return err
		}
	}
	return nil
}

// copier is a session in small.
type copier struct {
	Subject
	replica []byte
	rng     *rand.Rand // nil: copy all, prove all
	out     []round
}

// round is a take that is out and what was proven of it so far.
type round struct {
	taken  *cbt.Taken
	proven []cbt.Extent
}

// round takes, copies most of it, and ends some of the takes that are out, in
// any order, as acknowledgements overtake each other.
func (c *copier) round(ctx context.Context) error {
	t, runs, err := c.take(ctx)
	if err != nil {
		return err
	}
	r := round{taken: t}
	for _, run := range runs {
		if c.rng != nil && c.rng.IntN(4) == 0 {
			continue // not copied: comes back
		}
		if run.State == cbt.Discarded {
			clear(c.replica[run.Off:run.End])
		} else if _, err := c.Volume.ReadAt(c.replica[run.Off:run.End], run.Off); err != nil {
			return fmt.Errorf("read %v: %w", run, err)
		}
		if c.rng == nil || c.rng.IntN(4) != 0 { // else the acknowledgement was lost
			r.proven = append(r.proven, run.Extent)
		}
	}
	c.out = append(c.out, r)
	for len(c.out) > 0 && (c.rng == nil || c.rng.IntN(2) == 0 || len(c.out) > 3) {
		if err := c.settleOne(); err != nil {
			return err
		}
	}
	return nil
}

// settleOne ends one of the takes that are out.
func (c *copier) settleOne() error {
	i := 0
	if c.rng != nil {
		i = c.rng.IntN(len(c.out))
	}
	r := c.out[i]
	c.out = slices.Delete(c.out, i, i+1)
	return c.settle(r.taken, r.proven...)
}

// finish copies what is left of a quiet volume and compares.
func (c *copier) finish(ctx context.Context) error {
	c.rng = nil
	for len(c.out) > 0 {
		if err := c.settleOne(); err != nil {
			return err
		}
	}
	if err := c.round(ctx); err != nil {
		return err
	}
	volume := make([]byte, c.Size)
	if _, err := c.Volume.ReadAt(volume, 0); err != nil {
		return fmt.Errorf("read the volume: %w", err)
	}
	for off := int64(0); off < c.Size; off += c.Block {
		e := c.blockAt(off / c.Block)
		if !bytes.Equal(volume[e.Off:e.End], c.replica[e.Off:e.End]) {
			return fmt.Errorf("seed %d: replica differs at %v after the last round", seed, e)
		}
	}
	return nil
}
