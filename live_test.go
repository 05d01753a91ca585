package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
)

// busy is a volume that is written whenever it is read: so many bytes are made
// dirty for each byte that is read, by writers that go through a tracker. What
// a session is up against does not depend on how fast the machine is.
type busy struct {
	*memory
	tracker *cbt.Writer
	rate    float64 // bytes written for each byte read
	area    int64   // bytes at the start of the volume that are written

	mu      sync.Mutex // guards what follows; the writers hold it while they write
	rand    *rand.Rand
	owed    float64
	atRest  bool
	rests   int
	resting []byte // what the volume held when the writers last came to rest
	onRest  func() // nil, or called when the writers are at rest
	broken  error  // of a hold
	stray   bool   // one writer does not come to rest
}

func newBusy(t *testing.T, size int, rate float64) *busy {
	t.Helper()
	v := &busy{memory: randomVolume(1, size), rate: rate, area: int64(size), rand: rand.New(rand.NewPCG(7, 7))}
	var err error
	if v.tracker, err = cbt.Wrap(v.memory, int64(size), cbt.WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *busy) Identity() string { return "busy" }

func (v *busy) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.memory.ReadAt(p, off)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.atRest {
		if v.stray {
			v.stray = false
			v.write()
		}
		return n, err
	}
	for v.owed += float64(n) * v.rate; v.owed >= pieceSize; v.owed -= pieceSize {
		v.write()
	}
	return n, err
}

// write writes one piece. v.mu is held.
func (v *busy) write() {
	p := make([]byte, pieceSize)
	for i := range p {
		p[i] = byte(v.rand.Uint32())
	}
	if _, err := v.tracker.WriteAt(p, v.rand.Int64N(v.area/pieceSize)*pieceSize); err != nil {
		panic(err)
	}
}

// Quiesce brings the writers to rest.
func (v *busy) quiesce(context.Context) (hold, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.atRest = true
	v.rests++
	v.resting = bytes.Clone(v.b)
	if v.onRest != nil {
		v.onRest()
	}
	return &busyHold{v: v, began: time.Now()}, nil
}

type busyHold struct {
	v     *busy
	began time.Time
}

func (h *busyHold) Held() error {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	return h.v.broken
}

func (h *busyHold) Release() (time.Duration, error) {
	h.v.mu.Lock()
	defer h.v.mu.Unlock()
	if !h.v.atRest {
		return 0, errors.New("released twice")
	}
	h.v.atRest = false
	return time.Since(h.began), nil
}

// goesOn requires that the writers are not at rest, and that the tracker holds
// all in which target differs (L1, L2, L6).
func (v *busy) goesOn(t *testing.T, target *memory) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.atRest {
		t.Error("the writers are still at rest (L6)")
	}
	m, err := v.tracker.Map()
	if err != nil {
		t.Fatal(err)
	}
	dirty := m.Extents()
	for off := int64(0); off < int64(len(v.b)); off += pieceSize {
		x := cbt.Extent{Off: off, End: off + pieceSize}
		if !bytes.Equal(v.b[x.Off:x.End], target.b[x.Off:x.End]) && len(cbt.Intersect(dirty, []cbt.Extent{x})) == 0 {
			t.Fatalf("%v differs, and the tracker does not know (L1)", x)
		}
	}
}

// stamped is a target that can tell whether it was written.
type stamped struct {
	*memory
	writes atomic.Int64
}

func (v *stamped) WriteAt(p []byte, off int64) (int, error) {
	v.writes.Add(1)
	return v.memory.WriteAt(p, off)
}

func (v *stamped) Stamp() (string, error) { return fmt.Sprintf("writes=%d", v.writes.Load()), nil }

const liveSize = 8 << 20

func (v *busy) live() *Live { return &Live{Tracker: v.tracker, Pause: time.Hour, Quiesce: v.quiesce} }

