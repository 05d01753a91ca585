package failback

import (
	"bytes"
	"io"
	"sync"
	"testing"

	"github.com/failback/failback/transport"
)

// TestHostileReplay: an old session said again, frame by frame, is not taken for
// a new one: its digests are under another key.
func TestHostileReplay(t *testing.T) {
	said := recorded(t)
	if len(said) < 10 {
		t.Fatalf("only %d frames were recorded", len(said))
	}
	c := crime{name: "replay", open: said[0], want: "the medium does not hold what was written", most: 96 << 20, may: wholeOf(hostileSize), do: func(v *villain) {
		for _, f := range said[1:] {
			_, _ = v.rw.Write(f)
			if transport.Kind(f[0]) == kindBarrier && f[len(f)-1] == 1 {
				return // the last one; what comes then waits for its answer
			}
		}
	}}
	c.againstTarget(t, Side{}, true)
}

// recorded is every frame that an honest source said in a session of its own,
// as it was on the wire.
func recorded(t *testing.T) [][]byte {
	t.Helper()
	far, wait := pipeServe(t.Context(), Options{}, Side{Volume: randomVolume(1, hostileSize), Name: "dst"})
	rw, err := far[0].Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tap := &tapped{ReadWriteCloser: rw}
	if _, err := Sync(t.Context(), Side{Volume: randomVolume(5, hostileSize), Name: "src"}, dialOnce("dst", tap), Options{Codec: "none", Rung: RungFull}); err != nil {
		t.Fatal(err)
	}
	wait()
	in := transport.New(&tapped{ReadWriteCloser: rw, from: bytes.NewReader(tap.said.Bytes())}, transport.Options{})
	var said [][]byte
	for {
		f, err := in.Read()
		if err != nil {
			return said
		}
		said = append(said, f.Append(nil))
		f.Release()
	}
}

// tapped is a connection that notes what is written to it, and reads from
// another place if it is given one.
type tapped struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	said bytes.Buffer
	from io.Reader
}

func (c *tapped) Write(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Write(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said.Write(b[:n])
	return n, err
}

func (c *tapped) Read(b []byte) (int, error) {
	if c.from != nil {
		return c.from.Read(b)
	}
	return c.ReadWriteCloser.Read(b)
}
