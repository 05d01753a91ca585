package fuzz_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport"
	"github.com/failback/failback/transport/message"
)

// A script is what a hostile peer says: frames with right numbers and sums, each
// once so many frames have come from the side that is tested.
//
// In an input: a byte of bits that say what is tested, then for each frame
//
//	off size field
//	  0    1 after    frames that must have come before; more than 63 count as so many less
//	  1    1 kind
//	  2    1 codec    of the body, in the two lowest bits; the others times 4096 are the raw bytes
//	  3    2 head     bytes
//	  5    2 length   bytes of payload that follow
type script struct {
	bits  byte
	lines []line
}

type line struct {
	after int
	frame []byte
}

const lineBytes = 7

func scriptOf(in []byte) *script {
	s := &script{bits: in[0]}
	for b := in[1:]; len(b) >= lineBytes && len(s.lines) < 512; {
		n := min(int(binary.LittleEndian.Uint16(b[5:])), len(b)-lineBytes)
		f := make([]byte, transport.HeaderSize, transport.HeaderSize+n)
		f[0], f[1] = max(b[1], 1), b[2]&3%3
		copy(f[2:4], b[3:5])
		binary.LittleEndian.PutUint32(f[8:], uint32(b[2]>>2)*4096)
		f = append(f, b[lineBytes:lineBytes+n]...)
		s.lines = append(s.lines, line{int(b[0] & 63), seal(f, uint32(len(s.lines)))})
		b = b[lineBytes+n:]
	}
	return s
}

// appendLine adds a frame that came over a link to an input.
func appendLine(in []byte, after int, frame []byte) []byte {
	codec := frame[1] | byte(binary.LittleEndian.Uint32(frame[8:])/4096)<<2
	if frame[1] == byte(transport.None) {
		codec = 0
	}
	in = append(in, byte(min(after, 63)), frame[0], codec)
	in = append(in, frame[2:4]...)
	in = binary.LittleEndian.AppendUint16(in, uint16(len(frame)-transport.HeaderSize))
	return append(in, frame[transport.HeaderSize:]...)
}

// payloads are those of one kind that the peer sends.
func (s *script) payloads(k transport.Kind) [][]byte {
	var all [][]byte
	for _, l := range s.lines {
		if l.frame[0] == byte(k) {
			all = append(all, l.frame[transport.HeaderSize:])
		}
	}
	return all
}

// candidates are all the ranges that the peer names as such.
func (s *script) candidates() []cbt.Extent {
	var all []cbt.Extent
	for _, p := range s.payloads(message.Extents{}.Kind()) {
		var m message.Extents
		if m.Decode(p) == nil && m.Purpose == 3 {
			for _, x := range m.Extents {
				all = append(all, cbt.Extent(x))
			}
		}
	}
	return cbt.Normalize(all)
}

// play says the script's lines on c, and reads what comes until c is closed
// from the other end. Then it has returned.
func (s *script) play(c io.ReadWriteCloser, hangUp bool) {
	var mu sync.Mutex
	var came sync.Cond
	came.L = &mu
	count, over := 0, false
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			_, err := readFrame(c)
			mu.Lock()
			count, over = count+1, err != nil
			came.Broadcast()
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	for _, l := range s.lines {
		mu.Lock()
		for count < l.after && !over {
			came.Wait()
		}
		mu.Unlock()
		if _, err := c.Write(l.frame); err != nil {
			break
		}
	}
	if hangUp {
		_ = c.Close()
	}
	wg.Wait()
	_ = c.Close()
}

// Bits of a script for FuzzVerifyPeer.
const (
	verifySync   byte = 1 // sync, not compare
	verifyPull   byte = 2 // the peer is the source
	verifySparse byte = 4
	verifyTree   byte = 8  // a tree of our volume is kept
	verifyDirty  byte = 16 // a map says what differs
	verifyTheirs byte = 32 // a tree of the peer's volume lies with us
	verifyHangUp byte = 64
	verifySeal   byte = 128 // both volumes are read again and their roots compared
)

// peerPair is the number of the pair that hostile peers meet; its volumes are small.
const peerPair = 4

// peerMemory is what the side of a hostile peer may allocate, besides what the
// peer says, which is bounded by the input.
const peerMemory = 64 << 20

