package transport

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// world is a pipeline without real time: an encoder, a link with a socket
// buffer before it, and a peer that takes in raw bytes at some rate.
type world struct {
	speed  [levels]float64 // raw bytes/s of one encoder
	ratio  [levels]float64
	link   float64 // bytes/s
	peer   float64 // raw bytes/s, 0 no limit
	socket float64 // bytes that the link's sender buffers

	ch      *Chooser
	now     time.Time
	encoder float64 // seconds from the start at which the encoders are free
	queued  []queued
	drained float64 // seconds at which the link is free
	bytes   [levels]int
}

type queued struct{ leaves, wire float64 }

const frame = 1 << 20

func newWorld(t testing.TB, encoders int) *world {
	ch, err := NewChooser("auto", encoders)
	check(t, err)
	ch.encoders = float64(encoders) // whatever this machine has
	return &world{
		speed: [levels]float64{20e9, 400e6, 270e6, 190e6},
		ratio: [levels]float64{1, 1.95, 2.43, 2.55},
		link:  1e12, socket: 0, ch: ch, now: time.Now(),
	}
}

// run sends n bytes and returns how many raw bytes went per second.
func (w *world) run(n int) float64 {
	w.bytes = [levels]int{}
	start := w.now
	for range n / frame {
		w.one()
	}
	return float64(n) / w.now.Sub(start).Seconds()
}

// one sends a frame. The encoders work ahead while a write waits.
func (w *world) one() {
	l, probe := w.ch.advise(frame)
	stored := frame / w.ratio[l]
	incompressible := w.ratio[levelLZ4] < sampleRatio
	if probe {
		raw := sampleBlocks * sampleBlock
		w.ch.sampled(raw, int(float64(raw)/w.ratio[levelLZ4]))
		w.now = w.now.Add(15 * time.Microsecond)
	}
	work := time.Duration(0)
	if l != levelNone && incompressible {
		stored = frame
	} else if l != levelNone {
		work = time.Duration(frame / w.speed[l] * 1e9)
	}
	w.ch.finished(l, frame, int(stored), work)
	w.bytes[l] += frame

	// The frame is there once the encoders got to it, which they did meanwhile.
	at := w.seconds()
	w.encoder = max(w.encoder+work.Seconds()/w.ch.encoders, at-0.01)
	if w.encoder > at {
		w.now = w.now.Add(time.Duration((w.encoder - at) * 1e9))
	}
	w.ch.begin(w.now)
	w.write(stored)
	w.now = w.now.Add(time.Microsecond)
	w.ch.end(w.now, l, frame, int(stored))
}

var epoch = time.Unix(0, 0)

func (w *world) seconds() float64 { return w.now.Sub(epoch).Seconds() }

// write moves the clock to when the socket buffer takes the last byte.
func (w *world) write(wire float64) {
	cost := wire / w.link
	if w.peer > 0 {
		cost = max(cost, frame/w.peer)
	}
	w.drained = max(w.drained, w.seconds()) + cost
	w.queued = append(w.queued, queued{w.drained, wire})
	held := 0.0
	for i := len(w.queued) - 1; i >= 0; i-- {
		if held += w.queued[i].wire; held > w.socket {
			if wait := w.queued[i].leaves - w.seconds(); wait > 0 {
				w.now = w.now.Add(time.Duration(wait * 1e9))
			}
			w.queued = w.queued[i+1:]
			break
		}
	}
}

// best is what the best fixed level reaches.
func (w *world) best() float64 {
	most := 0.0
	for l := range w.speed {
		v := w.link * w.ratio[l]
		if l > 0 && w.ratio[levelLZ4] >= sampleRatio {
			v = min(v, w.speed[l]*w.ch.encoders)
		}
		if w.peer > 0 {
			v = min(v, w.peer)
		}
		most = max(most, v)
	}
	return most
}

// TestChooserFindsTheBest: over links from 10 Mbit/s to a memory copy, with and
// without a socket buffer, auto is within 10% of the best fixed codec.
func TestChooserFindsTheBest(t *testing.T) {
	for _, mbit := range []float64{10, 100, 300, 1000, 2000, 4000, 8000, 20000, 80000} {
		for _, encoders := range []int{1, 2, 4} {
			for _, socket := range []float64{0, 4 << 20} {
				w := newWorld(t, encoders)
				w.link, w.socket = mbit*1e6/8, socket
				w.run(256 << 20) // to settle, and to fill the buffer
				got, best := w.run(2<<30), w.best()
				if got < 0.9*best {
					t.Errorf("%v Mbit/s, %d encoders, buffer %v: %.0f MB/s, the best codec %.0f; levels %v",
						mbit, encoders, socket, got/1e6, best/1e6, w.bytes)
				}
			}
		}
	}
}

