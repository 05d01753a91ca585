package failback

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/cbt"
	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

const (
	matrixSize    = 3 << 20
	matrixJournal = "state/t.fbj"
)

// matrixFiles keeps journals on a file system that loses power, by the steps of
// journal.Disk.
type matrixFiles struct{ *fault.Dir }

func (d matrixFiles) Open(path string, write bool) (journal.Store, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := d.Dir.Open(path, flag)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// A matrixWay is a way to run the session that is hit.
type matrixWay struct {
	name     string
	src, dst bool // served by a peer
	deaths   []string
	silent   bool // the link dies without a word
	undo     bool // what is overwritten is saved
	every    int  // of its cells each n-th is run, from the first one on
	o        Options
}

// matrixEnds are the machines of one attempt and what lies on them.
type matrixEnds struct {
	way      *matrixWay
	src, dst *fault.Volume
	dir      *fault.Dir
	a, b     *fault.Faults // the machines of source and target
	before   []byte        // what the target held at first
	after    []byte        // what the source holds
	mapPath  string        // the dirty map's file
	dirty    *cbt.Map      // as it was loaded
	tapping  *sync.Mutex   // further streams are dialed side by side
	taps     []*matrixTap  // one for each connection of this attempt
	over     time.Time     // when its Sync had returned
}

// matrixContent is what the volumes hold at first, and where they may differ: all
// over, then not at all, then in a piece here and there.
var matrixContent = sync.OnceValues(func() ([2]*memory, []cbt.Extent) {
	src, dst := randomVolume(1, matrixSize), randomVolume(2, matrixSize)
	clear(src.b[1<<20+384<<10 : 1<<20+512<<10]) // travels as a range of zeroes
	copy(dst.b[1<<20:], src.b[1<<20:1<<20+300<<10])
	for off := 1<<20 + 512<<10; off < matrixSize; off += 64 << 10 {
		copy(dst.b[off+pieceSize:off+64<<10], src.b[off+pieceSize:])
	}
	return [2]*memory{src, dst}, []cbt.Extent{{Off: 0, End: 1 << 20}, {Off: 1<<20 + 200<<10, End: matrixSize}}
})

// matrixSource is the source of all attempts: nobody writes it.
var matrixSource = sync.OnceValue(func() *fault.Volume {
	content, _ := matrixContent()
	return fault.NewVolume("source", content[0].b, nil)
})

// matrixMap is what the dirty map's file holds.
var matrixMap []byte

// A matrixTarget tells whether it was written: by what its caches hold.
type matrixTarget struct{ *fault.Volume }

func (v matrixTarget) Stamp() (string, error) {
	return fmt.Sprintf("sum=%016x", xxhash.Sum64(v.Bytes())), nil
}

// newMatrixEnds makes two volumes that differ nearly all over, and a file with
// the dirty map that says where.
func newMatrixEnds(t *testing.T, way *matrixWay) *matrixEnds {
	t.Helper()
	content, _ := matrixContent()
	e := &matrixEnds{tapping: &sync.Mutex{}, way: way, before: content[1].b}
	e.placeMap(t)
	e.a, e.b = fault.New(), fault.New()
	e.after = content[0].b
	e.src, e.dst = matrixSource(), fault.NewVolume("target", content[1].b, e.b)
	e.src.Plug(e.a)
	e.dir = fault.NewDir(e.b)
	e.pace(true)
	return e
}

// placeMap makes the map's file for this test. It was saved once: that waits for a disk.
func (e *matrixEnds) placeMap(t *testing.T) {
	t.Helper()
	e.mapPath = filepath.Join(t.TempDir(), "map.fbm")
	if matrixMap == nil {
		_, differ := matrixContent()
		if err := dirtyMap(t, matrixSize, differ).Save(e.mapPath); err != nil {
			t.Fatal(err)
		}
		matrixMap, _ = os.ReadFile(e.mapPath)
	}
	if err := os.WriteFile(e.mapPath, matrixMap, 0o600); err != nil {
		t.Fatal(err)
	}
	e.load(t)
}

// load reads the dirty map, as a new process does.
func (e *matrixEnds) load(t *testing.T) {
	t.Helper()
	var err error
	if e.dirty, err = cbt.LoadMap(e.mapPath); err != nil {
		t.Fatal(err)
	}
}

// pace makes the machines slow, each step otherwise than the next: barriers come
// between, and whoever does not wait for a step is ahead of it. first is set for
// a session that finds no journal.
func (e *matrixEnds) pace(first bool) {
	e.a.Add(fault.Rule{Op: fault.Read, Kind: fault.Slow, For: 2 * time.Millisecond})
	e.b.Add(
		fault.Rule{Op: fault.Write, On: "target", Kind: fault.Slow, For: 3 * time.Millisecond},
		fault.Rule{Op: fault.Sync, On: "target", Kind: fault.Slow, For: 500 * time.Microsecond},
		fault.Rule{Op: fault.ReadMedium, Kind: fault.Slow, For: 100 * time.Microsecond},
	)
	if first && e.way.o.RetryFor == 0 {
		// Only where the journal is made before it is written: time stands still in
		// a bubble while a writer waits for another's lock.
		e.b.Add(fault.Rule{Op: fault.Write, On: filepath.Base(matrixJournal), Kind: fault.Slow, For: 700 * time.Microsecond})
	}
}

// sync runs a session over links by plan and returns when every end has.
func (e *matrixEnds) sync(t *testing.T, d *fault.Dialer, o Options) (*Report, error) {
	t.Helper()
	return e.syncUntil(t.Context(), t, d, o)
}

// syncUntil is sync under a context. Sync returns at e.over, and syncUntil once
// the peer has ended too.
func (e *matrixEnds) syncUntil(parent context.Context, t *testing.T, d *fault.Dialer, o Options) (*Report, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	o.Checkpoint, o.Window, o.Codec, o.Workers = time.Millisecond, 2<<20, "none", 1
	o.Streams, o.Verify, o.Seal = e.way.o.Streams, e.way.o.Verify, e.way.o.Seal
	rec := e.journal(t)
	rung := RungExact
	if rec != nil && rec.Suspect {
		rung = RungMerkle
	}
	lost := o.Events.Retry
	o.Events.Retry = func(err error, pause time.Duration) {
		if isWrong(err) {
			rung = RungMerkle // the map vouches for nothing any more
		}
		if lost != nil {
			lost(err, pause)
		}
	}
	tell := o.Events.Plan
	o.Events.Plan = func(p Plan) {
		if p.Rung != rung {
			t.Errorf("planned on rung %v: %s", p.Rung, p.Reason)
		}
		if tell != nil {
			tell(p)
		}
	}
	a := Side{Volume: e.src, Name: "a"}
	b := Side{Volume: matrixTarget{e.dst}, Name: "b", Journal: matrixJournal, files: matrixFiles{e.dir}}
	if e.way.undo {
		b.Undo, b.undoAt, o.Undo = matrixUndo, matrixUndoFiles{e.dir}, e.way.dst
	}
	wait := func() []error { return nil }
	if served := e.served(&a, &b); served != nil {
		var far []Side
		far, wait = pipeServe(ctx, Options{Checkpoint: o.Checkpoint, Codec: "none", Workers: 1}, *served)
		d.Dial = e.tap(far[0].Dial)
		*served = Side{Name: served.Name, Dial: d.Connect}
	}
	a.Dirty = e.dirty
	report, err := Sync(ctx, a, b, o)
	e.over = time.Now()
	cancel()
	for _, err := range wait() {
		t.Logf("the server: %v", err)
	}
	return report, err
}

// served is the side that a peer serves, or nil.
func (e *matrixEnds) served(a, b *Side) *Side {
	switch {
	case e.way.src:
		return a
	case e.way.dst:
		return b
	}
	return nil
}

// replug is the ends after their processes went: new machines, and all that is
// in caches is still there.
func (e *matrixEnds) replug(t *testing.T) *matrixEnds {
	n := *e
	n.taps = nil
	n.a, n.b = fault.New(), fault.New()
	n.src.Plug(n.a)
	n.dst.Plug(n.b)
	n.dir.Plug(n.b)
	n.load(t)
	return &n
}

// restart is the ends after the target lost power too: new machines, and what a
// cut by seed left of it.
func (e *matrixEnds) restart(t *testing.T, seed uint64) *matrixEnds {
	n := *e
	n.dst, n.dir = e.dst.Crash(seed), e.dir.Crash(seed)
	return n.replug(t)
}

// journal is what the journal says, nil if there is none.
func (e *matrixEnds) journal(t *testing.T) *journal.Record {
	t.Helper()
	rec, err := journal.Read(matrixFiles{e.dir}, matrixJournal)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the journal cannot be read: %v", err)
	}
	return rec
}

