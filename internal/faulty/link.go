package faulty

import (
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// Link is one end of a connection whose rules break it. It is an
// io.ReadWriteCloser; the other end is whatever it was made over. Read, Write
// and the methods that break it are safe for concurrent use.
type Link struct {
	conn    io.ReadWriteCloser
	out, in *flow
	held    []byte // came in and was not read yet; under in.busy

	mu     sync.Mutex
	closed bool
	broken error         // what both ways return from now on
	mute   bool          // nothing is carried any more
	ended  map[Way]bool  // ways that were ended
	gone   chan struct{} // closed once closed or broken
}

// NewLink returns conn with faults. Closing conn must make its Read and Write return.
func NewLink(conn io.ReadWriteCloser, rules ...LinkRule) *Link {
	return &Link{
		conn: conn, out: newFlow(Out, rules), in: newFlow(In, rules),
		ended: map[Way]bool{}, gone: make(chan struct{}),
	}
}

// Frames returns the frames that were begun, those that went out first.
func (l *Link) Frames() []Frame { return append(l.out.log(), l.in.log()...) }

// Reset breaks the link now, both ways.
func (l *Link) Reset() {
	l.end(syscall.ECONNRESET)
	_ = l.conn.Close() // that is what the other end hears
}

// Silence lets nothing through from now on, and tells nobody.
func (l *Link) Silence() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mute && l.broken == nil {
		l.mute = true
		go l.swallow() // ends once the other end gives up
	}
}

// Close closes this end. The other one hears of it, unless there is silence:
// then it finds out when it closes itself.
func (l *Link) Close() error {
	l.mu.Lock()
	again, hear := l.closed, !l.mute
	l.closed = true
	l.mu.Unlock()
	if again {
		return os.ErrClosed
	}
	if first := l.end(io.ErrClosedPipe); first && hear {
		return l.conn.Close()
	}
	return nil
}

// end lets both ways return err from now on, and reports whether it was the first to.
func (l *Link) end(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return false
	}
	l.broken = err
	close(l.gone)
	return true
}

// state is what a way is like now.
func (l *Link) state(w Way) (mute, ended bool, broken error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mute, l.ended[w], l.broken
}

// fire does what a rule says at its place, and reports whether the way goes on.
func (l *Link) fire(w Way, r *LinkRule) bool {
	if r.Do != nil {
		r.Do()
	}
	switch r.Kind {
	case Reset:
		l.Reset()
	case Silence:
		l.Silence()
	case End:
		l.endWay(w)
	case Slow:
		select {
		case <-time.After(r.For):
		case <-l.gone:
		}
	case Stuck:
		select {
		case <-r.Until:
		case <-l.gone:
		}
	}
	mute, ended, broken := l.state(w)
	return broken == nil && !mute && !ended
}

// endWay ends one way.
func (l *Link) endWay(w Way) {
	l.mu.Lock()
	l.ended[w] = true
	l.mu.Unlock()
	if w == In {
		return
	}
	if half, ok := l.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // that is what the other end hears
		return
	}
	_ = l.conn.Close()
}

// Write writes p, or as much of it as the rules let through. It says that all
// was written where the writer of a real link could not know better.
func (l *Link) Write(p []byte) (int, error) {
	l.out.busy.Lock()
	defer l.out.busy.Unlock()
	if mute, ended, broken := l.state(Out); broken != nil {
		return 0, broken
	} else if mute || ended {
		return len(p), nil
	}
	var failed error
	l.out.pass(p, func(run []byte) bool {
		_, failed = l.conn.Write(run)
		return failed == nil
	}, func(r *LinkRule) bool { return l.fire(Out, r) })
	mute, ended, broken := l.state(Out)
	switch {
	case broken != nil:
		return 0, broken
	case mute || ended:
		return len(p), nil
	case failed != nil:
		return 0, failed
	}
	return len(p), nil
}

// Read reads what the rules let through.
func (l *Link) Read(p []byte) (int, error) {
	l.in.busy.Lock()
	defer l.in.busy.Unlock()
	for len(p) > 0 && len(l.held) == 0 {
		if mute, ended, broken := l.state(In); broken != nil {
			return 0, broken
		} else if mute {
			<-l.gone
			continue
		} else if ended {
			return 0, io.EOF
		}
		n, err := l.conn.Read(p)
		l.receive(p[:n])
		if mute, _, broken := l.state(In); err != nil && broken == nil && !mute && len(l.held) == 0 {
			return 0, err
		}
	}
	n := copy(p, l.held)
	l.held = l.held[n:]
	return n, nil
}

// receive puts what came through the rules.
func (l *Link) receive(p []byte) {
	if mute, _, _ := l.state(In); mute {
		return
	}
	l.in.pass(p, func(run []byte) bool {
		l.held = append(l.held, run...)
		return true
	}, func(r *LinkRule) bool { return l.fire(In, r) })
}

// swallow reads what the other end says into a silence, so that it can go on
// saying it, until it closes or the link is reset.
func (l *Link) swallow() {
	_, _ = io.Copy(io.Discard, l.conn) // nobody hears why it ends
	_ = l.conn.Close()                 // or whether this went well
}
