package message

// Barrier asks the target to make everything before it durable. It goes out on
// every connection of the session; what it bounds is complete when it has come
// on all of them.
//
//	off size field
//	  0    8 id         1 for the first, one more for each
//	  8    8 frames     Data, Zero and Discard frames sent before it on this connection
//	 16    8 done       bytes; every candidate below is finished with: equal, or sent before this
//	 24    1 final      1 if no data follows, else 0
type Barrier struct {
	ID     uint64
	Frames uint64
	Done   int64 // bytes
	Final  bool
}

// Append adds the encoding to b.
func (m Barrier) Append(b []byte) []byte {
	return putBool(put64(put64(put64(b, m.ID), m.Frames), uint64(m.Done)), m.Final)
}

// Decode reads the encoding in b.
func (m *Barrier) Decode(b []byte) error {
	r := reader{b: b, message: "Barrier"}
	m.ID, m.Frames = r.u64("id"), r.u64("frames")
	m.Done, m.Final = r.size("done"), r.bool("final")
	return r.end()
}

// Ack answers a [Barrier] once everything before it is durable, not sooner (L2).
// Of a stage that is applied it says how far that is.
//
//	off size field
//	  0    8 id         of the barrier; 0 of a stage that is applied
//	  8    8 written    bytes written since the session began, at most 2^62
//	 16    8 verified   bytes read back and found right, at most 2^62
type Ack struct {
	ID       uint64
	Written  int64 // bytes, total
	Verified int64 // bytes, total
}

// Append adds the encoding to b.
func (m Ack) Append(b []byte) []byte {
	return put64(put64(put64(b, m.ID), uint64(m.Written)), uint64(m.Verified))
}

// Decode reads the encoding in b.
func (m *Ack) Decode(b []byte) error {
	r := reader{b: b, message: "Ack"}
	m.ID, m.Written, m.Verified = r.u64("id"), r.size("written"), r.size("verified")
	return r.end()
}

// Credit gives back what frames took of the window, once their bytes are
// written. A Data, Zero or Discard frame takes its stored bytes and 64 more.
//
//	off size field
//	  0    4 bytes      not 0
type Credit struct{ Bytes uint32 }

// Append adds the encoding to b.
func (m Credit) Append(b []byte) []byte { return put32(b, m.Bytes) }

// Decode reads the encoding in b.
func (m *Credit) Decode(b []byte) error {
	r := reader{b: b, message: "Credit"}
	if m.Bytes = r.u32("bytes"); r.err == nil && m.Bytes == 0 {
		r.bad("bytes", "0")
	}
	return r.end()
}
