package failback

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
)

// memory is a volume in memory.
type memory struct {
	mu sync.RWMutex
	b  []byte
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.b[off:], p), nil
}
func (m *memory) Size() int64 { return int64(len(m.b)) }
func (m *memory) Sync() error { return nil }

// sparseMemory knows which of its pieces hold something.
type sparseMemory struct{ memory }

func (m *sparseMemory) Allocated(context.Context) ([]cbt.Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var x []cbt.Extent
	for off := 0; off < len(m.b); off += pieceSize {
		if end := min(off+pieceSize, len(m.b)); !allZero(m.b[off:end]) {
			x = append(x, cbt.Extent{Off: int64(off), End: int64(end)})
		}
	}
	return cbt.Normalize(x), nil
}

func (m *sparseMemory) ZeroAt(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.b[off : off+n])
	return nil
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

func randomVolume(seed uint64, n int) *memory { return &memory{b: randomBytes(seed, n)} }

func clone(m *memory) *memory { return &memory{b: bytes.Clone(m.b)} }

// scatter changes n bytes and returns the pieces they are in.
func scatter(m *memory, seed uint64, n int) []cbt.Extent {
	r := rand.New(rand.NewPCG(seed, 1))
	var x []cbt.Extent
	for range n {
		i := int64(r.IntN(len(m.b)))
		m.b[i] ^= byte(1 + r.IntN(255))
		x = append(x, cbt.Extent{Off: i, End: i + 1})
	}
	return cbt.Align(cbt.Normalize(x), pieceSize, m.Size())
}

// differing4k is where two volumes truly differ.
func differing4k(a, b *memory) int64 {
	n := int64(0)
	for off := 0; off < len(a.b); off += pieceSize {
		end := min(off+pieceSize, len(a.b))
		if !bytes.Equal(a.b[off:end], b.b[off:end]) {
			n += int64(end - off)
		}
	}
	return n
}

func dirtyMap(t testing.TB, size int64, x []cbt.Extent) *cbt.Map {
	t.Helper()
	m, err := cbt.NewMap(size, cbt.BlockSize(size), func(yield func(cbt.Run) bool) {
		for _, e := range x {
			if !yield(cbt.Run{Extent: e, State: cbt.Dirty}) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// serve makes side reachable and returns how to reach it.
func serve(t testing.TB, side Side, o Options) Side { return serveAll(t, o, side)[0] }

// serveAll makes sides reachable at one server.
func serveAll(t testing.TB, o Options, sides ...Side) []Side {
	t.Helper()
	srv := NewServer(ServerOptions{Options: o, Lookup: func(_ context.Context, name string, _ bool) (Served, error) {
		for _, side := range sides {
			if name == side.Name {
				return Served{Side: side}, nil
			}
		}
		return Served{}, &RefusedError{Volume: name, Reason: "it is not served here", Next: "look at the server's list"}
	}})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := srv.Handle(ctx, c); err != nil {
					t.Logf("server: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		wg.Wait()
	})
	var far []Side
	for _, side := range sides {
		far = append(far, Side{Name: side.Name, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.Addr().String())
		}})
	}
	return far
}

// topologies are the ways two sides can be joined.
var topologies = []struct {
	name                       string
	sourceServed, targetServed bool
	streams                    int
}{
	{"local", false, false, 1},
	{"push", false, true, 1},
	{"pull", true, false, 1},
	{"relay", true, true, 1},
	{"push/3 streams", false, true, 3},
	{"pull/3 streams", true, false, 3},
	{"relay/3 streams", true, true, 3},
}

// arrange puts both sides where a topology has them.
func arrange(t testing.TB, i int, src, dst Side) (Side, Side) {
	p := topologies[i]
	if p.sourceServed {
		dirty := src.Dirty
		src.Dirty = nil
		src = serve(t, src, Options{Checkpoint: time.Millisecond})
		src.Dirty = dirty
	}
	if p.targetServed {
		dst = serve(t, dst, Options{})
	}
	return src, dst
}
