// Package dial names the volumes a person can point at and reaches the ones
// that are somewhere else: through the user's own ssh, over mutual TLS 1.3,
// over a unix socket, and over loopback TCP. It moves bytes and knows nothing
// of what they say.
//
// Read it in this order: [Address] (what a person may write), [Dial] (the
// client's end), [Listen] and [Stdio] (the server's end), [NewCA] and
// [NewCertificate] (the certificates that both ends of tls:// show).
package dial

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// DefaultTimeout bounds how long [Dial] tries to reach a peer.
const DefaultTimeout = 15 * time.Second

// Options says how to reach peers and how to be reached. The zero value is
// usable for ssh:// and unix://, and for tls:// when $FAILBACK_PKI is set.
type Options struct {
	// AllowPlainTCP permits tcp://, which is neither encrypted nor
	// authenticated and for that reason works on loopback addresses only.
	AllowPlainTCP bool

	// SSH is the program that ssh:// runs and its first arguments; default
	// {"ssh"}. What follows them is: -T, -p PORT and -l USER where the address
	// has them, --, HOST and the remote command as one argument.
	SSH []string

	// RemoteFailback is the binary that is run on the other side of ssh://;
	// default "failback". A leading ~/ stands for the home directory there.
	RemoteFailback string

	// RemoteArgs are further arguments of failback serve --stdio there.
	RemoteArgs []string

	// Credentials are shown on tls://, by Dial and Listen alike.
	Credentials Credentials

	// Timeout bounds connecting and the TLS handshake; default
	// [DefaultTimeout]. For ssh:// it does not apply: ssh may ask for a
	// passphrase, and a person may take their time.
	Timeout time.Duration
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

// Dial reaches the server of a. What it returns for unix, tls and tcp is the
// net.Conn; for ssh it has SetDeadline, SetReadDeadline and SetWriteDeadline
// too. ctx bounds Dial only, not the life of the connection.
//
// ssh:// is there as soon as the ssh program runs: why it could not connect is
// told by the first Read or Write, as an [*SSHError]. Close ends the program
// and waits for it. An address that may not be dialed is an [*AddressError].
func Dial(ctx context.Context, a Address, o Options) (io.ReadWriteCloser, error) {
	if err := a.check(o); err != nil {
		return nil, err
	}
	if a.Scheme == SSH {
		return dialSSH(ctx, a, o)
	}
	var cfg *tls.Config
	if a.Scheme == TLS {
		var err error
		if cfg, err = clientConfig(a.Host, o); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout())
	defer cancel()
	var conn net.Conn
	var err error
	switch a.Scheme {
	case Unix:
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", a.Socket)
	case TCP:
		d := net.Dialer{Control: loopbackOnly}
		conn, err = d.DialContext(ctx, "tcp", a.hostPort())
	case TLS:
		d := tls.Dialer{Config: cfg}
		if conn, err = d.DialContext(ctx, "tcp", a.hostPort()); err == nil {
			return &tlsConn{Conn: conn.(*tls.Conn), address: a.String()}, nil
		}
	}
	if err == nil {
		return conn, nil
	}
	if next := advice(err); next != "" {
		return nil, fmt.Errorf("reach %s: %w; %s", a, err, next)
	}
	return nil, fmt.Errorf("reach %s: %w", a, err)
}

func clientConfig(host string, o Options) (*tls.Config, error) {
	cfg, err := o.Credentials.config()
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.WithZone("").String() // a zone is local to this machine, no certificate has it
	}
	cfg.ServerName = host
	cfg.RootCAs = cfg.ClientCAs
	return cfg, nil
}

// loopbackOnly runs after names are resolved and before the socket is used, so
// that a name which resolves to another machine is caught as well.
func loopbackOnly(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("parse resolved address %q: %w", address, err)
	}
	if !ap.Addr().Unmap().IsLoopback() {
		return &AddressError{Address: "tcp://" + address, Reason: reasonNotLoopback, Next: nextNotPlain}
	}
	return nil
}

func (a Address) hostPort() string {
	return net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
}

// advice is the next step after an error of a connection that has not
// carried anything yet; "" where there is none.
func advice(err error) string {
	var (
		op      *net.OpError
		host    x509.HostnameError
		unknown x509.UnknownAuthorityError
		invalid x509.CertificateInvalidError
		notTLS  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &host):
		return "the server's certificate must name the host in the address: make one for it with failback pki"
	case errors.As(err, &unknown):
		return "the server's certificate is not of our CA: both ends need certificates of one CA, made with failback pki"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "look at the clocks, or make the server a new certificate with failback pki"
	case errors.As(err, &notTLS):
		return "what answers there does not speak TLS"
	case errors.As(err, &op) && op.Op == "remote error":
		return "the server refused us: it takes valid certificates of its own CA, made with failback pki"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return "is failback serve running there?"
	case errors.Is(err, syscall.EACCES):
		return "the socket belongs to another user"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the server closed at once: its log says why"
	}
	return ""
}
