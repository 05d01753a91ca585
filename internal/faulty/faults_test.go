package faulty

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// filled is n bytes of b.
func filled(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// fired fails the test if a rule of f never came to anything.
func fired(t *testing.T, f *Faults) {
	t.Helper()
	if rest := f.Unfired(); len(rest) > 0 {
		t.Errorf("rules that never fired: %+v", rest)
	}
}

// TestFailures: each fault of an operation has the effect it names, and no other.
func TestFailures(t *testing.T) {
	const size = 8192
	tests := []struct {
		name    string
		rule    Rule
		err     error
		n       int // returned by the write
		written int // bytes that the cache has
		durable int // bytes that the medium has after a Sync
	}{
		{"nothing", Rule{}, nil, size, size, size},
		{"write fails", Rule{Op: Write, Kind: Fail}, syscall.EIO, 0, 0, 0},
		{"answer of write lost", Rule{Op: Write, Kind: Fail, After: true}, syscall.EIO, 0, size, size},
		{"no space", Rule{Op: Write, Kind: NoSpace}, syscall.ENOSPC, 0, 0, 0},
		{"short", Rule{Op: Write, Kind: Short}, io.ErrShortWrite, size / 2, size / 2, size / 2},
		{"lost", Rule{Op: Write, Kind: Lost}, nil, size, size, 0},
		{"another range", Rule{Op: Write, Off: size, End: 2 * size, Kind: Fail}, nil, size, size, size},
		{"this range", Rule{Op: Write, Off: size - 1, End: 2 * size, Kind: Fail}, syscall.EIO, 0, 0, 0},
		{"another volume", Rule{On: "other", Kind: Fail}, nil, size, size, size},
		{"function", Rule{When: func(e Event) bool { return e.Op == Write && e.Len == size }, Kind: Fail}, syscall.EIO, 0, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := New(tt.rule)
			v := NewVolume("disk", make([]byte, 2*size), f)
			n, err := v.WriteAt(filled(7, size), 0)
			if !errors.Is(err, tt.err) || n != tt.n {
				t.Errorf("write: %d, %v, want %d, %v", n, err, tt.n, tt.err)
			}
			if got := bytes.Count(v.Bytes(), []byte{7}); got != tt.written {
				t.Errorf("cache has %d bytes, want %d", got, tt.written)
			}
			if bytes.Contains(v.Durable(), []byte{7}) {
				t.Error("durable before Sync")
			}
			if err := v.Sync(); err != nil {
				t.Fatal(err)
			}
			if got := bytes.Count(v.Durable(), []byte{7}); got != tt.durable {
				t.Errorf("medium has %d bytes, want %d", got, tt.durable)
			}
		})
	}
}

// TestNth: rules count what they are about, each for itself.
func TestNth(t *testing.T) {
	f := New(
		Rule{Op: Write, On: "disk", N: 2, Kind: Fail},
		Rule{Op: Write, On: "disk", N: 5, Onward: true, Kind: NoSpace},
	)
	v, w := NewVolume("disk", make([]byte, 512), f), NewVolume("other", make([]byte, 512), f)
	var got []string
	for range 6 {
		if _, err := w.WriteAt([]byte{1}, 0); err != nil {
			t.Error(err)
		}
		_, err := v.WriteAt([]byte{1}, 0)
		switch {
		case errors.Is(err, syscall.EIO):
			got = append(got, "EIO")
		case errors.Is(err, syscall.ENOSPC):
			got = append(got, "ENOSPC")
		default:
			got = append(got, "ok")
		}
	}
	if s := strings.Join(got, " "); s != "ok EIO ok ok ENOSPC ENOSPC" {
		t.Error(s)
	}
	fired(t, f)
	f.Add(Rule{Op: Rename, Kind: Fail})
	if rest := f.Unfired(); len(rest) != 1 || rest[0].Op != Rename {
		t.Errorf("unfired: %+v", rest)
	}
}

