package failback

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	fault "github.com/failback/failback/internal/faulty"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// lossy reaches a side over links that lose makes end, all that there are then.
func lossy(s Side) (Side, func()) {
	d := &fault.Dialer{Dial: s.Dial}
	s.Dial = d.Connect
	return s, func() {
		for _, l := range d.Links() {
			l.Reset()
		}
	}
}

// TestStagePeerLost (L5): from the moment on at which a stage is applied no peer is
// needed: when it is gone the target is made what it is to be, and says so. The side
// that was lost has heard that the target was going to be written.
func TestStagePeerLost(t *testing.T) {
	for _, i := range []int{1, 3, 6} {
		t.Run(topologies[i].name, func(t *testing.T) {
			b := newStageBench(512<<10, false)
			var last atomic.Value
			o := Options{Workers: 1, Streams: topologies[i].streams, Stage: true}
			o.Events.Progress = func(p Progress) { last.Store(p.Phase) }
			side := b.target()
			hook := &hooked{matrixTarget: matrixTarget{b.dst}}
			side.Volume = hook
			far, served := pipeServe(t.Context(), Options{Workers: 1}, side)
			target, lose := lossy(far[0])
			hook.write = once(lose)
			source, wait := b.source(), func() []error { return nil }
			if topologies[i].sourceServed {
				far, wait = pipeServe(t.Context(), Options{Workers: 1}, source)
				source = far[0]
			}
			if _, err := Sync(t.Context(), source, target, o); !retryable(err) {
				t.Errorf("got %v", err)
			}
			wait()
			served()
			if last.Load() != phaseApply {
				t.Errorf("the last phase told was %v", last.Load())
			}
			if rec := b.journal(t); rec == nil || !rec.Complete || rec.Suspect || rec.Left == "" || rec.Stage != "" {
				t.Errorf("the journal is %+v", rec)
			}
			if !bytes.Equal(b.dst.Durable(), b.src.b) {
				t.Error("the target is not what it was going to be")
			}
			if left := b.dir.Names(); len(left) != 1 || left[0] != stageTestJournal {
				t.Errorf("left behind: %v", left)
			}
			b.again(t, "after that", stageTestDir)
		})
	}
}

// TestStagePeerLostInRedo: likewise while the stage of an earlier session is finished,
// also when that is noticed long before it is.
func TestStagePeerLostInRedo(t *testing.T) {
	within(t, func(t *testing.T) {
		b := halfApplied(t, false)
		hook := &hooked{matrixTarget: matrixTarget{b.dst}}
		side := b.target()
		side.Volume = hook
		far, served := pipeServe(t.Context(), Options{Workers: 1}, side)
		target, lose := lossy(far[0])
		hook.write = once(func() {
			lose()
			<-time.After(time.Hour)
		})
		if _, err := Sync(t.Context(), b.source(), target, Options{Workers: 1}); !retryable(err) {
			t.Errorf("got %v", err)
		}
		served()
		if rec := b.journal(t); rec == nil || rec.Touched || !rec.Suspect || rec.Stage != "" || !bytes.Equal(b.dst.Durable(), b.src.b) {
			t.Errorf("the target is not what it was going to be, or the journal does not say so: %+v", rec)
		}
	})
}

