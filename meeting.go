package failback

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A meeting is where the further streams of a session find it.
type meeting struct {
	streams [maxStreams]*transport.Conn // by number, from 1; nil: not there yet, or taken
	claimed [maxStreams]bool            // a connection has come for that number: there is no second
	role    uint8                       // what the server plays in it
	over    bool                        // the session has ended
	ended   chan struct{}               // closed then
	cut     context.CancelCauseFunc     // ends the session
	come    chan struct{}               // holds one element once a stream is there
}

// errTakenOver is why a session ends whose peer has come again.
var errTakenOver = errors.New("its peer has connected anew and goes on with it there")

func newMeeting(role uint8, cut context.CancelCauseFunc) *meeting {
	return &meeting{role: role, cut: cut, come: make(chan struct{}, 1), ended: make(chan struct{})}
}

// convene makes a session known to the streams that will join it. A session of
// the same id that is under way on the volume in the same role is the same one:
// its peer has lost the connection, which we need not have noticed, and comes
// again. Nobody else knows the id. It is ended first, and waited for: for as long
// as the peer is there, which ctx says, and no longer than taskTimeout, for a
// volume that hangs may hold it for ever.
func (s *Server) convene(ctx context.Context, p part, m *meeting) error {
	late := time.NewTimer(taskTimeout)
	defer late.Stop()
	for {
		s.mu.Lock()
		old := s.sessions[p]
		if old == nil {
			s.sessions[p] = m
		}
		s.mu.Unlock()
		switch {
		case old == nil:
			return nil
		case old.role != m.role:
			return &RefusedError{Volume: p.volume, Reason: "source and target of the session are one and the same volume", Next: otherTarget}
		}
		old.cut(errTakenOver)
		select {
		case <-old.ended:
		case <-late.C:
			return &RefusedError{Volume: p.volume, busy: true,
				Reason: fmt.Sprintf("the connection of its session was lost, and for %v that has not come to its end: it may be applying what was staged, or the volume may hang", taskTimeout),
				Next:   "look at the volume there, or try again later"}
		case <-ctx.Done():
			return newLinkError(context.Cause(ctx))
		}
	}
}

// dissolve forgets a session and closes streams that came and were not taken.
func (s *Server) dissolve(p part, m *meeting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, p)
	m.over = true
	close(m.ended)
	for _, c := range m.streams {
		if c != nil {
			_ = c.Close()
		}
	}
}

// join hands a connection to the session it belongs to. Nothing is written under
// the lock: a peer that does not read would hold up every session.
func (s *Server) join(ctx context.Context, c *transport.Conn, open message.Open) error {
	m, err := s.claim(s.part(ctx, open), int(open.Stream))
	if err != nil {
		return err
	}
	opened := message.Opened{Version: message.Version, Volume: message.VolumeInfo{Size: 512, Align: 512}}
	if err := c.Send(kindOpened, opened.Append(nil)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.over {
		return protocolf("the session has ended")
	}
	m.streams[open.Stream] = c
	select {
	case m.come <- struct{}{}:
	default: // whoever waits has not looked yet and will see this one too
	}
	return nil
}

// claim finds the place of a stream in its session.
func (s *Server) claim(p part, stream int) (*meeting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.sessions[p]
	if m == nil {
		return nil, protocolf("no session of this id is under way")
	}
	if stream >= maxStreams || m.claimed[stream] {
		return nil, protocolf("stream %d has no place in the session", stream)
	}
	m.claimed[stream] = true
	return m, nil
}

// A joiner waits for stream i of a session.
type joiner func(ctx context.Context, i int, timeout time.Duration) (*transport.Conn, error)

func (m *meeting) stream(s *Server) joiner {
	return func(ctx context.Context, i int, timeout time.Duration) (*transport.Conn, error) {
		var late <-chan time.Time // never, with a negative time-out
		if timeout > 0 {
			timer := time.NewTimer(timeout)
			defer timer.Stop()
			late = timer.C
		}
		for {
			s.mu.Lock()
			c := m.streams[i]
			m.streams[i] = nil
			s.mu.Unlock()
			if c != nil {
				return c, nil
			}
			select {
			case <-m.come:
			case <-late:
				return nil, fmt.Errorf("stream %d did not come within %v", i, timeout)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}
