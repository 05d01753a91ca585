package failback

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A villain is a peer that says what its script tells it to, over the real
// protocol: frames with right numbers and sums, and in them whatever it likes.
type villain struct {
	t    *testing.T
	rw   io.ReadWriteCloser
	in   *transport.Conn // only read from
	seq  uint32
	open message.Open // what the session was opened with
	base uint64       // heap in use at its mark

	mail chan letter // everything the other end says, in order; closed at its end
	told error       // the Error it was told, once mail is read to its end
}

// letter is a frame from the other end, copied.
type letter struct {
	kind    transport.Kind
	payload []byte
}

// mailbox holds all that an honest end says to a villain in a test.
const mailbox = 1 << 15

func newVillain(t *testing.T, rw io.ReadWriteCloser) *villain {
	v := &villain{t: t, rw: rw, in: transport.New(rw, transport.Options{Timeout: -1}), mail: make(chan letter, mailbox)}
	go v.listen()
	return v
}

// listen takes what comes, so that the other end never waits for us to read.
func (v *villain) listen() {
	defer close(v.mail)
	for {
		f, err := v.in.Read()
		if err != nil {
			return
		}
		l := letter{f.Kind, bytes.Clone(f.Payload())}
		f.Release()
		v.mail <- l
	}
}

// frame sends a frame with its right number and sum. That it is not taken any
// more is no matter: the other end has had enough.
func (v *villain) frame(f *transport.Frame) {
	f.Seq = v.seq
	v.seq++
	_, _ = v.rw.Write(f.Append(nil))
}

// raw sends bytes as the payload of a frame.
func (v *villain) raw(k transport.Kind, payload []byte) {
	v.frame(&transport.Frame{Kind: k, Raw: len(payload), Body: payload})
}

func (v *villain) say(messages ...message.Message) {
	for _, m := range messages {
		v.raw(m.Kind(), m.Append(nil))
	}
}

// data sends content for extents, as it is and with tags of nothing.
func (v *villain) data(body []byte, spans ...cbt.Extent) {
	v.packed(transport.None, len(body), body, spans...)
}

// packed sends a body under a codec that is said to give raw bytes.
func (v *villain) packed(c transport.Codec, raw int, body []byte, spans ...cbt.Extent) {
	m := message.Data{Spans: wireExtents(spans)}
	for _, x := range spans {
		m.Sums = append(m.Sums, make([]byte, pieces(x)*len(tag{}))...)
	}
	v.frame(&transport.Frame{Kind: kindData, Codec: c, Raw: raw, Head: m.Append(nil), Body: body})
}

func wireExtents(list []cbt.Extent) []message.Extent {
	var out []message.Extent
	for _, x := range list {
		out = append(out, message.Extent(x))
	}
	return out
}

// hear returns the next frame of a kind, passing over others; false if the other
// end has gone before that.
func (v *villain) hear(kind transport.Kind) ([]byte, bool) {
	for l := range v.mail {
		v.note(l)
		if l.kind == kind {
			return l.payload, true
		}
	}
	return nil, false
}

// must is hear for what an honest end owes.
func (v *villain) must(kind transport.Kind, m interface{ Decode([]byte) error }) bool {
	p, ok := v.hear(kind)
	if !ok {
		v.t.Errorf("no frame of kind %d came; the other end said %v", kind, v.told)
		return false
	}
	if m == nil {
		return true
	}
	if err := m.Decode(p); err != nil {
		v.t.Errorf("frame of kind %d: %v", kind, err)
		return false
	}
	return true
}

func (v *villain) note(l letter) {
	if l.kind == kindError && v.told == nil {
		v.told = peerError(l.payload)
	}
}

// leave waits for the other end's last word, and closes. Alive, it goes on
// saying that it is there, so that nobody ends this for silence.
func (v *villain) leave(alive bool) {
	ping := time.NewTicker(5 * time.Second)
	defer ping.Stop()
	for open := true; open; {
		var l letter
		select {
		case l, open = <-v.mail:
			v.note(l)
			if l.kind == kindError {
				_ = v.rw.Close()
			}
		case <-ping.C:
			if alive {
				v.frame(&transport.Frame{Kind: transport.Ping})
			}
		}
	}
	_ = v.rw.Close()
}

// mark notes what is held before the crime.
func (v *villain) mark() { v.base = heap() }

// bounded fails if more than most bytes of heap are held on our account since the mark.
func (v *villain) bounded(most int64) {
	v.t.Helper()
	if n := int64(heap()) - int64(v.base); n > most {
		v.t.Errorf("%d bytes are held on account of this peer, the bound is %d", n, most)
	}
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// everAllocated is all that was ever allocated, in bytes.
func everAllocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A guarded volume notes what is read and written of it, and by what it differs.
type guarded struct {
	*memory
	mu      sync.Mutex
	outside bool // a read or a write went past its ends
	written []cbt.Extent
}

func (g *guarded) look(p []byte, off int64) {
	if off < 0 || off+int64(len(p)) > g.Size() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.outside = true
	}
}

