package ebpf

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/cbttest"
	"golang.org/x/sys/unix"
)

// deviceVolume writes a device through its page cache and waits for the device.
type deviceVolume struct {
	f    *os.File
	unit int64 // bytes: what the device discards in
	// A discard drops pages that a write beside it may be filling: what the
	// cache holds then is not what the device does. So they take turns.
	turns sync.RWMutex
}

func (v *deviceVolume) ReadAt(p []byte, off int64) (int, error) { return v.f.ReadAt(p, off) }

func (v *deviceVolume) WriteAt(p []byte, off int64) (int, error) {
	v.turns.RLock()
	defer v.turns.RUnlock()
	n, err := v.f.WriteAt(p, off)
	return n, errors.Join(err, v.f.Sync())
}

// discard gives whole units back and writes zeroes to the rest.
func (v *deviceVolume) discard(off, n int64) error {
	first, end := (off+v.unit-1)/v.unit*v.unit, (off+n)/v.unit*v.unit
	if first >= end {
		_, err := v.WriteAt(make([]byte, n), off)
		return err
	}
	if first > off {
		if _, err := v.WriteAt(make([]byte, first-off), off); err != nil {
			return err
		}
	}
	if off+n > end {
		if _, err := v.WriteAt(make([]byte, off+n-end), end); err != nil {
			return err
		}
	}
	v.turns.Lock()
	defer v.turns.Unlock()
	return discardRange(v.f, first, end-first)
}

func discardRange(f *os.File, off, n int64) error {
	return ioctlRange(f, unix.BLKDISCARD, off, n)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	needKernel(t)
	const size = 80*cbt.MinBlock - 512
	dir, fs := newFreezer(t, 64<<20), warmFS(t)
	cbttest.Run(t, func(t testing.TB) cbttest.Subject {
		f := newFrozen(t, dir, size)
		tr := sealed(t, f.device, Options{FS: fs}, 7)
		v := &deviceVolume{f: openFile(t, f.device, os.O_RDWR), unit: sector}
		return cbttest.Subject{
			Tracker: tr, Volume: v, Size: size, Block: cbt.MinBlock, Epoch: 7,
			Discard: v.discard,
			Lose:    func() { tr.Lose("told to") },
			Stall:   func(p []byte, off int64) func() error { return stall(t, f, tr, v, p, off) },
		}
	})
}

// Of a device that is not driven by requests. Its writes cannot be held.
func TestConformanceOfBios(t *testing.T) {
	t.Parallel()
	needKernel(t)
	const size = 80 * cbt.MinBlock
	path, fs := newZram(t, size), warmFS(t)
	cbttest.Run(t, func(t testing.TB) cbttest.Subject {
		tr := sealed(t, path, Options{FS: fs}, 7)
		v := &deviceVolume{f: openFile(t, path, os.O_RDWR), unit: cbt.MinBlock}
		return cbttest.Subject{
			Tracker: tr, Volume: v, Size: size, Block: cbt.MinBlock, Epoch: 7,
			Discard: v.discard, Lose: func() { tr.Lose("told to") },
		}
	})
}

// warmFS is a bpffs whose programs stay as long as the test: another device is
// tracked.
func warmFS(t testing.TB) string {
	t.Helper()
	fs := ownFS(t)
	start(t, newLoop(t, makeFile(t, scratch(t)+"/other", 1<<20), 0), Options{FS: fs})
	return fs
}

// stall starts a write that waits for the frozen file system.
func stall(t testing.TB, f *frozen, tr *Tracker, v *deviceVolume, p []byte, off int64) func() error {
	before := mustStatus(t, tr).Writes
	f.freeze(t)
	ended := make(chan error, 1)
	go func() { // ends when the file system is thawed
		_, err := v.WriteAt(p, off)
		ended <- err
	}()
	if !until(t, 10*time.Second, func() bool { return mustStatus(t, tr).Writes > before }) {
		t.Error("the write was not queued")
	}
	return func() error {
		f.thaw(t)
		return <-ended
	}
}

func mustStatus(t testing.TB, tr *Tracker) Status {
	t.Helper()
	s, err := tr.Status()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