// TestSync: a Sync that fails saves nothing, then or later; one whose answer is
// lost saves all; one that lies is believed by reads and not by a power cut.
func TestSync(t *testing.T) {
	write := func(t *testing.T, rule Rule) (*Volume, error) {
		v := NewVolume("disk", make([]byte, 4096), New(rule))
		if _, err := v.WriteAt(filled(1, 512), 512); err != nil {
			t.Fatal(err)
		}
		return v, v.Sync()
	}
	medium := func(v *Volume) byte {
		p := make([]byte, 1)
		if _, err := v.ReadMediumAt(p, 1023); err != nil {
			t.Error(err)
		}
		return p[0]
	}
	t.Run("fails", func(t *testing.T) {
		v, err := write(t, Rule{Op: Sync, N: 1, Kind: Fail})
		if !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		if err := v.Sync(); err != nil || medium(v) != 0 || v.Bytes()[512] != 1 {
			t.Errorf("after a second sync: %v, medium %d, cache %d", err, medium(v), v.Bytes()[512])
		}
	})
	t.Run("answer lost", func(t *testing.T) {
		if v, err := write(t, Rule{Op: Sync, Kind: Fail, After: true}); !errors.Is(err, syscall.EIO) || medium(v) != 1 {
			t.Errorf("%v, medium %d", err, medium(v))
		}
	})
	t.Run("lies", func(t *testing.T) {
		v, err := write(t, Rule{Op: Sync, N: 1, Kind: Lost})
		if err != nil || medium(v) != 1 || v.Durable()[512] != 0 {
			t.Errorf("%v, medium %d, durable %d", err, medium(v), v.Durable()[512])
		}
		left := map[byte]int{}
		for seed := range uint64(20) {
			left[v.Crash(seed).Bytes()[512]]++
		}
		if left[0] == 0 || left[1] == 0 {
			t.Errorf("power cuts left %v", left)
		}
		if err := v.Sync(); err != nil || v.Durable()[512] != 1 {
			t.Errorf("an honest one: %v, durable %d", err, v.Durable()[512])
		}
	})
}

// TestFlip: a bit turned by a write is on the medium and not in the cache.
func TestFlip(t *testing.T) {
	f := New(Rule{Op: Write, Kind: Flip, Bit: 8*512 + 3}, Rule{Op: Read, N: 2, Kind: Flip})
	v := NewVolume("disk", make([]byte, 4096), f)
	p, q := filled(0xff, 1024), make([]byte, 1024)
	if _, err := v.WriteAt(p, 1024); err != nil {
		t.Fatal(err)
	}
	if p[512] != 0xff {
		t.Error("the writer's bytes were changed")
	}
	if err := v.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.ReadAt(q, 1024); err != nil || !bytes.Equal(p, q) {
		t.Errorf("cache: %v", err)
	}
	if _, err := v.ReadMediumAt(q, 1024); err != nil || q[512] != 0xf7 || bytes.Count(q, []byte{0xff}) != 1023 {
		t.Errorf("medium: %v, %#x", err, q[512])
	}
	if b := v.Crash(1).Bytes(); b[1024+512] != 0xf7 {
		t.Errorf("after a power cut: %#x", b[1024+512])
	}
	if _, err := v.ReadAt(q, 1024); err != nil || q[0] != 0xfe || v.Bytes()[1024] != 0xff {
		t.Errorf("a read that flips: %v, %#x", err, q[0])
	}
	v.Rot(0)
	if v.Bytes()[0] != 1 || v.Durable()[0] != 1 {
		t.Error("rot is not everywhere")
	}
	fired(t, f)
}

// TestPower: after the cut nothing happens on the machine any more, and the
// operation at which it came has happened or not.
func TestPower(t *testing.T) {
	for _, after := range []bool{false, true} {
		f := New(Rule{Op: Step, N: 3, Kind: Cut, After: after})
		v, d := NewVolume("disk", make([]byte, 1024), f), NewDir(f)
		file, err := d.Open("journal", 0x42) // O_RDWR|O_CREAT, step 1
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		if err := v.Sync(); err != ErrPower {
			t.Errorf("sync: %v", err)
		}
		if got := v.Durable()[0] == 1; got != after || !f.Dead() {
			t.Errorf("durable %v, dead %v, after %v", got, f.Dead(), after)
		}
		_, rerr := v.ReadAt(make([]byte, 1), 0)
		_, werr := file.WriteAt([]byte{1}, 0)
		for _, err := range []error{rerr, werr, v.Sync(), file.Sync(), d.SyncDir("."), d.Remove("journal")} {
			if err != ErrPower {
				t.Errorf("after the cut: %v", err)
			}
		}
		if n := len(f.Steps()); n != map[bool]int{false: 2, true: 3}[after] {
			t.Errorf("%d steps were done", n)
		}
		w := v.Crash(1)
		if err := w.Sync(); err != nil {
			t.Errorf("after power is back: %v", err)
		}
		w.Plug(New(Rule{Kind: Fail}))
		if err := w.Sync(); !errors.Is(err, syscall.EIO) {
			t.Errorf("on another machine: %v", err)
		}
	}
}

