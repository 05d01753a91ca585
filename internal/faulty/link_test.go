package faulty

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// frame is a frame of a kind with n bytes of payload, all of them the kind.
func frame(kind byte, n int) []byte {
	b := make([]byte, frameHeader+n)
	for i := range b {
		b[i] = kind
	}
	binary.LittleEndian.PutUint32(b[frameLen:], uint32(n))
	return b
}

// stream is what the tests send: frames 1, 2, 1, 3, of 24, 34, 124 and 29 bytes.
func stream() []byte { return slices.Concat(frame(1, 0), frame(2, 10), frame(1, 100), frame(3, 5)) }

// ends makes two ends of a connection, the first with faults.
func ends(rules ...LinkRule) (*Link, net.Conn) {
	a, b := net.Pipe()
	return NewLink(a, rules...), b
}

// without is b without [off, end), twice b with that twice, turned b with a bit turned.
func without(b []byte, off, end int) []byte { return slices.Delete(slices.Clone(b), off, end) }
func twice(b []byte, off, end int) []byte   { return slices.Insert(slices.Clone(b), end, b[off:end]...) }
func turned(b []byte, off int, bit byte) []byte {
	b = slices.Clone(b)
	b[off] ^= 1 << bit
	return b
}

// linkFaults are rules and what comes of the stream.
var linkFaults = []struct {
	name string
	rule LinkRule
	want func(b []byte) []byte
	err  error // of the end that is wrapped
}{
	{"none", LinkRule{}, slices.Clone[[]byte], nil},
	{"reset after bytes", LinkRule{At: 30, Kind: Reset}, func(b []byte) []byte { return b[:30] }, syscall.ECONNRESET},
	{"reset at once", LinkRule{Kind: Reset}, func(b []byte) []byte { return b[:0] }, syscall.ECONNRESET},
	{"reset before a frame", LinkRule{Frame: 1, Nth: 2, Kind: Reset}, func(b []byte) []byte { return b[:58] }, syscall.ECONNRESET},
	{"reset in a frame", LinkRule{Frame: 2, Nth: 1, At: 26, Kind: Reset}, func(b []byte) []byte { return b[:50] }, syscall.ECONNRESET},
	{"reset after a frame", LinkRule{Frame: 1, Nth: 1, Past: true, Kind: Reset}, func(b []byte) []byte { return b[:24] }, syscall.ECONNRESET},
	{"reset after the last", LinkRule{Frame: 3, Nth: 1, Past: true, Kind: Reset}, slices.Clone[[]byte], syscall.ECONNRESET},
	{"reset before the third", LinkRule{Nth: 3, Kind: Reset}, func(b []byte) []byte { return b[:58] }, syscall.ECONNRESET},
	{"end", LinkRule{Frame: 3, Kind: End}, func(b []byte) []byte { return b[:182] }, nil},
	{"drop bytes", LinkRule{At: 3, Len: 40, Kind: Drop}, func(b []byte) []byte { return without(b, 3, 43) }, nil},
	{"drop a frame", LinkRule{Frame: 2, Kind: Drop}, func(b []byte) []byte { return without(b, 24, 58) }, nil},
	{"drop each", LinkRule{Frame: 1, Kind: Drop}, func(b []byte) []byte { return without(without(b, 58, 182), 0, 24) }, nil},
	{"repeat bytes", LinkRule{At: 20, Len: 20, Kind: Repeat}, func(b []byte) []byte { return twice(b, 20, 40) }, nil},
	{"repeat a frame", LinkRule{Frame: 3, Kind: Repeat}, func(b []byte) []byte { return twice(b, 182, 211) }, nil},
	{"flip", LinkRule{At: 100, Kind: Flip, Bit: 3}, func(b []byte) []byte { return turned(b, 100, 3) }, nil},
	{"flip in a frame", LinkRule{Frame: 1, Nth: 2, At: 16, Kind: Flip}, func(b []byte) []byte { return turned(b, 74, 0) }, nil},
}

// TestOut: what the other end gets of what is written, and what the writer hears.
func TestOut(t *testing.T) {
	for _, tt := range linkFaults {
		rapid.Check(t, func(t *rapid.T) {
			tt.rule.Way = Out
			l, far := ends(tt.rule)
			var g sync.WaitGroup
			var heard error
			cuts := rapid.SliceOfN(rapid.IntRange(1, 80), 1, 5).Draw(t, "writes")
			g.Go(func() {
				for rest := stream(); len(rest) > 0 && heard == nil; {
					n := min(len(rest), cuts[0])
					cuts = append(cuts[1:], cuts[0])
					_, heard = l.Write(rest[:n])
					rest = rest[n:]
				}
				if _, err := l.Write(nil); heard == nil {
					heard = err
				}
				l.Close()
			})
			got, err := io.ReadAll(far)
			g.Wait()
			if err != nil || !bytes.Equal(got, tt.want(stream())) || !errors.Is(heard, tt.err) {
				t.Fatalf("%s: %d bytes, want %d; %v; writer heard %v", tt.name, len(got), len(tt.want(stream())), err, heard)
			}
		})
	}
}

