package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// TestDoor: as many get in as there are places, as many of one peer as its
// share, and every place comes back.
func TestDoor(t *testing.T) {
	d := newDoor(4, 2)
	conns := make([]net.Conn, 8)
	for i := range conns {
		conns[i], _ = net.Pipe()
		d.knock(conns[i])
	}
	enter := func(i int, peer, want string) {
		t.Helper()
		in, why := d.enter(conns[i], peer)
		got := fmt.Sprint(in)
		if why != nil {
			got = why.Reason + " " + why.Next
		}
		if !strings.Contains(got, want) {
			t.Errorf("connection %d of %q: %s, want %s", i, peer, got, want)
		}
	}
	enter(0, "a", "true")
	enter(1, "a", "true")
	enter(2, "a", "2 connections of a are under way and no more are taken try again later, or raise --max-per-peer")
	enter(2, "b", "true")
	enter(3, "", "true")
	enter(4, "c", "4 connections are under way and no more are taken try again later, or raise --max-connections")
	d.exit("a")
	enter(4, "a", "true")
	enter(4, "a", "false") // it stands outside no more
	for _, peer := range []string{"a", "a", "b", ""} {
		d.exit(peer)
	}
	if d.count() != 0 || len(d.inside) != 0 || len(d.outside) != 3 {
		t.Errorf("left: %d inside, %v, %d outside", d.count(), d.inside, len(d.outside))
	}
	if newDoor(1, 32).share != 1 {
		t.Error("a share larger than all there is")
	}
}

// TestDoorPushesOut: who stands outside and says nothing keeps nobody out.
func TestDoorPushesOut(t *testing.T) {
	d := newDoor(1, 1)
	oldest, far := net.Pipe()
	d.knock(oldest)
	for range maxOutside - 1 {
		c, _ := net.Pipe()
		d.knock(c)
	}
	if err := far.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("pushed out too early: %v", err)
	}
	newest, _ := net.Pipe()
	d.knock(newest)
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest was not hung up on: %v", err)
	}
	if in, why := d.enter(oldest, "a"); in || why != nil {
		t.Errorf("it got in all the same: %v, %v", in, why)
	}
	if d.leave(oldest) {
		t.Error("it still stood outside")
	}
	if in, why := d.enter(newest, "a"); !in {
		t.Errorf("the newest is not let in: %v", why)
	}
}

// crowd is a server without listeners, for connections made by hand.
func crowd(places, share int) (*server, *bytes.Buffer) {
	var log bytes.Buffer
	x := &exposure{byName: map[string]exposed{}}
	return &server{
		door: newDoor(places, share), log: &logger{w: &log},
		core: failback.NewServer(failback.ServerOptions{Lookup: x.lookup}),
	}, &log
}

// TestSilentPeers: connections that say nothing are gone in bounded time, and a
// full server tells the next one so, also if it does not listen.
func TestSilentPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := crowd(2, 2)
		var under sync.WaitGroup
		come := func(id uint64) net.Conn {
			here, there := net.Pipe()
			s.door.knock(here)
			under.Go(func() { s.admit(context.Background(), id, here) })
			synctest.Wait()
			return there
		}
		began := time.Now()
		come(1)
		come(2)
		if s.door.count() != 2 {
			t.Fatalf("%d are inside", s.door.count())
		}
		deaf := come(3)
		told := transport.New(come(4), transport.Options{})
		f, err := told.Read()
		if err != nil {
			t.Fatal(err)
		}
		var m message.Error
		if err := m.Decode(f.Payload()); err != nil || !strings.Contains(m.Text, "2 connections are under way") {
			t.Errorf("the fourth is told %q, %v", m.Text, err)
		}
		f.Release()
		under.Wait()
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("the last was gone after %v", took)
		}
		if _, err := deaf.Read(make([]byte, 1)); err == nil {
			t.Error("the deaf one is still connected")
		}
		if s.door.count() != 0 || len(s.door.outside) != 0 {
			t.Errorf("left: %d inside, %d outside", s.door.count(), len(s.door.outside))
		}
		if got := log.String(); strings.Count(got, "see --max-connections") != 2 {
			t.Errorf("the log says:\n%s", got)
		}
	})
}

// TestCutWhileOutside: a stopping server does not wait for a handshake.
func TestCutWhileOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := crowd(1, 1)
		ctx, cut := context.WithCancel(context.Background())
		here, there := net.Pipe()
		s.door.knock(here)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.admit(ctx, 1, here)
		}()
		synctest.Wait()
		began := time.Now()
		cut()
		<-done
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if _, err := there.Read(make([]byte, 1)); err == nil {
			t.Error("the peer is still connected")
		}
	})
}
