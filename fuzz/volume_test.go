package fuzz_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
)

// pieceBytes is the granularity of what a session sends.
const pieceBytes = 4096

// A watched volume lies in memory and notes what is done to it.
type watched struct {
	mu      sync.Mutex
	b       []byte
	written []cbt.Extent
	outside bool // something was asked for that it does not have
}

func newWatched(content []byte) *watched { return &watched{b: bytes.Clone(content)} }

// volume is w as a session gets it: with or without a word on what is allocated.
func (w *watched) volume(sparse bool) failback.Volume {
	if sparse {
		return &sparseWatched{w}
	}
	return w
}

func (w *watched) within(p []byte, off int64) bool {
	ok := off >= 0 && off+int64(len(p)) <= int64(len(w.b))
	w.outside = w.outside || !ok
	return ok
}

// ReadAt implements failback.Volume.
func (w *watched) ReadAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.within(p, off) {
		return 0, io.EOF
	}
	return copy(p, w.b[off:]), nil
}

// WriteAt implements failback.Volume.
func (w *watched) WriteAt(p []byte, off int64) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.within(p, off) {
		return 0, io.ErrShortWrite
	}
	w.written = append(w.written, cbt.Extent{Off: off, End: off + int64(len(p))})
	return copy(w.b[off:], p), nil
}

// Size implements failback.Volume.
func (w *watched) Size() int64 { return int64(len(w.b)) }

// Sync implements failback.Volume.
func (w *watched) Sync() error { return nil }

// wrote is what was written, in order.
func (w *watched) wrote() []cbt.Extent { return cbt.Normalize(w.written) }

type sparseWatched struct{ *watched }

// Allocated implements failback.Allocator.
func (s *sparseWatched) Allocated(context.Context) ([]cbt.Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cbt.Normalize(differing(s.b, make([]byte, len(s.b)))), nil
}

// ZeroAt implements failback.Zeroer.
func (s *sparseWatched) ZeroAt(off, n int64) error {
	_, err := s.WriteAt(make([]byte, n), off)
	return err
}

// differing is where a and b, of one length, differ, in pieces.
func differing(a, b []byte) []cbt.Extent {
	var x []cbt.Extent
	for off := 0; off < len(a); off += pieceBytes {
		if end := min(off+pieceBytes, len(a)); !bytes.Equal(a[off:end], b[off:end]) {
			x = append(x, cbt.Extent{Off: int64(off), End: int64(end)})
		}
	}
	return cbt.Normalize(x)
}

// A pair is two volumes before a session, with what is kept of them.
type pair struct {
	source, target         []byte
	sourceTree, targetTree string
	dirty                  *cbt.Map // covers what differs
}

// pairs are prepared once: of how many pieces and a short one, and in how many
// of them they differ; a target of nothing but zeroes differs in all.
var pairs []pair

var pairShapes = []struct {
	pieces, differ int
	empty          bool
}{
	{pieces: 66, differ: 20}, {pieces: 66, differ: 2}, {pieces: 66, empty: true}, {pieces: 66},
	{pieces: 11, differ: 4}, {pieces: 11, differ: 1}, {pieces: 11, empty: true}, {pieces: 11},
}

func pairOf(i int) *pair { return &pairs[i%len(pairs)] }

// preparePairs makes the volumes and their trees, and whatever the engine makes
// once in a process: what is made in a bubble belongs to it.
func preparePairs(f testing.TB) {
	f.Helper()
	decodeOnce(f)
	dir := f.TempDir()
	pairs = nil
	for i, shape := range pairShapes {
		r := rand.NewChaCha8([32]byte{byte(i % 4)})
		p := pair{source: content(shape.pieces*pieceBytes+2560, r)}
		p.target = bytes.Clone(p.source)
		for n := range shape.differ {
			off := (3*n + 3) % (shape.pieces + 1) * pieceBytes
			if clear(p.target[off:min(off+pieceBytes, len(p.target))]); n%3 != 0 {
				p.target[off+int(r.Uint64()%2048)] ^= 1
			}
		}
		if shape.empty {
			clear(p.target)
		}
		p.sourceTree = keepTree(f, p.source, filepath.Join(dir, fmt.Sprintf("%d-source", i)))
		p.targetTree = keepTree(f, p.target, filepath.Join(dir, fmt.Sprintf("%d-target", i)))
		p.dirty = mapOf(f, int64(len(p.source)), cbt.Union(differing(p.source, p.target), []cbt.Extent{{Off: 0, End: 2 * pieceBytes}}))
		pairs = append(pairs, p)
	}
}

