package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
)

// connected returns two connections over a pipe or over TCP on loopback.
func connected(b *testing.B, over string) (w, r *Conn) {
	x, y := Pipe()
	if over == "tcp" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		check(b, err)
		defer l.Close()
		x, err = net.Dial("tcp", l.Addr().String())
		check(b, err)
		y, err = l.Accept()
		check(b, err)
	}
	w, r = New(x, Options{}), New(y, Options{})
	b.Cleanup(func() { w.Close(); r.Close() })
	return w, r
}

// BenchmarkFrames: a data frame made, written, read, checked and released.
func BenchmarkFrames(b *testing.B) {
	for _, over := range []string{"pipe", "tcp"} {
		for _, n := range []int{4 << 10, 64 << 10, 256 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", over, n>>10), func(b *testing.B) {
				w, r := connected(b, over)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				errs := make(chan error, 1)
				frames := b.N
				go func() {
					e := NewEncoder(nil)
					for range frames {
						e.Reset(13)
						p, err := e.Finish(e.Head()[:2+12+16*(n/4096)], e.Body()[:n])
						if err == nil {
							err = w.SendFrame(p)
						}
						if err != nil {
							errs <- err
							return
						}
					}
					errs <- nil
				}()
				for range frames {
					f, err := r.Read()
					check(b, err)
					f.Release()
				}
				check(b, <-errs)
			})
		}
	}
}

// BenchmarkControl: a small control frame there.
func BenchmarkControl(b *testing.B) {
	for _, over := range []string{"pipe", "tcp"} {
		b.Run(over, func(b *testing.B) {
			w, r := connected(b, over)
			b.ReportAllocs()
			payload := make([]byte, 64)
			frames := b.N
			go func() {
				for range frames {
					if w.Send(10, payload) != nil {
						return
					}
				}
			}()
			for range frames {
				f, err := r.Read()
				check(b, err)
				f.Release()
			}
		})
	}
}

// content is what the codecs are measured on: the test's own program, which is
// code and tables, or noise.
func content(b *testing.B, compressible bool) []byte {
	if !compressible {
		return noise(16 << 20)
	}
	name, err := os.Executable()
	check(b, err)
	f, err := os.Open(name)
	check(b, err)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 16<<20))
	check(b, err)
	return data[:len(data)&^(1<<20-1)]
}

// BenchmarkCodecs: bodies of 1 MiB there and back on one core.
func BenchmarkCodecs(b *testing.B) {
	for _, compressible := range []bool{true, false} {
		for _, codec := range []string{"lz4", "zstd-fast", "zstd"} {
			data := content(b, compressible)
			ch, err := NewChooser(codec, 1)
			check(b, err)
			e := NewEncoder(ch)
			dst := make([]byte, MaxRaw)
			frames := make([]Frame, 0, len(data)/MaxRaw)
			stored := 0
			for off := 0; off < len(data); off += MaxRaw {
				e.Reset(13)
				p, err := e.Finish(nil, data[off:off+MaxRaw])
				check(b, err)
				frames = append(frames, Frame{Codec: p.Codec(), Raw: MaxRaw, Body: append([]byte(nil), p.buf[HeaderSize:]...)})
				stored += p.Stored()
			}
			name := fmt.Sprintf("%s/compressible=%v", codec, compressible)
			b.Run("Finish/"+name, func(b *testing.B) {
				b.SetBytes(MaxRaw)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					off := i * MaxRaw % len(data)
					e.Reset(13)
					_, err := e.Finish(nil, data[off:off+MaxRaw])
					check(b, err)
				}
				b.ReportMetric(float64(len(data))/float64(stored), "ratio")
			})
			b.Run("Decode/"+name, func(b *testing.B) {
				b.SetBytes(MaxRaw)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					_, err := Decode(&frames[i%len(frames)], dst)
					check(b, err)
				}
			})
		}
	}
}

// BenchmarkSample: what a look at an incompressible body costs.
func BenchmarkSample(b *testing.B) {
	ch, err := NewChooser("auto", 1)
	check(b, err)
	e := NewEncoder(ch)
	e.out = newArena(headRoom, MaxStored)
	body := noise(MaxRaw)
	b.SetBytes(MaxRaw)
	for b.Loop() {
		if e.sample(body) {
			b.Fatal("noise is compressible")
		}
	}
}

// BenchmarkChooser: auto over simulated links; of the best fixed codec it
// reaches the share reported, from the first byte on.
func BenchmarkChooser(b *testing.B) {
	for _, mbit := range []float64{100, 1000, 10000, 80000} {
		b.Run(fmt.Sprintf("%vMbit", mbit), func(b *testing.B) {
			share := 0.0
			for b.Loop() {
				w := newWorld(b, 2)
				w.link, w.socket = mbit*1e6/8, 1<<20
				share = w.run(400<<20) / w.best()
			}
			b.ReportMetric(share, "of-best")
		})
	}
}

func BenchmarkWindow(b *testing.B) {
	w := NewWindow(16 << 20)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		check(b, w.Take(ctx, 1<<20))
		check(b, w.Give(1<<20))
	}
}
