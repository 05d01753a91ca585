package message

import "github.com/failback/failback/transport"

const (
	// pieceSize is the unit of comparison inside a leaf, in bytes.
	pieceSize = 4096
	// MaxSpans is the most spans that one Data, Zero or Discard carries.
	MaxSpans = 2048
)

const (
	sector  = 512     // bytes; offsets and lengths of spans are multiples of it
	maxSpan = 1 << 40 // bytes of a span of Zero or Discard
)

// Data is the head of a frame whose body is the bytes of the spans, in order.
//
//	off size field
//	  0    2 count      1 to 2048
//	  2      spans      each: off u64, len u32; both multiples of 512, len not 0;
//	                    sorted, disjoint; the sum of len is at most 1 MiB
//	  +      digests    16 bytes for each piece: every span is cut into pieces of
//	                    4096 bytes from its own start, the last may be shorter
type Data struct {
	Spans []Extent
	Sums  []byte // 16 bytes for each piece
}

// Raw is the length of the frame's body before compression, in bytes: the sum
// of the spans.
func (m *Data) Raw() int {
	n := int64(0)
	for _, s := range m.Spans {
		n += s.End - s.Off
	}
	return int(n)
}

// Append adds the encoding to b.
func (m Data) Append(b []byte) []byte {
	b = put16(b, uint16(len(m.Spans)))
	for _, s := range m.Spans {
		b = put32(put64(b, uint64(s.Off)), uint32(s.End-s.Off))
	}
	return append(b, m.Sums...)
}

// Decode reads the encoding in b, a frame's head. The receiver also holds
// m.Raw against the frame's Raw. Spans reuses its room, Sums is a part of b.
func (m *Data) Decode(b []byte) error {
	r := reader{b: b, message: "Data"}
	n := r.spans()
	m.Spans = m.Spans[:0]
	end, raw, pieces := int64(0), int64(0), int64(0)
	for i := 0; i < n && r.err == nil; i++ {
		var s Extent
		s.Off = r.size("off")
		s.End = s.Off + int64(r.u32("len"))
		r.span(i, s, end, transport.MaxRaw)
		end = s.End
		raw += s.End - s.Off
		pieces += (s.End - s.Off + pieceSize - 1) / pieceSize
		if raw > transport.MaxRaw {
			r.bad("len", "more than %d bytes in all", transport.MaxRaw)
		}
		m.Spans = append(m.Spans, s)
	}
	m.Sums = r.sums("digests", int(pieces), digestLen)
	return r.end()
}

// spans reads how many spans follow.
func (r *reader) spans() int {
	n := r.u16("count")
	if r.err == nil && (n == 0 || n > MaxSpans) {
		r.bad("count", "%d, must be 1 to %d", n, MaxSpans)
	}
	return int(n)
}

// span checks the i-th span, which may begin where the one before ended.
func (r *reader) span(i int, s Extent, end, most int64) {
	switch n := s.End - s.Off; {
	case r.err != nil:
	case s.Off%sector != 0:
		r.bad("off", "span %d at %d, not a multiple of %d", i, s.Off, sector)
	case n <= 0 || n > most || n%sector != 0:
		r.bad("len", "span %d of %d bytes, must be a multiple of %d, at most %d", i, n, sector, most)
	case s.Off < end:
		r.bad("off", "span %d at %d, the one before ends at %d", i, s.Off, end)
	case s.End > maxOffset:
		r.bad("len", "span %d ends at %d, limit %d", i, s.End, int64(maxOffset))
	}
}

// Zero says which ranges read as zeroes from now on.
//
//	off size field
//	  0    2 count      1 to 2048
//	  2      spans      each: off u64, len u64; both multiples of 512, len not 0,
//	                    at most 2^40; sorted, disjoint
type Zero struct{ Spans []Extent }

// Append adds the encoding to b.
func (m Zero) Append(b []byte) []byte { return appendWide(b, m.Spans) }

// Decode reads the encoding in b. Spans reuses its room.
func (m *Zero) Decode(b []byte) (err error) {
	m.Spans, err = decodeWide("Zero", b, m.Spans[:0])
	return err
}

// Discard says which ranges are of no use any more, laid out as [Zero].
type Discard struct{ Spans []Extent }

// Append adds the encoding to b.
func (m Discard) Append(b []byte) []byte { return appendWide(b, m.Spans) }

// Decode reads the encoding in b. Spans reuses its room.
func (m *Discard) Decode(b []byte) (err error) {
	m.Spans, err = decodeWide("Discard", b, m.Spans[:0])
	return err
}

func appendWide(b []byte, spans []Extent) []byte {
	b = put16(b, uint16(len(spans)))
	for _, s := range spans {
		b = put64(put64(b, uint64(s.Off)), uint64(s.End-s.Off))
	}
	return b
}

func decodeWide(message string, b []byte, spans []Extent) ([]Extent, error) {
	r := reader{b: b, message: message}
	n := r.spans()
	end := int64(0)
	for i := 0; i < n && r.err == nil; i++ {
		s := Extent{Off: r.size("off")}
		s.End = s.Off + r.size("len")
		r.span(i, s, end, maxSpan)
		end = s.End
		spans = append(spans, s)
	}
	return spans, r.end()
}
