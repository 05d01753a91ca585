package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
)

// around writes one piece of the source past its tracker, and tells the tracker
// that somebody did.
func (v *busy) around(off int64) {
	copy(v.b[off:off+pieceSize], bytes.Repeat([]byte{0x5a}, pieceSize))
	v.tracker.Lose("somebody wrote around it")
}

// again syncs once more, and requires rung merkle for a reason, and that both are
// equal then.
func (v *busy) again(t *testing.T, dst Volume, l *Live, reason string) {
	t.Helper()
	r, err := Sync(t.Context(), Side{Volume: v, Name: "src"}, Side{Volume: dst}, Options{Live: l})
	if err != nil {
		t.Fatal(err)
	}
	if r.Rung != RungMerkle.String() || !strings.Contains(r.Reason, reason) {
		t.Errorf("rung %s (%s), want merkle because %q", r.Rung, r.Reason, reason)
	}
	got := make([]byte, v.Size())
	if _, err := dst.ReadAt(got, 0); err != nil || !bytes.Equal(got, v.resting) {
		t.Errorf("the target is not what the source was when its writers were at rest (%v)", err)
	}
}

// TestLiveLosesTheEpoch: a write that passes the tracker by while the first round
// reads is of a piece that may have been read before. No epoch that is begun after
// the round makes up for it (L1).
func TestLiveLosesTheEpoch(t *testing.T) {
	for _, mapped := range []bool{false, true} {
		src, dst := newBusy(t, liveSize, 0), &faulty{memory: randomVolume(2, liveSize)}
		if err := src.tracker.Seal(7); err != nil {
			t.Fatal(err)
		}
		l := src.live()
		if mapped {
			l.Since = 7
			if _, err := src.tracker.WriteAt(bytes.Repeat([]byte("new"), liveSize/3), 0); err != nil {
				t.Fatal(err)
			}
		}
		var once atomic.Bool
		dst.write = func(off int64) error {
			if once.CompareAndSwap(false, true) {
				src.around(off) // what is written there has been read
			}
			return nil
		}
		r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst}, Options{Live: l})
		if !errors.Is(err, cbt.ErrEpochLost) || !strings.Contains(err.Error(), "somebody wrote around it") {
			t.Fatalf("mapped %v: %v, %+v", mapped, err, r)
		}
		if src.rests != 0 {
			t.Error("the writers were brought to rest for it")
		}
		reason := "somebody wrote around it"
		if l.Since == 0 {
			reason = "no sync with this target is known"
		}
		src.again(t, dst, l, reason)
	}
}

// TestLiveLosesTheEpochAtTheEnd: the target is equal to what the source was in the
// pause. That the tracker has lost something since is the next one's matter.
func TestLiveLosesTheEpochAtTheEnd(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0), &stamped{memory: randomVolume(2, liveSize)}
	l := src.live()
	quiesce := l.Quiesce
	l.Quiesce = func(ctx context.Context) (hold, error) {
		h, err := quiesce(ctx)
		return letGo{h, func() { src.around(3 * pieceSize) }}, err
	}
	var notes []string
	o := Options{Live: l, Events: Events{Note: func(s string) { notes = append(notes, s) }}}
	r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst}, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dst.b, src.resting) || r.Live.Epoch != 0 {
		t.Errorf("the report: %+v", r.Live)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "src: somebody wrote around it: the next sync will compare both sides") {
		t.Errorf("told %q", notes)
	}
	l.Quiesce = quiesce
	src.again(t, dst, l, "somebody wrote around it")
}

// TestLiveCannotSeal: what no new epoch puts right is refused, and nothing is
// touched (L4).
func TestLiveCannotSeal(t *testing.T) {
	src, dst := newBusy(t, liveSize, 0), &stamped{memory: randomVolume(2, liveSize)}
	l := src.live()
	l.Tracker = hopeless{src.tracker}
	_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst}, Options{Live: l})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "it is gone") || refused.Next == "" {
		t.Errorf("%v", err)
	}
	if dst.writes.Load() > 0 || src.rests > 0 {
		t.Error("the target was written, or the writers brought to rest")
	}
}

// hopeless is a tracker that seals, and has lost the epoch at once.
type hopeless struct{ *cbt.Writer }

func (h hopeless) Seal(e cbt.Epoch) error {
	err := h.Writer.Seal(e)
	h.Lose("it is gone")
	return err
}

var errDead = errors.New("this process has died")

// mortal is the tracker of a kernel, as one process has it: the process dies before
// or after one of its calls, and its tracker goes on.
type mortal struct {
	*cbt.Writer
	calls, last int  // the process dies at call number last
	after       bool // and that call came through
	out         []*cbt.Taken
}

// die reports whether the process does not come to a call, or not to its answer.
func (m *mortal) die(call func()) bool {
	m.calls++
	if m.calls > m.last || m.calls == m.last && !m.after {
		return true
	}
	call()
	return m.calls == m.last
}

