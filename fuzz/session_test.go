package fuzz_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
)

// sessionTime is how long a session may take, on the clock of its bubble, until
// it is cancelled; partTime how long it may take to end after that.
const (
	sessionTime = 10 * time.Minute
	partTime    = 30 * time.Second
)

// A setup is a session between two volumes in memory, by the first two bytes of an input.
type setup struct {
	sync    bool // or compare
	pull    bool // the source is served, or the target
	sparse  bool
	trees   bool // both sides keep one
	dirty   bool // a map says what differs
	seal    bool // both volumes are read again and their roots compared
	silent  bool // no pings: a session in which nobody speaks is given up
	streams int
	codec   string
	pattern int // how the volumes differ
	reframe bool
}

// Bits of a setup's two bytes.
const (
	setCompare uint16 = 1
	setPull    uint16 = 2
	setSparse  uint16 = 4
	setTrees   uint16 = 8
	setDirty   uint16 = 16
	setSeal    uint16 = 32
	setSilent  uint16 = 64
	setReframe uint16 = 128
	setStreams uint16 = 256
	setCodec   uint16 = 512
	setPattern uint16 = 1024 // from here on the number of a pair
)

func setupOf(bits uint16) setup {
	is := func(b uint16) bool { return bits&b != 0 }
	s := setup{
		sync: !is(setCompare), pull: is(setPull), sparse: is(setSparse), trees: is(setTrees), dirty: is(setDirty),
		seal: is(setSeal), silent: is(setSilent), reframe: is(setReframe), streams: 1, codec: "none",
		pattern: int(bits / setPattern),
	}
	if is(setStreams) {
		s.streams = 2
	}
	if is(setCodec) {
		s.codec = "zstd"
	}
	return s
}

// link puts the taps of a session's connections together, in the order in which they were dialed.
type link struct {
	plan   []change
	o      setup
	record func(fromServer bool, frame []byte) // is given each frame as it came; nil: nobody

	mu   sync.Mutex
	taps []*tap
}

// dial returns the near end of a connection that srv serves, with a tap on it.
func (l *link) dial(ctx context.Context, srv *failback.Server, wg *sync.WaitGroup) (io.ReadWriteCloser, error) {
	near, far := transport.Pipe()
	wg.Go(func() { _ = srv.Handle(ctx, &timed{ReadWriteCloser: far}) })
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &tap{under: near}
	for i, lane := range []*lane{&t.out, &t.in} {
		lane.reframe, lane.fromSource = l.o.reframe, (i == 0) != l.o.pull
		if l.record != nil {
			lane.record = func(frame []byte) { l.record(i == 1, frame) }
		}
		for _, c := range l.plan {
			if c.conn == len(l.taps)%2 && c.in == (i == 1) {
				lane.plan = append(lane.plan, c)
			}
		}
	}
	l.taps = append(l.taps, t)
	return &timed{ReadWriteCloser: t}, nil
}

// lanes are the directions of all connections.
func (l *link) lanes() []*lane {
	var all []*lane
	for _, t := range l.taps {
		all = append(all, &t.out, &t.in)
	}
	return all
}

// A meeting is what a session left: what it said and what the volumes are.
type meeting struct {
	src, dst *watched
	was      []byte // the target's content before
	report   *failback.Report
	err      error
	took     time.Duration
	link     *link
}

// meet runs the link's session over it.
func meet(t *testing.T, l *link) *meeting {
	cryptotest.SetGlobalRandom(t, 1)
	s, p := l.o, pairOf(l.o.pattern)
	m := &meeting{src: newWatched(p.source), dst: newWatched(p.target), was: p.target, link: l}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), sessionTime)
		defer cancel()
		o := failback.Options{Codec: s.codec, Workers: 1, Leaf: pieceBytes}
		if s.silent {
			o.KeepAlive = -1
		}
		a, b := failback.Side{Name: "source", Volume: m.src.volume(s.sparse)}, failback.Side{Name: "target", Volume: m.dst.volume(s.sparse)}
		if s.trees {
			a.Tree, a.TrustTree, b.Tree, b.TrustTree = p.sourceTree, true, p.targetTree, true
		}
		served := &b
		if s.pull {
			served = &a
		}
		far := *served
		srv := failback.NewServer(failback.ServerOptions{Options: o, Lookup: func(_ context.Context, name string, _ bool) (failback.Served, error) {
			if name != far.Name {
				return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "it is not served here", Next: "look at the list"}
			}
			return failback.Served{Side: far}, nil
		}})
		var wg sync.WaitGroup
		*served = failback.Side{Name: far.Name, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			return m.link.dial(ctx, srv, &wg)
		}}
		if s.dirty {
			a.Dirty = p.dirty
		}
		o.Streams = s.streams
		if s.seal {
			o.Verify, o.Seal = failback.VerifyFull, merkle.SHA256
		}
		began := time.Now()
		if s.sync {
			m.report, m.err = failback.Sync(ctx, a, b, o)
		} else {
			m.report, m.err = failback.Compare(ctx, a, b, o)
		}
		wg.Wait()
		m.took = time.Since(began)
	})
	return m
}

