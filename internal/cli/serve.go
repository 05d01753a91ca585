package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/failback/failback"
	"github.com/failback/failback/transport/dial"
)

const schemaServe = "failback.serve/1"

type serveFlags struct {
	link           linkFlags
	listen         []string
	volumes        []string
	stdio          bool
	only           []string
	allow          []string
	maxConnections int
	maxPerPeer     int
	grace          time.Duration
	limit          byteRate
	window         byteSize
	quiet          bool
	keep           keeping
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve --listen URL... --volume NAME=PATH... | serve --stdio",
		Short: "Make volumes reachable for sync, diff, verify and digest elsewhere",
		Long: `Make volumes reachable for sync, diff, verify and digest elsewhere, until SIGINT
or SIGTERM. A volume is opened for each session and closed after it.

  --listen unix:///path.sock       for this machine, the file has mode 0600
  --listen tls://host:port         for machines with a certificate of the same CA (failback pki)
  --listen tcp://127.0.0.1:port    loopback, with --plain-tcp
  --volume NAME=PATH[,ro|rw][,tree=FILE]
                                   peers may read it and, only with rw, overwrite it;
                                   tree: its kept digest file
  --allow NAME=PEER[,ro|rw]        it is for this peer, and others named so, only

A PEER is the name in its certificate (failback pki cert NAME), or uid:N on a
unix socket. A volume without --allow is for every peer with a certificate of
the CA, and for everybody who can open the socket.

With --stdio it serves one peer on standard input and output: what ssh:// runs.
Then every path this user may open can be read and written, unless --only or
--volume say which; put that into authorized_keys:

  command="failback serve --stdio --only /dev/vg/db,rw",restrict ssh-ed25519 AAAA...

Exit codes: 0 stopped by a signal (--stdio: the session went well), 2 usage, 3 failed.`,
		Example: `  failback serve --listen unix:///run/failback.sock --volume db=/dev/vg/db
  failback serve --listen tls://:7411 --pki /etc/failback --volume db=/dev/vg/db,rw --allow db=away,rw --allow db=auditor`,
		Args:        exactly(0, "none: volumes are named with --volume"),
		Annotations: map[string]string{schemaKey: schemaServe},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.listen, "listen", nil, "`URL` to listen on; may be repeated")
	fl.StringArrayVar(&f.volumes, "volume", nil, "`NAME=PATH`[,ro|rw][,tree=FILE], ro if it does not say; may be repeated")
	fl.StringArrayVar(&f.allow, "allow", nil, "`NAME=PEER`[,ro|rw]: this peer may use the volume, others may not; ro if it does not say; may be repeated")
	fl.BoolVar(&f.stdio, "stdio", false, "serve one peer on standard input and output")
	fl.StringArrayVar(&f.only, "only", nil, "with --stdio: `PATH`[,ro|rw][,tree=FILE], and no other path; ro if it does not say; may be repeated")
	fl.IntVar(&f.maxConnections, "max-connections", 64, "`N` connections at a time; one that comes on top is closed")
	fl.IntVar(&f.maxPerPeer, "max-per-peer", 32, "`N` connections of one peer at a time, likewise")
	fl.DurationVar(&f.grace, "grace", 10*time.Second, "how long a signal lets sessions go on before they are cut off")
	fl.Var(&f.limit, "limit", "at most so many bytes a second onto each connection (default: no limit)")
	fl.Var(&f.window, "window", "bytes that may be under way in a session (default 16MiB)")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but errors")
	f.keep.place.add(c)
	fl.StringVar(&f.keep.undo, "undo", "", "keep undo logs for peers that ask: in `DIR`, a file for each sync; with --stdio also a file")
	fl.StringVar(&f.keep.stage, "stage", "", "for peers that ask: gather what differs in `DIR`, and apply it when it is whole")
	f.link.addShared(c)
	return a.runs(c, func(ctx context.Context, _ []string) error { return a.serve(ctx, &f) })
}

func (f *serveFlags) check() error {
	switch {
	case f.stdio && len(f.listen) > 0:
		return usagef("--stdio and --listen do not go together")
	case !f.stdio && len(f.listen) == 0:
		return usagef("nowhere to listen: give --listen URL or --stdio")
	case !f.stdio && len(f.only) > 0:
		return usagef("--only is for --stdio: name volumes with --volume")
	case !f.stdio && len(f.volumes) == 0:
		return usagef("nothing to serve: give --volume NAME=PATH")
	case f.stdio && len(f.allow) > 0:
		return usagef("--allow is for --listen: who comes over ssh is known by the key, say it in authorized_keys")
	case f.maxConnections < 1:
		return usagef("--max-connections %d: at least 1", f.maxConnections)
	case f.maxPerPeer < 1:
		return usagef("--max-per-peer %d: at least 1", f.maxPerPeer)
	case f.grace < 0:
		return usagef("--grace %v: 0 or more", f.grace)
	}
	return nil
}

