package failback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// ServerOptions configures a [Server].
type ServerOptions struct {
	// Lookup opens the volume a peer named, for writing if write is set. It
	// returns a [RefusedError] for a volume that is not exposed, or not for
	// writing. Close is called when the session ends.
	Lookup func(ctx context.Context, name string, write bool) (Served, error)
	// Peer says who the peer of a connection is, by Handle's context. Another peer
	// can neither join a session nor take it over, whatever it knows of it. Nil:
	// all peers are one.
	Peer func(ctx context.Context) string
	// Idle is how long a session may carry nothing but keep-alive before it is
	// ended; 0: for ever.
	Idle time.Duration
	// Options bounds what a session may use: Window, Workers, KeepAlive, Timeout, Limit.
	Options Options
}

// Served is a volume a [Server] opened for one session.
type Served struct {
	Side  Side
	Close func() error // may be nil
}

// A Server answers the peers of sessions. One Server handles any number of
// connections; the streams of one session find each other in it.
type Server struct {
	o ServerOptions

	mu       sync.Mutex
	sessions map[part]*meeting
}

// A part is what a server plays in one session. Both volumes of a session may
// be served by one server: then it plays two.
type part struct {
	session [16]byte
	volume  string
	peer    string // another one neither joins nor takes over
}

// NewServer returns a server. It starts nothing.
func NewServer(o ServerOptions) *Server {
	return &Server{o: o, sessions: make(map[part]*meeting)}
}

// Refuse tells the peer of a connection that it is not served, and closes it.
func (s *Server) Refuse(conn io.ReadWriteCloser, why *RefusedError) error {
	c := transport.New(conn, transport.Options{})
	late := time.AfterFunc(partingTime, func() { _ = c.Close() })
	defer late.Stop()
	now := *why
	now.busy = true
	sendError(c, &now)
	return c.Close()
}

// openTimeout is how long a peer may take to say what it wants.
const openTimeout = 10 * time.Second

// taskTimeout is how long a peer that was given a volume may take to say what is
// to be done with it: it opens further streams meanwhile, and its other side.
const taskTimeout = 5 * time.Minute

// part is what a peer asks the server to play.
func (s *Server) part(ctx context.Context, open message.Open) part {
	p := part{session: open.Session, volume: open.Volume}
	if s.o.Peer != nil {
		p.peer = s.o.Peer(ctx)
	}
	return p
}

// Handle serves one connection until its session ends, and closes conn. A
// connection that joins a session is handed to it: Handle returns at once.
func (s *Server) Handle(ctx context.Context, conn io.ReadWriteCloser) error {
	o, err := s.o.Options.filled()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	c := transport.New(conn, o.transport())
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var open message.Open
	if err := readOpen(c, &open); err != nil {
		sendError(c, err)
		return errors.Join(err, c.Close())
	}
	if open.Role == roleJoin {
		if err := s.join(ctx, c, open); err != nil {
			sendError(c, err)
			return errors.Join(err, c.Close())
		}
		return nil
	}
	if err := s.session(ctx, c, open, o); err != nil {
		sendError(c, err) // does nothing where the role has said it already and closed
		return errors.Join(err, c.Close())
	}
	return nil
}

// readOpen takes the first frame of a connection, within openTimeout.
func readOpen(c *transport.Conn, m *message.Open) error {
	late := time.AfterFunc(openTimeout, func() { _ = c.Close() })
	defer late.Stop()
	f, err := c.Read()
	if err != nil {
		return newLinkError(err)
	}
	defer f.Release()
	if f.Kind != kindOpen {
		return protocolf("frame of kind %d where Open belongs", f.Kind)
	}
	if err := m.Decode(f.Payload()); err != nil {
		return err
	}
	if m.MinVersion > message.Version || m.MaxVersion < message.Version {
		return &PeerError{Code: message.CodeVersion,
			Text: fmt.Sprintf("versions %d to %d of the protocol are asked for, this side speaks %d", m.MinVersion, m.MaxVersion, message.Version),
			Next: "use the same failback on both sides"}
	}
	return nil
}

// session plays the role that a peer asked for.
func (s *Server) session(caller context.Context, c *transport.Conn, open message.Open, o Options) (err error) {
	ctx, cut := context.WithCancelCause(caller)
	defer cut(nil)
	stop := context.AfterFunc(ctx, func() {
		if context.Cause(ctx) == errTakenOver {
			_ = c.Close() // nobody is at its other end
		}
	})
	defer stop()
	p := s.part(ctx, open)
	m := newMeeting(open.Role, cut)
	err = c.During(ctx, func(ctx context.Context) error { return s.convene(ctx, p, m) })
	if err != nil {
		return err
	}
	// Last, when the volume is closed: whoever takes over opens it next.
	defer s.dissolve(p, m)
	served, err := s.o.Lookup(ctx, open.Volume, open.Write)
	if err != nil {
		return err
	}
	if served.Close != nil {
		defer func() { err = errors.Join(err, served.Close()) }()
	}
	if served.Side.Volume == nil {
		return &RefusedError{Volume: open.Volume, Reason: "the server found no volume behind that name", Next: "look at what it was told to serve"}
	}
	opened := message.Opened{Version: message.Version, Volume: message.VolumeInfo{
		Size: served.Side.Volume.Size(), Align: 512, ReadOnly: !open.Write, Name: clip(served.Side.label()),
		Identity: clip((&meter{v: served.Side.Volume}).identity()),
	}}
	if err := c.Send(kindOpened, opened.Append(nil)); err != nil {
		return err
	}
	c.LimitIdle(s.o.Idle)
	v := visit{conn: c, open: open, side: served.Side, join: m.stream(s), o: o}
	if open.Role == roleTarget {
		return v.target(ctx, caller.Done())
	}
	return v.source(ctx)
}

