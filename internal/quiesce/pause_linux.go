package quiesce

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// FIFREEZE and FITHAW of linux/fs.h; x/sys does not have them. They are the same
// numbers on every architecture.
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// fsRequest freezes or thaws the file system that dir is of.
func fsRequest(dir *os.File, nr uint) error {
	for {
		if err := unix.IoctlSetInt(int(dir.Fd()), nr, 0); err != unix.EINTR {
			return err
		}
	}
}

// pause is one pause and the steps it is made of. Whoever takes over from a
// process that is gone makes one of its last word and finishes it.
type pause struct {
	plan  Plan
	mount *os.File // the root of the file system; nil: none is frozen
	tell  func(word)
	word  word
}

// say tells that a step is about to be taken.
func (p *pause) say(s step, within time.Duration) {
	p.word.Step, p.word.Within, p.word.Stuck, p.word.Group = s, within, false, 0
	p.tell(p.word)
}

// now reads the monotonic clock.
func now() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0 // it always exists
	}
	return time.Duration(t.Nano())
}

// begin brings the writers to rest. Closing stop makes it give up. After an
// error, finish undoes what was done.
//
//  1. what is not written out is, while writes go on, so that the pause need not
//  2. OnQuiesce; from here on writes may wait, and Limit runs
//  3. once more, if there was a command: what was written meanwhile, by way of
//     the file system or of the device
//  4. the file system is frozen; its last buffers are written out by that
//
// A process that is killed between any two leaves its guard to finish.
func (p *pause) begin(stop <-chan struct{}) error {
	if err := p.sync(stop); err != nil {
		return err
	}
	if p.plan.OnQuiesce != "" {
		if err := p.stopped(stop); err != nil {
			return err
		}
	}
	if p.mount == nil {
		return nil
	}
	if gone(stop) {
		return errors.New("freeze: not wanted any more")
	}
	return p.freeze()
}

// stopped has OnQuiesce stop the writers, and what they have written lie on the
// device. When an application closes a device that others have open, as who copies
// it has, the kernel does not write out its page cache: that is done here.
func (p *pause) stopped(stop <-chan struct{}) error {
	device, err := openCache(p.plan.Device)
	if err != nil {
		return fmt.Errorf("write out %s: %w", p.plan.Device, err)
	}
	defer device.Close()
	p.word.Begun = now()
	limit := p.left()
	p.say(stepQuiescing, limit+3*grace)
	if err := p.plan.command(stepQuiescing, p.plan.OnQuiesce, limit, stop, p.group); err != nil {
		return err
	}
	if err := p.sync(stop); err != nil {
		return err
	}
	return p.out(p.plan.Device, stop, func() error { return thisHost.writeOut(device) })
}

// group tells the process group of the command that runs, before it does anything.
// What is ours alone is that memory is not taken from us.
func (p *pause) group(pid int) {
	if p.word.Spared != "" {
		_ = spare(strconv.Itoa(pid), p.word.Spared) // it may have been killed
	}
	p.word.Group = pid
	p.tell(p.word)
}

// left is the time for a step: Timeout, and no more than is left of Limit.
func (p *pause) left() time.Duration {
	if p.word.Begun == 0 {
		return p.plan.Timeout
	}
	return max(min(p.plan.Timeout, p.word.Begun+p.plan.Limit-now()), time.Millisecond)
}

func gone(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// sync writes out what the file system has not.
func (p *pause) sync(stop <-chan struct{}) error {
	if p.mount == nil {
		return nil
	}
	return p.out(p.plan.Mount, stop, func() error { return unix.Syncfs(int(p.mount.Fd())) })
}

// out writes something out. The kernel cannot be called back from it, but nothing
// needs to be undone: it is left behind.
func (p *pause) out(what string, stop <-chan struct{}, write func() error) error {
	limit, at := p.left(), stepSyncing
	if p.word.Begun != 0 {
		at = stepQuiescing // OnResume is owed
	}
	p.say(at, limit+grace)
	done := make(chan error, 1)
	go func() { done <- write() }()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("write out %s: %w", what, err)
		}
		return nil
	case <-late.C:
		return fmt.Errorf("write out %s: not done within %v: look at the load on its device", what, limit)
	case <-stop:
		return fmt.Errorf("write out %s: not wanted any more", what)
	}
}

