package dial

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Scheme says how a volume is reached.
type Scheme string

// The schemes that [Parse] knows.
const (
	Path Scheme = ""     // a file or block device of this machine
	SSH  Scheme = "ssh"  // a path elsewhere, through the user's own ssh
	TLS  Scheme = "tls"  // a name at a server, mutual TLS 1.3
	Unix Scheme = "unix" // a name at a server of this machine
	TCP  Scheme = "tcp"  // a name at a server of this machine, plain
)

// Limits of what an address may hold, in bytes.
const (
	maxVolume = 4096 // what the Open message can carry
	maxSocket = 107  // sun_path less its closing zero
	maxHost   = 255
)

// Address is a volume as a person names it:
//
//	PATH
//	ssh://[user@]host[:port]/PATH
//	tls://host:port/NAME
//	unix:///path.sock?volume=NAME
//	tcp://host:port/NAME             loopback, and only where allowed
//
// Everything that does not begin with a scheme and :// is a path. In the other
// forms %XX stands for a byte, and ? and # must be written that way.
type Address struct {
	Scheme Scheme
	User   string // ssh; "" lets ssh decide
	Host   string // without brackets; may carry an IPv6 zone
	Port   int    // 0 where ssh decides
	Socket string // unix: path of the socket file
	Volume string // path (local, ssh) or name of the volume
}

// AddressError is an address that is malformed or may not be used.
type AddressError struct {
	Address string // as given, less any password
	Reason  string
	Next    string // what to do instead; may be empty
}