// TestLog: every operation is there, in order, numbered as rules count.
func TestLog(t *testing.T) {
	f := New(Rule{Op: Sync, N: 1, Kind: Fail})
	v := NewVolume("disk", make([]byte, 4096), f)
	_, _ = v.WriteAt(make([]byte, 512), 1024)
	_, _ = v.ReadAt(make([]byte, 10), 5)
	_ = v.Sync()
	_ = v.ZeroAt(512, 512)
	_ = v.Sync()
	log := f.Log()
	for i := range log {
		if (log[i].Err != nil) != (i == 2) || log[i].Done == (i == 2) {
			t.Errorf("%+v", log[i])
		}
		log[i].Err, log[i].Done = nil, false
	}
	if want := []Event{
		{Op: Write, On: "disk", Off: 1024, Len: 512, N: 1, Step: 1},
		{Op: Read, On: "disk", Off: 5, Len: 10, N: 1},
		{Op: Sync, On: "disk", N: 1, Step: 2},
		{Op: Zero, On: "disk", Off: 512, Len: 512, N: 1, Step: 3},
		{Op: Sync, On: "disk", N: 2, Step: 4},
	}; !slices.Equal(log, want) {
		t.Errorf("got %+v", log)
	}
}

// TestSlowAndStuck: both wait on the bubble's clock and channels, and only who
// is meant waits.
func TestSlowAndStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		calls := 0
		f := New(
			Rule{Op: Write, Kind: Slow, For: time.Hour},
			Rule{Op: Sync, Kind: Stuck, Until: release},
			Rule{Op: Sync, After: true, Do: func() { calls++ }},
		)
		v := NewVolume("disk", make([]byte, 512), f)
		start := time.Now()
		if _, err := v.WriteAt([]byte{1}, 0); err != nil || time.Since(start) != time.Hour {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		var g sync.WaitGroup
		g.Go(func() {
			if err := v.Sync(); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if v.Durable()[0] != 0 {
			t.Error("a stuck sync came through")
		}
		if _, err := v.ReadAt(make([]byte, 1), 0); err != nil {
			t.Error(err)
		}
		close(release)
		g.Wait()
		if v.Durable()[0] != 1 || calls != 1 {
			t.Errorf("durable %d, %d calls", v.Durable()[0], calls)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the power goes while it is stuck
		release := make(chan struct{})
		f := New(Rule{Op: Sync, Kind: Stuck, Until: release})
		v := NewVolume("disk", make([]byte, 512), f)
		_, _ = v.WriteAt([]byte{1}, 0)
		answer := make(chan error, 1)
		go func() { answer <- v.Sync() }()
		synctest.Wait()
		f.Cut()
		close(release)
		if err := <-answer; err != ErrPower || v.Durable()[0] != 0 {
			t.Errorf("%v, durable %d", err, v.Durable()[0])
		}
	})
}

// TestBounds: a volume has an end, and says so as the root package's contract asks.
func TestBounds(t *testing.T) {
	v := NewVolume("disk", filled(3, 1024), nil)
	p := make([]byte, 100)
	if n, err := v.ReadAt(p, 1000); n != 24 || err != io.EOF || p[23] != 3 {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := v.ReadMediumAt(p, 1024); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	if n, err := v.WriteAt(p, 1000); n != 0 || err == nil || v.Size() != 1024 || v.Bytes()[1000] != 3 {
		t.Errorf("write over the end: %d, %v", n, err)
	}
	if err := v.ZeroAt(-1, 1); err == nil {
		t.Error("zero before the start")
	}
	if v.Identity() != "disk" {
		t.Error(v.Identity())
	}
}