func (m *mortal) Take(ctx context.Context, since cbt.Epoch) (t *cbt.Taken, err error) {
	dead := m.die(func() {
		if t, err = m.Writer.Take(ctx, since); err == nil {
			m.out = append(m.out, t)
		}
	})
	if dead {
		return nil, errDead
	}
	return t, err
}

func (m *mortal) alter(call func() error) (err error) {
	if m.die(func() { err = call() }) {
		return errDead
	}
	return err
}

func (m *mortal) PutBack(t *cbt.Taken, proven []cbt.Extent) error {
	return m.alter(func() error { return m.Writer.PutBack(t, proven) })
}

func (m *mortal) Seal(e cbt.Epoch) error { return m.alter(func() error { return m.Writer.Seal(e) }) }

func (m *mortal) Advance(t *cbt.Taken, proven []cbt.Extent, e cbt.Epoch) error {
	return m.alter(func() error { return m.Writer.Advance(t, proven, e) })
}

// buried leaves the tracker as the next process finds it: what was out is put back.
func (m *mortal) buried() *cbt.Writer {
	for _, t := range m.out {
		_ = m.Writer.PutBack(t, nil) // most of them are back
	}
	return m.Writer
}

// TestLiveDies: a session dies before or after any call to its tracker. Whoever
// relied on the epoch that it found is told so, or finds every mark: a target that
// this session did not copy to differs in what it has proven of its own (L1, L2).
func TestLiveDies(t *testing.T) {
	for i := range 8 {
		known, after, ownFirst := i&1 != 0, i&2 != 0, i&4 != 0
		for last, over := 1, false; !over; last++ {
			t.Run(fmt.Sprintf("known %v, own first %v, call %d, came through %v", known, ownFirst, last, after), func(t *testing.T) {
				over = liveDies(t, known, ownFirst, &mortal{last: last, after: after})
			})
		}
	}
}

// liveDies reports whether the session came to its end.
func liveDies(t *testing.T, known, ownFirst bool, m *mortal) (over bool) {
	const since = 7
	src := newBusy(t, 1<<20, 0)
	dst, other := &stamped{memory: &memory{b: bytes.Clone(src.b)}}, &memory{b: bytes.Clone(src.b)}
	if err := src.tracker.Seal(since); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 5 * pieceSize, 1<<20 - pieceSize} {
		if _, err := src.tracker.WriteAt([]byte("new"), off); err != nil {
			t.Fatal(err)
		}
	}
	m.Writer = src.tracker
	l := src.live()
	l.Tracker = m
	if known {
		l.Since = since
	}
	durable := Live{} // what the next process knows
	l.Sealed = func() error {
		if m.calls >= m.last {
			return errDead
		}
		durable.Since, durable.After, durable.Left = l.Since, l.After, l.Left
		return nil
	}
	_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, Side{Volume: dst}, Options{Live: l})
	if over = m.calls < m.last; over != (err == nil) {
		t.Fatalf("%d calls of %d: %v", m.calls, m.last, err)
	}
	src.tracker = m.buried()
	own := func() {
		next := src.live()
		next.Since, next.After, next.Left = durable.Since, durable.After, durable.Left
		r := src.follows(t, dst, dst.memory, next)
		if over && ownFirst && r.Rung != RungExact.String() {
			t.Errorf("after a session that came to its end: rung %s (%s)", r.Rung, r.Reason)
		}
	}
	if ownFirst {
		own()
	}
	next := src.live()
	next.Since = since // by somebody's word
	src.follows(t, other, other, next)
	if !ownFirst {
		own()
	}
	return over
}

// follows syncs by what l says, and requires that both are equal then.
func (v *busy) follows(t *testing.T, dst Volume, content *memory, l *Live) *Report {
	t.Helper()
	r, err := Sync(t.Context(), Side{Volume: v, Name: "src"}, Side{Volume: dst}, Options{Live: l})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content.b, v.resting) {
		t.Errorf("the rung is %s (%s), and the target differs", r.Rung, r.Reason)
	}
	return r
}

// TestLiveStuckTarget: a target in this process that does not come back from a
// sync. The writers go on when the pause is over, the caller is told what is waited
// for, and the session ends when the target does (L6).
func TestLiveStuckTarget(t *testing.T) {
	for name, end := range map[string]func(*told, context.CancelFunc){
		"overdue":   func(h *told, _ context.CancelFunc) { close(h.ended) },
		"cancelled": func(_ *told, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) { liveStuck(t, name, end) })
	}
}

