package message

import "fmt"

// MaxChunk is the most bytes of a report that one Report carries.
const MaxChunk = 256 << 10

// Code is the class of an [Error]. Numbers are on the wire: append only.
type Code uint8

const (
	maxText = 4096 // bytes of the text of an Error
	maxNext = 1024 // bytes of the next step of an Error
)

// String names the class.
func (c Code) String() string {
	switch c {
	case CodeRefused:
		return "refused"
	case CodeUsage:
		return "usage"
	case CodeCorrupt:
		return "corrupt"
	case CodeVolume:
		return "volume"
	case CodeProtocol:
		return "protocol"
	case CodeInternal:
		return "internal"
	case CodeCancelled:
		return "cancelled"
	case CodeVerification:
		return "verification"
	case CodeVersion:
		return "version"
	case CodeBusy:
		return "busy"
	}
	return fmt.Sprintf("code %d", uint8(c))
}

// The classes of errors.
const (
	CodeRefused      Code = 1 // a law forbids it; nothing was changed
	CodeUsage        Code = 2 // what was asked for makes no sense
	CodeCorrupt      Code = 3 // bytes arrived other than they were sent
	CodeVolume       Code = 4 // a volume could not be read or written
	CodeProtocol     Code = 5 // a message that has no place there
	CodeInternal     Code = 6
	CodeCancelled    Code = 7
	CodeVerification Code = 8  // the medium does not hold what was written
	CodeVersion      Code = 9  // no version that both sides speak
	CodeBusy         Code = 10 // refused for now: something else holds the volume
)

// Report carries the session's report, JSON, over as many messages as it takes.
//
//	off size field
//	  0    1 last       1 if the report ends with this message, else 0
//	  1      chunk      the rest of the frame, at most 256 KiB
type Report struct {
	Last  bool
	Chunk []byte
}

// Append adds the encoding to b.
func (m Report) Append(b []byte) []byte {
	return append(putBool(b, m.Last), m.Chunk...)
}

// Decode reads the encoding in b. Chunk is a part of b.
func (m *Report) Decode(b []byte) error {
	r := reader{b: b, message: "Report"}
	m.Last = r.bool("last")
	if len(r.b) > MaxChunk {
		r.bad("chunk", "%d bytes, limit %d", len(r.b), MaxChunk)
	}
	m.Chunk = r.bytes("chunk", len(r.b))
	return r.end()
}

// Error ends a session and says why, to which volume, and what to do next.
//
//	off size field
//	  0    1 code       1 to 10, see Code
//	  1      text       str16, at most 4096 bytes
//	  +      next       str16, at most 1024 bytes
//	  +      volume     str16, at most 4096 bytes
type Error struct {
	Code   Code
	Text   string
	Next   string
	Volume string
}

// Append adds the encoding to b. A text that is too long is cut.
func (m Error) Append(b []byte) []byte {
	b = putStr16(append(b, uint8(m.Code)), m.Text, maxText)
	return putStr16(putStr16(b, m.Next, maxNext), m.Volume, maxVolume)
}

// Decode reads the encoding in b.
func (m *Error) Decode(b []byte) error {
	r := reader{b: b, message: "Error"}
	m.Code = Code(r.between("code", uint8(CodeRefused), uint8(CodeBusy)))
	m.Text = r.str16("text", maxText)
	m.Next = r.str16("next", maxNext)
	m.Volume = r.str16("volume", maxVolume)
	return r.end()
}

// Bye is the last frame of each side. A connection that ends without it was cut.
// It has no fields.
type Bye struct{}

// Append adds the encoding, which is empty, to b.
func (m Bye) Append(b []byte) []byte { return b }

// Decode refuses any byte.
func (m *Bye) Decode(b []byte) error {
	r := reader{b: b, message: "Bye"}
	return r.end()
}