// content is n bytes: of five pieces two are zeroes, one is random and two compress well.
func content(n int, r io.Reader) []byte {
	b := make([]byte, n)
	for i := 0; i*pieceBytes < n; i++ {
		piece := b[i*pieceBytes : min((i+1)*pieceBytes, n)]
		switch i % 5 {
		case 0, 1:
		case 2:
			_, _ = r.Read(piece)
		default:
			copy(piece, bytes.Repeat(fmt.Appendf(nil, "a line of piece %d; ", i), pieceBytes/16))
		}
	}
	return b
}

func keepTree(f testing.TB, content []byte, path string) string {
	shape := merkle.Shape{Size: int64(len(content)), Leaf: pieceBytes, Algorithm: merkle.BLAKE3}
	file, _, err := merkle.Build(f.Context(), bytes.NewReader(content), shape, path, merkle.Options{})
	if err != nil {
		f.Fatal(err)
	}
	if err := file.Close(); err != nil {
		f.Fatal(err)
	}
	return path
}

func mapOf(f testing.TB, size int64, list []cbt.Extent) *cbt.Map {
	m, err := cbt.NewMap(size, cbt.BlockSize(size), func(yield func(cbt.Run) bool) {
		for _, x := range list {
			if !yield(cbt.Run{Extent: x, State: cbt.Dirty}) {
				return
			}
		}
	})
	if err != nil {
		f.Fatal(err)
	}
	return m
}

// decodeOnce has the process make the decompressor that it keeps.
func decodeOnce(f testing.TB) {
	var b bytes.Buffer
	if err := sendData("zstd", sample(3), sample(8000))(transport.New(stream{nil, &b}, transport.Options{})); err != nil {
		f.Fatal(err)
	}
	frame, err := transport.New(stream{&b, io.Discard}, transport.Options{}).Read()
	if err != nil {
		f.Fatal(err)
	}
	defer frame.Release()
	if _, err := transport.Decode(frame, make([]byte, 8000)); err != nil || frame.Codec != transport.Zstd {
		f.Fatalf("codec %v: %v", frame.Codec, err)
	}
}

// bounded runs a session and fails if it allocates more than most, or if what
// the process keeps has grown with the sessions before: on the heap or, where
// the engine's buffers are mapped, outside of it.
func bounded(t *testing.T, most uint64, session func()) {
	before := memoryMetric("/gc/heap/allocs:bytes")
	session()
	if n := memoryMetric("/gc/heap/allocs:bytes") - before; n > most {
		t.Errorf("allocated %d bytes, at most %d are due", n, most)
	}
	mapped := dataBytes(t) - int64(memoryMetric("/memory/classes/total:bytes"))
	if mappedFirst == 0 {
		mappedFirst = mapped
	}
	if live := memoryMetric("/gc/heap/live:bytes"); live > keptLive || mapped > mappedFirst+keptMapped {
		t.Errorf("the process keeps %d bytes on the heap, and %d outside of it, %d after its first session: something is not given back",
			live, mapped, mappedFirst)
	}
}

// mappedFirst is what the process had outside of its heap after its first session.
var mappedFirst int64

// What may be kept for the next session: on the heap twice the 100 MiB of the
// engine that makes inputs, and outside of it our idle buffers and the threads'
// stacks, which count in whole.
const (
	keptLive   = 512 << 20
	keptMapped = 96 << 20
)

// dataBytes is the process's data, heap and mapped buffers, resident or not.
func dataBytes(t *testing.T) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	var pages [6]int64 // size, resident, shared, text, library, data
	for i, word := range strings.Fields(string(b)) {
		if i < len(pages) && err == nil {
			pages[i], err = strconv.ParseInt(word, 10, 64)
		}
	}
	if err != nil {
		t.Fatalf("read the size of the process: %v", err)
	}
	return pages[5] * int64(os.Getpagesize())
}

func memoryMetric(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
