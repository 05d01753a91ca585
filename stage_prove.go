package failback

import (
	"context"
	"encoding/binary"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// passSums are what a pass over a target that is staged has read: there it is the
// stage over the target, before that is written. Once it is, the same is read of the
// target itself, and has to come to the same sums (L7). A sum is of a stretch of
// units, in whatever order they come; it finds accidents, as those of a stage do.
type passSums struct {
	layout *layout
	key    [32]byte
	digest merkle.Algorithm
	span   int64 // units of a stretch

	mu   sync.Mutex
	sums []uint64
}

// passStretches bounds the sums of a pass: 512 KiB of them.
const passStretches = 1 << 16

func newPassSums(l *layout, key [32]byte, digest merkle.Algorithm) *passSums {
	p := &passSums{layout: l, key: key, digest: digest}
	total := int64(0)
	for _, x := range l.candidates {
		total += roundUp(x.Len(), l.grain())
	}
	units := (total + l.maxUnit() - 1) / l.maxUnit()
	p.span = max(1, (units+passStretches-1)/passStretches)
	p.sums = make([]uint64, (units+p.span-1)/p.span)
	return p
}

// add takes the digests of a unit; safe for concurrent use.
func (p *passSums) add(u *unit, digests []byte) {
	if p == nil {
		return
	}
	var number [8]byte
	binary.LittleEndian.PutUint64(number[:], uint64(u.index))
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(number[:]) // a Digest never returns an error
	_, _ = d.Write(digests)
	sum := d.Sum64()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sums[u.index/p.span] ^= sum
}

// again reads from the medium of vol what the pass has read, with so many goroutines,
// and returns where it is something else. tick is told how many bytes are done.
func (p *passSums) again(ctx context.Context, vol *meter, workers int, tick func(int64)) ([]cbt.Extent, error) {
	now := newPassSums(p.layout, p.key, p.digest)
	w := p.layout.walk()
	where := make([]cbt.Extent, len(p.sums))
	var mu sync.Mutex
	take := func() (unit, bool) {
		mu.Lock()
		defer mu.Unlock()
		u, ok := w.take()
		if ok {
			x := &where[u.index/p.span]
			first, last := u.exts[0], u.exts[len(u.exts)-1]
			if x.Empty() {
				*x = first
			}
			x.End = last.End
		}
		return u, ok
	}
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error {
			sc, err := newScanner(vol, p.layout, p.key, p.digest)
			if err != nil {
				return err
			}
			sc.medium = true
			buf := getBuf(int(max(chunkBytes, p.layout.leaf)))
			defer buf.put()
			for u, ok := take(); ok; u, ok = take() {
				if err := ctx.Err(); err != nil {
					return err
				}
				got, err := sc.unit(&u, buf.b)
				if err != nil {
					return err
				}
				now.add(&u, got.digests)
				tick(u.bytes)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var wrong []cbt.Extent
	for i, sum := range now.sums {
		if sum != p.sums[i] {
			wrong = append(wrong, where[i])
		}
	}
	return cbt.Normalize(wrong), nil
}

// provePass holds the whole of the target, once the stage is applied, against what was
// read for --verify full or a seal: a write may have hit another place than its own.
func (t *target) provePass(ctx context.Context, out *meter) error {
	if t.sums == nil {
		return nil
	}
	wrong, err := t.sums.again(ctx, out, t.o.Workers, t.applied.looked)
	if err == nil && len(wrong) > 0 {
		err = &VerifyError{Volume: out.name, Extent: wrong[0], Bytes: cbt.Total(wrong)}
	}
	return err
}
