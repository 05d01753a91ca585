package merkle

import (
	"fmt"
	"runtime"
)

// Options configures [Create] and [Build]. The zero value is usable.
type Options struct {
	Identity string // of the volume, kept in the header; at most 255 bytes
	Epoch    Epoch  // of the volume, kept in the header

	// Workers is the number of goroutines that hash at once; default GOMAXPROCS.
	// Twice as many read, each into a buffer of its own of ReadSize.
	Workers int

	// ReadSize is the bytes of one read of the volume, rounded up to whole
	// leaves; default 1 MiB, at most 64 MiB.
	ReadSize int

	// Sparse says that Allocated is complete: what is outside of it reads as
	// zeroes, and is neither read nor hashed. Without Sparse all is read.
	Sparse    bool
	Allocated []Extent // ascending, disjoint, inside the volume

	// Resume goes on with the unfinished file that an earlier call left, if it
	// is of the same shape, identity and epoch; else it starts anew. The caller
	// vouches that the volume did not change in between, or calls
	// [File.Update] afterwards for what did.
	Resume bool

	// CheckpointBytes is the bytes of volume after which progress is made
	// durable; default 8 GiB.
	CheckpointBytes int64

	// Temporary makes a tree that is thrown away: path is a folder (empty for
	// the system's) and the file in it has no name. Nothing is synced.
	Temporary bool

	// Progress is told the bytes of volume done since the call before. The
	// first call is for what was resumed or is known to be zero. Many
	// goroutines call it.
	Progress func(bytes int64)

	disk disk // tests put theirs here
}

const maxReadSize = 64 << 20 // bytes

// withDefaults returns o with every field set, or what is wrong with it.
func (o Options) withDefaults(s Shape) (Options, error) {
	if err := s.Validate(); err != nil {
		return o, err
	}
	if len(o.Identity) > maxIdentity {
		return o, fmt.Errorf("identity of %d bytes, at most %d fit the tree header", len(o.Identity), maxIdentity)
	}
	if o.Temporary && o.Resume {
		return o, fmt.Errorf("a temporary tree cannot be resumed")
	}
	if err := o.checkAllocated(s); err != nil {
		return o, err
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.ReadSize <= 0 {
		o.ReadSize = 1 << 20
	}
	o.ReadSize = int(roundUp(int64(min(o.ReadSize, maxReadSize)), s.Leaf))
	if o.CheckpointBytes <= 0 {
		o.CheckpointBytes = 8 << 30
	}
	if o.Progress == nil {
		o.Progress = func(int64) {}
	}
	if o.disk == nil {
		o.disk = osDisk{}
	}
	return o, nil
}

func (o *Options) checkAllocated(s Shape) error {
	if !o.Sparse && o.Allocated != nil {
		return fmt.Errorf("allocated extents without Sparse: say whether they are complete")
	}
	end := int64(0)
	for _, e := range o.Allocated {
		if e.Off < end || e.End <= e.Off || e.End > s.Size {
			return fmt.Errorf("allocated extent [%d,%d) is empty, out of order or outside of the volume of %d bytes", e.Off, e.End, s.Size)
		}
		end = e.End
	}
	return nil
}