// A matrixTap reads along which barriers were acknowledged on a connection.
type matrixTap struct {
	io.ReadWriteCloser
	mu       sync.Mutex
	flows    [2]matrixFlow // what is read, what is written
	barriers map[uint64]message.Barrier
	acks     []uint64
	data     int64 // bytes of volume in data frames and frames of zeroes
}

// A matrixFlow is one way of a tap: what came of the frame under way.
type matrixFlow struct{ b []byte }

// tap makes every connection of a way pass through one.
func (e *matrixEnds) tap(dial func(context.Context) (io.ReadWriteCloser, error)) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		p := &matrixTap{ReadWriteCloser: c, barriers: map[uint64]message.Barrier{}}
		e.tapping.Lock()
		defer e.tapping.Unlock()
		e.taps = append(e.taps, p)
		return p, nil
	}
}

func (p *matrixTap) Read(b []byte) (int, error) {
	n, err := p.ReadWriteCloser.Read(b)
	p.pass(0, b[:n])
	return n, err
}

func (p *matrixTap) Write(b []byte) (int, error) {
	p.pass(1, b)
	return p.ReadWriteCloser.Write(b)
}

// frameHead is what a frame has before its payload, bytes.
const frameHead = 24

func (p *matrixTap) pass(way int, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := &p.flows[way]
	f.b = append(f.b, b...)
	for len(f.b) >= frameHead {
		end := frameHead + int(binary.LittleEndian.Uint32(f.b[4:]))
		if len(f.b) < end {
			return
		}
		p.frame(transport.Kind(f.b[0]), f.b[frameHead:end])
		f.b = append(f.b[:0], f.b[end:]...)
	}
}

