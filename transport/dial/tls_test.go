package dial

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a CA and a certificate for loopback under each name.
func authority(t *testing.T, names ...string) (dir string, made map[string]Credentials) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "pki")
	if err := NewCA(dir); err != nil {
		t.Fatal(err)
	}
	made = map[string]Credentials{}
	for _, name := range names {
		c, err := NewCertificate(dir, name, []string{"localhost", "127.0.0.1", "::1"}, filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		made[name] = c
	}
	return dir, made
}

// issued makes a certificate of the CA in dir that NewCertificate would not make.
func issued(t *testing.T, dir string, change func(*x509.Certificate)) Credentials {
	t.Helper()
	_, ca, key, err := loadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "odd"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(template)
	out := t.TempDir()
	c := Credentials{CA: filepath.Join(dir, CAFile), Cert: filepath.Join(out, "odd.pem"), Key: filepath.Join(out, "odd-key.pem")}
	if err := issue(template, ca, key, c.Cert, c.Key); err != nil {
		t.Fatal(err)
	}
	return c
}

func expired(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = c.NotBefore.AddDate(-1, 0, 0), c.NotAfter.AddDate(-1, 0, 0)
}

func TestTLS(t *testing.T) {
	_, made := authority(t, "server", "client")
	loopbacks(t, func(t *testing.T, host string) {
		url := URL(echoAt(t, "tls://"+host+":0", Options{Credentials: made["server"]}))
		if !strings.HasPrefix(url, "tls://") {
			t.Errorf("URL %s", url)
		}
		if got, err := say(t, url+"/x", Options{Credentials: made["client"]}); got != "hello" || err != nil {
			t.Errorf("%s: %q, %v", url, got, err)
		}
	})
}

func TestTLSPeerName(t *testing.T) {
	_, made := authority(t, "server", "client")
	l, err := Listen(t.Context(), "tls://127.0.0.1:0", Options{Credentials: made["server"]})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type seen struct {
		name string
		err  error
	}
	got := make(chan seen, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- seen{err: err}
			return
		}
		name, err := PeerName(c)
		_, copied := io.Copy(c, c) // the deadline of the handshake is lifted again
		got <- seen{name, errors.Join(err, copied, c.Close())}
	}()
	a, err := Parse(URL(l) + "/x")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(t.Context(), a, Options{Credentials: made["client"]})
	if err != nil {
		t.Fatal(err)
	}
	if name, err := PeerName(conn); name != "server" || err != nil {
		t.Errorf("the client sees %q, %v; want server", name, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if s := <-got; s.name != "client" || s.err != nil {
		t.Errorf("the server sees %q, %v; want client", s.name, s.err)
	}
	here, there := net.Pipe()
	if name, err := PeerName(here); name != "" || err != nil {
		t.Errorf("a connection without certificates has the name %q, %v", name, err)
	}
	if err := errors.Join(here.Close(), there.Close()); err != nil {
		t.Error(err)
	}
}

// The server takes nobody without a valid client certificate of its CA.
func TestTLSServerRefuses(t *testing.T) {
	dir, made := authority(t, "server", "client")
	_, others := authority(t, "client")
	l, err := Listen(t.Context(), "tls://127.0.0.1:0", Options{Credentials: made["server"]})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	refusals := make(chan error)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(refusals)
				return
			}
			name, err := PeerName(c)
			if err == nil {
				err = errors.New("took " + name)
			}
			c.Close()
			refusals <- err
		}
	}()
	with := func(c Credentials) []tls.Certificate {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{pair}
	}
	for name, c := range map[string]struct {
		cfg  *tls.Config
		want string
	}{
		"no certificate":   {&tls.Config{}, "didn't provide a certificate"},
		"another CA":       {&tls.Config{Certificates: with(others["client"])}, "unknown authority"},
		"expired":          {&tls.Config{Certificates: with(issued(t, dir, expired))}, "expired"},
		"not for clients":  {&tls.Config{Certificates: with(issued(t, dir, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }))}, "incompatible key usage"},
		"TLS 1.2":          {&tls.Config{Certificates: with(made["client"]), MaxVersion: tls.VersionTLS12}, "unsupported versions"},
		"another protocol": {&tls.Config{Certificates: with(made["client"]), NextProtos: []string{"h2"}}, "unsupported application protocols"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.InsecureSkipVerify = true // this client does not mind who the server is
			conn, err := tls.Dial("tcp", l.Addr().String(), c.cfg)
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			if err == nil {
				t.Error("the client was let in")
			}
			if err := <-refusals; err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the server says %v, want %q", err, c.want)
			}
		})
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-refusals
}

