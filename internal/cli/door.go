package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/transport/dial"
)

// A door decides who gets in: so many connections at a time, so many of one
// peer. Who has not shown who it is, or is being told that it is not let in,
// stands outside. There the newest pushes out the oldest: a peer with a
// certificate needs a moment to show it, one without may stand there for as long
// as it likes and still keeps nobody out.
//
//	accept ──▶ outside ──PeerName──▶ inside ──session over──▶ gone
//	              └──pushed out, no certificate, no place──▶ gone
type door struct {
	places int // inside, in all
	share  int // inside, of one peer

	mu      sync.Mutex
	inside  map[string]int // connections by peer
	taken   int            // connections inside
	outside []net.Conn     // oldest first
}

// maxOutside bounds the connections that are not let in, or not yet. Each takes
// some 40 KiB while TLS shakes hands.
const maxOutside = 64

func newDoor(places, share int) *door {
	return &door{places: places, share: min(share, places), inside: make(map[string]int)}
}

// knock puts a connection that has just come outside.
func (d *door) knock(c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.outside) == maxOutside {
		_ = dial.HangUp(d.outside[0]) // it is told nothing: it has said nothing
		d.outside = slices.Delete(d.outside, 0, 1)
	}
	d.outside = append(d.outside, c)
}

// leave forgets a connection that stands outside, and reports whether it still did.
func (d *door) leave(c net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.outside, c)
	if i >= 0 {
		d.outside = slices.Delete(d.outside, i, i+1)
	}
	return i >= 0
}

// enter lets a connection of peer in, or says why not: then it stays outside. A
// nil refusal with false is one that was pushed out meanwhile.
func (d *door) enter(c net.Conn, peer string) (bool, *failback.RefusedError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.Index(d.outside, c)
	switch {
	case i < 0:
		return false, nil
	case d.taken >= d.places:
		return false, busy(fmt.Sprintf("%d connections are under way and no more are taken", d.taken), "--max-connections")
	case d.inside[peer] >= d.share:
		return false, busy(fmt.Sprintf("%d connections%s are under way and no more are taken", d.inside[peer], of(peer)), "--max-per-peer")
	}
	d.outside = slices.Delete(d.outside, i, i+1)
	d.taken++
	d.inside[peer]++
	return true, nil
}

// A guest is a connection that was let in. Its place is free when it is closed,
// not before: one that joins a session lives on after it was handed over.
type guest struct {
	net.Conn
	exit func()
	once sync.Once
}

// Close closes the connection and gives its place back.
func (g *guest) Close() error {
	err := g.Conn.Close()
	g.once.Do(g.exit)
	return err
}

// lingering is a connection that waits at its end until the peer has closed too,
// for a moment. Closed at once with something unread, it would take back from
// the peer what it was told.
type lingering struct{ net.Conn }

const (
	lingerTime  = 2 * time.Second
	lingerBytes = 64 << 10 // of what the peer said meanwhile, which nobody wants
)

// Close waits for the peer's end and closes the connection.
func (l lingering) Close() error {
	if l.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, l.Conn, lingerBytes) // however it ends, it is over
	}
	return dial.HangUp(l.Conn)
}

// exit gives the place of a connection of peer back.
func (d *door) exit(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken--
	if d.inside[peer]--; d.inside[peer] == 0 {
		delete(d.inside, peer)
	}
}

// count is how many are inside.
func (d *door) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.taken
}

// busy is what a peer is told that comes when its places are taken.
func busy(reason, flag string) *failback.RefusedError {
	return &failback.RefusedError{Volume: "server", Reason: reason, Next: "try again later, or raise " + flag + " there"}
}

// of names the peer in a sentence, if it has a name.
func of(peer string) string {
	if peer == "" {
		return ""
	}
	return " of " + peer
}

// admit takes a connection that has come, lets it in or tells it why not, and
// returns when it is gone or belongs to a session. Cancelling ctx cuts it off.
func (s *server) admit(ctx context.Context, id uint64, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = dial.HangUp(conn) })
	defer stop()
	peer, err := dial.PeerName(conn)
	if err != nil {
		if s.door.leave(conn) {
			s.log.errorf("connection %d from %s: %v", id, conn.RemoteAddr(), err)
		} else {
			s.log.errorf("connection %d from %s: closed, others have come and it has not shown who it is", id, conn.RemoteAddr())
		}
		_ = dial.HangUp(conn)
		return
	}
	in, why := s.door.enter(conn, peer)
	switch {
	case in:
		s.handle(ctx, id, &guest{Conn: conn, exit: func() { s.door.exit(peer) }}, peer)
	case why != nil:
		s.log.errorf("connection %d%s closed: %s, see --max-connections and --max-per-peer", id, from(peer), why.Reason)
		err := s.core.Refuse(lingering{conn}, why)
		if s.door.leave(conn) && err != nil {
			s.log.errorf("connection %d: %v", id, err)
		}
	default:
		_ = dial.HangUp(conn)
	}
}

// from names the peer in a line of the log, if it has a name.
func from(peer string) string {
	if peer == "" {
		return ""
	}
	return " from " + peer
}

// handle serves a connection that was let in.
func (s *server) handle(ctx context.Context, id uint64, conn net.Conn, peer string) {
	who := peer
	if who == "" {
		who = conn.RemoteAddr().Network()
	}
	s.log.infof("connection %d from %s", id, who)
	if err := s.core.Handle(withPeer(ctx, peer), conn); err != nil {
		s.log.errorf("connection %d from %s: %v", id, who, err)
		return
	}
	s.log.infof("connection %d done", id)
}