// TestLive: the target is what the source was when its writers were at rest, and
// the tracker holds what differs since; the next sync looks at no more.
func TestLive(t *testing.T) {
	for _, c := range []struct {
		name string
		far  bool
		rate float64
		o    Options
	}{
		{"idle", false, 0, Options{}},
		{"a tenth", false, 0.1, Options{}},
		{"a half", false, 0.5, Options{}},
		{"served", true, 0.3, Options{Codec: "lz4"}},
		{"streams", true, 0.3, Options{Streams: 3, Window: 2 << 20}},
		{"many barriers", true, 0.3, Options{barrier: 256 << 10}},
		{"everything sent", false, 0.3, Options{Rung: RungFull}},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := newBusy(t, liveSize, c.rate), &stamped{memory: randomVolume(2, liveSize)}
			b := Side{Volume: dst, Name: "dst"}
			if c.far {
				far, wait := pipeServe(t.Context(), Options{}, b)
				defer func() {
					for _, err := range wait() {
						if err != nil {
							t.Errorf("the server: %v", err)
						}
					}
				}()
				b = far[0]
			}
			l := src.live()
			var sealed []cbt.Epoch
			var told []Round
			l.Sealed = func() error {
				sealed = append(sealed, l.Since)
				return nil
			}
			l.Round = func(r Round) { told = append(told, r) }
			c.o.Live = l
			run := func() *Report {
				r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, c.o)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst.b, src.resting) {
					t.Fatal("the target is not what the source was when its writers were at rest")
				}
				src.goesOn(t, dst.memory)
				if n := len(r.Live.Rounds); n < 2 || !r.Live.Rounds[n-1].Last || r.Live.Epoch != l.Since || sealed[len(sealed)-1] != l.Since {
					t.Errorf("the report: %+v, sealed %v, since %v", r.Live, sealed, l.Since)
				}
				return r
			}
			r := run()
			if len(told) != len(r.Live.Rounds) || len(sealed) != 2 {
				t.Errorf("told of %d rounds of %d, %d epochs", len(told), len(r.Live.Rounds), len(sealed))
			}
			if c.o.Rung != 0 {
				return
			}
			r = run()
			if r.Rung != RungExact.String() || c.rate < 0.2 && r.CandidateBytes > liveSize/2 {
				t.Errorf("the second time: rung %s (%s), %d candidate bytes", r.Rung, r.Reason, r.CandidateBytes)
			}
			if _, err := dst.WriteAt([]byte("somebody else"), 4096); err != nil {
				t.Fatal(err)
			}
			r = run()
			if r.Rung != RungMerkle.String() || !strings.Contains(r.Reason, "nothing says that the target was not written since") {
				t.Errorf("after a write to the target: rung %s (%s)", r.Rung, r.Reason)
			}
		})
	}
}

// TestLiveEpoch: an epoch that is not the tracker's own is not believed, be it
// below (somebody else has taken the map since) or above (of a tracker that was
// stopped: this one has not seen what came in between).
func TestLiveEpoch(t *testing.T) {
	for _, off := range []int{-1, 1} {
		src, dst := newBusy(t, liveSize, 0), randomVolume(2, liveSize)
		if err := src.tracker.Seal(7); err != nil {
			t.Fatal(err)
		}
		l := src.live()
		l.Since = cbt.Epoch(7 + off)
		r, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l})
		if err != nil {
			t.Fatal(err)
		}
		if r.Rung != RungMerkle.String() || !bytes.Equal(dst.b, src.b) {
			t.Errorf("epoch %d of 7: rung %s (%s)", 7+off, r.Rung, r.Reason)
		}
	}
}

// TestLiveDefers: what is dirty again is left for later, not sent twice.
func TestLiveDefers(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0.8), randomVolume(2, liveSize)
	src.area = liveSize / 8
	r, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: src.live(), Rung: RungFull})
	if err != nil {
		t.Fatal(err)
	}
	if r.Live.Rounds[0].Deferred == 0 {
		t.Errorf("nothing was left for later: %+v", r.Live.Rounds)
	}
	if !bytes.Equal(dst.b, src.resting) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
	src.goesOn(t, dst)
}

// TestLiveDoesNotConverge: nobody is paused for what does not fit.
func TestLiveDoesNotConverge(t *testing.T) {
	src, dst := newBusy(t, liveSize, 4), &stamped{memory: randomVolume(2, liveSize)}
	b := Side{Volume: dst, Journal: filepath.Join(t.TempDir(), "dst.fbj")}
	l := src.live()
	l.Pause = time.Microsecond
	_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, Options{Live: l})
	var none *ConvergenceError
	if !errors.As(err, &none) || none.Rounds < staleRounds || none.Left == 0 || none.Pause <= none.Budget || none.Next() == "" {
		t.Fatalf("%+v", err)
	}
	t.Log(none, "|", none.Next())
	if src.rests != 0 {
		t.Error("the writers were brought to rest (L6)")
	}
	src.goesOn(t, dst.memory)
	// The target is marked, and what the tracker holds is all that differs: with
	// a longer pause the next one needs to look at no more. So it is again where
	// the one that fails had looked at no more than that itself.
	for range 2 {
		l.Pause = time.Hour
		r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, Options{Live: l})
		if err != nil || r.Rung != RungExact.String() {
			t.Fatalf("%v, %+v", err, r)
		}
		if !bytes.Equal(dst.b, src.resting) {
			t.Error("the target is not what the source was when its writers were at rest")
		}
		src.mu.Lock()
		for range 100 {
			src.write()
		}
		src.mu.Unlock()
		l.Pause = time.Microsecond
		if r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, b, Options{Live: l}); !errors.As(err, &none) {
			t.Fatalf("%v, %+v", err, r)
		}
	}
}