// The client talks to no server but a valid one of its CA with the name it asked for.
func TestTLSClientRefuses(t *testing.T) {
	dir, made := authority(t, "server", "client")
	_, others := authority(t, "server")
	client := Options{Credentials: made["client"]}
	serve := func(t *testing.T, c Credentials, change func(*tls.Config)) string {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{pair}}
		change(cfg)
		l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := l.Accept(); err == nil {
				_, _ = c.Read(make([]byte, 1)) // the client goes away
				c.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
		return "tls://" + l.Addr().String() + "/x"
	}
	same := func(*tls.Config) {}
	for name, c := range map[string]struct {
		server Credentials
		change func(*tls.Config)
		want   string
	}{
		"another CA":      {others["server"], same, "not of our CA"},
		"expired":         {issued(t, dir, expired), same, "look at the clocks"},
		"wrong name":      {issued(t, dir, func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere"} }), same, "must name the host"},
		"not for servers": {issued(t, dir, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), same, "incompatible key usage"},
		"TLS 1.2":         {made["server"], func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := say(t, serve(t, c.server, c.change), client); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
	t.Run("not TLS", func(t *testing.T) {
		url := URL(echoAt(t, "tcp://127.0.0.1:0", plain))
		if _, err := say(t, strings.Replace(url, "tcp", "tls", 1)+"/x", client); err == nil {
			t.Error("spoke with an echo")
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel connects, nobody accepts
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, err = say(t, "tls://"+l.Addr().String()+"/x", Options{Credentials: made["client"], Timeout: 50 * time.Millisecond})
		var e net.Error
		if !errors.As(err, &e) || !e.Timeout() {
			t.Errorf("%v, want a time-out", err)
		}
	})
}

// What goes wrong with our own files is said before anything is dialed.
func TestTLSFiles(t *testing.T) {
	t.Setenv(PKIEnv, "")
	dir, made := authority(t, "me")
	_, others := authority(t, "me")
	mine, his := made["me"], others["me"]
	empty := t.TempDir()
	junk := write(t, t.TempDir(), "junk.pem", "junk")
	locked := issued(t, dir, expired)
	for name, c := range map[string]struct {
		c    Credentials
		want string
	}{
		"nothing given":       {Credentials{}, "$FAILBACK_PKI"},
		"no CA given":         {Credentials{Cert: mine.Cert}, "--ca"},
		"no certificate":      {Credentials{CA: mine.CA}, "--cert"},
		"no directory":        {Credentials{Dir: empty + "/none"}, "none"},
		"empty directory":     {Credentials{Dir: empty}, empty},
		"no CA file":          {Credentials{CA: empty + "/ca.pem", Cert: mine.Cert}, empty + "/ca.pem"},
		"no certificate file": {Credentials{CA: mine.CA, Cert: empty + "/x.pem"}, empty + "/x.pem"},
		"no key file":         {Credentials{CA: mine.CA, Cert: mine.Cert, Key: empty + "/x-key.pem"}, empty + "/x-key.pem"},
		"CA is junk":          {Credentials{CA: junk, Cert: mine.Cert}, junk},
		"CA is a key":         {Credentials{CA: mine.Key, Cert: mine.Cert}, mine.Key},
		"certificate is junk": {Credentials{CA: mine.CA, Cert: junk, Key: mine.Key}, junk},
		"key of another":      {Credentials{CA: mine.CA, Cert: mine.Cert, Key: his.Key}, his.Key},
		"CA of another":       {Credentials{CA: his.CA, Cert: mine.Cert}, his.CA},
		"expired":             {locked, locked.Cert},
		"several":             {Credentials{Dir: several(t, dir, "a", "b")}, "--cert"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.c.config()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want something about %q", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), "failback pki") && !strings.Contains(err.Error(), "--cert") {
				t.Errorf("%v does not say what to do", err)
			}
			if l, err := Listen(t.Context(), "tls://127.0.0.1:0", Options{Credentials: c.c}); l != nil || err == nil {
				t.Errorf("Listen: %v", err)
			}
			if conn, err := Dial(t.Context(), Address{Scheme: TLS, Host: "h", Port: 1, Volume: "x"}, Options{Credentials: c.c}); conn != nil || err == nil {
				t.Errorf("Dial: %v", err)
			}
		})
	}
}

func several(t *testing.T, caDir string, names ...string) string {
	t.Helper()
	out := t.TempDir()
	for _, name := range names {
		if _, err := NewCertificate(caDir, name, nil, out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestTLSFilesFound(t *testing.T) {
	dir, made := authority(t, "me")
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	short, _, _ := strings.Cut(host, ".")
	many := several(t, dir, "a", short, "b")
	t.Setenv(PKIEnv, many)
	for name, c := range map[string]struct {
		c    Credentials
		want string
	}{
		"given":       {made["me"], made["me"].Cert},
		"key implied": {Credentials{CA: made["me"].CA, Cert: made["me"].Cert}, made["me"].Cert},
		"directory":   {Credentials{Dir: made["me"].Dir}, made["me"].Cert},
		"environment": {Credentials{}, filepath.Join(many, short+".pem")},
		"some given":  {Credentials{Cert: filepath.Join(many, "b.pem")}, filepath.Join(many, "b.pem")},
	} {
		got, err := c.c.find()
		if err != nil || got.Cert != c.want {
			t.Errorf("%s: %+v, %v; want %s", name, got, err, c.want)
		}
		if _, err := c.c.config(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPKIFiles(t *testing.T) {
	dir, made := authority(t, "db-1")
	c := made["db-1"]
	for path, mode := range map[string]fs.FileMode{
		filepath.Join(dir, CAFile): 0o644, filepath.Join(dir, CAKeyFile): 0o600, c.CA: 0o644, c.Cert: 0o644, c.Key: 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, mode)
		}
	}
	if _, err := os.Stat(filepath.Join(c.Dir, CAKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the CA's key went out with a certificate: %v", err)
	}
	pair, err := readPair(c.Cert, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if left := time.Until(leaf.NotAfter); left < certValid-time.Hour || left > certValid || leaf.IsCA || leaf.Subject.CommonName != "db-1" {
		t.Errorf("certificate %v, valid for %v, CA %v", leaf.Subject, left, leaf.IsCA)
	}
}

// Nothing that is there is written over, however it came there.
func TestPKINeverOverwrites(t *testing.T) {
	dir, made := authority(t, "a")
	out := made["a"].Dir
	before := contents(t, dir, out)
	if err := NewCA(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second CA: %v", err)
	}
	if _, err := NewCertificate(dir, "a", nil, out); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second certificate: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, CAFile)); err != nil {
		t.Fatal(err)
	}
	if err := NewCA(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a CA over a lone key: %v", err)
	}
	write(t, dir, CAFile, before[filepath.Join(dir, CAFile)])
	other, _ := authority(t)
	if _, err := NewCertificate(other, "b", nil, out); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "another CA") {
		t.Errorf("a certificate of another CA beside ca.pem: %v", err)
	}
	after := contents(t, dir, out)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s has changed", path)
		}
	}
	if len(after) != len(before) {
		t.Errorf("files were added: %d, then %d", len(before), len(after))
	}
}

func contents(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			all[filepath.Join(dir, e.Name())] = string(b)
		}
	}
	return all
}

func TestPKIRefuses(t *testing.T) {
	dir, made := authority(t, "a")
	out := t.TempDir()
	for _, name := range []string{"", "ca", "x-key", "../x", "a/b", ".x", "-x", "a b", "a\n", strings.Repeat("x", 65)} {
		if _, err := NewCertificate(dir, name, []string{"h"}, out); err == nil {
			t.Errorf("made a certificate with the name %q", name)
		}
	}
	for _, host := range []string{"", "a b", "-h", "*", "fe80::1%eth0", "a:1", "https://h"} {
		if _, err := NewCertificate(dir, "x", []string{host}, out); err == nil {
			t.Errorf("made a certificate for the host %q", host)
		}
	}
	if _, err := NewCertificate(out, "x", nil, out); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "failback pki") {
		t.Errorf("without a CA: %v", err)
	}
	write(t, made["a"].Dir, CAKeyFile, "")
	if _, err := NewCertificate(made["a"].Dir, "x", nil, out); err == nil {
		t.Error("made a certificate with a CA whose key is empty")
	}
	fake := notCA(t)
	if _, err := NewCertificate(fake, "x", nil, out); err == nil || !strings.Contains(err.Error(), "not a CA") {
		t.Errorf("with a certificate that is no CA: %v", err)
	}
	if left := contents(t, out); len(left) != 0 {
		t.Errorf("refusals left files: %v", left)
	}
	file := write(t, t.TempDir(), "file", "")
	if err := NewCA(file); err == nil {
		t.Error("made a CA in a file")
	}
}

// notCA is a directory whose ca.pem is a certificate that may not sign others.
func notCA(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	if err := issue(template, template, key, filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)); err != nil {
		t.Fatal(err)
	}
	return dir
}
