package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeTime bounds how long a socket file that is already there may take to
// show that somebody answers behind it.
const probeTime = 2 * time.Second

// Listen makes this process reachable at rawURL:
//
//	unix:///path.sock    the file gets mode 0600 and is gone after Close
//	tls://host:port      an empty host means all addresses
//	tcp://host:port      loopback, and only with Options.AllowPlainTCP
//
// Port 0 picks a free one; [URL] tells which. A socket file that nobody answers
// behind is replaced, anything else in its place is left alone and an error.
// Accept does not wait for the TLS handshake: the first Read or [PeerName] does.
func Listen(ctx context.Context, rawURL string, o Options) (net.Listener, error) {
	u, err := parseListen(rawURL)
	if err != nil {
		return nil, err
	}
	switch Scheme(u.Scheme) {
	case Unix:
		return listenUnix(ctx, u.Path)
	case TLS:
		return listenTLS(ctx, u, o)
	case TCP:
		if err := checkPlain(u.Hostname(), o); err != nil {
			return nil, placed(err, rawURL)
		}
		lc := net.ListenConfig{Control: loopbackOnly}
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(u.Hostname(), u.Port()))
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", rawURL, err)
		}
		return l, nil
	}
	return nil, &AddressError{Address: rawURL, Reason: "cannot listen on scheme " + strconv.Quote(u.Scheme), Next: "known are unix, tls and tcp"}
}

func parseListen(rawURL string) (*url.URL, error) {
	const forms = "write unix:///path.sock, tls://host:port or tcp://127.0.0.1:port"
	if !schemePart.MatchString(rawURL) {
		return nil, &AddressError{Address: rawURL, Reason: "not a URL to listen on", Next: forms}
	}
	u, err := parseURL(rawURL)
	if err != nil {
		return nil, err
	}
	refuse := func(reason, next string) error {
		return &AddressError{Address: u.Redacted(), Reason: reason, Next: next}
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery {
		return nil, refuse("more than a place to listen", forms+"; volumes are named with --volume")
	}
	if u.Scheme == string(Unix) {
		if u.Host != "" {
			return nil, refuse("a socket is a file of this machine", "write unix:///path.sock with three slashes")
		}
		return u, placed(checkSocket(u.Path), rawURL)
	}
	if strings.Trim(u.Path, "/") != "" {
		return nil, refuse("a name has no meaning here", forms+"; volumes are named with --volume")
	}
	if u.Port() == "" {
		return nil, refuse("no port", forms)
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || n > 65535 {
		return nil, refuse("port "+strconv.Quote(u.Port())+" is not in 0 to 65535", "")
	}
	if h := u.Hostname(); h != "" {
		if err := checkHost(h); err != nil {
			return nil, placed(err, rawURL)
		}
	}
	return u, nil
}

func listenTLS(ctx context.Context, u *url.URL, o Options) (net.Listener, error) {
	cfg, err := o.Credentials.config()
	if err != nil {
		return nil, err
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	cfg.SessionTicketsDisabled = true // every connection proves itself anew
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(u.Hostname(), u.Port()))
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", u, err)
	}
	return &tlsListener{Listener: tls.NewListener(l, cfg)}, nil
}

// tlsListener is told apart from a plain one by [URL].
type tlsListener struct{ net.Listener }

// URL is where l, made by [Listen], can be reached; with a port of 0 resolved.
func URL(l net.Listener) string {
	switch a := l.Addr().(type) {
	case *net.UnixAddr:
		u := url.URL{Path: a.Name}
		return string(Unix) + "://" + u.EscapedPath()
	default:
		if _, ok := l.(*tlsListener); ok {
			return string(TLS) + "://" + a.String()
		}
		return string(TCP) + "://" + a.String()
	}
}

// unixListener removes its socket file, and no other, when it is closed.
type unixListener struct {
	*net.UnixListener
	path  string
	made  os.FileInfo
	close sync.Once
}

// listenUnix holds a lock on the directory from the first look to the listening
// socket. Between bind and listen nobody answers, so that a second server would
// take a first one that is just starting for a stale file and remove it.
func listenUnix(ctx context.Context, path string) (l net.Listener, err error) {
	dir, err := lockDir(ctx, filepath.Dir(path))
	if err == nil {
		l, err = bindUnix(ctx, path)
		if errors.Is(err, syscall.EADDRINUSE) {
			if err = removeStale(ctx, path); err == nil {
				l, err = bindUnix(ctx, path)
			}
		}
		err = errors.Join(err, dir.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// lockDir waits for the lock on a directory; closing it unlocks. It gives up
// after probeTime: anybody who can read the directory can hold the lock.
func lockDir(ctx context.Context, path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return dir, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), dir.Close())
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s, where another server seems to be starting: %w", path, ctx.Err()), dir.Close())
		}
	}
}

func bindUnix(ctx context.Context, path string) (net.Listener, error) {
	// The mode of the unbound socket is what bind gives to the file, so there
	// is no moment at which others can connect.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var failed error
		err := rc.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, ul.Close())
	}
	return &unixListener{UnixListener: ul, path: path, made: made}, nil
}

// removeStale removes the socket file at path if nobody answers behind it.
func removeStale(ctx context.Context, path string) error {
	found, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if found.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: there is something else than a socket; choose another path", fs.ErrExist)
	}
	d := net.Dialer{Timeout: probeTime}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("%w: a server answers there; stop it or choose another path", syscall.EADDRINUSE), c.Close())
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("find out whether a server is behind the socket that is there: %w", err)
	}
	return removeSame(path, found)
}

// removeSame removes path if it is still the file that was seen.
func removeSame(path string, seen os.FileInfo) error {
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, seen) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// Close stops listening and removes the socket file.
func (l *unixListener) Close() error {
	var removed error
	l.close.Do(func() { removed = removeSame(l.path, l.made) })
	return errors.Join(removed, l.UnixListener.Close())
}
