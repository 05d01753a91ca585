package transport

import (
	"sync/atomic"
	"time"
)

// CodecBytes counts the bodies of one codec.
type CodecBytes struct {
	Raw    int64 // bytes before compression
	Stored int64 // bytes after it
}

// Stats are the figures of a connection, counted where the bytes move.
type Stats struct {
	BytesIn, BytesOut   int64         // at the stream under the connection
	FramesIn, FramesOut int64         // whole frames, keep-alive included
	Blocked             time.Duration // spent in writes, waiting for the limit included
	In, Out             [3]CodecBytes // bodies of frames that have a head, by Codec
}

type counters struct {
	bytesIn, bytesOut   atomic.Int64
	framesIn, framesOut atomic.Int64
	blocked             atomic.Int64 // nanoseconds
	in, out             [3]struct{ raw, stored atomic.Int64 }
}

func (n *counters) received(f *Frame) {
	n.framesIn.Add(1)
	if len(f.Head) > 0 {
		n.in[f.Codec].raw.Add(int64(f.Raw))
		n.in[f.Codec].stored.Add(int64(len(f.Body)))
	}
}

func (n *counters) sent(h header) {
	n.framesOut.Add(1)
	if h.head > 0 {
		n.out[h.codec].raw.Add(int64(h.raw))
		n.out[h.codec].stored.Add(int64(h.stored - h.head))
	}
}

// Stats returns the figures so far.
func (c *Conn) Stats() Stats {
	n := &c.count
	s := Stats{
		BytesIn: n.bytesIn.Load(), BytesOut: n.bytesOut.Load(),
		FramesIn: n.framesIn.Load(), FramesOut: n.framesOut.Load(),
		Blocked: time.Duration(n.blocked.Load()),
	}
	for i := range n.in {
		s.In[i] = CodecBytes{n.in[i].raw.Load(), n.in[i].stored.Load()}
		s.Out[i] = CodecBytes{n.out[i].raw.Load(), n.out[i].stored.Load()}
	}
	return s
}