func liveStuck(t *testing.T, name string, end func(*told, context.CancelFunc)) {
	src := newBusy(t, 1<<20, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var resting atomic.Bool
	stuck, hangs, released, noted := make(chan struct{}), make(chan struct{}, 99), make(chan struct{}), make(chan string, 9)
	dst := &faulty{memory: randomVolume(2, 1<<20)}
	dst.sync = func(int64) error {
		if resting.Load() {
			hangs <- struct{}{}
			<-stuck
		}
		return nil
	}
	l := src.live()
	var h *told
	telling(l, fromNow, func(t *told) {
		h = t
		t.hold = letGo{t.hold, func() { close(released) }}
		resting.Store(true)
	})
	var over atomic.Bool
	ended := make(chan error, 1)
	go func() {
		o := Options{Live: l, Events: Events{Note: func(s string) { noted <- s }}}
		_, err := Sync(ctx, Side{Volume: src, Name: "src"}, Side{Volume: dst, Name: "dst"}, o)
		over.Store(true)
		ended <- err
	}()
	<-hangs
	if name == "overdue" {
		src.mu.Lock()
		src.broken = errLive
		src.mu.Unlock()
	}
	end(h, cancel)
	late := time.After(partingTime)
	select {
	case <-released:
	case <-late:
		t.Error("the writers wait for the target (L6)")
	}
	select {
	case s := <-noted:
		if !strings.Contains(s, "dst") || !strings.Contains(s, "flush") {
			t.Errorf("told %q", s)
		}
	case <-time.After(10 * partingTime):
		t.Error("nobody is told what is waited for")
	}
	if over.Load() {
		t.Error("the session has ended before its target")
	}
	close(stuck)
	err := <-ended
	if want := map[string]error{"overdue": errLive, "cancelled": context.Canceled}[name]; !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	src.goesOn(t, dst.memory)
}

// TestLiveCut: a link that breaks, or a source that dies, leaves a served target that
// notes how it was left. The next session, the retry as well, looks at no more than
// what the tracker holds. A target that died with it has noted nothing, and what it
// had written cannot be told from what others did.
func TestLiveCut(t *testing.T) {
	for name, c := range map[string]struct {
		retry  time.Duration // for which the same Sync tries again
		killed bool          // the target's side, too
		rung   Rung
		words  string
	}{
		"cut, and tried again": {time.Minute, false, RungExact, "dirty map of epoch"},
		"cut for good":         {0, false, RungExact, "dirty map of epoch"},
		"killed":               {0, true, RungMerkle, "nothing says that the target was not written since"},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := newBusy(t, liveSize, 0.1), &stamped{memory: randomVolume(2, liveSize)}
			side := Side{Volume: dst, Name: "dst", Journal: filepath.Join(t.TempDir(), "dst.fbj")}
			far, wait := pipeServe(t.Context(), Options{}, side)
			var deaf atomic.Bool
			dial := far[0].Dial
			far[0].Dial = func(ctx context.Context) (io.ReadWriteCloser, error) {
				rw, err := dial(ctx)
				return &deafAt{ReadWriteCloser: rw, deaf: &deaf}, err
			}
			l := src.live()
			var before []byte // the journal, before the target's side has noted its end
			l.Round = func(r Round) {
				if r.Number == 1 && before == nil {
					var err error
					if before, err = os.ReadFile(side.Journal); err != nil {
						t.Error(err)
					}
					deaf.Store(true)
				}
			}
			var plans []Plan
			o := Options{Live: l, RetryFor: c.retry}
			o.Events.Plan = func(p Plan) { plans = append(plans, p) }
			o.Events.Retry = func(error, time.Duration) { deaf.Store(false) }
			_, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, far[0], o)
			if (err == nil) != (c.retry > 0) {
				t.Fatal(err)
			}
			wait()
			if c.killed {
				if err := os.WriteFile(side.Journal, before, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.retry == 0 {
				_, err = Sync(t.Context(), Side{Volume: src, Name: "src"}, side, Options{Live: l, Events: o.Events})
			}
			if err != nil || len(plans) != 2 || plans[0].Rung != RungMerkle || plans[1].Rung != c.rung || !strings.Contains(plans[1].Reason, c.words) {
				t.Errorf("%v, %+v", err, plans)
			}
			if !bytes.Equal(dst.b, src.resting) {
				t.Error("the target is not what the source was when its writers were at rest")
			}
		})
	}
}

// TestLiveAbove: no epoch is used twice, whatever the clock says.
func TestLiveAbove(t *testing.T) {
	src, dst := newBusy(t, 1<<20, 0), randomVolume(2, 1<<20)
	l := src.live()
	l.Above = 1 << 40
	var begun []cbt.Epoch
	l.Sealed = func() error {
		begun = append(begun, l.Since)
		return nil
	}
	src.follows(t, dst, dst, l)
	if len(begun) != 2 || begun[0] <= l.Above || begun[1] <= begun[0] {
		t.Errorf("epochs %v, above %d", begun, l.Above)
	}
}
