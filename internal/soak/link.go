package main

import (
	"errors"
	"io"
	"net"
	"sync"
)

// link passes bytes between a socket of its own and that of a server, and cuts
// the connection after a number of them when it is told to.
type link struct {
	l  net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	to     string // the server's socket
	left   int64  // bytes until the next cut; none is due if negative
	passed int64  // bytes, both ways
}

func newLink(socket string) (*link, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	k := &link{l: l, left: -1}
	k.wg.Go(k.accept)
	return k, nil
}

func (k *link) accept() {
	for {
		c, err := k.l.Accept()
		if err != nil {
			return // closed
		}
		k.wg.Go(func() { k.join(c) })
	}
}

// join carries one connection to its end.
func (k *link) join(c net.Conn) {
	defer c.Close()
	k.mu.Lock()
	to := k.to
	k.mu.Unlock()
	d, err := net.Dial("unix", to)
	if err != nil {
		return // the server is gone: so is the link
	}
	defer d.Close()
	var both sync.WaitGroup
	carry := func(dst, src net.Conn) {
		// Whichever way ends, by itself or cut, ends both.
		defer dst.Close()
		defer src.Close()
		_, _ = io.Copy(counted{k, dst}, src) // the ends will tell
	}
	both.Go(func() { carry(c, d) })
	both.Go(func() { carry(d, c) })
	both.Wait()
}

// lead says where connections lead from now on, and after how many bytes the
// next cut comes; none if negative.
func (k *link) lead(socket string, cut int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.to, k.left = socket, cut
}

var errCut = errors.New("the link is cut")

// counted counts what is written, and fails at the cut. One cut ends one
// connection; later ones are carried.
type counted struct {
	k *link
	w io.Writer
}

func (c counted) Write(p []byte) (int, error) {
	c.k.mu.Lock()
	n, cut := len(p), false
	if c.k.left >= 0 {
		if cut = int64(n) > c.k.left; cut {
			n, c.k.left = int(c.k.left), -1
		} else {
			c.k.left -= int64(n)
		}
	}
	c.k.passed += int64(n)
	c.k.mu.Unlock()
	w, err := c.w.Write(p[:n])
	if err == nil && cut {
		err = errCut
	}
	return w, err
}

func (k *link) bytes() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.passed
}

// close ends it. Connections end with their two ends, which are gone by then.
func (k *link) close() error {
	err := k.l.Close()
	k.wg.Wait()
	return err
}
