package failback

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// A commitFunc decides about a stage that is whole: see Side.Commit.
type commitFunc = func(ctx context.Context, apply func(context.Context) error) error

// errUndecided is of an owner who said yes to a stage and did not have it applied.
var errUndecided = errors.New("the owner of the target returned without having the stage applied")

// decide has whoever owns the target decide about a stage that is whole. apply makes
// of the target what is staged: up to the mark while until lasts, from there on while
// on does. Without an owner the session's end, that of ctx, leaves the target as it
// was up to the mark; on is the context of whoever runs the target.
func (t *target) decide(ctx, on context.Context, apply func(until, on context.Context) error) error {
	if t.commit == nil {
		return apply(ctx, on)
	}
	var (
		mu   sync.Mutex // whoever applies may be another goroutine, and late
		over bool
		got  = errUndecided
	)
	err := t.commit(on, func(on context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if over {
			return errors.New("the stage was decided about")
		}
		over, got = true, apply(on, on)
		return got
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	if err != nil {
		return err
	}
	return got
}

// outlive returns a context that does not end with the session's, ctx: it ends with
// whoever runs the target. done is to be called when it is not needed any more.
func (t *target) outlive(ctx context.Context) (on context.Context, done func()) {
	on, cancel := context.WithCancel(context.WithoutCancel(ctx))
	over := make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-t.ends:
			cancel()
		case <-on.Done():
		}
	}()
	return on, func() {
		cancel()
		<-over
	}
}

// alone refuses to go on when somebody has written the target while what differs was
// gathered: that would be lost where something is staged, and stay where nothing is
// (L4). Nothing is touched yet.
func (t *target) alone() error {
	now, err := t.base.writes()
	if err != nil {
		return err
	}
	if now != t.wrote {
		return &RefusedError{Volume: t.name,
			Reason: fmt.Sprintf("somebody has written it while what differs was gathered (%s, now %s)", cmp.Or(t.wrote, "unknown"), cmp.Or(now, "unknown")),
			Next:   "find out who (of an image file a link or a rename counts, too), and sync again when nobody does: it is as that left it, and nothing of this sync is in it"}
	}
	stamp, err := t.base.stamp()
	if err == nil && now == "" && stamp != t.stage.h.stamp && t.o.Events.Note != nil {
		t.o.Events.Note(fmt.Sprintf("%s may have been written while what differs was gathered (%s, now %s): nothing tells for certain", t.name, t.stage.h.stamp, stamp))
	}
	return err
}

// room makes sure that a sparse target has room for what is going to be written to it,
// before it is: were there none half-way, it would stay in between until somebody makes
// some (L5). What it reads as is not touched.
func (t *target) room(ctx context.Context) error {
	err := t.stage.chunks(func(c stageChunk) error {
		if c.sums == nil && c.Len() >= punchBytes {
			return ctx.Err() // it gives room back
		}
		return errors.Join(ctx.Err(), t.base.reserve(c.Off, c.Len()))
	})
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &RefusedError{Volume: t.name, cause: err, Reason: fmt.Sprintf("it is sparse, and there is no room where it lies for what is staged (%v)", err),
			Next: "make room there, or stage elsewhere (--stage DIR), and sync again: it reads as it did"}
	}
	return err
}
