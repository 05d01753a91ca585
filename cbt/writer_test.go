package cbt_test

import (
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/cbttest"
)

const (
	volumeSize  = 100*cbt.MinBlock + 512
	volumeEpoch = cbt.Epoch(4)
)

// watched is a volume whose writes go through the in-process tracker.
type watched struct {
	*cbt.Writer
	io.ReaderAt
}

// openWriter returns a tracker that vouches since volumeEpoch.
func openWriter(t testing.TB) (*cbt.Writer, *cbttest.Memory) {
	t.Helper()
	memory := cbttest.NewMemory(volumeSize)
	w, err := cbt.Wrap(memory, volumeSize, cbt.WriterOptions{Identity: "vol-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Seal(volumeEpoch); err != nil {
		t.Fatal(err)
	}
	return w, memory
}

func TestWriterConforms(t *testing.T) {
	cbttest.Run(t, func(t testing.TB) cbttest.Subject {
		w, memory := openWriter(t)
		return cbttest.Subject{
			Tracker: w,
			Volume:  watched{w, memory},
			Size:    volumeSize,
			Block:   cbt.MinBlock,
			Epoch:   volumeEpoch,
			Discard: func(off, n int64) error {
				return w.Do(cbt.Discarded, off, n, func() error { return memory.Discard(off, n) })
			},
			Lose:  func() { w.Lose("the test says so") },
			Stall: memory.Stall(w),
		}
	})
}

// takeAll takes, proves all of it, and returns what it was.
func takeAll(t *testing.T, w *cbt.Writer) []cbt.Run {
	t.Helper()
	taken, err := w.Take(t.Context(), w.Trust().Since)
	if err != nil {
		t.Fatal(err)
	}
	runs := slices.Collect(taken.Runs())
	if err := w.PutBack(taken, []cbt.Extent{{Off: 0, End: volumeSize}}); err != nil {
		t.Fatal(err)
	}
	return runs
}

func block(i int64, s cbt.State) []cbt.Run {
	return []cbt.Run{{Extent: cbt.Extent{Off: i * cbt.MinBlock, End: (i + 1) * cbt.MinBlock}, State: s}}
}

// TestInFlightRace is the whole story of the race: without the mark in done
// the replica keeps the old content for ever.
func TestInFlightRace(t *testing.T) {
	w, memory := openWriter(t)
	land := memory.Stall(w)([]byte("new"), 7*cbt.MinBlock) // marked, not landed
	if got := takeAll(t, w); !slices.Equal(got, block(7, cbt.Dirty)) {
		t.Fatalf("a write under way is not taken: %v", got)
	}
	old := make([]byte, 3)
	if _, err := memory.ReadAt(old, 7*cbt.MinBlock); err != nil || string(old) != "\x00\x00\x00" {
		t.Fatalf("the session reads %q, %v: the write was to be held", old, err)
	}
	if err := land(); err != nil {
		t.Fatal(err)
	}
	if got := takeAll(t, w); !slices.Equal(got, block(7, cbt.Dirty)) {
		t.Errorf("L1: after the write landed the next take has %v", got)
	}
	if got := takeAll(t, w); len(got) > 0 {
		t.Errorf("L2: still %v after the second proof", got)
	}
}

// TestNoTakeNoSecondMark: a write that no take fell into is reported once.
func TestNoTakeNoSecondMark(t *testing.T) {
	w, _ := openWriter(t)
	takeAll(t, w)
	if _, err := w.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if got := takeAll(t, w); !slices.Equal(got, block(0, cbt.Dirty)) {
		t.Errorf("took %v", got)
	}
	if got := takeAll(t, w); len(got) > 0 {
		t.Errorf("took %v again", got)
	}
}

// TestWriteOverDiscardInFlight: the device has discarded, then the block is
// written, taken and proven, and only then does the discard return. It must
// not come back as discarded: the block holds data.
func TestWriteOverDiscardInFlight(t *testing.T) {
	w, memory := openWriter(t)
	off := 5 * cbt.MinBlock
	err := w.Do(cbt.Discarded, off, cbt.MinBlock, func() error {
		if err := memory.Discard(off, cbt.MinBlock); err != nil {
			return err
		}
		if _, err := w.WriteAt([]byte("data"), off); err != nil {
			return err
		}
		if got := takeAll(t, w); !slices.Equal(got, block(5, cbt.Dirty)) {
			t.Errorf("took %v", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := takeAll(t, w); !slices.Equal(got, block(5, cbt.Dirty)) {
		t.Errorf("L1: after the discard returned the next take has %v", got)
	}
}

func TestFailedRequestsStayDirty(t *testing.T) {
	broken := errors.New("device is gone")
	w, _ := openWriter(t)
	if err := w.Do(cbt.Discarded, 0, cbt.MinBlock, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got := takeAll(t, w); !slices.Equal(got, block(0, cbt.Dirty)) {
		t.Errorf("after a failed discard: took %v", got)
	}
	err := w.Do(cbt.Dirty, cbt.MinBlock, 1, func() error { takeAll(t, w); return broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got := takeAll(t, w); !slices.Equal(got, block(1, cbt.Dirty)) {
		t.Errorf("after a failed write: took %v", got)
	}
}

// TestPanicStaysDirty: the device may have the write all the same.
func TestPanicStaysDirty(t *testing.T) {
	w, err := cbt.Wrap(panicky(func() {}), volumeSize, cbt.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Seal(1); err != nil {
		t.Fatal(err)
	}
	caught := func(f func()) (got any) {
		defer func() { got = recover() }()
		f()
		return nil
	}
	if caught(func() { w.WriteAt([]byte("x"), 0) }) == nil {
		t.Fatal("the panic was swallowed")
	}
	if got := takeAll(t, w); !slices.Equal(got, block(0, cbt.Dirty)) {
		t.Errorf("after a write that panics: took %v", got)
	}
	if caught(func() { w.Do(cbt.Discarded, 0, cbt.MinBlock, func() error { takeAll(t, w); panic("gone") }) }) == nil {
		t.Fatal("the panic was swallowed")
	}
	if got := takeAll(t, w); !slices.Equal(got, block(0, cbt.Dirty)) {
		t.Errorf("after a discard that panics: took %v", got)
	}
}

type panicky func()

func (panicky) WriteAt([]byte, int64) (int, error) { panic("device is gone") }

func TestWriterKeepsToTheVolume(t *testing.T) {
	w, _ := openWriter(t)
	called := func() error { t.Error("the request reached the device"); return nil }
	for _, e := range []struct{ off, n int64 }{
		{-1, 1}, {volumeSize, 1}, {volumeSize - 1, 2}, {1<<63 - 1, 1}, {0, -1},
	} {
		if err := w.Do(cbt.Dirty, e.off, e.n, called); err == nil || !strings.Contains(err.Error(), "vol-1") {
			t.Errorf("%d bytes at %d: got %v", e.n, e.off, err)
		}
	}
	if _, err := w.WriteAt([]byte("xy"), volumeSize-1); err == nil {
		t.Error("a write past the end was let through")
	}
	if got := takeAll(t, w); len(got) > 0 {
		t.Errorf("refused writes were recorded: %v", got)
	}
}

func TestWriterLostUntilSealed(t *testing.T) {
	w, err := cbt.Wrap(cbttest.NewMemory(volumeSize), volumeSize, cbt.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Take(t.Context(), 1); !errors.Is(err, cbt.ErrEpochLost) {
		t.Errorf("take without a saved map: got %v", err)
	}
	if _, err := w.Map(); !errors.Is(err, cbt.ErrEpochLost) {
		t.Errorf("map without a saved map: got %v", err)
	}
	if err := w.Seal(1); err != nil {
		t.Fatal(err)
	}
	w.Lose("")
	if lost := w.Trust().Lost; lost == "" {
		t.Error("lost without a reason")
	}
	if err := (cbt.Trust{}).Check(0); !errors.Is(err, cbt.ErrEpochLost) {
		t.Errorf("the zero trust vouches: %v", err)
	}
}

// TestCleanStop saves the map with a take still out and starts from the file.
func TestCleanStop(t *testing.T) {
	w, memory := openWriter(t)
	for _, off := range []int64{0, 50 * cbt.MinBlock, volumeSize - 1} {
		if _, err := w.WriteAt([]byte("x"), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Take(t.Context(), volumeEpoch); err != nil { // its session never ends it
		t.Fatal(err)
	}
	if err := w.Do(cbt.Discarded, 8*cbt.MinBlock, cbt.MinBlock, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	m, err := w.Map()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vol-1.fbm")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	saved, err := cbt.LoadMap(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := cbt.Wrap(memory, volumeSize, cbt.WriterOptions{Identity: "vol-1", Saved: saved})
	if err != nil {
		t.Fatal(err)
	}
	if trust := again.Trust(); trust != (cbt.Trust{Since: volumeEpoch}) {
		t.Errorf("trust is %+v", trust)
	}
	want := slices.Concat(block(0, cbt.Dirty), block(8, cbt.Discarded), block(50, cbt.Dirty),
		[]cbt.Run{{Extent: cbt.Extent{Off: 100 * cbt.MinBlock, End: volumeSize}, State: cbt.Dirty}})
	if got := takeAll(t, again); !slices.Equal(got, want) {
		t.Errorf("L2: after the restart took %v, want %v", got, want)
	}
}

func TestWrapRefuses(t *testing.T) {
	saved := func(change func(*cbt.Map)) *cbt.Map {
		m, err := cbt.NewMap(volumeSize, 0, slices.Values([]cbt.Run(nil)))
		if err != nil {
			t.Fatal(err)
		}
		m.Identity, m.Epoch = "vol-1", 3
		change(m)
		return m
	}
	for want, o := range map[string]cbt.WriterOptions{
		"power of two":   {Block: 5000},
		"identity of":    {Identity: strings.Repeat("x", 256)},
		"one of 4096":    {Identity: "vol-1", Saved: saved(func(m *cbt.Map) { m.VolumeSize = 4096 })},
		`volume "vol-2"`: {Identity: "vol-1", Saved: saved(func(m *cbt.Map) { m.Identity = "vol-2" })},
		"no epoch":       {Identity: "vol-1", Saved: saved(func(m *cbt.Map) { m.Epoch = 0 })},
	} {
		if _, err := cbt.Wrap(cbttest.NewMemory(1), volumeSize, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want something with %q", err, want)
		}
	}
	if _, err := cbt.Wrap(cbttest.NewMemory(1), 0, cbt.WriterOptions{}); err == nil {
		t.Error("a volume of no bytes was wrapped")
	}
}
