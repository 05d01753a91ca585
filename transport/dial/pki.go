package dial

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// What a PKI directory holds: CAFile goes to every machine, CAKeyFile makes
// certificates and stays where it was made. A certificate is NAME.pem, its key
// NAME-key.pem.
const (
	CAFile    = "ca.pem"
	CAKeyFile = "ca-key.pem"
	keySuffix = "-key.pem"
)

const (
	caValid   = 10 * 365 * 24 * time.Hour
	certValid = 2 * 365 * 24 * time.Hour
	clockSkew = time.Hour // how far a peer's clock may be behind ours
)

// names of certificates are file names too.
var certName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$`)

// NewCA makes a certificate authority in dir, which is made if need be: a P-256
// key and a certificate for ten years. It overwrites nothing: where either file
// is there already the error is fs.ErrExist.
func NewCA(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	certPath, keyPath := filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "failback CA " + now.UTC().Format(time.DateOnly)},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caValid),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	if err := issue(template, nil, nil, certPath, keyPath); err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	return nil
}

// NewCertificate makes NAME.pem and NAME-key.pem in outDir with the CA in caDir
// and puts ca.pem beside them, so that outDir is all that a machine needs. It is
// valid for two years, for servers and clients, for hosts (names or IP
// addresses; name itself if none is given). It overwrites nothing: where a file
// is there already the error is fs.ErrExist.
func NewCertificate(caDir, name string, hosts []string, outDir string) (Credentials, error) {
	made := Credentials{
		CA:   filepath.Join(outDir, CAFile),
		Cert: filepath.Join(outDir, name+".pem"),
		Key:  filepath.Join(outDir, name+keySuffix),
		Dir:  outDir,
	}
	if err := newCertificate(caDir, name, hosts, made); err != nil {
		return Credentials{}, fmt.Errorf("make certificate %q: %w", name, err)
	}
	return made, nil
}

func newCertificate(caDir, name string, hosts []string, out Credentials) error {
	if !certName.MatchString(name) || strings.HasSuffix(name, "-key") || name+".pem" == CAFile {
		return errors.New("a name is letters, digits, dots, dashes and underscores, at most 64; not ca, nothing that ends in -key")
	}
	if len(hosts) == 0 {
		hosts = []string{name}
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		NotBefore:   now.Add(-clockSkew),
		NotAfter:    now.Add(certValid),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if err := addHost(template, h); err != nil {
			return err
		}
	}
	caPEM, ca, caKey, err := loadCA(caDir)
	if err != nil {
		return err
	}
	if template.NotAfter.After(ca.NotAfter) {
		template.NotAfter = ca.NotAfter // no longer than its CA
	}
	if err := os.MkdirAll(out.Dir, 0o700); err != nil {
		return err
	}
	if err := placeCA(out.CA, caPEM); err != nil {
		return err
	}
	return issue(template, ca, caKey, out.Cert, out.Key)
}

func addHost(template *x509.Certificate, host string) error {
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = append(template.IPAddresses, ip)
		return nil
	}
	if checkHost(host) != nil || strings.Contains(host, ":") {
		return fmt.Errorf("%q is neither a host name nor an IP address", host)
	}
	template.DNSNames = append(template.DNSNames, host)
	return nil
}

// loadCA reads the CA in dir and makes sure that its key is its own.
func loadCA(dir string) (certPEM []byte, ca *x509.Certificate, key crypto.Signer, err error) {
	certPath, keyPath := filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)
	pair, err := readPair(certPath, keyPath)
	if err != nil {
		return nil, nil, nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, nil, nil, fmt.Errorf("read CA certificate %s: not a CA; make one with failback pki", certPath)
	}
	if time.Now().After(pair.Leaf.NotAfter) {
		return nil, nil, nil, fmt.Errorf("read CA certificate %s: expired on %s; make a new CA in another directory", certPath, pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), pair.Leaf, key, nil
}

// placeCA writes the CA certificate unless the same one is there.
func placeCA(path string, certPEM []byte) error {
	err := create(path, certPEM, 0o644)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	there, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(there)
	ours, _ := pem.Decode(certPEM)
	if block == nil || !bytes.Equal(block.Bytes, ours.Bytes) {
		return fmt.Errorf("%s: %w and is of another CA; choose another directory", path, fs.ErrExist)
	}
	return nil
}

// issue makes a key, signs template with it (nil parent: by itself) and writes
// both files. The key is written first: a crash leaves a key without a
// certificate, which nothing takes for a pair and which is safe to remove.
func issue(template, parent *x509.Certificate, parentKey crypto.Signer, certPath, keyPath string) error {
	if _, err := os.Lstat(certPath); err == nil {
		return fmt.Errorf("%s: %w; it is not overwritten: choose another name or directory", certPath, fs.ErrExist)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if err := create(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	if err := create(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return errors.Join(err, os.Remove(keyPath))
	}
	return nil
}

// create writes a new file whole, or none.
func create(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w; it is not overwritten: choose another name or directory", err)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
