package quiesce

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The processes of a pause:
//
//	parent ──plan, then nothing──▶ holder ──every word──▶ guard
//	   ▲                             │                      │
//	   └─────────────words───────────┴──────────────────────┘
//
// The holder makes the pause and ends it when its parent closes the pipe or is
// gone, when Limit has passed, on a signal, and when its guard is gone. The
// guard does nothing until the holder is gone, or says nothing for longer than it
// said it would; then it finishes. When both are gone the parent does. Each has
// the root of the file system open; holder and guard are not swapped out nor
// killed for their memory, and are in sessions of their own and under names of
// their own, so that what is meant for the parent does not reach them. Only the
// one who is last need live.

// Names of the processes, and the word that makes a guard.
const (
	holderName = "fbk-hold"
	guardName  = "fbk-guard"
	guardRole  = "guard"
)

// slack is how much later than it said a process may be.
const slack = time.Second

// mountFD is where the root of the file system is inherited.
const mountFD = 3

// Serve is the hold command: the holder, or with the role "guard" its guard. It
// reads a plan and writes words; nobody but [Plan.Begin] runs it. It returns
// when the writers go on.
func Serve(role string, stdin io.Reader, stdout io.Writer) error {
	signals := make(chan os.Signal, 16)
	// Caught, not ignored: what is ignored would be for the commands too.
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(signals)
	// Without the right to do it, it is done without.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	in := lines(stdin)
	var plan Plan
	if err := hear(in, &plan); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	plan, err := plan.complete()
	if err != nil {
		return err
	}
	p := pause{plan: plan, word: word{Step: stepStarting, Spared: spared()}}
	if plan.Mount != "" {
		p.mount = os.NewFile(mountFD, plan.Mount)
		unix.CloseOnExec(mountFD)
	}
	if role == guardRole {
		rename(guardName)
		p.tell = func(w word) { _ = tell(stdout, w) } // a parent that is gone is why we are here
		return guard(&p, in, stdin)
	}
	rename(holderName)
	return hold(&p, in, stdout, signals)
}

// unkillable is the oom_score_adj of a process that memory is never taken from.
const unkillable = "-1000"

// spared has the kernel look elsewhere when it runs out of memory: who ends the
// pause must not be killed for it. It returns what the process had before, for
// the commands; "" if nothing was changed, as without CAP_SYS_RESOURCE.
func spared() string {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	was := strings.TrimSpace(string(b))
	if err != nil || was == unkillable || spare("self", unkillable) != nil {
		return ""
	}
	return was
}

func spare(process, adjustment string) error {
	return os.WriteFile("/proc/"+process+"/oom_score_adj", []byte(adjustment), 0)
}

// rename gives the process a name that killing ours by name does not match.
func rename(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0) // without /proc there is no killing by name
}

// stopper is told why a pause is to end. The first cause counts.
type stopper struct {
	once  sync.Once
	c     chan struct{}
	cause string // read after c is closed; "": because it was asked to
}

func (s *stopper) stop(cause string) {
	s.once.Do(func() { s.cause = cause; close(s.c) })
}

// hold is the holder.
func hold(p *pause, in interface{ Scan() bool }, parent io.Writer, signals <-chan os.Signal) error {
	s := &stopper{c: make(chan struct{})}
	watch, err := p.startGuard(s, parent)
	if err != nil {
		return err
	}
	defer watch.Close()
	p.tell = func(w word) {
		_ = tell(watch, w) // both write into room that is there; one who is gone
		_ = tell(parent, w)
	}
	go func() {
		for in.Scan() { // the parent has no more to say
		}
		s.stop("")
	}()
	go func() {
		for got := range signals {
			if got != unix.SIGPIPE {
				s.stop("its holder got a signal: " + got.String())
			}
		}
	}()
	p.word.Holder = os.Getpid()
	switch err := p.begin(s.c); {
	case err == nil:
		p.rest(s)
	case gone(s.c) && s.cause != "":
		p.word.fail(fmt.Errorf("%s: %w", s.cause, err))
	default:
		p.word.fail(err)
	}
	p.finish()
	return nil
}

// rest waits for the end of the pause.
func (p *pause) rest(s *stopper) {
	p.word.Rested = true
	if p.word.Begun == 0 {
		p.word.Begun = now()
	}
	limit := p.word.Begun + p.plan.Limit - now()
	t := time.NewTimer(limit)
	defer t.Stop()
	p.say(stepResting, limit+grace)
	select {
	case <-s.c:
		if s.cause != "" {
			p.word.breakOff("%s", s.cause)
		}
	case <-t.C:
		p.word.Overdue = true
		p.word.breakOff("it had lasted for %v, the longest that it may", p.plan.Limit)
	}
}

// startGuard starts the guard and returns the way to it once it watches.
func (p *pause) startGuard(s *stopper, parent io.Writer) (*os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "guard"), os.NewFile(uintptr(fds[1]), "guard")
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{guardName, "hold", guardRole}
	cmd.Stdin, cmd.Stdout = theirs, parent // words to the parent, once we are gone
	p.inherit(cmd)
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start guard: %w", err)
	}
	err = tell(ours, p.plan)
	if err == nil {
		_, err = ours.Read(make([]byte, 1))
	}
	if err != nil {
		ours.Close()
		_ = cmd.Wait()
		return nil, fmt.Errorf("start guard: %w", err)
	}
	go func() {
		_ = cmd.Wait()
		s.stop("its guard was killed")
	}()
	return ours, nil
}

// inherit gives a process that is about to be started its own session and the
// file system.
func (p *pause) inherit(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.mount != nil {
		cmd.ExtraFiles = []*os.File{p.mount}
	}
}