func (p *matrixTap) frame(kind transport.Kind, payload []byte) {
	switch kind {
	case kindData:
		p.data += int64(len(payload))
	case kindBarrier:
		var m message.Barrier
		if m.Decode(payload) == nil {
			p.barriers[m.ID] = m
		}
	case kindAck:
		var m message.Ack
		if m.Decode(payload) == nil {
			p.acks = append(p.acks, m.ID)
		}
	}
}

// acked returns what this attempt's source may have heard of: below done
// everything is equal, and whether that was the answer to the last barrier.
func (e *matrixEnds) acked() (done int64, final bool) {
	for _, p := range e.taps {
		p.mu.Lock()
		for _, id := range p.acks {
			m := p.barriers[id]
			if final = final || m.Final; m.Final {
				m.Done = matrixSize
			}
			done = max(done, m.Done)
		}
		p.mu.Unlock()
	}
	return done, final
}

// sent is how many bytes of payload this attempt's links carried.
func (e *matrixEnds) sent() (n int64) {
	for _, p := range e.taps {
		p.mu.Lock()
		n += p.data
		p.mu.Unlock()
	}
	return n
}

// laws holds what power cuts by a seed, or two, leave of the target against the laws.
// of is the attempt that was hit.
func (e *matrixEnds) laws(t *testing.T, seed uint64) {
	t.Helper()
	e.restart(t, seed).law(t, e)
	if seed%2 == 0 {
		e.restart(t, seed+7777).law(t, e)
	}
	// What a cut leaves of the journal is looked at more often: it costs little.
	durable, done := e.dst.Durable(), int64(0)
	for done < matrixSize && bytes.Equal(durable[done:done+pieceSize], e.after[done:done+pieceSize]) {
		done += pieceSize
	}
	acked, final := e.acked()
	for s := range uint64(12) {
		n := matrixEnds{tapping: &sync.Mutex{}, dir: e.dir.Crash(1000*seed + s)}
		rec := n.journal(t)
		switch {
		case rec == nil && acked > 0 && !final, rec != nil && !rec.Suspect && !final && rec.Done < acked:
			t.Errorf("L10: %d bytes were acknowledged, and the journal is %+v", acked, rec)
		case rec != nil && rec.Done > done:
			t.Errorf("L2: the journal says that %d bytes are done, and %d are", rec.Done, done)
		}
	}
	if again, err := os.ReadFile(e.mapPath); err != nil || !bytes.Equal(again, matrixMap) {
		t.Errorf("L2: the dirty map's file is not as it was (%v)", err)
	}
}

// law is what must hold of e, which a power cut left after the attempt of.
func (e *matrixEnds) law(t *testing.T, of *matrixEnds) {
	t.Helper()
	src, dst, rec := e.after, e.dst.Durable(), e.journal(t)
	equal := bytes.Equal(dst, src)
	if !equal && !bytes.Equal(dst, e.before) && (rec == nil || !rec.Touched || rec.Complete) {
		t.Errorf("L5: the target is neither old nor new, and its journal is %+v", rec)
	}
	if rec != nil {
		done := rec.Done
		if rec.Complete {
			done = matrixSize
		}
		if !bytes.Equal(dst[:done], src[:done]) {
			t.Errorf("L2: the journal says that %d bytes are done, and they differ", done)
		}
	}
	acked, final := of.acked()
	if !bytes.Equal(dst[:acked], src[:acked]) {
		t.Errorf("L2: %d bytes were acknowledged, and they differ", acked)
	}
	if !final && acked > 0 && (rec == nil || !rec.Suspect && rec.Done < acked) {
		t.Errorf("L10: %d bytes were acknowledged, and the journal is %+v", acked, rec)
	}
	e.undoable(t, false)
	var differ []cbt.Extent
	for off := int64(0); off < matrixSize && !equal; off += pieceSize {
		if !bytes.Equal(dst[off:off+pieceSize], src[off:off+pieceSize]) {
			differ = append(differ, cbt.Extent{Off: off, End: off + pieceSize})
		}
	}
	if out := cbt.Subtract(cbt.Normalize(differ), e.dirty.Extents()); len(out) > 0 {
		t.Errorf("L1: %v differ, and the map does not say so", out)
	}
}