// FuzzVerifyPeer compares (verify, diff) or syncs our volume with that of a
// peer that says whatever it likes, as target and as source. A peer can lie
// about its own volume, so there is no truth to compare with. But there is no
// panic, no session that hangs, memory stays in proportion to what was said;
// there is an error or a report with possible figures; our volume is read
// within its bounds, as the source it is not written, and as the target only
// in a sync and where the peer named candidates.
func FuzzVerifyPeer(f *testing.F) {
	preparePairs(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 1<<17 {
			return
		}
		s := scriptOf(in)
		is := func(b byte) bool { return s.bits&b != 0 }
		v := ourVolume(s.bits)
		var report *failback.Report
		var err error
		bounded(t, peerMemory+64*uint64(len(in)), func() {
			cryptotest.SetGlobalRandom(t, 1)
			synctest.Test(t, func(t *testing.T) { report, err = s.meet(t, v) })
		})
		switch wrote := v.wrote(); {
		case v.outside:
			t.Error("the volume was read or written past its end")
		case len(wrote) > 0 && (!is(verifySync) || !is(verifyPull)):
			t.Errorf("wrote %v where nothing is to be written", wrote)
		case len(cbt.Subtract(wrote, s.candidates())) > 0:
			t.Errorf("wrote %v, the candidates are %v", wrote, s.candidates())
		}
		if (err == nil) != (report != nil) {
			t.Fatalf("report %v with error %v", report, err)
		}
		if report != nil {
			s.possible(t, report, v.Size())
		}
	})
}

// ourVolume is what the peer does not serve.
func ourVolume(bits byte) *watched {
	if bits&verifyPull != 0 {
		return newWatched(pairOf(peerPair).target)
	}
	return newWatched(pairOf(peerPair).source)
}

// meet runs a session of v with the script's peer.
func (s *script) meet(t *testing.T, v *watched) (*failback.Report, error) {
	is := func(b byte) bool { return s.bits&b != 0 }
	ctx, cancel := context.WithTimeout(t.Context(), sessionTime)
	defer cancel()
	p := pairOf(peerPair)
	a := failback.Side{Name: "ours", Volume: v.volume(is(verifySparse))}
	var wg sync.WaitGroup
	b := failback.Side{Name: "theirs", Dial: func(context.Context) (io.ReadWriteCloser, error) {
		near, far := transport.Pipe()
		wg.Go(func() { s.play(far, is(verifyHangUp)) })
		return &timed{ReadWriteCloser: near}, nil
	}}
	if is(verifyTree) {
		a.Tree, a.TrustTree = p.sourceTree, true
	}
	if is(verifyTheirs) {
		b.Tree, b.TrustTree = p.targetTree, true
	}
	if is(verifyDirty) {
		a.Dirty = p.dirty
	}
	if is(verifyPull) {
		a, b = b, a
	}
	run := failback.Compare
	if is(verifySync) {
		run = failback.Sync
	}
	began := time.Now()
	o := failback.Options{Codec: "none", Workers: 1, Leaf: pieceBytes}
	if is(verifySeal) {
		o.Verify, o.Seal = failback.VerifyFull, merkle.SHA256
	}
	report, err := run(ctx, a, b, o)
	wg.Wait()
	inTime(t, time.Since(began), true)
	return report, err
}

// possible holds a report against what can be, for our volume of size bytes.
func (s *script) possible(t *testing.T, r *failback.Report, size int64) {
	x := r.Extents
	if !slices.Equal(x, cbt.Normalize(slices.Clone(x))) || len(x) > 0 && x[0].Off < 0 {
		t.Errorf("divergent extents that are in no order: %v", x)
	}
	sizes := s.sizes()
	most := max(size, slices.Max(append(sizes, 0)))
	switch {
	case r.VolumeBytes <= 0 || r.VolumeBytes > size, r.CandidateBytes < 0 || r.CandidateBytes > r.VolumeBytes,
		r.DivergentBytes < 0 || r.DivergentBytes > r.CandidateBytes+most-r.VolumeBytes,
		r.RawBytes < 0 || r.RawBytes > r.DivergentBytes, r.SourceReadBytes < 0, r.RoundTrips < 0:
		t.Errorf("a report that cannot be: %+v", r)
	case len(x) > 0 && x[len(x)-1].End > most:
		t.Errorf("divergent extents %v in %d bytes", x, most)
	case s.bits&verifySync == 0 && r.DivergentBytes != cbt.Total(x) && !(r.Coarse && r.DivergentBytes < cbt.Total(x)), s.bits&verifySync == 0 && r.Equal() != (len(x) == 0):
		t.Errorf("%s with %d bytes divergent in %v", r.Result, r.DivergentBytes, x)
	case s.bits&verifySync == 0 && r.Equal() && len(sizes) == 1 && sizes[0] != size:
		t.Error("equal to a volume of another size")
	}
}

