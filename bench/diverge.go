package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/failback/failback/cbt"
)

// A Divergence says how much of the target differs from the source, and how it is spread. The zero value is no difference.
type Divergence struct {
	Percent float64 // share of the leaves that differ, in percent
	Runs    bool    // whole leaves in long runs; else one piece in each chosen leaf
}

// runLeaves is the length of a run, in leaves: 4 MiB.
const runLeaves = 64

// ParseDivergence reads "0", "rand-0.1", "seq-10" and so on.
func ParseDivergence(s string) (Divergence, error) {
	if s == "0" {
		return Divergence{}, nil
	}
	kind, share, ok := strings.Cut(s, "-")
	p, err := strconv.ParseFloat(share, 64)
	if !ok || err != nil || !(p > 0 && p <= 100) || (kind != "rand" && kind != "seq") {
		return Divergence{}, fmt.Errorf("divergence %q: want 0, rand-PERCENT or seq-PERCENT", s)
	}
	return Divergence{Percent: p, Runs: kind == "seq"}, nil
}

// String returns what [ParseDivergence] reads.
func (d Divergence) String() string {
	switch share := strconv.FormatFloat(d.Percent, 'f', -1, 64); {
	case d.Percent == 0:
		return "0"
	case d.Runs:
		return "seq-" + share
	default:
		return "rand-" + share
	}
}

// A move overwrites [Off, Off+Len) of the target with the source's bytes at From. All three are multiples of 4 KiB.
type move struct{ Off, Len, From int64 }

// Divergent is what is true of a target after [Set.Diverge].
type Divergent struct {
	Divergence Divergence
	Pieces     []cbt.Extent // what truly differs, in 4 KiB pieces
	Leaves     []cbt.Extent // the 64 KiB leaves around them
	PieceList  string       // path of a text file with Pieces, one "offset length" a line
	LeafList   string       // the same for Leaves
	moves      []move
}

// Diverge makes the target differ from the source as asked and leaves it durable. Where it differs in that way already
// nothing is written. What differs follows from the image and the seed alone. The cost is that of the bytes that differ,
// plus those that differed before.
func (s *Set) Diverge(ctx context.Context, d Divergence) (*Divergent, error) {
	if s.state != nil && s.state.Divergence == d {
		return s.state, nil
	}
	if err := s.restore(ctx); err != nil {
		return nil, err
	}
	div, err := s.Plan(d)
	if err != nil {
		return nil, err
	}
	s.state = div
	if err := s.play(ctx, div.moves, false); err != nil {
		return nil, fmt.Errorf("diverge %s: %w", s.Target, err)
	}
	return div, nil
}

// Plan finds out what [Set.Diverge] would make differ and writes the lists of it, without touching the target.
func (s *Set) Plan(d Divergence) (*Divergent, error) {
	if div := s.known[d]; div != nil {
		return div, nil
	}
	div, err := s.choose(d)
	if err != nil {
		return nil, fmt.Errorf("choose what differs: %w", err)
	}
	if err := div.writeLists(filepath.Join(s.Dir, "differs-"+d.String())); err != nil {
		return nil, err
	}
	s.known[d] = div
	return div, nil
}

// restore undoes the last Diverge, whether or not a run has brought the target in line since.
func (s *Set) restore(ctx context.Context) error {
	if s.state == nil {
		return nil
	}
	if err := s.play(ctx, s.state.moves, true); err != nil {
		return fmt.Errorf("restore %s: %w", s.Target, err)
	}
	s.state = nil
	return nil
}

// Converged tells the set that a run has made the target equal to the source.
func (s *Set) Converged() { s.state = nil }

// Repair makes the target equal to the source by comparing all of both.
func (s *Set) Repair(ctx context.Context) error {
	s.state = nil
	if fi, err := os.Stat(s.Target); err != nil || fi.Size() != s.Info.Size {
		fmt.Fprintf(s.log, "copying %s\n", s.Target)
		return copyDense(ctx, s.Target, s.Source)
	}
	wrong, err := differing(ctx, s.Source, s.Target)
	if err != nil {
		return err
	}
	moves := make([]move, len(wrong))
	for i, e := range wrong {
		moves[i] = move{Off: e.Off, Len: e.Len(), From: e.Off}
	}
	return s.play(ctx, moves, true)
}

