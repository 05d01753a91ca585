package failback

import (
	"encoding/json"
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
	}
}

// targetStats is what the target counted.
type targetStats struct{ read, written, zeroed, verified int64 }

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
	b    []byte
	last bool
}

func (r *reportReader) add(p []byte) error {
	var m message.Report
	if err := m.Decode(p); err != nil {
		return err
	}
	if r.last || len(r.b)+len(m.Chunk) > maxReport {
		return protocolf("report of more than %d bytes", len(r.b))
	}
	r.b, r.last = append(r.b, m.Chunk...), m.Last
	return nil
}

func (r *reportReader) decode() (*Report, error) {
	if !r.last {
		return nil, protocolf("session ended without a report")
	}
	var w wireReport
	if err := json.Unmarshal(r.b, &w); err != nil {
		return nil, protocolf("report: %v", err)
	}
	return w.report(), nil
}