// freeze holds back the writes from the start of the call on, so that is where
// the pause begins if nothing began it before.
func (p *pause) freeze() error {
	p.word.Froze = now()
	if p.word.Begun == 0 {
		p.word.Begun = p.word.Froze
	}
	limit := p.left()
	p.say(stepFreezing, limit+grace)
	err, late := p.request(fiFreeze, limit)
	if refused := p.refusedFreeze(err); refused != nil {
		p.say(stepQuiescing, grace) // the thaw, if there is one, is not ours
		return refused
	}
	switch {
	case err != nil:
		return fmt.Errorf("freeze %s: %w", p.plan.Mount, err)
	case late:
		return fmt.Errorf("freeze %s: not done within %v: look at the load on its device", p.plan.Mount, limit)
	}
	return nil
}

// refusedFreeze is an error that says that nothing was frozen by us; else nil.
func (p *pause) refusedFreeze(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return p.plan.refuse("find out by whom, and have it thawed (fsfreeze --unfreeze "+p.plan.Mount+")",
			"the file system on %s is frozen already", p.plan.Mount)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		return p.plan.refuse("bring its writers to rest by commands", "the file system on %s cannot be frozen", p.plan.Mount)
	case errors.Is(err, unix.EPERM):
		return p.plan.refuse("run it as root", "freezing %s needs CAP_SYS_ADMIN", p.plan.Mount)
	}
	return nil
}

// request freezes or thaws. The kernel cannot be called back from either, and
// what it does in the end has to be undone or known: so a request that is late
// is told and waited for.
func (p *pause) request(nr uint, limit time.Duration) (err error, late bool) {
	done := make(chan error, 1)
	go func() { done <- fsRequest(p.mount, nr) }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err = <-done:
		return err, false
	case <-t.C:
	}
	p.word.Within, p.word.Stuck = 0, true
	p.tell(p.word)
	err = <-done
	p.word.Stuck = false
	return err, true
}

// finish ends the pause, from wherever it is. It needs nobody.
//
//  1. a command that still runs is killed: it could quiesce after the resume
//  2. the file system is thawed
//  3. OnResume
//
// Each step is safe to repeat, so who takes over from a process that was killed
// in it begins with it again.
func (p *pause) finish() {
	if p.word.Group > 0 {
		_ = unix.Kill(-p.word.Group, unix.SIGKILL) // it may have ended
	}
	switch p.word.Step {
	case stepFreezing, stepResting, stepThawing:
		if p.mount != nil {
			p.thaw()
		}
		p.resume()
	case stepQuiescing, stepResuming:
		p.resume()
	}
	if p.word.Begun != 0 && p.word.Ended == 0 {
		p.word.Ended = now()
	}
	p.say(stepEnded, 0)
}

func (p *pause) thaw() {
	again := p.word.Step == stepThawing // somebody was killed at it, perhaps after it
	p.say(stepThawing, p.plan.Timeout+grace)
	begun := now()
	for {
		err, _ := p.request(fiThaw, p.plan.Timeout)
		if err == nil {
			break
		}
		if errors.Is(err, unix.EINVAL) { // it is not frozen
			if p.word.Rested && !again {
				p.word.breakOff("somebody else thawed %s", p.plan.Mount)
			}
			break
		}
		if now()-begun > p.plan.Timeout {
			p.word.fail(fmt.Errorf("thaw %s: %w: it may still be frozen: fsfreeze --unfreeze %s", p.plan.Mount, err, p.plan.Mount))
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	p.word.Thawed = now()
	p.word.Ended = p.word.Thawed
}

func (p *pause) resume() {
	if p.plan.OnResume == "" {
		return
	}
	p.say(stepResuming, p.plan.Timeout+3*grace)
	p.word.fail(p.plan.command(stepResuming, p.plan.OnResume, p.plan.Timeout, nil, p.group))
	p.word.Ended = now()
}