// Error says what is wrong with which address, and what to do instead.
func (e *AddressError) Error() string {
	s := fmt.Sprintf("address %q: %s", e.Address, e.Reason)
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

const (
	reasonNotLoopback = "plain TCP is neither encrypted nor authenticated, so only loopback addresses (localhost, 127.0.0.1, [::1]) are allowed"
	nextNotPlain      = "use tls:// or ssh:// to reach another machine"
)

var (
	schemePart = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)
	hostChars  = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?$`)
	zoneChars  = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// Parse reads an address. Its errors are [*AddressError].
func Parse(s string) (Address, error) {
	scheme := schemePart.FindString(s)
	if scheme == "" {
		if s == "" || strings.ContainsRune(s, 0) {
			return Address{}, &AddressError{Address: s, Reason: "not a path", Next: "give a file, a block device or a URL"}
		}
		return Address{Volume: s}, nil
	}
	u, err := parseURL(s)
	if err != nil {
		return Address{}, err
	}
	a := Address{Scheme: Scheme(u.Scheme)}
	switch a.Scheme {
	case SSH, TLS, TCP:
		err = a.fromHost(u)
	case Unix:
		err = a.fromSocket(u)
	default:
		err = bad("unknown scheme "+strconv.Quote(u.Scheme), "known are ssh, tls, unix and tcp; a file of that name is written ./"+u.Scheme+":...")
	}
	if err == nil {
		err = a.Scheme.checkVolume(a.Volume)
	}
	if err != nil {
		return Address{}, placed(err, u.Redacted())
	}
	return a, nil
}

// parseURL is url.Parse with our error type and without its leniencies.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		if ue, ok := err.(*url.Error); ok {
			err = ue.Err // without the URL: it may hold a password
		}
		shown, _, _ := strings.Cut(s, "://")
		return nil, &AddressError{Address: shown + "://…", Reason: err.Error(), Next: "odd characters are written %XX"}
	}
	if strings.ContainsRune(s, '#') {
		return nil, &AddressError{Address: u.Redacted(), Reason: "a # would cut the name", Next: "write it %23"}
	}
	if u.Scheme != string(Unix) && (u.RawQuery != "" || u.ForceQuery) {
		return nil, &AddressError{Address: u.Redacted(), Reason: "a ? would cut the name", Next: "write it %3F"}
	}
	return u, nil
}

func (a *Address) fromHost(u *url.URL) error {
	if err := a.setHost(u); err != nil {
		return err
	}
	if a.Scheme == SSH {
		a.Volume = u.Path
		return a.setUser(u.User)
	}
	if u.User != nil {
		return bad("a user has no meaning here", "certificates say who is who")
	}
	if a.Port == 0 {
		return bad("no port", fmt.Sprintf("write %s://host:port/NAME", a.Scheme))
	}
	if a.Scheme == TCP && !isLoopback(a.Host) {
		return bad(reasonNotLoopback, nextNotPlain)
	}
	a.Volume = strings.TrimPrefix(u.Path, "/")
	return nil
}

func (a *Address) setHost(u *url.URL) error {
	a.Host = u.Hostname()
	if err := checkHost(a.Host); err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		if strings.HasSuffix(u.Host, ":") {
			return bad("a colon without a port", "")
		}
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return bad("port "+strconv.Quote(port)+" is not in 1 to 65535", "")
	}
	a.Port = int(n)
	return nil
}

// checkHost admits host names, ssh aliases and IP addresses. Nothing that a
// shell or an option parser reads as more than a word gets through: ssh puts
// the host into the ProxyCommand of the user's configuration.
func checkHost(host string) error {
	switch {
	case host == "":
		return bad("no host", "")
	case len(host) > maxHost:
		return bad(fmt.Sprintf("host of %d bytes, limit %d", len(host), maxHost), "")
	case strings.HasPrefix(host, "-"):
		return bad("host begins with a minus sign", "")
	}
	if strings.Contains(host, ":") {
		ip, err := netip.ParseAddr(host)
		if err != nil || ip.Zone() != "" && !zoneChars.MatchString(ip.Zone()) {
			return bad("host is not an IPv6 address", "IPv6 hosts are written [::1]")
		}
		return nil
	}
	if !hostChars.MatchString(host) {
		return bad("host "+strconv.Quote(host)+" has characters that no host name has", "")
	}
	return nil
}

func (a *Address) setUser(info *url.Userinfo) error {
	if info == nil {
		return nil
	}
	if _, has := info.Password(); has {
		return bad("a password has no place in an address", "let ssh ask for it, or use a key")
	}
	a.User = info.Username()
	if a.User == "" {
		return bad("no user before the @", "")
	}
	return checkUser(a.User)
}

// checkUser admits names of people and of directory services (DOMAIN\user,
// user@realm) and nothing that a shell reads as more than a word.
func checkUser(user string) error {
	odd := func(r rune) bool {
		return r == utf8.RuneError || !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(`._-+=@\`, r)
	}
	if strings.HasPrefix(user, "-") || strings.HasSuffix(user, `\`) || strings.ContainsFunc(user, odd) {
		return bad("user "+strconv.Quote(user)+" has characters that no user name has", "")
	}
	return nil
}

func (a *Address) fromSocket(u *url.URL) error {
	if u.Host != "" || u.User != nil {
		return bad("a socket is a file of this machine", "write unix:///path.sock?volume=NAME with three slashes")
	}
	a.Socket = u.Path
	if err := checkSocket(a.Socket); err != nil {
		return err
	}
	raw, ok := strings.CutPrefix(u.RawQuery, "volume=")
	if !ok || strings.Contains(raw, "&") {
		return bad("no volume", "write unix://"+u.EscapedPath()+"?volume=NAME, and nothing after it")
	}
	name, err := url.PathUnescape(raw)
	if err != nil {
		return bad(err.Error(), "odd characters are written %XX")
	}
	a.Volume = name
	return nil
}

func checkSocket(path string) error {
	switch {
	case path == "" || path == "/":
		return bad("no socket file", "write unix:///path.sock?volume=NAME")
	case strings.ContainsRune(path, 0):
		return bad("the path holds a zero byte", "")
	case len(path) > maxSocket:
		return bad(fmt.Sprintf("socket path of %d bytes, the kernel allows %d", len(path), maxSocket), "use a shorter one")
	}
	return nil
}

// checkVolume holds for everything that has to travel in a message.
func (s Scheme) checkVolume(name string) error {
	what, form := "name", "/NAME"
	if s == SSH {
		what, form = "path", "/PATH"
	}
	switch {
	case name == "" || s == SSH && name == "/":
		if s == Unix {
			form = "?volume=NAME"
		}
		return bad("no volume "+what, "end it with "+form)
	case len(name) > maxVolume:
		return bad(fmt.Sprintf("volume %s of %d bytes, limit %d", what, len(name), maxVolume), "")
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return bad("volume "+what+" is not printable text", "")
	}
	return nil
}

// check says whether a may be dialed. Parse has made sure of most of it, but an
// Address can be put together by hand.
func (a Address) check(o Options) error {
	var err error
	switch a.Scheme {
	case SSH, TLS, TCP:
		err = checkHost(a.Host)
		if err == nil && a.User != "" {
			err = checkUser(a.User)
		}
		if err == nil && (a.Port < 0 || a.Port > 65535 || a.Port == 0 && a.Scheme != SSH) {
			err = bad(fmt.Sprintf("port %d is not in 1 to 65535", a.Port), "")
		}
	case Unix:
		err = checkSocket(a.Socket)
	case Path:
		err = bad("a local path is opened, not dialed", "")
	default:
		err = bad("unknown scheme "+strconv.Quote(string(a.Scheme)), "")
	}
	if err == nil && a.Scheme == TCP {
		err = checkPlain(a.Host, o)
	}
	return placed(err, a.String())
}

func checkPlain(host string, o Options) error {
	if !isLoopback(host) {
		return bad(reasonNotLoopback, nextNotPlain)
	}
	if !o.AllowPlainTCP {
		return bad("plain TCP is neither encrypted nor authenticated: any user of this machine could connect",
			"use unix://, or allow it with --plain-tcp")
	}
	return nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// Local reports whether a is a path of this machine.
func (a Address) Local() bool { return a.Scheme == Path }

// String returns the form that [Parse] reads back to the same Address.
func (a Address) String() string {
	u := url.URL{Scheme: string(a.Scheme)}
	switch a.Scheme {
	case Path:
		return a.Volume
	case Unix:
		u.Path = a.Socket
		return u.Scheme + "://" + u.EscapedPath() + "?volume=" + strings.ReplaceAll(url.QueryEscape(a.Volume), "+", "%20")
	case SSH:
		u.Path = a.Volume
		if a.User != "" {
			u.User = url.User(a.User)
		}
	default:
		u.Path = "/" + a.Volume
	}
	u.Host = a.Host
	if strings.Contains(a.Host, ":") {
		u.Host = "[" + a.Host + "]" // url.URL escapes the zone's %
	}
	if a.Port != 0 {
		u.Host = net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
	}
	return u.String()
}

func bad(reason, next string) error { return &AddressError{Reason: reason, Next: next} }

// placed names the address in an error that a check made without knowing it.
func placed(err error, address string) error {
	if e, ok := err.(*AddressError); ok && e.Address == "" {
		e.Address = address
	}
	return err
}
