package transport

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"
)

// TestPipeCarries: whatever the sizes of writes and reads, the bytes come out
// as they went in, and then the end.
func TestPipeCarries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 300), rapid.IntRange(0, 3*pipeRing)), 0, 20).Draw(t, "writes")
		chunk := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, 2*pipeRing)).Draw(t, "read")
		a, b := Pipe()
		var want bytes.Buffer
		for i, n := range sizes {
			want.Write(bytes.Repeat([]byte{byte(i + 1)}, n))
		}
		var g sync.WaitGroup
		g.Go(func() {
			for i, n := range sizes {
				if k, err := a.Write(bytes.Repeat([]byte{byte(i + 1)}, n)); k != n || err != nil {
					t.Errorf("write %d of %d: %v", k, n, err)
				}
			}
			a.(interface{ CloseWrite() error }).CloseWrite()
		})
		var got bytes.Buffer
		buf := make([]byte, chunk)
		for {
			n, err := b.Read(buf)
			got.Write(buf[:n])
			if err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		g.Wait()
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("%d bytes came of %d, or others", got.Len(), want.Len())
		}
		if _, err := a.Write([]byte{1}); err != io.ErrClosedPipe {
			t.Fatalf("write after CloseWrite: %v", err)
		}
	})
}

// TestPipeWritesWhole: writes of several goroutines are not mixed.
func TestPipeWritesWhole(t *testing.T) {
	a, b := Pipe()
	const n, each = 3 * pipeRing / 2, 10
	var g sync.WaitGroup
	for s := range 4 {
		g.Go(func() {
			for range each {
				if _, err := a.Write(bytes.Repeat([]byte{byte(s)}, n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	buf := make([]byte, n)
	for range 4 * each {
		_, err := io.ReadFull(b, buf)
		check(t, err)
		if buf[0] != buf[n/2] || buf[0] != buf[n-1] {
			t.Fatal("mixed")
		}
	}
	g.Wait()
}

// TestPipeClose: every way in which an end can close while the other waits.
func TestPipeClose(t *testing.T) {
	big := make([]byte, 2*pipeRing)
	type end = io.ReadWriteCloser
	tests := []struct {
		name string
		wait func(a end) error
		stop func(a, b end)
		want error
	}{
		{"read, peer closes", func(a end) error { _, err := a.Read(big); return err }, func(_, b end) { b.Close() }, io.EOF},
		{"read, we close", func(a end) error { _, err := a.Read(big); return err }, func(a, _ end) { a.Close() }, io.ErrClosedPipe},
		{"write, peer closes", func(a end) error { _, err := a.Write(big); return err }, func(_, b end) { b.Close() }, io.ErrClosedPipe},
		{"write, we close", func(a end) error { _, err := a.Write(big); return err }, func(a, _ end) { a.Close() }, io.ErrClosedPipe},
	}
	for _, tt := range tests {
		synctest.Test(t, func(t *testing.T) {
			a, b := Pipe()
			errs := make(chan error, 2)
			for range 2 {
				go func() { errs <- tt.wait(a) }()
			}
			synctest.Wait()
			tt.stop(a, b)
			for range 2 {
				if err := <-errs; err != tt.want {
					t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
				}
			}
		})
	}
	a, b := Pipe()
	a.Write([]byte("last"))
	a.Close()
	got, err := io.ReadAll(b)
	if string(got) != "last" || err != nil {
		t.Errorf("after Close: %q, %v", got, err)
	}
}
