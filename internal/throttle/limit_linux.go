package throttle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Limit is a limit that may be in force, from [Group.Begin] to [Limit.End]. It is
// safe for use by many goroutines.
type Limit struct {
	max    ioMax
	cmd    *exec.Cmd
	orders io.WriteCloser
	over   chan struct{} // closed when the keeper is gone, and the limit with it

	mu    sync.Mutex
	given []int64       // the limits that were ordered, order 1 first
	done  int           // orders that were answered
	word  word          // the keeper's last
	heard chan struct{} // closed, and made anew, with each word
	end   error         // set before over is closed: the limit may still be in force
	asked bool          // it is to end, or has
}

// Begin starts the process that looks after a limit of a group that is claimed.
// Nothing is limited yet.
func (g *Group) Begin() (*Limit, error) {
	if g.claim == nil {
		return nil, fmt.Errorf("limit what is written: %s is not claimed", g.Dir)
	}
	dir, err := os.OpenFile(g.Dir, os.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	l := &Limit{max: ioMax{dir: dir, disk: g.Disk, claim: g.claim}, over: make(chan struct{}), heard: make(chan struct{})}
	if err := l.start(g); err != nil {
		dir.Close()
		return nil, fmt.Errorf("start the keeper of a limit: %w", err)
	}
	return l, nil
}

func (l *Limit) start(g *Group) error {
	now, err := l.max.read()
	if err != nil {
		return err
	}
	l.word.state = state{Former: now, Now: now}
	program := g.Program
	if program == "" {
		program = "/proc/self/exe" // also when another version has been put in its place
	}
	l.cmd = exec.Command(program)
	l.cmd.Args = []string{keeperName, "throttle"}
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	l.cmd.ExtraFiles = []*os.File{l.max.dir, g.claim.file}
	if l.orders, err = l.cmd.StdinPipe(); err != nil {
		return err
	}
	said, out, err := os.Pipe()
	if err != nil {
		return err
	}
	l.cmd.Stdout = out
	err = errors.Join(l.cmd.Start(), out.Close())
	if err != nil {
		said.Close()
		return err
	}
	in := lines(said)
	if err := errors.Join(tell(l.orders, task{Disk: g.Disk, Dir: g.Dir, Path: g.claim.path}), l.hello(in)); err != nil {
		l.orders.Close()
		said.Close()
		_ = l.cmd.Wait() // it has done nothing yet
		return err
	}
	go l.follow(in, said)
	return nil
}

// hello waits for the first word.
func (l *Limit) hello(in *bufio.Scanner) error {
	late := time.AfterFunc(patience, func() { _ = l.cmd.Process.Kill() })
	defer late.Stop()
	if err := hear(in, &l.word); err != nil {
		return errKeeperGone
	}
	return nil
}

// follow hears what the keeper says, and takes the limit away if it ends without
// having done so. When its end of the pipe is closed it does nothing any more.
func (l *Limit) follow(in *bufio.Scanner, said io.Closer) {
	for {
		var w word
		if hear(in, &w) != nil {
			break
		}
		l.mu.Lock()
		l.word, l.done = w, max(l.done, w.Number)
		close(l.heard)
		l.heard = make(chan struct{})
		l.mu.Unlock()
	}
	_ = said.Close()
	_ = l.cmd.Process.Kill() // one that speaks no sense
	_ = l.cmd.Wait()         // what counts is what it has said
	l.mu.Lock()
	// What was answered is in the word, and undoing is to make it what it was.
	w, ours := l.word, slices.DeleteFunc(slices.Clone(l.given[l.done:]), func(n int64) bool { return n == noLimit })
	l.asked = true
	l.mu.Unlock()
	var left error
	switch {
	case !w.Ended:
		left = w.restoreAgain(l.max, ours...)
	case w.Failed != "":
		left = errors.New(w.Failed)
	}
	if left != nil {
		l.end = &LeftError{Group: l.max.dir.Name(), Order: l.max.order(w.Former), Err: left}
	}
	_ = l.orders.Close()
	_ = l.max.dir.Close()
	close(l.over)
}

// patience is how long the keeper may take for an order: it is one write to a file
// of the kernel's.
var patience = 10 * time.Second

// order sends an order and returns its number.
func (l *Limit) order(limit int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked {
		return 0, errKeeperGone
	}
	l.given = append(l.given, limit) // it may arrive also where telling it fails
	if err := tell(l.orders, order{Number: len(l.given), Limit: limit}); err != nil {
		return 0, errKeeperGone
	}
	return len(l.given), nil
}

// Set has the processes write no more than so many bytes a second from now on, and
// returns what holds: a lower limit that was there before stays. After an error the
// limit is as it was, or as it was before Begin.
func (l *Limit) Set(ctx context.Context, rate int64) (int64, error) {
	if rate <= 0 {
		return 0, fmt.Errorf("a limit of %d bytes a second: more than 0", rate)
	}
	number, err := l.order(min(rate, noLimit-1))
	if err != nil {
		return 0, l.why(err)
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		l.mu.Lock()
		w, heard := l.word, l.heard
		l.mu.Unlock()
		switch {
		case w.Number == number && w.Gone:
			return 0, fmt.Errorf("%w: %s is gone, or its disk is", ErrGone, l.max.dir.Name())
		case w.Number == number && w.Failed != "":
			return 0, fmt.Errorf("limit what is written: %s", w.Failed)
		case w.Number >= number: // or there was a lift since
			return w.Now, nil
		}
		select {
		case <-heard:
		case <-l.over:
			return 0, l.why(errKeeperGone)
		case <-late.C:
			_ = l.cmd.Process.Kill() // follow does the rest
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// why is an error of a keeper that is gone, with the reason if it gave one.
func (l *Limit) why(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.word.Why != "" {
		return fmt.Errorf("%w: %s", ErrGone, l.word.Why)
	}
	return err
}

// Lift orders that the limit is what it was before, until the next Set. It does not
// wait for that, and may be called from where nothing may wait.
func (l *Limit) Lift() {
	_, _ = l.order(noLimit) // where the keeper is gone, so is the limit
}

// End makes the limit what it was, for good. The error says what to do by hand where
// that did not succeed. A second End returns the same.
func (l *Limit) End() error {
	l.mu.Lock()
	l.asked = true
	l.mu.Unlock()
	_ = l.orders.Close()
	late := time.NewTimer(restoreTime + patience)
	defer late.Stop()
	select {
	case <-l.over:
	case <-late.C:
		_ = l.cmd.Process.Kill() // it has been stopped; follow does the rest
		<-l.over
	}
	return l.end
}
