package quiesce

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// guard is the guard. It is told every word of the holder, and acts on none
// until there will be no more.
func guard(p *pause, in *bufio.Scanner, holder io.Reader) error {
	if w, ok := holder.(io.Writer); ok { // a socket: this says that we watch
		if _, err := w.Write([]byte{'\n'}); err != nil {
			return fmt.Errorf("answer holder: %w", err)
		}
	}
	heard := make(chan word)
	go words(in, heard)
	var late <-chan time.Time
	for {
		select {
		case w, ok := <-heard:
			if !ok {
				p.takeOver("the process that held it was killed")
				return nil
			}
			p.word, late = w, nil
			if w.Step == stepEnded {
				return nil
			}
			if w.Within > 0 {
				late = time.After(w.Within + slack)
			}
		case <-late:
			// Its files are closed when the last of its threads has left the kernel:
			// only then what it had begun there is done.
			p.word.breakOff("the process that held it said nothing any more")
			late = nil
			if os.Getppid() == p.word.Holder { // and not who took us over from it
				_ = unix.Kill(p.word.Holder, unix.SIGKILL)
			}
		}
	}
}

// takeOver finishes for a process that is gone.
func (p *pause) takeOver(why string) {
	switch p.word.Step {
	case stepEnded:
		return
	case stepStarting, stepSyncing, stepQuiescing, stepFreezing:
		p.word.fail(fmt.Errorf("%s while it was %s", why, p.word.Step))
	case stepResting:
		p.word.breakOff("%s", why)
	}
	p.finish()
}
