package failback

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// tagged sends content for one extent with its true tags under the session's key.
func (v *villain) tagged(key [32]byte, body []byte, x cbt.Extent) {
	tg, err := newTagger(key)
	if err != nil {
		v.t.Fatal(err)
	}
	m := message.Data{Spans: wireExtents([]cbt.Extent{x})}
	for off := x.Off; off < x.End; off += pieceSize {
		d := tg.piece(off, body[off-x.Off:][:pieceSize])
		m.Sums = append(m.Sums, d[:]...)
	}
	v.frame(&transport.Frame{Kind: kindData, Raw: len(body), Head: m.Append(nil), Body: body})
}

// TestHostileTwice: a candidate is written once. Two contents for one place are
// the source's fault, not the medium's.
func TestHostileTwice(t *testing.T) {
	start := func(v *villain) [32]byte {
		info := v.greet(nil)
		v.plan(first, third)
		return sessionKey(v.open.Session, [16]byte{}, info.Share)
	}
	part := cbt.Extent{Off: 4096, End: 8192}
	for _, c := range []crime{
		{name: "in one generation", want: "data for [0x1000,0x2000) twice before barrier 1", may: []cbt.Extent{first}, do: func(v *villain) {
			key := start(v)
			v.tagged(key, content(first), first)
			v.tagged(key, bytes.Repeat([]byte{0xcd}, 4096), part)
			v.say(message.Barrier{ID: 1, Frames: 2, Final: true})
		}},
		{name: "data and zeroes", want: "twice before barrier 1", may: []cbt.Extent{first}, do: func(v *villain) {
			key := start(v)
			v.tagged(key, content(first), first)
			v.say(message.Zero{Spans: wireExtents([]cbt.Extent{part})}, message.Barrier{ID: 1, Frames: 2, Final: true})
		}},
		{name: "again and again", want: "more data than the 131072 bytes of the candidates", may: []cbt.Extent{first}, do: func(v *villain) {
			key := start(v)
			for i := range uint64(3) {
				v.tagged(key, content(first), first)
				v.say(message.Barrier{ID: i + 1, Frames: i + 1})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.againstTarget(t, Side{}, true) })
	}
}

// TestHostileSession: a session is the one that was opened.
func TestHostileSession(t *testing.T) {
	c := crime{want: "start of session 07000000 on a connection of ba0d0000", do: func(v *villain) {
		v.say(message.Start{Session: [16]byte{7}, Mode: 1, Volume: hostileInfo()})
	}}
	c.againstTarget(t, Side{}, true)
}

// TestHostileEndlessTree: an answer with nodes of nothing goes on no longer.
func TestHostileEndlessTree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.fbt")
	if _, err := Digest(t.Context(), Side{Volume: randomVolume(1, hostileSize)}, path, Options{}); err != nil {
		t.Fatal(err)
	}
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		v := newVillain(t, far)
		done := make(chan struct{})
		go func() {
			defer close(done)
			v.welcome()
			v.answer(func(m *message.Info) {
				m.Volume.Tree = &message.TreeInfo{Algorithm: uint8(merkle.BLAKE3), Leaf: defaultLeaf, Root: [32]byte{7}}
			})
			var m message.Nodes
			v.must(kindNodes, &m)
			for range 1000 {
				v.say(message.NodeHashes{ID: m.ID})
			}
			v.leave(true)
		}()
		src := Side{Volume: randomVolume(1, hostileSize), Name: "src", Tree: path, TrustTree: true}
		_, err := Sync(context.Background(), src, dialOnce("theirs", near), Options{Codec: "none", Workers: 2})
		<-done
		if err == nil || !strings.Contains(err.Error(), "goes on with no tree nodes") {
			t.Errorf("got %v", err)
		}
	})
}

// TestHostileReport: what a served source reports can be printed.
func TestHostileReport(t *testing.T) {
	for name, r := range map[string]string{
		"a terminal's words": `{"reason":"\u001b[2J"}`, "extents of nothing": `{"extents":[{},{}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			againstClient(t, clients["sync from it"], nil, func(v *villain) {
				sealed(v)
				v.say(message.Report{Last: true, Chunk: []byte(r)}, message.Bye{})
			}, "protocol violation: report: ")
		})
	}
}

// namedPeers is a server whose connections say who their peer is.
func namedPeers(o ServerOptions) (srv *Server, come func(t *testing.T, wg *sync.WaitGroup, peer string, m message.Open) (*villain, *error)) {
	type key struct{}
	o.Peer = func(ctx context.Context) string { return ctx.Value(key{}).(string) }
	o.Lookup = func(context.Context, string, bool) (Served, error) {
		return Served{Side: Side{Volume: randomVolume(1, hostileSize), Name: "dst"}}, nil
	}
	srv = NewServer(o)
	return srv, func(t *testing.T, wg *sync.WaitGroup, peer string, m message.Open) (*villain, *error) {
		near, far := transport.Pipe()
		err := new(error)
		wg.Go(func() { *err = srv.Handle(context.WithValue(context.Background(), key{}, peer), far) })
		v := newVillain(t, near)
		m.MinVersion, m.MaxVersion, m.Session, m.Volume = 1, 1, hostileSession, "dst"
		v.open = m
		v.say(m)
		return v, err
	}
}

// TestPeersApart: who knows another peer's session can neither join nor end it.
func TestPeersApart(t *testing.T) {
	within(t, func(t *testing.T) {
		_, come := namedPeers(ServerOptions{})
		var wg sync.WaitGroup
		home, err := come(t, &wg, "home", message.Open{Role: roleTarget, Write: true})
		home.must(kindOpened, nil)
		eve, _ := come(t, &wg, "eve", message.Open{Role: roleJoin, Stream: 1})
		eve.leave(false)
		if eve.told == nil || !strings.Contains(eve.told.Error(), "no session of this id") {
			t.Errorf("eve joins: %v", eve.told)
		}
		again, _ := come(t, &wg, "eve", message.Open{Role: roleTarget, Write: true})
		again.must(kindOpened, nil)
		home.greet(nil) // it is still served
		_ = again.rw.Close()
		_ = home.rw.Close()
		wg.Wait()
		if errors.Is(*err, errTakenOver) {
			t.Errorf("eve has ended it: %v", *err)
		}
		again.leave(false)
		home.leave(false)
	})
}

// TestIdlePeers: who is alive and says nothing of use does not stay for ever.
func TestIdlePeers(t *testing.T) {
	for _, c := range []struct {
		name, want string
		role       uint8
		do         func(*villain)
		within     time.Duration
	}{
		{"no start", "nothing but keep-alive", roleTarget, func(*villain) {}, time.Hour},
		{"no plan", "nothing but keep-alive", roleTarget, func(v *villain) { v.greet(nil) }, time.Hour},
		{"no data", "nothing but keep-alive", roleTarget, func(v *villain) { v.moving(first) }, time.Hour},
		{"no task", "closed", roleSource, func(*villain) {}, taskTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			within(t, func(t *testing.T) {
				_, come := namedPeers(ServerOptions{Idle: 15 * time.Minute})
				var wg sync.WaitGroup
				v, err := come(t, &wg, "home", message.Open{Role: c.role, Write: true})
				v.must(kindOpened, nil)
				began := time.Now()
				c.do(v)
				v.leave(true)
				wg.Wait()
				if *err == nil || !strings.Contains((*err).Error(), c.want) {
					t.Errorf("got %v, want %q", *err, c.want)
				}
				if took := time.Since(began); took > c.within+time.Minute {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
