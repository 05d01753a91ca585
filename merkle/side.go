package merkle

import (
	"context"
	"fmt"
	"io"
)

// sideBlock is the nodes handed from a reader to the comparison at once: 32 KiB.
const sideBlock = 1024

// side carries the answer of one reader to the comparison, a few blocks ahead.
type side struct {
	ask    []Range
	blocks chan []Hash // filled
	free   chan []Hash // to fill again
	head   []Hash      // what is left of the block being compared
	block  []Hash      // all of it
}

func newSide(ask []Range) *side {
	const ahead = 4
	s := &side{ask: ask, blocks: make(chan []Hash, ahead), free: make(chan []Hash, ahead)}
	for range ahead {
		s.free <- make([]Hash, 0, sideBlock)
	}
	return s
}

// run asks the reader, holds the answer against what was asked for, and returns
// once all of it is handed over.
func (s *side) run(ctx context.Context, r NodeReader, level int) error {
	var done int // spans answered
	var at int64 // next node of the span, if it was begun
	err := r.ReadNodes(ctx, level, s.ask, func(first int64, nodes []Hash) error {
		if done == len(s.ask) || (at == 0 && first != s.ask[done].First) || (at > 0 && first != at) ||
			first+int64(len(nodes)) > s.ask[done].End {
			return &CorruptError{Offset: -1, Level: level, Index: first, Err: errOrder}
		}
		if at = first + int64(len(nodes)); at == s.ask[done].End {
			done, at = done+1, 0
		}
		return s.hand(ctx, nodes)
	})
	if err != nil {
		return err
	}
	if done < len(s.ask) {
		return fmt.Errorf("level %d: answer ended at node %d, before %d: %w",
			level, max(at, s.ask[done].First), s.ask[done].End, io.ErrUnexpectedEOF)
	}
	close(s.blocks)
	return nil
}

// hand copies nodes into blocks and passes them on.
func (s *side) hand(ctx context.Context, nodes []Hash) error {
	for len(nodes) > 0 {
		var block []Hash
		select {
		case block = <-s.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		block = append(block[:0], nodes[:min(len(nodes), sideBlock)]...)
		nodes = nodes[len(block):]
		select {
		case s.blocks <- block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// peek returns the next nodes, at least one, waiting for them.
func (s *side) peek(ctx context.Context) ([]Hash, error) {
	if len(s.head) > 0 {
		return s.head, nil
	}
	select {
	case block, ok := <-s.blocks:
		if !ok {
			return nil, io.ErrUnexpectedEOF
		}
		s.block, s.head = block, block
		return block, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// skip takes n nodes of what peek returned.
func (s *side) skip(n int) {
	if s.head = s.head[n:]; len(s.head) == 0 {
		s.free <- s.block // never full: there are as many places as blocks
	}
}