// TestChooserStart: what settling costs in a short session.
func TestChooserStart(t *testing.T) {
	for _, mbit := range []float64{10, 100, 1000, 3000, 20000} {
		for _, socket := range []float64{0, 256 << 10, 1 << 20, 4 << 20} {
			w := newWorld(t, 2)
			w.link, w.socket = mbit*1e6/8, socket
			got, best := w.run(400<<20), w.best()
			if got < 0.9*best {
				t.Errorf("%v Mbit/s, buffer %v: %.0f MB/s, the best codec %.0f; levels %v", mbit, socket, got/1e6, best/1e6, w.bytes)
			}
		}
	}
}

// TestChooserIncompressible: on noise auto is within 2% of none.
func TestChooserIncompressible(t *testing.T) {
	for _, mbit := range []float64{100, 1000, 4000, 20000} {
		w := newWorld(t, 2)
		w.ratio = [levels]float64{1, 1, 1, 1}
		w.link = mbit * 1e6 / 8
		if got := w.run(1 << 30); got < 0.98*w.link {
			t.Errorf("%v Mbit/s: %.0f MB/s of %.0f", mbit, got/1e6, w.link/1e6)
		}
	}
}

// TestChooserStaysLight: where the link is no limit nothing is compressed and
// nothing is sampled.
func TestChooserStaysLight(t *testing.T) {
	w := newWorld(t, 2)
	w.link = 2.4e9
	w.run(4 << 30)
	if w.bytes[levelNone] != 4<<30 || w.ch.guess.n != 2*sampleBlock {
		t.Errorf("levels %v", w.bytes)
	}
}

// TestChooserFollows: the link and the data change, and the level with them.
func TestChooserFollows(t *testing.T) {
	w := newWorld(t, 2)
	text := w.ratio
	for i, step := range []struct {
		mbit  float64
		ratio [levels]float64
	}{
		{20000, text}, {100, text}, {20000, text}, {1000, text},
		{1000, [levels]float64{1, 1, 1, 1}}, {1000, text}, {100, [levels]float64{1, 1.3, 1.6, 1.65}},
	} {
		w.link, w.ratio = step.mbit*1e6/8, step.ratio
		w.run(256 << 20)
		got, best := w.run(1<<30), w.best()
		if got < 0.9*best {
			t.Errorf("step %d, %v Mbit/s: %.0f MB/s, the best codec %.0f; levels %v", i, step.mbit, got/1e6, best/1e6, w.bytes)
		}
	}
}

// TestChooserSlowPeer: where the peer's disk is the limit, compression that
// does not help is not paid for.
func TestChooserSlowPeer(t *testing.T) {
	for _, peer := range []float64{100e6, 300e6, 500e6} {
		far := newWorld(t, 2)
		far.link, far.peer, far.socket = 10e9, peer, 4<<20
		far.run(256 << 20)
		if got := far.run(4 << 30); got < 0.9*peer {
			t.Errorf("peer %.0f MB/s behind a buffer: %.0f; levels %v", peer/1e6, got/1e6, far.bytes)
		}
		w := newWorld(t, 2)
		w.link, w.peer = 10e9, peer
		w.run(256 << 20)
		got := w.run(4 << 30)
		if got < 0.97*peer {
			t.Errorf("peer %.0f MB/s: %.0f", peer/1e6, got/1e6)
		}
		if w.bytes[levelNone] < 4<<30/10*8 {
			t.Errorf("peer %.0f MB/s: levels %v", peer/1e6, w.bytes)
		}
	}
}

// TestChooserPipe: over a pipe auto is none, however slow the reader.
func TestChooserPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := Pipe()
		w, r := New(x, Options{}), New(y, Options{})
		ch, err := NewChooser("auto", 2)
		check(t, err)
		done := make(chan error, 1)
		go func() {
			e := NewEncoder(ch)
			for range 50 {
				e.Reset(13)
				p, err := e.Finish(nil, text(MaxRaw))
				if err == nil {
					err = w.SendFrame(p)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- w.Close()
		}()
		for {
			f, err := r.Read()
			if err == io.EOF {
				break
			}
			check(t, err)
			f.Release()
			<-time.After(100 * time.Millisecond)
		}
		check(t, <-done)
		if s := ch.Stats(); s.Level != "none" || s.Levels[0].Raw != 50*MaxRaw || s.Link != 0 {
			t.Errorf("%+v", s)
		}
	})
}