// TestIn: what is read of what the other end sends.
func TestIn(t *testing.T) {
	for _, tt := range linkFaults {
		rapid.Check(t, func(t *rapid.T) {
			tt.rule.Way = In
			l, far := ends(tt.rule)
			cuts := rapid.SliceOfN(rapid.IntRange(1, 80), 1, 5).Draw(t, "reads")
			var g sync.WaitGroup
			g.Go(func() {
				_, _ = far.Write(stream()) // fails where the link breaks
				far.Close()
			})
			var got []byte
			var heard error
			for heard == nil {
				p := make([]byte, cuts[0])
				cuts = append(cuts[1:], cuts[0])
				var n int
				n, heard = l.Read(p)
				got = append(got, p[:n]...)
			}
			l.Close()
			g.Wait()
			want := tt.err
			if want == nil {
				want = io.EOF
			}
			if !bytes.Equal(got, tt.want(stream())) || !errors.Is(heard, want) {
				t.Fatalf("%s: %d bytes, want %d; reader heard %v", tt.name, len(got), len(tt.want(stream())), heard)
			}
		})
	}
}

// TestFrames: a link tells what frames went over it.
func TestFrames(t *testing.T) {
	l, far := ends()
	go func() {
		_, _ = io.CopyN(io.Discard, far, 211+30)
		_, _ = far.Write(frame(7, 1))
		far.Close()
	}()
	for _, p := range [][]byte{stream(), frame(9, 50)[:30]} {
		if _, err := l.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadAll(l); err != nil {
		t.Fatal(err)
	}
	want := []Frame{
		{Out, 1, 1, 0, 24, true}, {Out, 2, 1, 24, 34, true}, {Out, 1, 2, 58, 124, true}, {Out, 3, 1, 182, 29, true},
		{Out, 9, 1, 211, 74, false}, {In, 7, 1, 0, 25, true},
	}
	if got := l.Frames(); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestSilence: after the frame nothing gets through, both sides find nothing
// wrong, and each can still close.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, far := ends(LinkRule{Way: Out, Frame: 2, Past: true, Kind: Silence})
		got := make(chan []byte)
		go func() {
			b := make([]byte, 58)
			_, _ = io.ReadFull(far, b)
			got <- b
			if _, err := far.Write(make([]byte, 1<<20)); err != nil {
				t.Errorf("the other end: %v", err)
			}
			n, err := far.Read(b)
			t.Logf("the other end, in the end: %d, %v", n, err)
			got <- b[:n]
		}()
		if n, err := l.Write(stream()); n != 211 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
		if b := <-got; !bytes.Equal(b, stream()[:58]) {
			t.Error("the frame did not get there")
		}
		answer := make(chan error, 1)
		go func() {
			_, err := l.Read(make([]byte, 10))
			answer <- err
		}()
		synctest.Wait()
		select {
		case err := <-answer:
			t.Errorf("read in silence: %v", err)
		default:
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-answer; err == nil {
			t.Error("a read outlived Close")
		}
		synctest.Wait()
		select {
		case <-got:
			t.Error("the other end heard of a Close in silence")
		default:
		}
		far.Close()
		if b := <-got; len(b) != 0 {
			t.Errorf("%d bytes came through silence", len(b))
		}
		if err := l.Close(); !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
}

// TestStall: a link that waits goes on where it stood, or ends when it is closed.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, called := make(chan struct{}), 0
		l, far := ends(
			LinkRule{Way: Out, Frame: 1, Kind: Slow, For: time.Minute, Do: func() { called++ }},
			LinkRule{Way: Out, Frame: 3, Kind: Stuck, Until: release},
		)
		start := time.Now()
		go func() { _, _ = l.Write(stream()) }()
		b := make([]byte, 182)
		if _, err := io.ReadFull(far, b); err != nil || time.Since(start) != 2*time.Minute || called != 2 {
			t.Errorf("%v after %v, %d calls", err, time.Since(start), called)
		}
		synctest.Wait()
		close(release)
		if _, err := io.ReadFull(far, b[:29]); err != nil || !bytes.Equal(b[:29], frame(3, 5)) {
			t.Error(err)
		}
		far.Close()
		l.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		l, far := ends(LinkRule{Way: Out, Kind: Stuck, Until: make(chan struct{})})
		answer := make(chan error, 1)
		go func() {
			_, err := l.Write(stream())
			answer <- err
		}()
		synctest.Wait()
		l.Reset()
		if err := <-answer; !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
	})
}

// TestDialer: connections fail, break and reach others by plan, then work.
func TestDialer(t *testing.T) {
	refused := errors.New("refused")
	reach := func(peer byte) func(context.Context) (io.ReadWriteCloser, error) {
		return func(context.Context) (io.ReadWriteCloser, error) {
			a, b := net.Pipe()
			go func() {
				_, _ = b.Write([]byte{peer})
				b.Close()
			}()
			return a, nil
		}
	}
	d := &Dialer{Dial: reach(1), Calls: []Call{{Err: refused}, {Rules: []LinkRule{{Way: In, Kind: Reset}}}, {Dial: reach(2)}}}
	var got []any
	for range 4 {
		c, err := d.Connect(t.Context())
		if err != nil {
			got = append(got, err)
			continue
		}
		b := make([]byte, 1)
		if _, err = c.Read(b); err != nil {
			got = append(got, err)
		} else {
			got = append(got, b[0])
		}
	}
	if want := []any{refused, syscall.ECONNRESET, byte(2), byte(1)}; !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if d.Made() != 4 || len(d.Links()) != 3 {
		t.Errorf("%d made, %d links", d.Made(), len(d.Links()))
	}
}