func (g *guarded) ReadAt(p []byte, off int64) (int, error) {
	g.look(p, off)
	return g.memory.ReadAt(p, off)
}

func (g *guarded) WriteAt(p []byte, off int64) (int, error) {
	g.look(p, off)
	g.mu.Lock()
	g.written = append(g.written, cbt.Extent{Off: off, End: off + int64(len(p))})
	g.mu.Unlock()
	return g.memory.WriteAt(p, off)
}

// A crime is what one hostile peer does, and how it must end.
type crime struct {
	name string
	// do plays the peer. The session has been opened.
	do func(v *villain)
	// want is a part of the reason, at our end and, where it can be told, at the peer's.
	want string
	// quiet: the peer is not told, for the stream is broken or it is only gone.
	quiet bool
	// alive: it goes on saying that it is there.
	alive bool
	// most is how much may be allocated in all, 0: wrongMost.
	most uint64
	// may is what it may have written; nil: nothing.
	may []cbt.Extent
	// options are our own.
	options Options
	// open is the first frame, as it is on the wire; nil: one that fits.
	open []byte
}

// wrongMost is how much a session may allocate over a peer that says something
// wrong: room for what is under way, and never for what was only announced.
const wrongMost = 24 << 20 // bytes

// end holds the end of a session against what a crime must come to.
func (c *crime) end(t *testing.T, err error, v *villain, spent uint64) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), c.want) {
		t.Errorf("the session ended with %v, want %q", err, c.want)
	}
	if !c.quiet && (v.told == nil || !strings.Contains(v.told.Error(), c.want)) {
		t.Errorf("the peer was told %v, want %q", v.told, c.want)
	}
	most := c.most
	if most == 0 {
		most = wrongMost
	}
	if spent > most {
		t.Errorf("%d bytes were allocated, the bound is %d", spent, most)
	}
}

// hostileSize is the size of the volumes in these tests: several units.
const hostileSize = 6 << 20

func hostileInfo() message.VolumeInfo {
	return message.VolumeInfo{Size: hostileSize, Align: 512, Name: "theirs"}
}

// againstTarget runs a hostile source against a served target.
func (c *crime) againstTarget(t *testing.T, side Side, write bool) {
	g := &guarded{memory: randomVolume(1, hostileSize)}
	was := clone(g.memory)
	side.Name = "dst"
	if side.Volume == nil {
		side.Volume = g
	}
	within(t, func(t *testing.T) {
		o := c.options
		o.Workers = 2
		srv := NewServer(ServerOptions{Options: o, Lookup: func(_ context.Context, name string, w bool) (Served, error) {
			if name != "dst" || w != write {
				return Served{}, &RefusedError{Volume: name, Reason: "it is not served here", Next: "look at the list"}
			}
			return Served{Side: side}, nil
		}})
		near, far := transport.Pipe()
		before := everAllocated()
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = srv.Handle(context.Background(), far)
		}()
		v := newVillain(t, near)
		v.begin(c.open, write)
		c.do(v)
		v.leave(c.alive)
		<-done
		c.end(t, err, v, everAllocated()-before)
		if len(srv.sessions) != 0 {
			t.Errorf("the server still knows of %d sessions", len(srv.sessions))
		}
	})
	c.unharmed(t, g, was)
}

// againstStuck is the same with a volume that takes and syncs nothing until free is closed.
func (c *crime) againstStuck(t *testing.T, free chan struct{}) {
	wait := func(int64) error { <-free; return nil }
	c.againstTarget(t, Side{Volume: &faulty{memory: randomVolume(1, hostileSize), write: wait, sync: wait}}, true)
}

// begin opens a session, in its own words or in those of a frame.
func (v *villain) begin(frame []byte, write bool) {
	v.open = message.Open{MinVersion: 1, MaxVersion: 1, Session: hostileSession, Role: roleTarget, Write: write, Volume: "dst"}
	if frame == nil {
		v.say(v.open)
	} else {
		_, _ = v.rw.Write(frame)
		v.seq++
	}
	v.must(kindOpened, &message.Opened{})
}

var hostileSession = [16]byte{0xba, 0xd}