func (a *app) serve(ctx context.Context, f *serveFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	link, err := f.link.options()
	if err != nil {
		return err
	}
	x, err := f.exposure()
	if err != nil {
		return err
	}
	told := &logger{w: a.stderr, quiet: f.quiet}
	s := &server{
		grace: f.grace, door: newDoor(f.maxConnections, f.maxPerPeer), log: told,
		core: failback.NewServer(failback.ServerOptions{Lookup: x.lookup, Peer: peerOf, Idle: f.link.idle, Options: failback.Options{
			Window: int64(f.window), Limit: int64(f.limit), Timeout: f.link.timeout,
			Events: failback.Events{Note: func(text string) { told.errorf("%s", text) }},
		}}),
	}
	if f.stdio {
		// A peer that is lost takes standard error along. What is begun goes on then, and
		// a line that nobody reads must not end it.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		return s.core.Handle(ctx, a.stdio())
	}
	x.opened = func(peer, name string, write bool) {
		if write {
			s.log.infof("volume %s opened%s to be written", name, from(peer))
		} else {
			s.log.infof("volume %s opened%s to be read", name, from(peer))
		}
	}
	x.barred = func(peer, name string) {
		s.log.errorf("volume %s asked for%s, whom --allow does not name: refused as if it were not there", name, from(peer))
	}
	if err := x.check(); err != nil {
		return err
	}
	return s.run(ctx, f.listen, link)
}

// exposure is what the flags make reachable.
func (f *serveFlags) exposure() (*exposure, error) {
	x, err := newExposure(f.volumes)
	if err != nil {
		return nil, err
	}
	for _, s := range f.allow {
		if err := x.allow(s); err != nil {
			return nil, err
		}
	}
	for _, s := range f.only {
		if err := x.only(s); err != nil {
			return nil, err
		}
	}
	x.keep = f.keep
	x.any = f.stdio && len(f.only) == 0 && len(f.volumes) == 0
	return x, nil
}

// stdio is this process's standard input and output as a connection.
func (a *app) stdio() io.ReadWriteCloser {
	if a.stdin == io.Reader(os.Stdin) && a.stdout == io.Writer(os.Stdout) {
		return dial.Stdio()
	}
	return struct {
		io.Reader
		io.Writer
		io.Closer
	}{a.stdin, a.stdout, io.NopCloser(nil)}
}

// server accepts connections and gives each to the library.
type server struct {
	core  *failback.Server
	grace time.Duration
	door  *door
	count atomic.Uint64 // connections so far: their names in the log
	log   *logger
}

// run listens on urls until ctx ends, lets sessions go on for the grace time,
// cuts off the rest, and returns when all of them are done.
func (s *server) run(ctx context.Context, urls []string, o dial.Options) error {
	var listeners []net.Listener
	closeAll := func() error {
		var err error
		for _, l := range listeners {
			if e := l.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
		return err
	}
	for _, url := range urls {
		l, err := dial.Listen(ctx, url, o)
		if err != nil {
			return errors.Join(err, closeAll())
		}
		listeners = append(listeners, l)
	}
	for _, l := range listeners {
		s.log.infof("listening on %s", dial.URL(l))
	}
	sessions, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var under sync.WaitGroup
	g, accepting := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error { return s.accept(sessions, l, &under) })
	}
	g.Go(func() error {
		<-accepting.Done()
		return closeAll()
	})
	err := g.Wait()
	s.drain(&under, cut)
	if ctx.Err() != nil && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// drain waits for the sessions under way, for no longer than grace undisturbed.
func (s *server) drain(under *sync.WaitGroup, cut context.CancelFunc) {
	if n := s.door.count(); n > 0 {
		s.log.infof("stopping; %s may go on for %v", plural(n, "connection"), s.grace)
	}
	timer := time.AfterFunc(s.grace, cut)
	defer timer.Stop()
	under.Wait()
}

func (s *server) accept(ctx context.Context, l net.Listener, under *sync.WaitGroup) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			// Sessions under way will give descriptors back.
			s.log.errorf("accept on %s: %v", dial.URL(l), err)
			select {
			case <-time.After(time.Second):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return fmt.Errorf("accept on %s: %w", dial.URL(l), err)
		}
		id := s.count.Add(1)
		s.door.knock(conn)
		under.Go(func() { s.admit(ctx, id, conn) })
	}
}

// logger writes whole lines from many goroutines.
type logger struct {
	mu    sync.Mutex
	w     io.Writer
	quiet bool
}

func (l *logger) infof(format string, args ...any) {
	if !l.quiet {
		l.errorf(format, args...)
	}
}

func (l *logger) errorf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, "failback serve: "+format+"\n", args...)
}
