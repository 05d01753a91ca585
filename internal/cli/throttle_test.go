package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/internal/throttle"
)

// limited is a limit that notes what becomes of it.
type limited struct {
	did   []int64 // set to; -1: lifted, -2: ended
	least int64
}

func (l *limited) Set(_ context.Context, rate int64) (int64, error) {
	l.did = append(l.did, rate)
	if l.least > 0 {
		rate = min(rate, l.least)
	}
	return rate, nil
}

func (l *limited) Lift() { l.did = append(l.did, -1) }

func (l *limited) End() error {
	l.did = append(l.did, -2)
	return errKilled
}

// The first rate of each attempt is the user's; the session says what comes then.
// The user is told of each that is another.
func TestBrake(t *testing.T) {
	ctx := context.WithoutCancel(t.Context()) // its end would lift the limit
	l, begun := &limited{least: 600}, 0
	var said bytes.Buffer
	b := &brake{u: &ui{w: &said}, name: "db", disk: "8:0", rate: 1000, fresh: true, begin: func() (writersLimit, error) {
		begun++
		return l, nil
	}}
	b.lift() // nothing to lift yet
	if begun != 0 {
		t.Error("it was begun before it was wanted")
	}
	for _, c := range []struct{ asked, want int64 }{{5000, 600}, {600, 600}, {300, 300}, {0, 0}, {7000, 600}, {400, 400}} {
		if got, err := b.slow(ctx, c.asked); got != c.want || err != nil {
			t.Errorf("asked for %d: %d, %v, want %d", c.asked, got, err, c.want)
		}
	}
	if err := b.end(); !errors.Is(err, errKilled) {
		t.Errorf("end: %v", err)
	}
	if want := []int64{1000, 600, 300, -1, 1000, 400, -2}; !slices.Equal(l.did, want) || begun != 1 {
		t.Errorf("it did %v, want %v; begun %d times", l.did, want, begun)
	}
	own, slow := strings.Count(said.String(), "(8:0) keeps to a limit of its own, 600 B/s"), strings.Count(said.String(), "what db writes to the disk of the source (8:0) is slowed down to ")
	if own != 2 || slow != 2 || strings.Count(said.String(), "\n") != 4 {
		t.Errorf("it said:\n%s", said.String())
	}
	if err := (&liveSync{brake: b}).end(t.Context()); !errors.Is(err, errKilled) {
		t.Errorf("the end of a sync: %v", err)
	}
	l.did = l.did[:len(l.did)-1]
	var none *brake
	if err := none.end(); err != nil {
		t.Error(err)
	}
	b = &brake{u: b.u, begin: func() (writersLimit, error) { return nil, errKilled }}
	if _, err := b.slow(t.Context(), 5); !errors.Is(err, errKilled) || b.end() != nil {
		t.Errorf("one that cannot be begun: %v", err)
	}
}

// lost is a limit that does not hold any more after so many calls.
type lost struct {
	limited
	after int
	left  error // what its end returns
}

func (l *lost) Set(ctx context.Context, rate int64) (int64, error) {
	if l.after--; l.after < 0 {
		return 0, fmt.Errorf("%w: it was killed", throttle.ErrGone)
	}
	return l.limited.Set(ctx, rate)
}

func (l *lost) End() error {
	l.did = append(l.did, -2)
	return l.left
}

// TestBrakeLost: a limit that does not hold any more begins anew, and the user is told;
// not where the old one could not be taken away.
func TestBrakeLost(t *testing.T) {
	a, b, c := &lost{after: 1}, &lost{after: 1, left: errKilled}, &lost{}
	next := []writersLimit{a, b, c}
	var said bytes.Buffer
	k := &brake{u: &ui{w: &said}, name: "db", disk: "8:0", fresh: true, begin: func() (l writersLimit, err error) {
		l, next = next[0], next[1:]
		return l, nil
	}}
	for range 2 {
		if got, err := k.slow(t.Context(), 500); got != 500 || err != nil {
			t.Fatal(got, err)
		}
	}
	if !slices.Equal(a.did, []int64{500, -2}) || !slices.Equal(b.did, []int64{500}) {
		t.Errorf("the first did %v, the second %v", a.did, b.did)
	}
	if text := said.String(); strings.Count(text, "is slowed down to 500 B/s") != 2 || !strings.Contains(text, "it was killed: it begins anew") {
		t.Errorf("it said:\n%s", text)
	}
	if _, err := k.slow(t.Context(), 500); !errors.Is(err, errKilled) || len(c.did) > 0 {
		t.Errorf("%v, and the third did %v", err, c.did)
	}
	if err := k.end(); !errors.Is(err, errKilled) {
		t.Errorf("in the end: %v", err)
	}
}

