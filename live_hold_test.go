package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
)

// told is a hold that says when it has ended, and since when it is one.
type told struct {
	hold
	ended chan struct{}
	begun time.Time
}

func (h *told) Ended() <-chan struct{} { return h.ended }
func (h *told) Begun() time.Time       { return h.begun }

// telling has the holds of a live session tell their end and their beginning.
func telling(l *Live, begun func(time.Time) time.Time, rests func(*told)) {
	quiesce := l.Quiesce
	l.Quiesce = func(ctx context.Context) (hold, error) {
		h, err := quiesce(ctx)
		if err != nil {
			return nil, err
		}
		t := &told{hold: h, ended: make(chan struct{}), begun: begun(time.Now())}
		rests(t)
		return t, nil
	}
}

func fromNow(t time.Time) time.Time { return t }

// TestLiveRetryAfterSealed: the link is lost when the target has recorded that both
// are equal and the source has not heard it. What is written before the retry is
// sent by it: that record is of another moment (L1, L2). So it is where the retry
// rests on the same as the session before, which is that there is no map.
func TestLiveRetryAfterSealed(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		t.Run(fmt.Sprintf("mapped %v", mapped), func(t *testing.T) { retryAfterSealed(t, mapped) })
	}
}

func retryAfterSealed(t *testing.T, mapped bool) {
	src, dst := newBusy(t, liveSize, 0), &stamped{memory: randomVolume(2, liveSize)}
	copy(dst.b, src.b)
	far, wait := pipeServe(t.Context(), Options{}, Side{Volume: dst, Name: "dst", Journal: filepath.Join(t.TempDir(), "dst.fbj")})
	defer wait()
	if err := src.tracker.Seal(7); err != nil {
		t.Fatal(err)
	}
	hot := func(s string) {
		if _, err := src.tracker.WriteAt([]byte(s), 5*pieceSize); err != nil {
			t.Error(err)
		}
	}
	hot("first")
	var deaf atomic.Bool
	dial := far[0].Dial
	far[0].Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
		rw, err := dial(ctx)
		return &deafAt{ReadWriteCloser: rw, deaf: &deaf}, err
	}
	l := src.live()
	if mapped {
		l.Since = 7
	}
	first := true
	quiesce := l.Quiesce
	l.Quiesce = func(ctx context.Context) (hold, error) {
		h, err := quiesce(ctx)
		if !first {
			return h, err
		}
		first = false
		return asked{h, func() { deaf.Store(true) }}, err
	}
	o := Options{Live: l, RetryFor: time.Minute}
	o.Events.Retry = func(error, time.Duration) {
		deaf.Store(false)
		if !mapped {
			src.tracker.Lose("somebody wrote around it")
		}
		hot("second")
	}
	r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, far[0], o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Attempts != 2 || r.ResumedFrom != 0 {
		t.Errorf("%d attempts, resumed from %d (%s)", r.Attempts, r.ResumedFrom, r.Reason)
	}
	if !bytes.Equal(dst.b, src.resting) {
		t.Error("the target is not what the source was when its writers were at rest")
	}
	src.goesOn(t, dst.memory)
}

// deafAt loses what its peer says, and then the link, once deaf is set.
type deafAt struct {
	io.ReadWriteCloser
	deaf *atomic.Bool
}

func (c *deafAt) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	if c.deaf.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// asked is a hold that does something when it has been asked.
type asked struct {
	hold
	then func()
}

func (h asked) Held() error {
	defer h.then()
	return h.hold.Held()
}

// TestLiveProves: the first round proves what its plan says, not the whole volume.
func TestLiveProves(t *testing.T) {
	src := newBusy(t, liveSize, 0)
	if err := src.tracker.Seal(7); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 64 * pieceSize, 128 * pieceSize} {
		if _, err := src.tracker.WriteAt([]byte("x"), off); err != nil {
			t.Fatal(err)
		}
	}
	l := src.live()
	l.Since = 7
	v := newLive(l, [16]byte{1}, "src", liveSize, Events{})
	if _, err := v.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.plans([]cbt.Extent{{Off: 0, End: pieceSize}}, []cbt.Extent{{Off: 0, End: 100 * pieceSize}})
	if err := v.proven(0, 0); err != nil {
		t.Fatal(err)
	}
	m, err := src.tracker.Map()
	if err != nil {
		t.Fatal(err)
	}
	if x := m.Extents(); len(x) != 1 || x[0].Off != 64*pieceSize {
		t.Errorf("dirty is %v, want what lies between", x)
	}
}

