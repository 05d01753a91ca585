package message

import "github.com/failback/failback/transport"

// Message is what every struct of this package that goes out as a frame is.
type Message interface {
	// Kind is the number of the message on the wire: append only.
	Kind() transport.Kind
	// Append adds the encoding to b and returns the longer slice.
	Append(b []byte) []byte
}

// Limits of the lists in one message. What is longer goes in several.
const (
	MaxExtents = 32768 // extents in one Extents
	MaxHashes  = 32768 // digests in one Digests or Pieces, hashes in one NodeHashes
	MaxRanges  = 4096  // ranges in one Nodes
)

// Kind is 1.
func (Open) Kind() transport.Kind { return 1 }

// Kind is 2.
func (Opened) Kind() transport.Kind { return 2 }

// Kind is 3.
func (Task) Kind() transport.Kind { return 3 }

// Kind is 4.
func (Start) Kind() transport.Kind { return 4 }

// Kind is 5.
func (Info) Kind() transport.Kind { return 5 }

// Kind is 6.
func (Extents) Kind() transport.Kind { return 6 }

// Kind is 7.
func (Plan) Kind() transport.Kind { return 7 }

// Kind is 8.
func (Agree) Kind() transport.Kind { return 8 }

// Kind is 9.
func (Digests) Kind() transport.Kind { return 9 }

// Kind is 10.
func (Want) Kind() transport.Kind { return 10 }

// Kind is 11.
func (Pieces) Kind() transport.Kind { return 11 }

// Kind is 12.
func (Release) Kind() transport.Kind { return 12 }

// Kind is 13.
func (Data) Kind() transport.Kind { return 13 }

// Kind is 14.
func (Zero) Kind() transport.Kind { return 14 }

// Kind is 15.
func (Discard) Kind() transport.Kind { return 15 }

// Kind is 16.
func (Barrier) Kind() transport.Kind { return 16 }

// Kind is 17.
func (Ack) Kind() transport.Kind { return 17 }

// Kind is 18.
func (Credit) Kind() transport.Kind { return 18 }

// Kind is 19.
func (Nodes) Kind() transport.Kind { return 19 }

// Kind is 20.
func (NodeHashes) Kind() transport.Kind { return 20 }

// Kind is 21.
func (Pass) Kind() transport.Kind { return 21 }

// Kind is 22.
func (Seal) Kind() transport.Kind { return 22 }

// Kind is 23.
func (Sealed) Kind() transport.Kind { return 23 }

// Kind is 24.
func (Report) Kind() transport.Kind { return 24 }

// Kind is 25.
func (Error) Kind() transport.Kind { return 25 }

// Kind is 26.
func (Bye) Kind() transport.Kind { return 26 }
