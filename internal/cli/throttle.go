package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/failback/failback/internal/throttle"
)

// throttleFlag is the value CGROUP[=RATE].
type throttleFlag struct {
	group string
	rate  byteRate // 0: as it comes
}

// String is the exact form, which Set reads back.
func (f *throttleFlag) String() string {
	if f.rate == 0 {
		return f.group
	}
	return f.group + "=" + f.rate.String()
}

// Set parses s. The name of a group may hold a "=" as well.
func (f *throttleFlag) Set(s string) error {
	f.group, f.rate = s, 0
	if at := strings.LastIndexByte(s, '='); at >= 0 {
		if _, err := os.Stat(s); err != nil {
			if err := f.rate.Set(s[at+1:]); err != nil {
				return err
			}
			if f.rate == 0 {
				return fmt.Errorf("%q: a rate of 0 would stop its processes", s)
			}
			f.group = s[:at]
		}
	}
	if f.group == "" {
		return fmt.Errorf("%q names no control group", s)
	}
	return nil
}

// Type is the word for the value in help.
func (f *throttleFlag) Type() string { return "CGROUP" }

// brake slows down the writers of a live sync.
type brake struct {
	u      *ui
	name   string // of the group, as it was given
	device string
	disk   string // number
	rate   int64  // that the user wants first, bytes a second; 0: what the session wants
	fresh  bool   // that is yet to come
	begin  func() (writersLimit, error)
	told   int64           // what the user was told that they are slowed down to
	group  *throttle.Group // claimed; nil: it is to be found anew

	mu    sync.Mutex   // held where these are changed, and where another goroutine reads them
	limit writersLimit // nil: nobody was slowed down yet
	slows bool         // it is set, and was not lifted since
}

// writersLimit is a [throttle.Limit].
type writersLimit interface {
	Set(ctx context.Context, rate int64) (int64, error)
	Lift()
	End() error
}

// newBrake returns nil if nobody may be slowed down, and refuses a group that
// cannot be.
func newBrake(u *ui, f *throttleFlag, device string) (*brake, error) {
	if f.group == "" {
		return nil, nil
	}
	b := &brake{u: u, name: f.group, device: device, rate: int64(f.rate), fresh: true}
	b.begin = b.look
	if err := b.find(); err != nil {
		return nil, err
	}
	if b.group.Direct {
		u.note(fmt.Sprintf("note: the memory controller is not on in %s: of what its processes write through the page cache nothing would be slowed down", f.group))
	}
	return b, nil
}

// find sees to it that nobody else slows the group down, nor has left it slow.
func (b *brake) find() error {
	g, err := throttle.Find(b.name, b.device)
	if err != nil {
		return err
	}
	undone, err := g.Claim()
	if undone > 0 {
		b.u.note(fmt.Sprintf("note: what %s writes to %s was still slowed down to %s/s by a sync that was killed: that limit is taken away", b.name, g.Disk, humanBytes(undone)))
	}
	if err == nil {
		b.group, b.disk = g, g.Disk
	}
	return err
}

// look begins a limit.
func (b *brake) look() (writersLimit, error) {
	if b.group == nil {
		if err := b.find(); err != nil {
			return nil, fmt.Errorf("find it anew: %v", err) // no refusal: the session runs
		}
	}
	return b.group.Begin()
}

// slow is what a session asks for, see [failback.Live].
func (b *brake) slow(ctx context.Context, rate int64) (int64, error) {
	if rate == 0 {
		b.fresh = true // the session may be tried again
		b.lift()
		return 0, nil
	}
	first := b.fresh
	if first && b.rate > 0 {
		rate = b.rate
	}
	b.fresh = false
	now, err := b.set(ctx, rate)
	if errors.Is(err, throttle.ErrGone) && ctx.Err() == nil {
		b.u.note(fmt.Sprintf("note: %v: it begins anew", err))
		if err = b.end(); err == nil {
			now, err = b.set(ctx, rate)
		}
		b.told = 0
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		b.lift()
		return 0, err
	}
	if first { // from here on nobody has to wait for the end of the session
		context.AfterFunc(ctx, b.lift)
	}
	if now == b.told {
		return now, nil
	}
	b.told = now
	text := fmt.Sprintf("what %s writes to the disk of the source (%s) is slowed down to %s/s, until this sync ends", b.name, b.disk, humanBytes(now))
	if now < rate {
		text = fmt.Sprintf("what %s writes to the disk of the source (%s) keeps to a limit of its own, %s/s", b.name, b.disk, humanBytes(now))
	}
	b.u.note(text)
	return now, nil
}

// set begins the limit where there is none yet.
func (b *brake) set(ctx context.Context, rate int64) (int64, error) {
	if b.limit == nil {
		l, err := b.begin()
		if err != nil {
			return 0, err
		}
		b.mu.Lock()
		b.limit = l
		b.mu.Unlock()
	}
	b.mu.Lock()
	b.slows = true
	b.mu.Unlock()
	return b.limit.Set(ctx, rate)
}

// holds reports whether the writers are slowed down now.
func (b *brake) holds() bool {
	if b == nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slows
}

// lift lets the writers be as they were until the session asks again. It is called
// when they are about to come to rest: what they still have to write out then is
// waited for. It does not wait.
func (b *brake) lift() {
	b.mu.Lock()
	l := b.limit
	b.slows = false
	b.mu.Unlock()
	if l != nil {
		l.Lift()
	}
}

// end lets them be as they were for good.
func (b *brake) end() error {
	if b == nil {
		return nil
	}
	var err error
	if b.limit != nil {
		err = b.limit.End()
	}
	if b.group != nil {
		err = errors.Join(err, b.group.Release())
	}
	if err != nil {
		return err // also the next time
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit, b.group, b.slows = nil, nil, false
	return nil
}

// throttleCommand is the process that looks after a limit. Only failback itself
// starts it, see throttle.Group.Begin: what it reads and prints is between the two.
func (a *app) throttleCommand() *cobra.Command {
	c := &cobra.Command{
		Use:    "throttle",
		Short:  "Slow down the writers of a volume for another failback",
		Hidden: true,
		Args:   cobra.NoArgs,
	}
	return a.runs(c, func(context.Context, []string) error { return throttle.Serve(a.stdin, a.stdout) })
}