// TestStageTakenOver: a peer that comes again while its stage is applied does not
// begin that anew: it waits.
func TestStageTakenOver(t *testing.T) {
	within(t, func(t *testing.T) {
		b := newStageBench(512<<10, false)
		var notes []string
		served := Options{Workers: 1}
		served.Events.Note = func(text string) { notes = append(notes, text) }
		hook := &hooked{matrixTarget: matrixTarget{b.dst}}
		side := b.target()
		side.Volume = hook
		far, wait := pipeServe(t.Context(), served, side)
		target, lose := lossy(far[0])
		hook.write = once(func() {
			lose()
			<-time.After(time.Minute) // the peer has come again by then
		})
		began := time.Now()
		r, err := Sync(t.Context(), b.source(), target, Options{Workers: 1, Stage: true, RetryFor: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		wait()
		if r.DivergentBytes != 0 || time.Since(began) < time.Minute || !bytes.Equal(b.dst.Durable(), b.src.b) || b.journal(t) != nil {
			t.Errorf("after %v: %+v", time.Since(began), r)
		}
		if s := strings.Join(notes, "; "); strings.Contains(s, "from its stage") {
			t.Errorf("it was begun anew: %s", s)
		}
	})
}

// TestStageCallerStops: whoever runs the target ends it at any moment, as a crash would.
func TestStageCallerStops(t *testing.T) {
	for _, redo := range []bool{false, true} {
		b := newStageBench(512<<10, false)
		if redo {
			b = halfApplied(t, false)
		}
		ctx, stop := context.WithCancel(t.Context())
		hook := &hooked{matrixTarget: matrixTarget{b.dst}, write: func([]byte, int64) error { stop(); <-ctx.Done(); return nil }}
		side := b.target()
		side.Volume = hook
		far, served := pipeServe(ctx, Options{Workers: 1}, side)
		if _, err := Sync(t.Context(), b.source(), far[0], Options{Workers: 1, Stage: true}); err == nil {
			t.Error("it went well")
		}
		served()
		rec := b.journal(t)
		if rec == nil || rec.Stage == "" || !rec.Touched || rec.Complete {
			t.Errorf("redo %v: the journal is %+v", redo, rec)
		}
		b.again(t, "again", "")
	}
}

// TestStageLivePeerLost (L1, L2): a live source that did not hear how it ended finds a
// target that has all of it; its tracker holds all of it for dirty, too, and is
// believed.
func TestStageLivePeerLost(t *testing.T) {
	dst, b := newStagedTarget(t)
	src := newBusy(t, liveSize, 0.3)
	l := src.live()
	var lose func()
	target := serve(t, b, Options{})
	target, lose = lossy(target)
	run := func() *Report {
		t.Helper()
		r, err := Sync(t.Context(), Side{Volume: src, Name: "src"}, target, Options{Live: l, Stage: true, RetryFor: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.b, src.resting) {
			t.Fatal("the target is not what the source was when its writers were at rest")
		}
		src.goesOn(t, dst.memory)
		return r
	}
	run()
	for range 200 {
		src.write()
	}
	first := once(lose)
	dst.write = func() error { return first(nil, 0) }
	if r := run(); r.Attempts != 2 || r.Rung != RungExact.String() {
		t.Errorf("%d attempts, rung %s (%s)", r.Attempts, r.Rung, r.Reason)
	}
}

// meddled is a source that calls f when it is first read.
type meddled struct {
	*memory
	f func([]byte, int64) error
}

func (v *meddled) ReadAt(p []byte, off int64) (int, error) {
	_ = v.f(p, off)
	return v.memory.ReadAt(p, off)
}

// TestStageForeignWrite (L4): whoever writes the target while what differs is gathered
// does not lose that, and nobody says that both sides are equal.
func TestStageForeignWrite(t *testing.T) {
	src, dst, side, dir := stagedSides(t, 2<<20)
	want, err := os.ReadFile(dst.path)
	if err != nil {
		t.Fatal(err)
	}
	copy(want[300<<10:], "foreign")
	source := &meddled{src, once(func() {
		f, err := os.OpenFile(dst.path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte("foreign"), 300<<10)
			f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	})}
	side.Undo = dir + ".fbu"
	_, err = Sync(t.Context(), Side{Volume: source, Name: "source"}, side, Options{})
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "somebody has written it") {
		t.Errorf("got %v", err)
	}
	if got, err := os.ReadFile(dst.path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the target was touched (%v)", err)
	}
	wantEmpty(t, dir)
	for _, path := range []string{side.Journal, side.Undo} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); err != nil {
		t.Error(err)
	}
}

// TestStageProvenWhole (L7): a write that hits another place than its own, where
// nothing was staged, is found when all of the target was asked to be proven.
func TestStageProvenWhole(t *testing.T) {
	const astray = 508 << 10 // nothing is staged there
	for _, o := range []Options{{}, {Verify: VerifyFull}, {Seal: 2}} {
		b := newStageBench(512<<10, false)
		copy(b.src.b[500<<10:], b.old[500<<10:])
		o.Workers = 1
		side := b.target()
		side.Volume = &hooked{matrixTarget: matrixTarget{b.dst}, write: once(func() {
			if _, err := b.dst.WriteAt([]byte("astray"), astray); err != nil {
				t.Error(err)
			}
		})}
		_, err := Sync(t.Context(), b.source(), side, o)
		if o.Verify == 0 && o.Seal == 0 {
			if err != nil {
				t.Error(err) // it was not asked to look
			}
			continue
		}
		if !isWrong(err) || !strings.Contains(err.Error(), "[0x") {
			t.Errorf("%+v: %v", o, err)
		}
		if rec := b.journal(t); rec == nil || !rec.Suspect || rec.Complete {
			t.Errorf("the journal is %+v", rec)
		}
		b.again(t, "again", stageTestDir)
	}
}

// TestRelayStage: who is between both knows from the seal on that the target may be
// written, and takes no word of a target that does not stage.
func TestRelayStage(t *testing.T) {
	told := ""
	o := Options{Stage: true}
	o.Events.Progress = func(p Progress) { told = p.Phase }
	r := &relayed{job: &job{mode: modeSync, o: o}}
	for _, staged := range []bool{false, true} {
		err := r.holdInfo(message.Info{Volume: hostileInfo(), Staged: staged}.Append(nil))
		if staged != (err == nil) {
			t.Errorf("staged %v: %v", staged, err)
		}
	}
	near, far := transport.Pipe()
	defer near.Close()
	defer far.Close()
	go func() { _ = transport.New(near, transport.Options{}).Send(kindSeal, nil) }()
	f, err := transport.New(far, transport.Options{}).Read()
	if err == nil {
		err = r.see(f)
		f.Release()
	}
	if err != nil || told != phaseApply {
		t.Errorf("told %q, %v", told, err)
	}
}