// TestLiveBrokenPause: the writers go on by themselves while the target says
// nothing more. The session ends at once, and says so.
func TestLiveBrokenPause(t *testing.T) {
	src := newBusy(t, liveSize, 0)
	var resting atomic.Bool
	stuck := make(chan struct{})
	dst := &faulty{memory: randomVolume(2, liveSize)}
	dst.sync = func(int64) error {
		if resting.Load() {
			<-stuck
		}
		return nil
	}
	far, wait := pipeServe(t.Context(), Options{}, Side{Volume: dst, Name: "dst"})
	l := src.live()
	var h *told
	telling(l, fromNow, func(t *told) { h = t; resting.Store(true) })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for !resting.Load() && ctx.Err() == nil {
			_ = patience(ctx, time.Millisecond)
		}
		if patience(ctx, 50*time.Millisecond) == nil {
			src.mu.Lock()
			src.broken = errLive
			src.mu.Unlock()
			close(h.ended)
		}
	}()
	_, err := Sync(ctx, Side{Volume: src, Name: "src"}, far[0], Options{Live: l, KeepAlive: 100 * time.Millisecond, Timeout: 10 * time.Second})
	if !errors.Is(err, errLive) || !strings.Contains(err.Error(), "the writers of src did not stay at rest") || ctx.Err() != nil {
		t.Errorf("%v (%v)", err, ctx.Err())
	}
	<-sent
	close(stuck)
	wait()
	src.goesOn(t, dst.memory)
}

// TestLiveLetsGoFirst: who ends a session in the pause does not have the writers
// wait for the farewell of a target that hears nothing (L6).
func TestLiveLetsGoFirst(t *testing.T) {
	src := newBusy(t, liveSize, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck, cancelled, released := make(chan struct{}), make(chan struct{}), make(chan struct{})
	over := sync.OnceFunc(func() {
		cancel()
		close(cancelled)
	})
	dst := &faulty{memory: randomVolume(2, liveSize)}
	var resting atomic.Bool
	dst.sync = func(int64) error {
		if resting.Load() {
			over()
			<-stuck // until the writers go on
		}
		return nil
	}
	l := src.live()
	quiesce := l.Quiesce
	l.Quiesce = func(ctx context.Context) (hold, error) {
		h, err := quiesce(ctx)
		resting.Store(true)
		return letGo{h, sync.OnceFunc(func() { close(released) })}, err
	}
	late := make(chan bool, 1)
	go func() {
		defer close(stuck)
		<-cancelled
		select {
		case <-released:
			late <- false
		case <-time.After(partingTime / 2):
			late <- true
		}
	}()
	far, wait := pipeServe(t.Context(), Options{}, Side{Volume: dst, Name: "dst"})
	dial := far[0].Dial
	far[0].Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
		rw, err := dial(ctx)
		return &unheard{ReadWriteCloser: rw, from: cancelled}, err
	}
	if _, err := Sync(ctx, Side{Volume: src}, far[0], Options{Live: l}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if <-late {
		t.Error("the writers wait for the target, though the session has ended (L6)")
	}
	wait()
	src.goesOn(t, dst.memory)
}

// unheard is a link on which nothing gets through any more from some moment on.
type unheard struct {
	io.ReadWriteCloser
	from <-chan struct{}
}

func (c *unheard) Write(p []byte) (int, error) {
	select {
	case <-c.from:
		return len(p), nil
	default:
		return c.ReadWriteCloser.Write(p)
	}
}

// letGo is a hold that tells when it is let go.
type letGo struct {
	hold
	tell func()
}

func (h letGo) Release() (time.Duration, error) {
	defer h.tell()
	return h.hold.Release()
}

// TestLiveSlowToRest: writers that take longer to come to rest than they may be
// paused are not kept, and the error tells how long it takes.
func TestLiveSlowToRest(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0), randomVolume(2, liveSize)
	l := src.live()
	telling(l, func(now time.Time) time.Time { return now.Add(-2 * l.Pause) }, func(*told) {})
	_, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l})
	var none *ConvergenceError
	if !errors.As(err, &none) || none.Tries != 1 || none.Pause < 2*l.Pause || !strings.Contains(err.Error(), "pauses that were broken off") {
		t.Fatalf("%+v", err)
	}
	src.goesOn(t, dst)
}

// TestLiveComesOut: what comes out only when the writers come to rest, and of
// which nobody knows how long it takes, makes a round like the others.
func TestLiveComesOut(t *testing.T) {
	src := newBusy(t, liveSize, 0)
	dst := &memory{b: bytes.Clone(src.b)}
	if err := src.tracker.Seal(7); err != nil {
		t.Fatal(err)
	}
	l := src.live()
	l.Since = 7 // nothing is dirty, so no round tells how fast it goes
	quiesce, first := l.Quiesce, true
	l.Quiesce = func(ctx context.Context) (hold, error) {
		if first {
			first = false
			if _, err := src.tracker.WriteAt([]byte("from a cache"), 5*pieceSize); err != nil {
				return nil, err
			}
		}
		return quiesce(ctx)
	}
	r, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l})
	if err != nil {
		t.Fatal(err)
	}
	if r.Live.Tries != 2 || r.CandidateBytes != pieceSize || !bytes.Equal(dst.b, src.resting) {
		t.Errorf("%d candidate bytes, %+v", r.CandidateBytes, r.Live)
	}
}