// unharmed holds what became of a volume against what may have.
func (c *crime) unharmed(t *testing.T, g *guarded, was *memory) {
	t.Helper()
	if g.outside {
		t.Error("something was read or written outside the volume")
	}
	for _, x := range g.written {
		if rest := cbt.Subtract([]cbt.Extent{x}, c.may); len(rest) > 0 {
			t.Errorf("%v was written, allowed was %v", x, c.may)
		}
	}
	for _, x := range cbt.Subtract(wholeOf(hostileSize), c.may) {
		if !bytes.Equal(g.b[x.Off:x.End], was.b[x.Off:x.End]) {
			t.Errorf("the volume has changed within %v", x)
		}
	}
}

// greet begins a session as its source.
func (v *villain) greet(change func(*message.Start)) (info message.Info) {
	m := message.Start{Session: v.open.Session, Mode: uint8(modeSync), Volume: hostileInfo(), Streams: 1}
	if change != nil {
		change(&m)
	}
	v.say(m)
	v.must(kindInfo, &info)
	return info
}

// plan tells a plan of leaves of 64 KiB over candidates.
func (v *villain) plan(candidates ...cbt.Extent) {
	v.say(hostilePlan(candidates), message.Extents{Purpose: extentsCandidates, Last: true, Extents: wireExtents(candidates)})
	v.must(kindAgree, &message.Agree{})
}

func hostilePlan(candidates []cbt.Extent) message.Plan {
	return message.Plan{Rung: uint8(RungMerkle), Reason: "because", Level: 1, From: uint8(fromVolume),
		Leaf: defaultLeaf, Candidates: cbt.Total(candidates), Verify: uint8(VerifyChanged)}
}

// moving brings a session to the state in which data may come.
func (v *villain) moving(candidates ...cbt.Extent) {
	v.greet(nil)
	v.plan(candidates...)
}

// againstSource runs a hostile target against a source that pushes.
func (c *crime) againstSource(t *testing.T) {
	g := &guarded{memory: randomVolume(1, hostileSize)}
	was := clone(g.memory)
	within(t, func(t *testing.T) {
		near, far := transport.Pipe()
		before := everAllocated()
		v := newVillain(t, far)
		done := make(chan struct{})
		go func() {
			defer close(done)
			v.welcome()
			c.do(v)
			v.leave(c.alive)
		}()
		o := c.options
		o.Workers, o.Codec = 2, "none"
		_, err := Sync(context.Background(), Side{Volume: g, Name: "src"}, dialOnce("theirs", near), o)
		<-done
		c.end(t, err, v, everAllocated()-before)
	})
	c.unharmed(t, g, was)
	if len(g.written) > 0 {
		t.Errorf("the source was written: %v", g.written)
	}
}

// welcome plays a server up to its answer to Open.
func (v *villain) welcome() {
	v.must(kindOpen, &v.open)
	v.say(message.Opened{Version: 1, Volume: hostileInfo()})
}

// dialOnce is a side at a peer whose connection there is already.
func dialOnce(name string, conn io.ReadWriteCloser) Side {
	var once sync.Once
	return Side{Name: name, Dial: func(context.Context) (io.ReadWriteCloser, error) {
		err := errors.New("dialed twice")
		once.Do(func() { err = nil })
		return conn, err
	}}
}

// answer begins a session as its target: it takes Start and says Info.
func (v *villain) answer(change func(*message.Info)) (start message.Start) {
	v.must(kindStart, &start)
	m := message.Info{Volume: hostileInfo(), Share: [16]byte{1}}
	if change != nil {
		change(&m)
	}
	v.say(m)
	return start
}

// agree takes the plan and its candidates, and says a window.
func (v *villain) agree(window uint32) (plan message.Plan) {
	v.must(kindPlan, &plan)
	v.candidates()
	v.say(message.Agree{Window: window})
	return plan
}

// candidates waits for the list to its end.
func (v *villain) candidates() {
	for {
		var m message.Extents
		if !v.must(kindExtents, &m) || m.Last {
			return
		}
	}
}

// digests says a digest for each leaf of the units of a volume of hostileSize
// with leaves of 64 KiB: 16 leaves to a unit of 1 MiB.
func (v *villain) digests(units ...uint64) {
	for _, u := range units {
		v.say(message.Digests{Unit: u, Size: 16, Sums: bytes.Repeat([]byte{0xee}, 16*16)})
	}
}

// differ has every piece of the source's volume wanted: all is different here.
func (v *villain) differ() {
	const units = hostileSize >> 20
	for u := range uint64(units) {
		v.digests(u)
	}
	for range units {
		var w message.Want
		v.must(kindWant, &w)
		v.say(message.Pieces{Unit: w.Unit, Leaves: w.Leaves, Sums: bytes.Repeat([]byte{0xdd}, 16*256)})
	}
}

// final waits for the last barrier.
func (v *villain) final() (m message.Barrier) {
	for !m.Final && v.must(kindBarrier, &m) {
	}
	return m
}