// sizes are what the peer says its volume has, each time it does: as a source in
// Start, as a target in Info.
func (s *script) sizes() (all []int64) {
	if s.bits&verifyPull != 0 {
		for _, p := range s.payloads(message.Start{}.Kind()) {
			var m message.Start
			if m.Decode(p) == nil {
				all = append(all, m.Volume.Size)
			}
		}
		return all
	}
	for _, p := range s.payloads(message.Info{}.Kind()) {
		var m message.Info
		if m.Decode(p) == nil {
			all = append(all, m.Volume.Size)
		}
	}
	return all
}

// Bits of a script for FuzzServePeer.
const (
	serveWritable byte = 1
	serveSparse   byte = 2
	serveTree     byte = 4
	serveDirty    byte = 8 // a map is kept beside the volume
	serveHangUp   byte = 16
	serveSource   byte = 32 // the volume is the one that was the source when the seeds were made
)

// FuzzServePeer has a server meet a peer that says whatever it likes. There is
// no panic, no session that hangs, memory stays in proportion to what was said.
// The volume is read within its bounds, and written only where the peer named
// candidates in a session that both the peer's first word and the server let write.
func FuzzServePeer(f *testing.F) {
	preparePairs(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 1<<17 {
			return
		}
		s := scriptOf(in)
		v := s.servedVolume()
		bounded(t, peerMemory+64*uint64(len(in)), func() {
			cryptotest.SetGlobalRandom(t, 1)
			synctest.Test(t, func(t *testing.T) { _ = s.beServed(t, v) })
		})
		switch wrote := v.wrote(); {
		case v.outside:
			t.Error("the volume was read or written past its end")
		case len(wrote) > 0 && !s.mayWrite():
			t.Errorf("wrote %v in a session that may not", wrote)
		case len(cbt.Subtract(wrote, s.candidates())) > 0:
			t.Errorf("wrote %v, the candidates are %v", wrote, s.candidates())
		}
	})
}

// servedVolume is what the peer meets at a server.
func (s *script) servedVolume() *watched {
	if s.bits&serveSource != 0 {
		return newWatched(pairOf(peerPair).source)
	}
	return newWatched(pairOf(peerPair).target)
}

// beServed has a server that serves v handle the script's peer.
func (s *script) beServed(t *testing.T, v *watched) error {
	is := func(b byte) bool { return s.bits&b != 0 }
	ctx, cancel := context.WithTimeout(t.Context(), sessionTime)
	defer cancel()
	// The server's share of a key is to be what it was when the seeds were made:
	// session, source and target draw in this order.
	drawn := make([]byte, 32)
	if is(serveSource) {
		drawn = drawn[:16]
	}
	for b := drawn; len(b) > 0; b = b[16:] {
		_, _ = rand.Read(b[:16])
	}
	p := pairOf(peerPair)
	side := failback.Side{Name: "target", Volume: v.volume(is(serveSparse))}
	if is(serveTree) {
		side.Tree, side.TrustTree = p.targetTree, true
	}
	if is(serveDirty) {
		side.Dirty = p.dirty
	}
	closed := 0
	srv := failback.NewServer(failback.ServerOptions{
		Options: failback.Options{Codec: "none", Workers: 1, Leaf: pieceBytes},
		Lookup: func(_ context.Context, name string, write bool) (failback.Served, error) {
			if write && !is(serveWritable) {
				return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "it is served for reading", Next: "do not write"}
			}
			closed--
			return failback.Served{Side: side, Close: func() error { closed++; return nil }}, nil
		},
	})
	near, far := transport.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { s.play(near, is(serveHangUp)) })
	began := time.Now()
	err := srv.Handle(ctx, &timed{ReadWriteCloser: far})
	inTime(t, time.Since(began), true)
	wg.Wait()
	if closed != 0 {
		t.Errorf("%d volumes opened and not closed", -closed)
	}
	if err == nil && len(s.payloads(message.Bye{}.Kind())) == 0 && !s.joins() {
		t.Error("a session ended well without the peer's good-bye")
	}
	return err
}

// first is the peer's first frame if it is an Open.
func (s *script) first() (m message.Open, ok bool) {
	if len(s.lines) == 0 || s.lines[0].frame[0] != byte(m.Kind()) {
		return m, false
	}
	return m, m.Decode(s.lines[0].frame[transport.HeaderSize:]) == nil
}

func (s *script) joins() bool {
	m, ok := s.first()
	return ok && m.Role == 3
}

// mayWrite reports whether the peer's first words are those of a session that writes.
func (s *script) mayWrite() bool {
	open, ok := s.first()
	if !ok || open.Role != 2 || !open.Write || s.bits&serveWritable == 0 {
		return false
	}
	for _, p := range s.payloads(message.Start{}.Kind()) {
		var m message.Start
		if m.Decode(p) == nil && m.Mode == 1 && !m.DryRun {
			return true
		}
	}
	return false
}