// TestLiveAtRest: without a tracker the writers rest all the time, and the target
// is complete only if they did.
func TestLiveAtRest(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0.3), randomVolume(2, liveSize)
	journal := filepath.Join(t.TempDir(), "dst.fbj")
	b := Side{Volume: namedVolume("dst", dst), Name: "dst", Journal: journal}
	run := func(o Options) (*Report, error) {
		o.Live = &Live{Quiesce: src.quiesce, Untracked: "no kernel for it"}
		return Sync(t.Context(), Side{Volume: src, Name: "src"}, b, o)
	}
	src.onRest = func() { src.broken = errLive }
	if _, err := run(Options{}); !errors.Is(err, errLive) {
		t.Fatalf("the writers went on: %v", err)
	}
	src.goesOnAtAll(t)
	if err := refuseInconsistent(b); err == nil {
		t.Error("a target that was copied while its source was written is taken for complete (L5)")
	}
	src.onRest, src.broken = nil, nil
	for _, o := range []Options{{}, {Verify: VerifyFull}} {
		src.rests = 0
		r, err := run(o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.b, src.resting) || src.rests != 1 {
			t.Errorf("the target is not what the source was at its rest, of %d", src.rests)
		}
		if x := r.Live; x == nil || x.Rounds == nil || len(x.Rounds) != 0 || x.PauseMS <= 0 || x.Tries != 1 {
			t.Errorf("%+v", r.Live)
		}
		if !strings.HasSuffix(r.Reason, "; the writers of the source are at rest all the time: no kernel for it") {
			t.Errorf("reason: %s", r.Reason)
		}
		src.goesOnAtAll(t)
	}
	if err := refuseInconsistent(b); err != nil {
		t.Error(err)
	}
}

// goesOnAtAll requires that the writers are not at rest.
func (v *busy) goesOnAtAll(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.atRest {
		t.Error("the writers are still at rest (L6)")
	}
}

// TestLiveTargetMap: the map of a target says what differs only if nobody wrote
// the source. Of one that was, everything is compared (L1).
func TestLiveTargetMap(t *testing.T) {
	for name, l := range map[string]func(*busy) *Live{
		"tracked": func(v *busy) *Live { return v.live() },
		"at rest": func(v *busy) *Live { return &Live{Quiesce: v.quiesce} },
	} {
		src, dst := newBusy(t, liveSize, 0.1), randomVolume(2, liveSize)
		none, err := cbt.NewMap(liveSize, pieceSize, dirtyRuns(nil))
		if err != nil {
			t.Fatal(err)
		}
		r, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst, Dirty: none}, Options{Live: l(src)})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.b, src.resting) {
			t.Errorf("%s: the target is not what the source was when its writers were at rest; rung %s (%s)", name, r.Rung, r.Reason)
		}
	}
}

// TestLiveSealsFirst: a session clears no mark of an epoch without putting a new
// one in its place, be the target written or not.
func TestLiveSealsFirst(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0), &stamped{memory: randomVolume(2, liveSize)}
	l := src.live()
	run := func() {
		t.Helper()
		if _, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l}); err != nil {
			t.Fatal(err)
		}
	}
	run()
	was := *l
	if _, err := src.tracker.WriteAt(src.b[:pieceSize:pieceSize], 0); err != nil { // the same again
		t.Fatal(err)
	}
	l.Sealed = func() error { return errLive }
	if _, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l}); !errors.Is(err, errLive) {
		t.Fatalf("no epoch: %v", err)
	}
	if trust := src.tracker.Trust(); trust.Since <= was.Since || l.After != was.After || l.Left != was.Left {
		t.Errorf("epoch %d after %d; after %x, left %q", trust.Since, was.Since, l.After[:4], l.Left)
	}
	l.Sealed = nil
	r, err := Sync(t.Context(), Side{Volume: src}, Side{Volume: dst}, Options{Live: l})
	if err != nil || r.Rung != RungExact.String() {
		t.Errorf("the target was not written, and the next session is of %+v, %v", r, err)
	}
	var rounds []cbt.Epoch
	l.Round = func(Round) { rounds = append(rounds, l.Since) }
	was = *l
	if run(); rounds[0] <= was.Since {
		t.Errorf("the first round left epoch %d, it was %d", rounds[0], was.Since)
	}
}
