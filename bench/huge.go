package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
)

// hugeSize is the size of the huge volumes, in bytes: 16 TiB, less what keeps it within the largest file of ext4.
const hugeSize = 16<<40 - leaf

// A huge pair is two sparse files with the same little content far apart. They show what memory and time follow: the
// volume, or what is in it.
type huge struct {
	source, target string
	runs           []cbt.Extent // where the content lies
	dirty          []cbt.Extent // one piece in each hundredth leaf of it: what differs when a run begins
	list           string       // path of a text file with dirty
}

const (
	hugeRuns = 64
	hugeRun  = 32 << 20 // bytes; with hugeRuns, 2 GiB in all
)

// openHuge makes the pair beside the images, out of the source's content; with size and runs as asked for. It is made
// again every time: that takes seconds.
func (s *Set) openHuge(ctx context.Context, size, run int64, runs int) (*huge, error) {
	h := &huge{source: filepath.Join(s.Dir, "huge.img"), target: filepath.Join(s.Dir, "huge.target.img"), list: filepath.Join(s.Dir, "differs-huge")}
	step := (size - run) / int64(runs-1) / leaf * leaf
	number := 0
	for i := range int64(runs) {
		x := cbt.Extent{Off: i * step, End: i*step + run}
		h.runs = append(h.runs, x)
		for off := x.Off; off < x.End; off += leaf {
			if number%100 == 0 {
				h.dirty = append(h.dirty, cbt.Extent{Off: off + piece, End: off + 2*piece})
			}
			number++
		}
	}
	for _, path := range []string{h.source, h.target} {
		if err := s.fillHuge(ctx, path, size, h.runs); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	}
	return h, writeList(h.list, h.dirty)
}

// close removes both files.
func (h *huge) close() error {
	if h.source == "" {
		return nil
	}
	return errors.Join(os.Remove(h.source), os.Remove(h.target))
}

func (s *Set) fillHuge(ctx context.Context, path string, size int64, runs []cbt.Extent) (err error) {
	src, err := os.Open(s.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("size %d: %w", size, err)
	}
	buf, from := make([]byte, leaf), int64(0)
	for _, x := range runs {
		for off := x.Off; off < x.End; off += leaf {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if _, err := src.ReadAt(buf, from); err != nil {
				return err
			}
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
			from = (from + leaf) % s.Info.Size
		}
	}
	return f.Sync()
}

// diverge writes something else into the dirty pieces of the target.
func (h *huge) diverge(context.Context) (err error) {
	f, err := os.OpenFile(h.target, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b := make([]byte, piece)
	for _, x := range h.dirty {
		if _, err := f.ReadAt(b, x.Off); err != nil {
			return err
		}
		for i := range b {
			b[i] ^= 0x5a
		}
		if _, err := f.WriteAt(b, x.Off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// check compares the content and makes sure that the target has not grown beyond it.
func (h *huge) check(ctx context.Context) error {
	a, err := os.Open(h.source)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(h.target)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := h.sameContent(ctx, a, b); err != nil {
		return err
	}
	var x, y unix.Stat_t
	if err := errors.Join(unix.Fstat(int(a.Fd()), &x), unix.Fstat(int(b.Fd()), &y)); err != nil {
		return err
	}
	const unit = 512 // of Blocks
	if grown := (y.Blocks - x.Blocks) * unit; grown > 64<<20 {
		return fmt.Errorf("wrong result: the target takes %d bytes more than the source", grown)
	}
	return nil
}

func (h *huge) sameContent(ctx context.Context, a, b *os.File) error {
	x, y := make([]byte, leaf), make([]byte, leaf)
	for _, run := range h.runs {
		for off := run.Off; off < run.End; off += leaf {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if _, err := a.ReadAt(x, off); err != nil {
				return err
			}
			if _, err := b.ReadAt(y, off); err != nil {
				return err
			}
			if !bytes.Equal(x, y) {
				return fmt.Errorf("wrong result: the content differs at %#x", off)
			}
		}
	}
	return nil
}

// hugeScenarios: 16 TiB with 2 GiB in them.
func (b *Bench) hugeScenarios(bool) ([]Scenario, error) {
	e, err := b.engine()
	if err != nil {
		return nil, err
	}
	return b.hugePair(e, hugeSize, hugeRun, hugeRuns)
}

func (b *Bench) hugePair(e engine, size, run int64, runs int) ([]Scenario, error) {
	h := &huge{}
	// The engine works on the pair in the place of the set's own images.
	pair := *b.Set
	pair.Source, pair.Target = filepath.Join(b.Set.Dir, "huge.img"), filepath.Join(b.Set.Dir, "huge.target.img")
	e.set = &pair
	exact := e.exact("failback, map", filepath.Join(b.Set.Dir, "differs-huge"))
	makeMap := exact.Prepare
	exact.Prepare = func(ctx context.Context) error { return errors.Join(h.diverge(ctx), makeMap(ctx)) }
	merkle := e.sync("failback, no map")
	merkle.Prepare = func(ctx context.Context) error { return h.diverge(ctx) }
	return []Scenario{{Name: "sync", Cases: []Case{exact, merkle}, Against: merkle.Name,
		Open: func(ctx context.Context) error {
			made, err := b.Set.openHuge(ctx, size, run, runs)
			if err == nil {
				*h = *made
			}
			return err
		},
		Check: func(ctx context.Context) error { return h.check(ctx) },
		Close: func() error { return h.close() },
	}}, nil
}