var errLive = errors.New("this one fails")

// TestLiveFails: whatever goes wrong and when, the writers go on, and the tracker
// holds what differs; the next session ends well.
func TestLiveFails(t *testing.T) {
	type rig struct {
		src    *busy
		dst    *faulty
		l      *Live
		cancel context.CancelFunc
	}
	round := func(n int, do func()) func(Round) {
		return func(r Round) {
			if r.Number == n {
				do()
			}
		}
	}
	for name, spoil := range map[string]func(*rig){
		"write in round 1": func(r *rig) { r.dst.write = func(int64) error { return errLive } },
		"write in round 2": func(r *rig) {
			r.l.Round = round(1, func() { r.dst.write = func(int64) error { return errLive } })
		},
		"write in the last round": func(r *rig) { r.src.onRest = func() { r.dst.write = func(int64) error { return errLive } } },
		"cancelled in round 2":    func(r *rig) { r.l.Round = round(1, r.cancel) },
		"cancelled in the pause":  func(r *rig) { r.src.onRest = r.cancel },
		"quiesce": func(r *rig) {
			r.l.Quiesce = func(context.Context) (hold, error) { return nil, errLive }
		},
		"the writers do not stay at rest": func(r *rig) { r.src.onRest = func() { r.src.broken = errLive } },
		"somebody writes in the pause":    func(r *rig) { r.src.onRest = func() { r.src.stray = true } },
		"the first epoch is not kept":     func(r *rig) { r.l.Sealed = func() error { return errLive } },
		"the tracker loses the epoch": func(r *rig) {
			r.l.Round = round(1, func() { r.src.tracker.Lose("somebody wrote around it") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := &rig{src: newBusy(t, liveSize, 0.3), dst: &faulty{memory: randomVolume(2, liveSize)}, cancel: cancel}
			r.l = r.src.live()
			spoil(r)
			if report, err := Sync(ctx, Side{Volume: r.src}, Side{Volume: r.dst}, Options{Live: r.l}); err == nil {
				t.Fatalf("it ended well: %+v", report)
			} else {
				t.Log(err)
			}
			r.dst.write, r.src.onRest, r.src.broken = nil, nil, nil
			if trust := r.src.tracker.Trust(); trust.Lost == "" && r.l.Since != 0 {
				r.src.goesOn(t, r.dst.memory)
			} else if r.src.atRest {
				t.Error("the writers are still at rest (L6)")
			}
			again := r.src.live()
			again.Since = r.l.Since
			if _, err := Sync(t.Context(), Side{Volume: r.src}, Side{Volume: r.dst}, Options{Live: again}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.dst.b, r.src.resting) {
				t.Error("the target is not what the source was when its writers were at rest")
			}
			r.src.goesOn(t, r.dst.memory)
		})
	}
}

// TestLiveRefuses: what a live sync cannot be.
func TestLiveRefuses(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0), randomVolume(2, liveSize)
	a, b := Side{Volume: src}, Side{Volume: dst}
	for name, o := range map[string]Options{
		"dry run":      {DryRun: true, Live: src.live()},
		"verify full":  {Verify: VerifyFull, Live: src.live()},
		"seal":         {Seal: 2, Live: src.live()},
		"resume":       {Resume: true, Live: src.live()},
		"resume, rest": {Resume: true, Live: &Live{Quiesce: src.quiesce}},
		"no quiesce":   {Live: &Live{Tracker: src.tracker}},
		"pause":        {Live: &Live{Tracker: src.tracker, Quiesce: src.quiesce, Pause: -1}},
	} {
		var usage *UsageError
		if _, err := Sync(t.Context(), a, b, o); !errors.As(err, &usage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var usage *UsageError
	if _, err := Compare(t.Context(), a, b, Options{Live: src.live()}); !errors.As(err, &usage) {
		t.Errorf("compare: %v", err)
	}
	far := Side{Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, errLive }, Name: "far"}
	if _, err := Sync(t.Context(), far, b, Options{Live: src.live()}); !errors.As(err, &usage) {
		t.Errorf("a source at a peer: %v", err)
	}
}
