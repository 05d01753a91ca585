package failback

import (
	"context"
	"io"

	"github.com/failback/failback/cbt"
)

// Volume is a fixed-size array of bytes that one side of a session reads or
// writes. [Open] makes one from a file or a block device; an embedder may pass
// any type of its own.
//
// An implementation must promise:
//
//   - ReadAt and WriteAt are safe for concurrent use, also next to each other.
//     Only calls on overlapping ranges need an order, and the caller gives it.
//   - Size is in bytes, a multiple of 512, and does not change.
//   - ReadAt sees every WriteAt that returned before it began. It fills p or
//     returns an error; at the end of the volume that error is io.EOF.
//   - WriteAt writes all of p or returns an error, and never past Size. It does
//     not keep p.
//   - Sync returns only after every write (and every ZeroAt) that returned
//     before it is durable: it survives a loss of power. After a Sync that
//     failed, nothing written since the last good one is to be believed.
//
// An ability that not every volume has is an interface of its own: [Zeroer],
// [Allocator], [MediumReader], [Identifier], [Stamper]. A type that cannot do a thing does
// not have the method.
type Volume interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Sync() error
}

// Zeroer is a [Volume] that can zero a range cheaper than by writing it.
type Zeroer interface {
	// ZeroAt makes the n bytes at off read as zeroes, and gives their storage
	// back where it can. It never hands back a range that might read as anything
	// else: a plain discard does not do. The same rules as for WriteAt apply: all
	// or an error, durable after Sync.
	ZeroAt(off, n int64) error
}

// Allocator is a [Volume] that knows where nothing was ever stored.
type Allocator interface {
	// Allocated returns, sorted and disjoint, the ranges that may hold a byte
	// other than zero. Everything outside read as zeroes at some moment during
	// the call. It may report too much, never too little (L1), and the list is
	// bounded by the implementation, not by the volume.
	Allocated(ctx context.Context) ([]cbt.Extent, error)
}

// MediumReader is a [Volume] that can read past the caches of this machine.
type MediumReader interface {
	// ReadMediumAt is ReadAt, except that the bytes come from the medium. It is
	// called after Sync, to prove what lies there (L7); before a Sync it may
	// return either the old or the new bytes of a write.
	ReadMediumAt(p []byte, off int64) (int, error)
}

// Identifier is a [Volume] that can tell itself from others.
type Identifier interface {
	// Identity is printable text of 1 to 255 bytes. Two volumes open at the same
	// time on one machine have different ones; the same volume has the same one
	// each time it is opened, for as long as the machine can recognise it.
	Identity() string
}

// Stamper is a [Volume] that can tell whether it was written.
type Stamper interface {
	// Stamp is printable text of at most 255 bytes that is another one after a
	// write, whoever wrote; empty if the volume cannot tell. It may change
	// without a write.
	Stamp() (string, error)
}

var (
	_ Volume       = (*Disk)(nil)
	_ Zeroer       = (*Disk)(nil)
	_ Allocator    = (*Disk)(nil)
	_ MediumReader = (*Disk)(nil)
	_ Identifier   = (*Disk)(nil)
	_ Stamper      = (*Disk)(nil)
	_ io.Closer    = (*Disk)(nil)
)
