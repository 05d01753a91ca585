package failback

import (
	"fmt"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// Ids of counters, as they are on the wire.
const (
	statRead     = 1
	statWritten  = 2
	statZeroed   = 3
	statVerified = 4
	statSaved    = 5
	statUnsaved  = 6
	statStaged   = 7
	statApplying = 8 // nanoseconds
)

// stats says what a side's volume has done.
func stats(m *meter) []message.Stat {
	if m == nil {
		return nil
	}
	return []message.Stat{
		{ID: statRead, Value: uint64(m.read.Load())},
		{ID: statWritten, Value: uint64(m.written.Load())},
		{ID: statZeroed, Value: uint64(m.zeroed.Load())},
		{ID: statVerified, Value: uint64(m.verified.Load())},
		{ID: statSaved, Value: uint64(m.saved.Load())},
		{ID: statUnsaved, Value: uint64(m.unsaved.Load())},
	}
}

// targetStats is what the target counted.
type targetStats struct{ read, written, zeroed, verified, saved, unsaved, staged, applying int64 }

func targetStatsOf(list []message.Stat) targetStats {
	var t targetStats
	for _, s := range list {
		v := int64(min(s.Value, 1<<62))
		switch s.ID {
		case statRead:
			t.read = v
		case statWritten:
			t.written = v
		case statZeroed:
			t.zeroed = v
		case statVerified:
			t.verified = v
		case statSaved:
			t.saved = v
		case statUnsaved:
			t.unsaved = v
		case statStaged:
			t.staged = v
		case statApplying:
			t.applying = v
		}
	}
	return t
}

// maxReport bounds the report of a peer, extents included.
const maxReport = 64 << 20

// sendReport sends r in as many frames as it takes.
func sendReport(c *transport.Conn, r *Report) error {
	b, err := r.encode()
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	for {
		n := min(len(b), message.MaxChunk)
		m := message.Report{Last: n == len(b), Chunk: b[:n]}
		if err := c.Send(kindReport, m.Append(nil)); err != nil || m.Last {
			return err
		}
		b = b[n:]
	}
}

// reportReader puts a report together.
type reportReader struct {
	b      []byte
	size   int // bytes so far
	last   bool
	unread bool // nobody asks for it: it is not kept
}

func (r *reportReader) add(p []byte) error {
	var m message.Report
	if err := m.Decode(p); err != nil {
		return err
	}
	if r.last || r.size+len(m.Chunk) > maxReport {
		return protocolf("report of more than %d bytes", r.size)
	}
	r.last = m.Last
	r.size += len(m.Chunk)
	if !r.unread {
		r.b = append(r.b, m.Chunk...)
	}
	return nil
}

func (r *reportReader) decode() (*Report, error) {
	switch {
	case !r.last:
		return nil, protocolf("session ended without a report")
	case r.unread:
		return &Report{}, nil
	}
	return decodePeerReport(r.b)
}