// FuzzSession runs a whole session, sync or compare, between two volumes over a
// link that changes what is said, in both directions. What has to hold depends
// on who changes it:
//
//   - An accident changes bytes. The frames' sums and numbers catch it: a
//     session that says it is done is done, to the byte; a comparison's answer
//     is the truth; and whatever happened, each piece of the target holds either
//     what it held or what the source has.
//   - Somebody who makes the sums right again, on a link without TLS, but does
//     not know the session's key, and changes what the digests stand for: data,
//     digests, or how many of them there are. The target reads back and compares
//     with digests that he cannot make, so "equal" still means equal.
//   - Somebody who changes what is agreed on (the plan, the candidates, ranges of
//     zeroes, the report). Digests say nothing of these, and the key's two
//     halves travel on that very link: who owns it can lie to both sides about
//     the other. This is what TLS is for. Still, nothing is written outside of
//     the candidates that the target was told, nothing at all in a comparison, and
//     the source is only read.
//
// In every case the session ends, in time, in bounded memory, and leaves no goroutine.
func FuzzSession(f *testing.F) {
	preparePairs(f)
	sessionSeeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 || len(in) > 1<<12 {
			return
		}
		s, plan := setupOf(binary.LittleEndian.Uint16(in)), planOf(in[2:])
		var m *meeting
		bounded(t, sessionMemory, func() { m = meet(t, &link{plan: plan, o: s}) })
		m.check(t, s)
	})
}

// sessionMemory is what both ends of a session may allocate: two encoders of
// 1.2 MiB each, compressors, and little else.
const sessionMemory = 96 << 20

// inTime fails unless a session ended in time: where nobody pings by itself.
func inTime(t *testing.T, took time.Duration, silent bool) {
	t.Helper()
	if took > sessionTime+partTime || silent && took >= sessionTime {
		t.Errorf("the session took %v", took)
	}
}

// check holds the session's outcome against what must be so.
func (m *meeting) check(t *testing.T, s setup) {
	inTime(t, m.took, s.silent)
	if (m.err == nil) != (m.report != nil) {
		t.Fatalf("report %v with error %v", m.report, m.err)
	}
	m.bounds(t, s)
	hit, digested := false, true
	for _, l := range m.link.lanes() {
		hit = hit || l.hit
		digested = digested && !l.beyond
	}
	equal := bytes.Equal(m.src.b, m.dst.b)
	switch {
	case !hit && m.err != nil:
		t.Errorf("nothing was changed on the link, and yet: %v", m.err)
	case s.reframe && hit && !digested, m.err != nil:
	case s.sync && !equal:
		t.Errorf("sync says done, the volumes differ: %+v", m.report)
	case !s.sync && m.report.Equal() && !equal:
		t.Error("compare says equal, the volumes differ")
	case !s.sync:
		m.extents(t, s.reframe && hit)
	}
	if s.sync && !s.reframe {
		for off := 0; off < len(m.was); off += pieceBytes {
			end := min(off+pieceBytes, len(m.was))
			if now := m.dst.b[off:end]; !bytes.Equal(now, m.was[off:end]) && !bytes.Equal(now, m.src.b[off:end]) {
				t.Fatalf("the piece at %#x is neither what it was nor what the source has (%v)", off, m.err)
			}
		}
	}
}

// bounds: what was read and written is what may be.
func (m *meeting) bounds(t *testing.T, s setup) {
	var told []cbt.Extent
	for _, l := range m.link.lanes() {
		if l.fromSource {
			told = append(told, l.candidates...)
		}
	}
	for _, v := range []*watched{m.src, m.dst} {
		if v.outside {
			t.Error("a volume was read or written past its end")
		}
	}
	switch wrote := m.dst.wrote(); {
	case len(m.src.written) > 0:
		t.Errorf("the source was written at %v", m.src.wrote())
	case !s.sync && !s.reframe && len(wrote) > 0:
		t.Errorf("a comparison wrote %v", wrote)
	case len(cbt.Subtract(wrote, cbt.Normalize(told))) > 0:
		t.Errorf("wrote %v, the candidates are %v", wrote, cbt.Normalize(told))
	}
}

// extents holds a comparison's answer against the truth: exactly where the
// volumes differ or, where digests were changed, at least there.
func (m *meeting) extents(t *testing.T, atLeast bool) {
	truth := differing(m.src.b, m.dst.b)
	if atLeast && len(cbt.Subtract(truth, m.report.Extents)) == 0 {
		return
	}
	if !slices.Equal(truth, m.report.Extents) {
		t.Errorf("the comparison found %v, they differ at %v", m.report.Extents, truth)
	}
	if m.report.DivergentBytes != cbt.Total(m.report.Extents) {
		t.Errorf("%d bytes divergent in %v", m.report.DivergentBytes, m.report.Extents)
	}
}

// sessionSeeds are sessions of every kind, unharmed and with each change.
func sessionSeeds(f *testing.F) {
	made := map[string][]any{}
	add := func(name string, bits uint16, plan ...byte) {
		made[name] = []any{append(binary.LittleEndian.AppendUint16(nil, bits), plan...)}
	}
	for name, bits := range map[string]uint16{
		"sync": 0, "compare": setCompare, "pull": setPull, "compare-pull": setCompare | setPull, "sparse": setSparse,
		"trees": setTrees, "compare-trees": setCompare | setTrees | setPattern, "dirty": setDirty, "dirty-pull": setDirty | setPull,
		"seal": setSeal | setPattern, "streams": setStreams, "streams-pull": setStreams | setPull, "zstd": setCodec | setPattern,
		"empty-target": setSparse | 2*setPattern, "equal": setCompare | 3*setPattern,
	} {
		add(name, bits)
	}
	for op := range ops {
		for name, frame := range map[string]byte{"plan": 2 << 2, "digests": 3<<2 | 1, "data": 5 << 2, "credit": 6<<2 | 1} {
			plan := []byte{frame, op, 40 + frame, 0, 1, 0}
			if name == "data" {
				plan[3] = 0x20 // in the body
			}
			add(fmt.Sprintf("re-op%d-%s", op, name), setReframe|setSilent, plan...)
			if name == "data" {
				add(fmt.Sprintf("op%d", op), 0, plan...)
			}
		}
	}
	streamSeeds(f, made)
}
