package merkle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sync/errgroup"
)

// BuildStats says what [Build] did.
type BuildStats struct {
	ReadBytes int64 // bytes read from the volume
	Resumed   int64 // leaves taken from an earlier, interrupted build
	Zero      int64 // leaves known to be zero without reading them
}

// Build reads a volume and leaves its tree at path, which it returns open for
// updating. It reads each allocated leaf once, in ascending order and many at a
// time, into buffers aligned for direct I/O; it holds twice [Options].Workers
// of them. Leaves of zeroes are read, if Allocated does not say so, but not
// hashed, and take no space in the file.
//
// If ctx ends or the volume cannot be read, what is done is made durable, and a
// Build with [Options].Resume goes on from there; so it does after a crash, from
// the last checkpoint. An earlier finished file at path stays until this one
// is whole. The error then says where the volume could not be read.
func Build(ctx context.Context, r io.ReaderAt, s Shape, path string, o Options) (*File, BuildStats, error) {
	b, err := Create(path, s, o)
	if err != nil {
		return nil, BuildStats{}, err
	}
	run := &build{b: b, r: r, todo: b.o.Allocated, tokens: make(chan struct{}, b.o.Workers)}
	if !o.Sparse {
		run.todo = []Extent{{0, s.Size}}
	}
	f, err := run.all(ctx)
	stats := BuildStats{ReadBytes: run.read.Load(), Resumed: run.resumed, Zero: run.zero}
	if err != nil {
		// Whatever ended ctx shall not end the saving of what is done.
		saved := b.Checkpoint(context.WithoutCancel(ctx))
		return nil, stats, errors.Join(fmt.Errorf("build tree: %w", err), saved, b.Close())
	}
	return f, stats, nil
}

// build is one run of Build. Its workers take pieces of the volume in turn.
type build struct {
	b      *Builder
	r      io.ReaderAt
	tokens chan struct{} // one for each goroutine that hashes

	mu      sync.Mutex
	missing []Range  // leaves that still have to be read
	todo    []Extent // allocated bytes

	resumed, zero int64 // leaves
	read          atomic.Int64
	unsaved       atomic.Int64 // bytes since the last checkpoint
	saving        sync.Mutex
}

func (r *build) all(ctx context.Context) (*File, error) {
	if err := r.plan(); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	for range 2 * r.b.o.Workers {
		g.Go(func() error { return r.work(gctx) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return r.b.Seal(ctx)
}

// plan sets what is known to be zero, and lists what must be read.
func (r *build) plan() error {
	bytes := func(leaf int64) int64 { return min(leaf*r.b.st.shape.Leaf, r.b.st.shape.Size) }
	left, known := r.b.st.lay.width[0], r.b.st.shape.Size
	for miss := range r.b.Missing() {
		left -= miss.Len()
		known -= bytes(miss.End) - bytes(miss.First)
		for at := miss.First; at < miss.End; {
			data := r.nextAllocated(Range{at, miss.End})
			if err := r.b.SetZero(Range{at, data.First}); err != nil {
				return err
			}
			r.zero += data.First - at
			known += bytes(data.First) - bytes(at)
			r.want(data)
			at = data.End
		}
	}
	r.resumed = left
	r.b.o.Progress(known)
	return nil
}

// want adds leaves to those that must be read.
func (r *build) want(data Range) {
	n := len(r.missing)
	switch {
	case data.Len() == 0:
	case n > 0 && r.missing[n-1].End == data.First:
		r.missing[n-1].End = data.End
	default:
		r.missing = append(r.missing, data)
	}
}

// nextAllocated returns the first leaves of miss that hold allocated bytes, or
// the empty range at its end. It forgets the extents before it.
func (r *build) nextAllocated(miss Range) Range {
	leaf := r.b.st.shape.Leaf
	for len(r.todo) > 0 && (r.todo[0].End-1)/leaf < miss.First {
		r.todo = r.todo[1:]
	}
	if len(r.todo) == 0 || r.todo[0].Off/leaf >= miss.End {
		return Range{miss.End, miss.End}
	}
	e := r.todo[0]
	return Range{max(e.Off/leaf, miss.First), min((e.End-1)/leaf+1, miss.End)}
}

// next returns the leaves to read next; they end at a multiple of the read size.
func (r *build) next() (Range, bool) {
	per := int64(r.b.o.ReadSize) / r.b.st.shape.Leaf
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.missing) == 0 {
		return Range{}, false
	}
	m := &r.missing[0]
	piece := Range{m.First, min(m.End, (m.First/per+1)*per)}
	if m.First = piece.End; m.First == m.End {
		r.missing = r.missing[1:]
	}
	return piece, true
}

// work reads and hashes pieces until there are none. Reading needs no token, so
// that the device is busy while all cores hash. A piece that was taken is done
// to its end, whatever ends ctx: so what a resumed build finds has no holes.
func (r *build) work(ctx context.Context) error {
	h, buf := r.b.Hasher(), alignedBuffer(r.b.o.ReadSize)
	hashes := make([]Hash, 0, int64(len(buf))/r.b.st.shape.Leaf)
	for ctx.Err() == nil {
		piece, ok := r.next()
		if !ok {
			return nil
		}
		off := piece.First * r.b.st.shape.Leaf
		data := buf[:min(piece.End*r.b.st.shape.Leaf, r.b.st.shape.Size)-off]
		if err := readFull(r.r, data, off); err != nil {
			return fmt.Errorf("read volume at %d: %w", off, err)
		}
		r.read.Add(int64(len(data)))
		r.tokens <- struct{}{}
		hashes = hashLeaves(h, data, hashes[:0])
		<-r.tokens
		if err := r.b.SetLeaves(piece.First, hashes); err != nil {
			return err
		}
		r.b.o.Progress(int64(len(data)))
		if err := r.checkpoint(ctx, int64(len(data))); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// checkpoint makes progress durable once enough was done; one worker does that
// while the others go on.
func (r *build) checkpoint(ctx context.Context, done int64) error {
	if r.unsaved.Add(done) < r.b.o.CheckpointBytes || !r.saving.TryLock() {
		return nil
	}
	defer r.saving.Unlock()
	r.unsaved.Store(0)
	return r.b.Checkpoint(ctx)
}

// hashLeaves appends the hashes of the leaves that data is made of.
func hashLeaves(h *Hasher, data []byte, dst []Hash) []Hash {
	leaf := int(h.shape.Leaf)
	for len(data) > 0 {
		n := min(leaf, len(data))
		dst = append(dst, h.Leaf(data[:n]))
		data = data[n:]
	}
	return dst
}

// alignedBuffer returns n bytes that begin at a multiple of a page, as direct
// I/O wants them.
func alignedBuffer(n int) []byte {
	buf := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(&buf[0]))) & (pageSize - 1)
	return buf[skip : skip+n : skip+n]
}