// A visit is a session a server plays a part in.
type visit struct {
	conn *transport.Conn
	open message.Open
	side Side
	join joiner
	o    Options
}

// target plays the target's role. What it has begun to apply goes on when the
// session's peer is lost, or comes again, until ends is closed.
func (v *visit) target(ctx context.Context, ends <-chan struct{}) error {
	t, err := newTargetOver(ctx, v.side, v.o, []*transport.Conn{v.conn}, v.open.Write)
	if err != nil {
		return err
	}
	t.join, t.session, t.report.unread = v.join, v.open.Session, true
	t.saveTo.onDemand, t.stageAt.onDemand, t.ends = true, true, ends
	_, err = t.run(ctx)
	return errors.Join(err, t.close())
}

func (v *visit) source(ctx context.Context) error {
	var src *source
	err := v.conn.During(ctx, func(ctx context.Context) (err error) {
		src, err = v.assigned(ctx)
		return err
	})
	if err != nil {
		return err
	}
	_, err = src.run(ctx)
	return errors.Join(err, src.close())
}

// assigned waits for what is to be done, for taskTimeout and no longer, and
// makes ready for it.
func (v *visit) assigned(ctx context.Context) (*source, error) {
	late := time.AfterFunc(taskTimeout, func() { _ = v.conn.Close() })
	defer late.Stop()
	var task message.Task
	if err := expectOn(v.conn, kindTask, &task); err != nil {
		return nil, err
	}
	o, err := taskOptions(task, v.o)
	if err != nil {
		return nil, err
	}
	side := v.side
	if task.Dirty {
		theirs, err := readDirty(v.conn, side.Volume.Size())
		if err != nil {
			return nil, err
		}
		if side, err = side.since(theirs); err != nil {
			return nil, err
		}
	}
	late.Stop()
	conns := []*transport.Conn{v.conn}
	for i := 1; i < o.Streams; i++ {
		next, err := v.join(ctx, i, o.Timeout)
		if err != nil {
			return nil, errors.Join(err, closeAll(conns[1:]))
		}
		conns = append(conns, next)
	}
	for _, c := range conns {
		// What the peer asked for came when the connection was there already.
		c.SetLimit(o.transport().Limit)
	}
	j := job{mode: mode(task.Mode), session: v.open.Session, o: o, resume: task.Resume, medium: task.Medium}
	src, err := j.sourceOver(ctx, side, Side{}, conns)
	if err != nil {
		return nil, errors.Join(err, closeAll(conns[1:]))
	}
	return src, nil
}

// taskOptions is what a peer asked for, within what the server allows.
func taskOptions(t message.Task, o Options) (Options, error) {
	if t.Mode == uint8(modeDigest) {
		return o, protocolf("a digest is made where it is asked for")
	}
	o.Codec, o.Streams, o.Leaf = t.Codec, max(1, int(t.Streams)), int64(t.Leaf)
	o.Verify, o.Seal, o.Rung = Verification(t.Verify), merkle.Algorithm(t.Seal), Rung(t.Rung)
	o.AllowLarger, o.DryRun = t.AllowLarger, t.DryRun
	if t.Checkpoint > 0 {
		o.Checkpoint = time.Duration(t.Checkpoint) * time.Millisecond
	}
	o.Undo, o.UndoBestEffort, o.Stage = t.Undo != 0, t.Undo == undoBest, t.Stage
	if t.Limit > 0 && (o.Limit == 0 || t.Limit < o.Limit) {
		o.Limit = t.Limit
	}
	if t.Window > 0 {
		o.Window = min(o.Window, int64(t.Window))
	}
	return o.filled()
}

// readDirty takes the extents of the map that a peer vouches with.
func readDirty(c *transport.Conn, size int64) (*cbt.Map, error) {
	r := extentReader{purpose: extentsDirty, size: size}
	for {
		f, err := c.Read()
		if err != nil {
			return nil, newLinkError(err)
		}
		if f.Kind != kindExtents {
			f.Release()
			return nil, protocolf("frame of kind %d where the dirty map belongs", f.Kind)
		}
		last, err := r.add(f.Payload())
		f.Release()
		if err != nil {
			return nil, err
		}
		if last {
			return mapOf(size, r.list)
		}
	}
}

// mapOf is the dirty map of a list of extents.
func mapOf(size int64, list []cbt.Extent) (*cbt.Map, error) {
	return cbt.NewMap(size, cbt.BlockSize(size), func(yield func(cbt.Run) bool) {
		for _, x := range list {
			if !yield(cbt.Run{Extent: x, State: cbt.Dirty}) {
				return
			}
		}
	})
}

// since is the side with what the peer says was written since both sides were
// equal. That vouches for no tree, which was made at some other moment; what
// our own map has besides is written since then too, or does no harm.
func (s Side) since(m *cbt.Map) (Side, error) {
	s.Tree, s.TrustTree = "", false
	if s.Dirty == nil {
		s.Dirty = m
		return s, nil
	}
	all, err := mapOf(m.VolumeSize, cbt.Union(s.Dirty.Extents(), m.Extents()))
	s.Dirty = all
	return s, err
}

// expectOn reads one control frame of a connection that nobody else reads yet.
func expectOn(c *transport.Conn, kind transport.Kind, m interface{ Decode([]byte) error }) error {
	f, err := c.Read()
	if err != nil {
		return newLinkError(err)
	}
	defer f.Release()
	switch f.Kind {
	case kind:
		return m.Decode(f.Payload())
	case kindError:
		return peerError(f.Payload())
	}
	return protocolf("frame of kind %d where %d belongs", f.Kind, kind)
}
