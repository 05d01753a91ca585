package failback

import (
	"context"
	"errors"
	"io"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// Kinds of frames, by the name of their message.
var (
	kindOpen       = message.Open{}.Kind()
	kindOpened     = message.Opened{}.Kind()
	kindTask       = message.Task{}.Kind()
	kindStart      = message.Start{}.Kind()
	kindInfo       = message.Info{}.Kind()
	kindExtents    = message.Extents{}.Kind()
	kindPlan       = message.Plan{}.Kind()
	kindAgree      = message.Agree{}.Kind()
	kindDigests    = message.Digests{}.Kind()
	kindWant       = message.Want{}.Kind()
	kindPieces     = message.Pieces{}.Kind()
	kindRelease    = message.Release{}.Kind()
	kindData       = message.Data{}.Kind()
	kindZero       = message.Zero{}.Kind()
	kindDiscard    = message.Discard{}.Kind()
	kindBarrier    = message.Barrier{}.Kind()
	kindAck        = message.Ack{}.Kind()
	kindCredit     = message.Credit{}.Kind()
	kindNodes      = message.Nodes{}.Kind()
	kindNodeHashes = message.NodeHashes{}.Kind()
	kindPass       = message.Pass{}.Kind()
	kindSeal       = message.Seal{}.Kind()
	kindSealed     = message.Sealed{}.Kind()
	kindReport     = message.Report{}.Kind()
	kindError      = message.Error{}.Kind()
	kindBye        = message.Bye{}.Kind()
)

// Purposes of a Pass, as they are on the wire.
const (
	passVerify uint8 = 1
	passSeal   uint8 = 2
	passRound  uint8 = 3
)

// Purposes of a list of extents, as they are on the wire.
const (
	extentsDirty      uint8 = 1
	extentsAllocated  uint8 = 2
	extentsCandidates uint8 = 3
	extentsDivergent  uint8 = 4
)

// accepts says what the source may be told in each state. Pure.
func accepts(s state, k transport.Kind) bool {
	if k == kindError {
		return true
	}
	switch s {
	case stateGreeting:
		return k == kindInfo || k == kindExtents || k == kindAck
	case stateWeighing:
		// The lists that follow Info may still be on their way.
		return k == kindNodeHashes
	case statePlanned:
		return k == kindAgree || k == kindDigests
	case stateMoving:
		return k == kindDigests || k == kindPieces || k == kindCredit || k == kindAck
	case stateDraining:
		return k == kindCredit || k == kindAck
	case stateResting:
		return k == kindAgree || k == kindDigests
	case stateChecking:
		return k == kindDigests || k == kindCredit
	case stateSealing:
		return k == kindSealed || k == kindCredit || k == kindAck
	case stateClosing:
		return k == kindBye
	}
	return false
}

// sendExtents sends a list in as many frames as it takes, the last of them marked.
func sendExtents(c *transport.Conn, purpose uint8, list []cbt.Extent) error {
	m := message.Extents{Purpose: purpose}
	for {
		n := min(len(list), message.MaxExtents)
		m.Extents = m.Extents[:0]
		for _, x := range list[:n] {
			m.Extents = append(m.Extents, message.Extent(x))
		}
		list = list[n:]
		m.Last = len(list) == 0
		if err := c.Send(kindExtents, m.Append(nil)); err != nil {
			return err
		}
		if m.Last {
			return nil
		}
	}
}

// extentReader puts a list together from its frames, and holds it to what it says it is.
type extentReader struct {
	purpose uint8
	size    int64 // no extent ends past it
	list    []cbt.Extent
}

// maxListed bounds a list from a peer.
const maxListed = maxCandidates

// add takes one frame and reports whether it was the last.
func (r *extentReader) add(p []byte) (bool, error) {
	var m message.Extents
	if err := m.Decode(p); err != nil {
		return false, err
	}
	if m.Purpose != r.purpose {
		return false, protocolf("list of purpose %d where %d belongs", m.Purpose, r.purpose)
	}
	if len(m.Extents) == 0 && !m.Last {
		return false, protocolf("list that goes on with nothing in it")
	}
	if len(r.list)+len(m.Extents) > maxListed {
		return false, protocolf("list of more than %d extents", maxListed)
	}
	for _, x := range m.Extents {
		if n := len(r.list); n > 0 && r.list[n-1].End >= x.Off {
			return false, protocolf("extents out of order at %#x", x.Off)
		}
		if x.End > r.size {
			return false, protocolf("extent ends at %#x, the volume at %#x", x.End, r.size)
		}
		r.list = append(r.list, cbt.Extent(x))
	}
	return m.Last, nil
}

// layout is the walk over a list of candidates, which are whole grains.
func (r *extentReader) layout(leaf int64) (*layout, error) {
	l := newLayout(r.size, leaf, r.list)
	if len(l.candidates) != len(r.list) || cbt.Total(l.candidates) != cbt.Total(r.list) {
		return nil, protocolf("candidates are not aligned to %d bytes", l.grain())
	}
	return l, nil
}

func (s *source) expectExtents(ctx context.Context, purpose uint8, size int64) ([]cbt.Extent, error) {
	r := extentReader{purpose: purpose, size: size}
	for {
		p, err := s.expect(ctx, kindExtents)
		if err != nil {
			return nil, err
		}
		if last, err := r.add(p); last || err != nil {
			return r.list, err
		}
	}
}

// volumeInfo says what a position is to the peer.
func volumeInfo(p position, m *meter) message.VolumeInfo {
	v := message.VolumeInfo{Size: p.size, Align: 512, Sparse: p.sparse, Mapped: p.mapped, Name: clip(p.name)}
	if m != nil {
		v.Identity = clip(m.identity())
	}
	if p.tree != nil {
		v.Tree = &message.TreeInfo{Algorithm: uint8(p.tree.algorithm), Leaf: uint32(p.tree.leaf), Root: p.tree.root}
	}
	return v
}

// clip keeps the end of a name, which tells more than its beginning.
func clip(s string) string {
	if len(s) > 255 {
		return s[len(s)-255:]
	}
	return s
}

// level is the wire's word for what is compared.
func (d *decision) level() uint8 {
	switch {
	case d.blind:
		return 0
	case d.leaf > 0:
		return 1
	}
	return 2
}

// codeOf classifies an error for the peer. What is not known is internal.
func codeOf(err error) message.Code {
	var refused *RefusedError
	var usage *UsageError
	var verify *VerifyError
	var said *PeerError
	var malformed *message.ErrMalformed
	switch {
	case errors.As(err, &said):
		return said.Code
	case errors.As(err, &refused) && refused.busy:
		return message.CodeBusy
	case errors.As(err, &refused):
		return message.CodeRefused
	case errors.As(err, &usage):
		return message.CodeUsage
	case errors.As(err, &verify):
		return message.CodeVerification
	case errors.Is(err, transport.ErrFlood):
		return message.CodeProtocol
	case garbled(err), errors.Is(err, merkle.ErrCorrupt), errors.Is(err, cbt.ErrCorrupt):
		return message.CodeCorrupt
	case errors.Is(err, ErrProtocol), errors.Is(err, transport.ErrCredit), errors.As(err, &malformed):
		return message.CodeProtocol
	case errors.Is(err, context.Canceled):
		return message.CodeCancelled
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return message.CodeVolume
	}
	return message.CodeInternal
}
