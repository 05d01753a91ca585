package failback

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A session that has to end ends when its volume lets it: the kernel cannot be
// called back from a read, a write or a flush, and who went on without would leave
// a goroutine behind that may yet write. Nobody else waits for that: the writers of
// a live sync are let go before (see standstill), the peer was told. But whoever
// wants the session to end is to know what it waits for.

// underWay counts the calls into a volume that have not come back.
type underWay struct{ reads, writes, flushes atomic.Int32 }

// words says what has not come back, "" if all has.
func (u *underWay) words() string {
	switch {
	case u.flushes.Load() > 0:
		return "a flush of it"
	case u.writes.Load() > 0:
		return "a write to it"
	case u.reads.Load() > 0:
		return "a read of it"
	}
	return ""
}

// tellStuck tells note, once, what the volume keeps the session with, some time
// after ctx has ended. over is called when nothing uses the volume any more.
func (m *meter) tellStuck(ctx context.Context, note func(string)) (over func()) {
	if m == nil || note == nil {
		return func() {}
	}
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		t := time.NewTicker(partingTime)
		defer t.Stop()
		for {
			select {
			case <-ended:
				return
			case <-t.C:
			}
			if what := m.busy.words(); what != "" {
				note(m.name + ": " + what + " has not come back yet, and the session can only end when it has")
				return
			}
		}
	})
	return func() {
		close(ended)
		watch.Wait()
	}
}
