package dial

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// uidPrefix begins the name of a peer on a unix socket. No certificate's name
// counts that begins so: it could claim to be a user of this machine.
const uidPrefix = "uid:"

// PeerName is who the peer has shown to be:
//
//	tls    the name in its certificate: what [NewCertificate] was told
//	unix   uid:N, the user it runs as, as the kernel says
//	else   "": a connection that says nothing of its peer
//
// On tls it finishes the handshake if need be, for at most [DefaultTimeout];
// the error is why that failed, and then the connection is of no use.
func PeerName(conn io.ReadWriteCloser) (string, error) {
	switch c := conn.(type) {
	case *net.UnixConn:
		return socketPeer(c)
	case handshaker:
		return certificatePeer(c)
	}
	return "", nil
}

// handshaker is *tls.Conn, be it wrapped.
type handshaker interface {
	ConnectionState() tls.ConnectionState
	Handshake() error
	SetDeadline(time.Time) error
}

func certificatePeer(c handshaker) (string, error) {
	if !c.ConnectionState().HandshakeComplete {
		err := c.SetDeadline(time.Now().Add(DefaultTimeout))
		if err == nil {
			err = c.Handshake()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", fmt.Errorf("TLS handshake: not finished within %v: %w", DefaultTimeout, err)
		}
		if err != nil {
			return "", fmt.Errorf("TLS handshake: %w", err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			return "", fmt.Errorf("TLS handshake: %w", err)
		}
	}
	chains := c.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return "", nil
	}
	return certificateName(chains[0][0].Subject.CommonName)
}

// certificateName refuses names that would say something else where they are
// printed or compared. Certificates of failback pki have none of these.
func certificateName(name string) (string, error) {
	odd := func(r rune) bool { return !unicode.IsGraphic(r) }
	switch {
	case name == "":
		return "", errors.New("peer's certificate: it has no name (CN); make one with failback pki")
	case strings.HasPrefix(name, uidPrefix):
		return "", fmt.Errorf("peer's certificate: the name %q is one of a user on a socket", name)
	case !utf8.ValidString(name) || strings.IndexFunc(name, odd) >= 0 || len(name) > 255:
		return "", fmt.Errorf("peer's certificate: the name %.300q cannot be printed as it is", name)
	}
	return name, nil
}

func socketPeer(c *net.UnixConn) (string, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return "", fmt.Errorf("ask who is at the socket: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	err = rc.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return "", fmt.Errorf("ask who is at the socket: %w", err)
	}
	return uidPrefix + strconv.FormatUint(uint64(cred.Uid), 10), nil
}

// HangUp closes a connection without a last word: where the peer need not be
// told anything, a close does not wait for it.
func HangUp(conn net.Conn) error {
	if c, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = c.NetConn() // tls would send its alert and wait for it to be taken
	}
	return conn.Close()
}
