package quiesce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// Hold is a pause that has begun. It ends with [Hold.End], and by itself in every
// other case: Limit, the end of this process, the end of its own.
type Hold struct {
	cmd    *exec.Cmd
	wants  io.Closer // the pipe whose end is the end of the pause
	pause  pause     // of follow alone until ended
	rests  chan struct{}
	stuck  chan struct{}
	ended  chan struct{}
	exited chan struct{}
	begun  time.Time // when writes may have begun to wait; from rests on

	asked, stuckOnce sync.Once
}

// Begin brings the writers to rest and returns once they do. Before that it
// checks the plan as [Plan.Check] does. On an error the writers go on, or will as
// soon as the kernel lets them; cancelling ctx gives up. It takes as long as
// writing out what the file system holds back and OnQuiesce take, and three
// processes' time of a few milliseconds, most of it before anything rests.
//
// From here on nothing may be written to the file system by who waits for the
// end of the pause: see [Plan.Outside].
func (p Plan) Begin(ctx context.Context) (*Hold, error) {
	p, err := p.complete()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	mount, err := p.open(thisHost)
	if err != nil {
		return nil, err
	}
	h, err := p.start(mount)
	if err != nil {
		if mount != nil {
			mount.Close()
		}
		return nil, err
	}
	select {
	case <-h.rests:
		return h, nil
	case <-h.ended:
	case <-h.stuck:
	case <-ctx.Done():
	}
	_, err = h.End()
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil:
		err = errors.New("the pause ended before it had begun")
	}
	return nil, err
}

// start starts the holder and what follows it.
func (p Plan) start(mount *os.File) (*Hold, error) {
	h := &Hold{
		pause: pause{plan: p, mount: mount, tell: func(word) {}, word: word{Step: stepStarting}},
		rests: make(chan struct{}), stuck: make(chan struct{}), ended: make(chan struct{}), exited: make(chan struct{}),
	}
	program := p.Program
	if program == "" {
		program = "/proc/self/exe" // also when another version has been put in its place
	}
	h.cmd = exec.Command(program)
	h.cmd.Args = []string{holderName, "hold"}
	h.pause.inherit(h.cmd)
	said, out, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	defer out.Close()
	wants, err := h.cmd.StdinPipe()
	if err != nil {
		said.Close()
		return nil, fmt.Errorf("start holder: %w", err)
	}
	h.cmd.Stdout = out
	if err := h.cmd.Start(); err != nil {
		said.Close()
		return nil, fmt.Errorf("start holder: %w", err)
	}
	h.wants = wants
	go func() {
		defer close(h.exited)
		_ = h.cmd.Wait() // what counts is what it has said
	}()
	go h.follow(said)
	if err := tell(wants, p); err != nil {
		h.ask() // it has ended; follow says how
	}
	return h, nil
}

// guardTime is how long a guard may take to say that it has taken over. A
// parent that is too hasty only does what the guard does too.
const guardTime = 250 * time.Millisecond

// follow hears what holder and guard say, and finishes when neither does.
func (h *Hold) follow(said *os.File) {
	defer close(h.ended)
	if h.pause.mount != nil {
		defer h.pause.mount.Close()
	}
	heard, exited, killed := make(chan word), h.exited, false
	go words(lines(said), heard)
	defer func() {
		said.Close()
		for range heard { // nobody is left waiting for us to hear it
		}
	}()
	late := time.NewTimer(h.pause.plan.Timeout + 2*slack)
	defer late.Stop()
	for h.pause.word.Step != stepEnded {
		select {
		case w, ok := <-heard:
			if !ok {
				h.pause.takeOver("the process that held it and its guard are gone")
				return
			}
			h.note(w, late)
		case <-exited:
			exited = nil
			late.Reset(guardTime)
		case <-late.C:
			if exited == nil || killed {
				h.pause.takeOver("the process that held it is gone, and its guard does nothing")
				return
			}
			killed = true // its guard would have done so
			_ = h.cmd.Process.Kill()
			late.Reset(guardTime)
		}
	}
	select {
	case <-h.exited:
	case <-time.After(slack): // a thread of it is still in the kernel, at nothing that matters
	}
}

// note takes a word for what now holds.
func (h *Hold) note(w word, late *time.Timer) {
	if w.Begun > 0 && h.pause.word.Begun == 0 && h.pause.plan.Stopping != nil {
		h.pause.plan.Stopping()
	}
	h.pause.word = w
	late.Stop()
	if w.Within > 0 {
		late.Reset(w.Within + 2*slack)
	}
	if w.Step == stepResting {
		h.begun = time.Now().Add(w.Begun - now())
		close(h.rests) // said once
	}
	if w.Stuck {
		h.stuckOnce.Do(func() { close(h.stuck) })
	}
}

// ask asks for the end of the pause.
func (h *Hold) ask() {
	h.asked.Do(func() { _ = h.wants.Close() }) // it is closed already where the holder is gone
}

// Begun is when the first write may have begun to wait, see [Pause].
func (h *Hold) Begun() time.Time { return h.begun }

// Ended is closed when the pause has ended, also by itself: what is read from
// then on is of different moments.
func (h *Hold) Ended() <-chan struct{} { return h.ended }

// End lets the writers go on and returns when they do, at the latest after twice
// Timeout. The error is [ErrBroken] if they went on before, whatever it was that
// ended the pause; or that of a step, and then it says what is left to be done by
// hand. The Pause is right with either. A second End returns the same.
func (h *Hold) End() (Pause, error) {
	h.ask()
	return h.await()
}

func (h *Hold) await() (Pause, error) {
	select {
	case <-h.ended:
	case <-h.stuck:
		if !gone(h.ended) {
			return Pause{}, fmt.Errorf("the kernel has not come back in time from freezing or thawing %s; process %d goes on as soon as it does",
				h.pause.plan.Mount, h.cmd.Process.Pid)
		}
	}
	return h.pause.word.pause(), h.pause.word.err()
}
