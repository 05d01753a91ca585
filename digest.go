package failback

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
)

// Digest reads s once and writes its Merkle tree to path. Report.Root is its
// root. A volume at a peer is read there: only its hashes come here.
func Digest(ctx context.Context, s Side, path string, o Options) (*Report, error) {
	o, err := o.filled()
	if err != nil {
		return nil, err
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.treeOnly() {
		return nil, usagef("%s is a tree already", s.Tree)
	}
	if o.Leaf == 0 {
		o.Leaf = defaultLeaf
	}
	if s.Dial == nil {
		return digestHere(ctx, s, path, o)
	}
	if o.Resume {
		return nil, usagef("%s: a digest of a volume at a peer cannot be resumed; make it there, or anew", s.label())
	}
	j := job{mode: modeDigest, o: o}
	if _, err := rand.Read(j.session[:]); err != nil {
		return nil, err
	}
	j.o.Streams = 1
	far, err := j.dialAll(ctx, s, roleTarget)
	if err != nil {
		return nil, err
	}
	src, err := j.sourceOver(ctx, Side{Name: path}, Side{}, far.conns)
	if err != nil {
		return nil, errors.Join(err, far.close())
	}
	src.digestPath = path
	r, err := src.run(ctx)
	if r != nil {
		// To the caller the volume that is read is the source, whoever asked whom.
		r.Source, r.Target = r.Target, path
		r.SourceReadBytes, r.TargetReadBytes = r.TargetReadBytes, 0
		r.WireBytesOut, r.WireBytesIn = r.WireBytesIn, r.WireBytesOut
	}
	return r, err
}

// collect begins the tree that a digest leaves behind.
func (s *source) collect(l *layout) error {
	o := merkle.Options{Identity: s.facts.info.Volume.Identity}
	b, err := merkle.Create(s.digestPath, merkle.Shape{Size: l.size, Leaf: l.leaf, Algorithm: s.o.Hash}, o)
	if err != nil {
		return fmt.Errorf("begin tree: %w", err)
	}
	s.builder = b
	return setZeroOutside(b, l)
}

// collected finishes the tree of a digest.
func (s *source) collected(ctx context.Context) error {
	f, err := s.builder.Seal(ctx)
	if err != nil {
		return fmt.Errorf("finish tree: %w", err)
	}
	s.builder = nil
	s.facts.root, err = f.Root(ctx)
	return errors.Join(err, f.Close())
}

// digestHere builds the tree of a volume in this process.
func digestHere(ctx context.Context, s Side, path string, o Options) (*Report, error) {
	began := time.Now()
	vol := &meter{v: s.Volume, name: s.label()}
	shape := merkle.Shape{Size: s.Volume.Size(), Leaf: o.Leaf, Algorithm: o.Hash}
	allocated, sparse, err := vol.allocated(ctx)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Schema: schemaDigest, Result: ResultEqual, Rung: RungMerkle.String(), Source: vol.name, Target: path,
		Reason: "a digest was asked for: the volume is read once", VolumeBytes: shape.Size,
		CandidateBytes: shape.Size, Codec: map[string]int64{},
	}
	opts := merkle.Options{Identity: clip(vol.identity()), Workers: max(1, o.Workers/2), Sparse: sparse, Resume: o.Resume}
	if sparse {
		r.CandidateBytes = cbt.Total(allocated)
		for _, x := range allocated {
			opts.Allocated = append(opts.Allocated, merkle.Extent(x))
		}
	}
	if o.Events.Plan != nil {
		o.Events.Plan(Plan{Rung: RungMerkle, Reason: r.Reason, Volume: shape.Size, Candidates: r.CandidateBytes})
	}
	f, err := buildTold(ctx, vol, shape, &tree{path: path, o: opts, tell: o.Events.Progress})
	if err != nil {
		return nil, err
	}
	root, err := f.Root(ctx)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	hex := root.String()
	r.Root, r.SourceReadBytes = &hex, vol.read.Load()
	r.Seconds.Transfer, r.Seconds.Total = since(began), since(began)
	return r, nil
}

// A tree is one to be built, and whom to tell how far it is.
type tree struct {
	path string
	o    merkle.Options
	tell func(Progress)
	done atomic.Int64
}

// buildTold is merkle.Build with progress told.
func buildTold(ctx context.Context, vol *meter, shape merkle.Shape, t *tree) (*merkle.File, error) {
	began := time.Now()
	t.o.Progress = func(n int64) { t.done.Add(n) }
	var file *merkle.File
	end := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		defer close(end)
		var err error
		file, _, err = merkle.Build(ctx, vol, shape, t.path, t.o)
		return err
	})
	g.Go(func() error {
		ticking(ctx, end, t.tell, func() Progress {
			return Progress{Phase: "transfer", Done: t.done.Load(), Total: shape.Size, Elapsed: time.Since(began)}
		})
		return nil
	})
	return file, g.Wait()
}
