package failback

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
)

// TestStageCommit: whoever owns the target decides about a stage that is whole, and
// the source does not hear of the end before.
func TestStageCommit(t *testing.T) {
	errNo := errors.New("the round is not wanted any more")
	for name, c := range map[string]struct {
		commit func(cut func()) func(context.Context, func(context.Context) error) error
		equal  bool  // the target becomes what it is to be
		err    error // of the session; nil with equal: none
		failed bool  // the session has another error
	}{
		"applied": {equal: true, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(ctx context.Context, apply func(context.Context) error) error { return apply(ctx) }
		}},
		"refused": {err: errNo, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(context.Context, func(context.Context) error) error { return errNo }
		}},
		"refused when it was applied": {equal: true, err: errNo, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(ctx context.Context, apply func(context.Context) error) error {
				return errors.Join(apply(ctx), errNo)
			}
		}},
		"decided nothing": {err: errUndecided, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(context.Context, func(context.Context) error) error { return nil }
		}},
		"applied twice": {equal: true, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(ctx context.Context, apply func(context.Context) error) error {
				if err := apply(ctx); err != nil {
					return err
				}
				if err := apply(ctx); err == nil {
					t.Error("applied twice")
				}
				return nil
			}
		}},
		"said to be applied, and was not": {err: context.Canceled, commit: func(func()) func(context.Context, func(context.Context) error) error {
			return func(ctx context.Context, apply func(context.Context) error) error {
				ctx, stop := context.WithCancel(ctx)
				stop()
				_ = apply(ctx)
				return nil
			}
		}},
		"applied though the session is over": {equal: true, failed: true, commit: func(cut func()) func(context.Context, func(context.Context) error) error {
			return func(ctx context.Context, apply func(context.Context) error) error {
				cut()
				<-ctx.Done()
				return apply(context.WithoutCancel(ctx))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst, side, dir := stagedSides(t, 4<<20)
			old, err := os.ReadFile(dst.path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cut := context.WithCancel(t.Context())
			defer cut()
			side.Commit = c.commit(cut)
			_, err = Sync(ctx, Side{Volume: src, Name: "source"}, side, Options{})
			if c.err != nil && !errors.Is(err, c.err) || (err != nil) != (c.err != nil || c.failed) {
				t.Errorf("the session ends with %v", err)
			}
			want := old
			if c.equal {
				want = src.b
			}
			if got, err := os.ReadFile(dst.path); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the target is not as it is to be (%v)", err)
			}
			if !c.equal {
				wantEmpty(t, dir)
			}
			// Whatever it was, the next one finds its way.
			side.Commit = nil
			if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); err != nil {
				t.Error(err)
			}
			wantEmpty(t, dir)
		})
	}
}

// TestStageCommitLate: an owner who has said no, and applies it then, is too late.
func TestStageCommitLate(t *testing.T) {
	src, dst, side, _ := stagedSides(t, 1<<20)
	old, err := os.ReadFile(dst.path)
	if err != nil {
		t.Fatal(err)
	}
	errNo := errors.New("no")
	var late func(context.Context) error
	side.Commit = func(_ context.Context, apply func(context.Context) error) error {
		late = apply
		return errNo
	}
	if _, err := Sync(t.Context(), Side{Volume: src, Name: "source"}, side, Options{}); !errors.Is(err, errNo) {
		t.Errorf("the session ends with %v", err)
	}
	if err := late(t.Context()); err == nil {
		t.Error("it was applied when the session was over")
	}
	if got, err := os.ReadFile(dst.path); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the target was written (%v)", err)
	}
}

// TestStageCommitPeerLost: an owner may take longer than the link holds, and say yes
// under the context that he was given.
func TestStageCommitPeerLost(t *testing.T) {
	b := newStageBench(512<<10, false)
	side := b.target()
	var lose func()
	ended := make(chan struct{})
	side.Commit = func(ctx context.Context, apply func(context.Context) error) error {
		lose()
		<-ended
		if err := ctx.Err(); err != nil {
			t.Errorf("its context has ended with the link: %v", err)
		}
		return apply(ctx)
	}
	far, served := pipeServe(t.Context(), Options{Workers: 1}, side)
	target, cut := lossy(far[0])
	lose = cut
	if _, err := Sync(t.Context(), b.source(), target, Options{Workers: 1, Stage: true}); !retryable(err) {
		t.Errorf("got %v", err)
	}
	close(ended)
	served()
	if rec := b.journal(t); !bytes.Equal(b.dst.Durable(), b.src.b) || rec == nil || !rec.Complete {
		t.Errorf("the target is not what it was going to be, or the journal does not say so: %+v", rec)
	}
}
