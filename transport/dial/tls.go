package dial

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// PKIEnv names the environment variable that says where certificates are.
const PKIEnv = "FAILBACK_PKI"

// alpn is offered and expected in the handshake, so that a server of another
// protocol with a certificate of the same CA is not mistaken for one of ours.
const alpn = "failback"

// Credentials says which certificate is shown and which CA the peer's must come
// from. What is not given is looked for in Dir, which is laid out as
// [NewCertificate] leaves it: ca.pem, and a NAME.pem with its NAME-key.pem. If
// there is more than one NAME, the one called like this machine is taken.
type Credentials struct {
	CA, Cert, Key string // PEM files
	Dir           string // default $FAILBACK_PKI
}

// find fills in what is not given and says what is missing.
func (c Credentials) find() (Credentials, error) {
	if c.Dir == "" {
		c.Dir = os.Getenv(PKIEnv)
	}
	if c.Cert != "" && c.Key == "" {
		c.Key = keyBeside(c.Cert)
	}
	if c.CA != "" && c.Cert != "" {
		return c, nil
	}
	if c.Dir == "" {
		missing := "--ca"
		if c.Cert == "" {
			missing = "--cert"
		}
		return c, fmt.Errorf("find TLS certificates: neither %s nor $%s is given; make certificates with failback pki", missing, PKIEnv)
	}
	if c.CA == "" {
		c.CA = filepath.Join(c.Dir, CAFile)
	}
	if c.Cert == "" {
		name, err := soleCertificate(c.Dir)
		if err != nil {
			return c, err
		}
		c.Cert = filepath.Join(c.Dir, name+".pem")
		if c.Key == "" {
			c.Key = keyBeside(c.Cert)
		}
	}
	return c, nil
}

func keyBeside(cert string) string { return strings.TrimSuffix(cert, ".pem") + keySuffix }

// soleCertificate is the NAME in dir, or the one of this machine among several.
func soleCertificate(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("find TLS certificates: %w; make them with failback pki", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), keySuffix)
		if !ok || name+".pem" == CAFile {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, name+".pem")); err == nil {
			names = append(names, name)
		}
	}
	if len(names) == 1 {
		return names[0], nil
	}
	if len(names) == 0 {
		return "", fmt.Errorf("find TLS certificates: no NAME.pem with NAME%s in %s; make one with failback pki", keySuffix, dir)
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find TLS certificates: several in %s (%s): %w; name one with --cert", dir, strings.Join(names, ", "), err)
	}
	short, _, _ := strings.Cut(host, ".")
	for _, want := range []string{host, short} {
		for _, name := range names {
			if name == want {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("find TLS certificates: several in %s (%s) and none is called %s; name one with --cert", dir, strings.Join(names, ", "), host)
}

// config reads the files and checks what can be checked without a peer: a
// message here names the file, one from a handshake can not.
func (c Credentials) config() (*tls.Config, error) {
	c, err := c.find()
	if err != nil {
		return nil, err
	}
	pool, err := readCA(c.CA)
	if err != nil {
		return nil, err
	}
	cert, err := readPair(c.Cert, c.Key)
	if err != nil {
		return nil, err
	}
	if err := checkOwn(cert, pool, c); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		ClientCAs:    pool,
		NextProtos:   []string{alpn},
	}, nil
}

func readCA(path string) (*x509.CertPool, error) {
	b, err := readFile("CA certificate", path)
	if err != nil {
		return nil, err
	}
	pool, found := x509.NewCertPool(), false
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read CA certificate %s: %w", path, err)
		}
		pool.AddCert(ca)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("read CA certificate %s: no PEM certificate in it; make a CA with failback pki", path)
	}
	return pool, nil
}

func readPair(cert, key string) (tls.Certificate, error) {
	certPEM, err := readFile("certificate", cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	keyPEM, err := readFile("private key", key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read certificate %s with key %s: %w; make a new pair with failback pki", cert, key, err)
	}
	return pair, nil
}

func readFile(what, path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w; make it with failback pki", what, err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return b, nil
}

func checkOwn(pair tls.Certificate, pool *x509.CertPool, c Credentials) error {
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read certificate %s: %w", c.Cert, err)
		}
		intermediates.AddCert(ca)
	}
	_, err := pair.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: intermediates,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("check certificate %s, valid from %s to %s: %w; make a new one with failback pki", c.Cert,
			pair.Leaf.NotBefore.Format(time.DateOnly), pair.Leaf.NotAfter.Format(time.DateOnly), err)
	}
	return fmt.Errorf("check certificate %s against CA %s: %w; both ends need certificates of one CA, made with failback pki", c.Cert, c.CA, err)
}

// tlsConn is a client's connection whose errors say what to do. With TLS 1.3 a
// client learns by its first Read, at the earliest, that the server refused it.
type tlsConn struct {
	*tls.Conn
	address string
	heard   atomic.Bool // the server has said something, so it took us
}

// Read reads from the connection.
func (c *tlsConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
	}
	return n, c.explain(err)
}

// Write writes to the connection.
func (c *tlsConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

func (c *tlsConn) explain(err error) error {
	if err == nil || c.heard.Load() {
		return err
	}
	if why := advice(err); why != "" {
		return fmt.Errorf("reach %s: %w; %s", c.address, err, why)
	}
	return err
}
