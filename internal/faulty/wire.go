package faulty

import "time"

// Way is a direction of a link, as the end that is wrapped sees it.
type Way string

// The ways.
const (
	Out Way = "out" // what this end writes
	In  Way = "in"  // what this end reads
)

// What can happen to a link besides Stuck, Slow and Flip.
const (
	// Reset breaks both ways: this end gets ECONNRESET, the other what was under
	// way and then the end of the stream.
	Reset Kind = "reset"
	// Silence is a network that carries nothing any more, and nobody is told:
	// writes go well and get nowhere, reads wait until this end closes.
	Silence Kind = "silence"
	// End ends one way as if the writer had closed: the reader gets io.EOF. The
	// writer is not told.
	End Kind = "end"
	// Drop takes bytes out of the stream.
	Drop Kind = "drop"
	// Repeat sends bytes twice.
	Repeat Kind = "repeat"
)

// LinkRule says that something goes wrong at a place of one way of a link. The
// place is a byte of the stream or, with Frame or Nth, of frames: after At bytes
// of it have passed, or, with Past, once all of the frame has.
//
// Frames are those of docs/PROTOCOL.md: a header of 24 bytes with the kind in
// byte 0 and the length of what follows in bytes 4 to 7.
type LinkRule struct {
	Way   Way
	Frame uint8 // kind of the frame; 0 any
	Nth   int   // the n-th such frame, from 1; 0 with Frame: each of them
	At    int64 // bytes of the stream or of the frame before the place
	Past  bool  // the place is the end of the frame

	Kind  Kind            // "": nothing goes wrong, for rules that only Do
	Len   int64           // bytes of Drop and Repeat; 0: to the end of the frame
	Bit   int64           // of Flip: bit of the byte that follows the place, 0 to 7
	For   time.Duration   // of Slow
	Until <-chan struct{} // of Stuck; the end of the link ends it too
	Do    func()          // called at the place, before Kind; it may not write or read the link
}

// framed reports whether the place is counted in frames.
func (r *LinkRule) framed() bool { return r.Frame != 0 || r.Nth != 0 || r.Past }

// Frame is one frame that a link has carried, or begun to.
type Frame struct {
	Way    Way
	Kind   uint8
	Nth    int   // the how-manieth of its kind and way, from 1
	Off    int64 // of its first byte in the stream
	Len    int64 // bytes, header and payload; 0 while the header is not whole
	Passed bool  // all of it has passed
}

// frameHeader is the length of a header, frameLen where in it the length of the
// rest is, 4 bytes, little endian.
const (
	frameHeader = 24
	frameLen    = 4
)

// place is where in a stream a rule comes to work.
type place struct {
	rule *LinkRule
	off  int64 // -1: at the end of the frame, whose length is not known yet
}
