package failback

import (
	"runtime"
	"sync"
	"testing"
)

func TestBuffers(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 4095, 4096, 4097, 64 << 10, 64<<10 + 1, 1 << 20, maxBuf, maxBuf + 1, 2*maxBuf + 5} {
		b := getBuf(n)
		if len(b.b) != max(n, 0) {
			t.Errorf("getBuf(%d) has %d bytes", n, len(b.b))
		}
		if addr(b.mem)&uintptr(pageSize-1) != 0 {
			t.Errorf("getBuf(%d) at %#x", n, addr(b.mem))
		}
		if extra := len(b.mem) - n; n > pageSize && extra >= n {
			t.Errorf("getBuf(%d) takes %d bytes", n, len(b.mem))
		}
		for i := range b.b {
			b.b[i] = byte(i)
		}
		b.put()
		if b.b != nil {
			t.Error("bytes reachable after put")
		}
	}
}

func TestBufferClasses(t *testing.T) {
	for n := 1; n <= maxBuf; n = n*5/4 + 1 {
		c := bufClass(n)
		if size := 1 << (minBufBits + c); size < n || c > 0 && size/2 >= n {
			t.Errorf("%d bytes: class of %d", n, size)
		}
	}
	if c := bufClass(maxBuf); c != classes-1 {
		t.Errorf("largest class %d of %d", c, classes)
	}
	if c := bufClass(maxBuf + 1); c != -1 {
		t.Errorf("too large: class %d", c)
	}
}

// TestBuffersBounded hands out much more than is kept.
func TestBuffersBounded(t *testing.T) {
	var p bufPool
	var out []*buffer
	for range 2 * maxIdle / maxBuf {
		out = append(out, p.get(maxBuf))
	}
	kept := 0
	for _, b := range out {
		if p.keep(b) {
			kept++
		} else {
			b.release()
		}
	}
	if p.idle > maxIdle || kept != int(maxIdle/maxBuf) {
		t.Errorf("%d buffers kept, %d bytes", kept, p.idle)
	}
	for b := p.take(classes - 1); b != nil; b = p.take(classes - 1) {
		b.release()
		kept--
	}
	if kept != 0 || p.idle != 0 {
		t.Errorf("%d buffers and %d bytes lost", kept, p.idle)
	}
}

// TestBuffersShared has many users; no two may have one buffer at a time.
func TestBuffersShared(t *testing.T) {
	before := buffersOut()
	var group sync.WaitGroup
	for user := range 8 {
		group.Go(func() {
			for i := range 500 {
				b := getBuf(1 + (i*977)%(64<<10))
				b.b[0], b.b[len(b.b)-1] = byte(user), byte(user)
				runtime.Gosched()
				if b.b[0] != byte(user) || b.b[len(b.b)-1] != byte(user) {
					t.Error("two users have one buffer")
				}
				b.put()
			}
		})
	}
	group.Wait()
	if after := buffersOut(); after != before {
		t.Errorf("%d buffers out, %d before", after, before)
	}
}

func TestBufferPutTwice(t *testing.T) {
	b := getBuf(4096)
	b.put()
	defer func() {
		if got := recover() != nil; got != invariantsBuild {
			t.Errorf("second put panicked: %v", got)
		}
		x, y := getBuf(4096), getBuf(4096)
		if addr(x.b) == addr(y.b) {
			t.Error("one buffer given to two")
		}
		x.put()
		y.put()
	}()
	b.put()
}

func TestBufferMangled(t *testing.T) {
	if !invariantsBuild {
		t.Skip("needs -tags invariants")
	}
	b := getBuf(5000)
	mem := b.mem
	clear(mem)
	b.put()
	for i, c := range mem {
		if c == 0 {
			t.Fatalf("byte %d survived put", i)
		}
	}
}

func BenchmarkGetBuf(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		getBuf(256 << 10).put()
	}
}