// play writes moves to the target, or the source's own bytes in their place, and syncs it.
func (s *Set) play(ctx context.Context, moves []move, undo bool) (err error) {
	src, err := os.Open(s.Source)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(s.Target, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	buf := make([]byte, chunk)
	for _, m := range moves {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		from := m.From
		if undo {
			from = m.Off
		}
		for done := int64(0); done < m.Len; done += chunk {
			b := buf[:min(chunk, m.Len-done)]
			if _, err := src.ReadAt(b, from+done); err != nil {
				return err
			}
			if _, err := dst.WriteAt(b, m.Off+done); err != nil {
				return err
			}
		}
	}
	return dst.Sync()
}

// A chooser draws moves for one divergence.
type chooser struct {
	src  *os.File
	size int64
	rng  *rand.Rand
	old  []byte // the source's leaf that is to differ
	new  []byte // what the target gets in its place
}

// choose draws the moves of d and finds out by comparing what they change.
func (s *Set) choose(d Divergence) (*Divergent, error) {
	src, err := os.Open(s.Source)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	// The share takes part in the seed: 10% is not 1% and more.
	c := &chooser{src: src, size: s.Info.Size, rng: rand.New(rand.NewPCG(s.seed, uint64(d.Percent*1000))),
		old: make([]byte, leaf), new: make([]byte, leaf)}
	div := &Divergent{Divergence: d}
	for _, n := range c.leaves(d) {
		m, pieces, err := c.draw(n, d.Runs)
		if err != nil {
			return nil, err
		}
		div.moves = append(div.moves, m)
		div.Pieces = append(div.Pieces, pieces...)
	}
	div.Pieces = cbt.Normalize(div.Pieces)
	div.Leaves = cbt.Align(div.Pieces, leaf, s.Info.Size)
	return div, nil
}

// leaves draws the numbers of the leaves that are to differ, sorted.
func (c *chooser) leaves(d Divergence) []int64 {
	n := c.size / leaf
	want := int64(float64(n)*d.Percent/100 + 0.5)
	if want == 0 && d.Percent > 0 {
		want = 1
	}
	run := int64(1)
	if d.Runs {
		run = min(runLeaves, want)
	}
	var out []int64
	for _, slot := range c.rng.Perm(int((n + run - 1) / max(run, 1))) {
		for i := int64(slot) * run; i < min(int64(slot+1)*run, n) && int64(len(out)) < want; i++ {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// draw finds content elsewhere in the image that makes a leaf differ, in one piece or as a whole.
func (c *chooser) draw(n int64, whole bool) (move, []cbt.Extent, error) {
	m := move{Off: n * leaf, Len: leaf}
	if !whole {
		m = move{Off: n*leaf + c.rng.Int64N(leaf/piece)*piece, Len: piece}
	}
	old, repl := c.old[:m.Len], c.new[:m.Len]
	if _, err := c.src.ReadAt(old, m.Off); err != nil {
		return m, nil, err
	}
	const tries = 10000 // an image is mostly content; this many misses mean that it is empty
	for range tries {
		m.From = c.rng.Int64N((c.size-m.Len)/piece+1) * piece
		if _, err := c.src.ReadAt(repl, m.From); err != nil {
			return m, nil, err
		}
		var pieces []cbt.Extent
		for i := int64(0); i < m.Len; i += piece {
			if !bytes.Equal(old[i:i+piece], repl[i:i+piece]) {
				pieces = append(pieces, cbt.Extent{Off: m.Off + i, End: m.Off + i + piece})
			}
		}
		if len(pieces) > 0 && !isZero(repl[:piece]) {
			return m, pieces, nil
		}
	}
	return m, nil, fmt.Errorf("no content to put at %#x", m.Off)
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func (d *Divergent) writeLists(base string) error {
	d.PieceList, d.LeafList = base+".4k", base+".64k"
	if err := writeList(d.PieceList, d.Pieces); err != nil {
		return err
	}
	return writeList(d.LeafList, d.Leaves)
}

// writeList writes extents as text, one "offset length" in bytes a line: what `failback map from-extents` reads.
func writeList(path string, x []cbt.Extent) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	w := bufio.NewWriter(f)
	for _, e := range x {
		fmt.Fprintf(w, "%d %d\n", e.Off, e.Len())
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	return nil
}

// ReadList reads a list of a [Divergent].
func ReadList(path string) ([]cbt.Extent, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read list: %w", err)
	}
	defer f.Close()
	var out []cbt.Extent
	in := bufio.NewScanner(f)
	for line := 1; in.Scan(); line++ {
		var off, n int64
		if _, err := fmt.Sscanf(in.Text(), "%d %d", &off, &n); err != nil || off < 0 || n <= 0 || off+n < off {
			return nil, fmt.Errorf("read list %s: line %d: want \"offset length\", got %q", path, line, in.Text())
		}
		out = append(out, cbt.Extent{Off: off, End: off + n})
	}
	return cbt.Normalize(out), in.Err()
}
