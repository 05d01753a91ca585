package dial

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestSocketPeer: the kernel says who is at the other end of a unix socket.
func TestSocketPeer(t *testing.T) {
	l, err := Listen(t.Context(), "unix://"+filepath.Join(t.TempDir(), "s"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	want := fmt.Sprintf("uid:%d", os.Geteuid())
	for end, c := range map[string]net.Conn{"server": far, "client": near} {
		if name, err := PeerName(c); name != want || err != nil {
			t.Errorf("the %s sees %q, %v; want %s", end, name, err, want)
		}
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if name, err := PeerName(far); name != "" || err == nil {
		t.Errorf("a closed socket has the peer %q, %v", name, err)
	}
}

// TestCertificateNames: a name that could pass for another, or that does
// something to a terminal, is none.
func TestCertificateNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"home": true, "db 1": true, "größe.example.org": true, "uid": true, "a,b|c=d": true, strings.Repeat("x", 255): true,
		"": false, "uid:0": false, "uid:": false, "a\nb": false, "a\x1b[2Jb": false, "a\x00": false, "a\u202eb": false,
		"\xff": false, strings.Repeat("x", 256): false,
	} {
		got, err := certificateName(name)
		if (err == nil) != ok || ok && got != name || !ok && got != "" {
			t.Errorf("%q: %q, %v", name, got, err)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n\x00\u202e") {
			t.Errorf("the message about %q carries it as it is: %q", name, err)
		}
	}
}

// TestPeerWithoutUsableName: the CA may have signed such a certificate, it still gets nobody in.
func TestPeerWithoutUsableName(t *testing.T) {
	dir, made := authority(t, "server")
	l, err := Listen(t.Context(), "tls://127.0.0.1:0", Options{Credentials: made["server"]})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range []string{"", "uid:0", "a\nb"} {
		c := issued(t, dir, func(c *x509.Certificate) { c.Subject.CommonName = name })
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, err = PeerName(conn)
				_ = conn.Close()
			}
			said <- err
		}()
		cfg := &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, NextProtos: []string{alpn}}
		conn, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil {
			t.Errorf("%q: the server has an answer", name)
		}
		if err := <-said; err == nil || !strings.Contains(err.Error(), "peer's certificate") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestSilentHandshake: who connects and says nothing is given up in bounded time.
func TestSilentHandshake(t *testing.T) {
	_, made := authority(t, "server")
	cfg, err := made["server"].config()
	if err != nil {
		t.Fatal(err)
	}
	for name, say := range map[string]func(net.Conn){
		"nothing":         func(net.Conn) {},
		"half a record":   func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1, 1, 0, 1}) },
		"a byte a second": func(c net.Conn) { drip(c) },
	} {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			var saying sync.WaitGroup
			saying.Go(func() { say(there) })
			began := time.Now()
			_, err := PeerName(tls.Server(here, cfg))
			if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), "handshake") {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took > DefaultTimeout {
				t.Errorf("%s: %v", name, took)
			}
			_, _ = here.Close(), there.Close()
			saying.Wait() // here, since the bubble's clock stands still once this function is left
		})
	}
}

// drip writes the head of a record and then its bytes, one a second, until it cannot.
func drip(c io.Writer) {
	if _, err := c.Write([]byte{22, 3, 1, 1, 0}); err != nil {
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for range t.C {
		if _, err := c.Write([]byte{1}); err != nil {
			return
		}
	}
}

// TestHangUp: it does not wait for a peer that takes nothing.
func TestHangUp(t *testing.T) {
	_, made := authority(t, "server")
	cfg, err := made["server"].config()
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	if err := HangUp(tls.Server(here, cfg)); err != nil {
		t.Error(err)
	}
	if _, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end reads %v", err)
	}
	here, there = net.Pipe()
	if err := HangUp(here); err != nil {
		t.Error(err)
	}
	if _, err := there.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end reads %v", err)
	}
}