// TestFlush: the page cache of writers that are slowed down is not waited for for ever.
func TestFlush(t *testing.T) {
	defer func(d time.Duration) { slowFlush = d }(slowFlush)
	slowFlush = time.Millisecond
	block := make(chan struct{})
	defer close(block)
	hang := func() error { <-block; return nil }
	var said bytes.Buffer
	v := &liveSync{u: &ui{w: &said}, flags: &liveFlags{freeze: "/srv", step: 50 * time.Millisecond}, brake: &brake{u: &ui{w: io.Discard}, name: "db", begin: func() (writersLimit, error) { return &limited{}, nil }}}
	if _, err := v.brake.slow(t.Context(), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := v.flush(t.Context(), hang); err == nil || !strings.Contains(err.Error(), "what db has in the page cache was not written out within 50ms (--quiesce-timeout)") {
		t.Errorf("slowed down: %v", err)
	}
	v.u.mu.Lock() // a timer says it
	if !strings.Contains(said.String(), "waiting for /srv to write out") {
		t.Errorf("it said %q", said.String())
	}
	v.u.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.flush(ctx, hang); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// It is the limit that makes it take for ever.
	if _, err := v.brake.slow(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	v.flags.step = 1
	slow := func() error { <-time.After(20 * time.Millisecond); return errKilled }
	if err := v.flush(t.Context(), slow); err != errKilled {
		t.Errorf("as they are again: %v", err)
	}
	v.brake = nil
	if err := v.flush(t.Context(), slow); err != errKilled {
		t.Errorf("as they are: %v", err)
	}
}

// TestLeftover: a sync that was done is one, whatever of it could not be taken down.
func TestLeftover(t *testing.T) {
	r := &failback.Report{Schema: schemaSync, Result: "equal", Source: "a", Target: "b"}
	limit := &throttle.LeftError{Group: "/g", Order: "8:0 wbps=max", Err: errKilled}
	for _, c := range []struct {
		err         error
		json        bool
		state, next string
	}{
		{errKilled, false, "b is equal to a as of the pause, and proven", "the sync need not be run again"},
		{limit, true, "the limit of /g is still in force", `echo "8:0 wbps=max" > /g/io.max`},
	} {
		var out bytes.Buffer
		a := &app{stdout: &out, json: c.json}
		f := explain(t.Context(), a.leftover(&leftoverError{c.err, r}, outputFlags{}))
		if f.exit != exitFailed || f.Report != r || !strings.Contains(f.State, c.state) || !strings.Contains(f.Next, c.next) || strings.Contains(f.Next, "run the same command") {
			t.Errorf("%v: %+v", c.err, f)
		}
		if c.json != (out.Len() == 0) {
			t.Errorf("%v: it printed %q", c.err, out.String())
		}
	}
}

// lifting is a limit that tells when it is lifted.
type lifting struct {
	limited
	lifted chan struct{}
	onSet  func()
}

func (l *lifting) Lift() { l.lifted <- struct{}{} }

func (l *lifting) Set(ctx context.Context, rate int64) (int64, error) {
	l.onSet()
	return l.limited.Set(ctx, rate)
}

// When the session is cancelled the writers go on, whatever it still waits for; also
// when that comes while they are being slowed down (L6).
func TestBrakeCancelled(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int // which call is under way when it is cancelled; 0: none
	}{{"between", 0}, {"in the first", 1}, {"in the second", 2}} {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		l := &lifting{lifted: make(chan struct{}, 10), onSet: func() {
			if calls++; calls == c.at {
				cancel()
			}
		}}
		b := &brake{u: &ui{w: &bytes.Buffer{}}, fresh: true, begin: func() (writersLimit, error) { return l, nil }}
		for i := range 2 {
			if _, err := b.slow(ctx, 100); (err != nil) != (c.at == i+1) {
				t.Errorf("%s: call %d: %v", c.name, i+1, err)
			} else if err != nil {
				break
			}
		}
		cancel()
		select {
		case <-l.lifted:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: it was not lifted", c.name)
		}
	}
}

func TestThrottleFlag(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a=5")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]throttleFlag{
		"x.slice/db.service":        {group: "x.slice/db.service"},
		"/sys/fs/cgroup/db=10MiB/s": {group: "/sys/fs/cgroup/db", rate: 10 << 20},
		"a=b=64K":                   {group: "a=b", rate: 64 << 10},
		dir:                         {group: dir},
		dir + "=1M":                 {group: dir, rate: 1 << 20},
	} {
		var f, again throttleFlag
		if err := f.Set(s); err != nil || f != want {
			t.Errorf("%s: %+v, %v", s, f, err)
		}
		if err := again.Set(f.String()); err != nil || again != f {
			t.Errorf("%s, and again %s: %+v, %v", s, f.String(), again, err)
		}
	}
	for _, s := range []string{"", "=1M", "db=", "db=0", "db=fast"} {
		var f throttleFlag
		if err := f.Set(s); err == nil {
			t.Errorf("%q: %+v", s, f)
		}
	}
}
