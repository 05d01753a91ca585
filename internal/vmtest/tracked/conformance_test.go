package tracked

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/failback/failback/cbt/cbttest"
	"golang.org/x/sys/unix"
)

// TestConformance runs the suite that all trackers pass.
func TestConformance(t *testing.T) {
	eachVolume(t, func(t *testing.T, v volume) {
		fs := warmFS(t)
		cbttest.Run(t, func(t testing.TB) cbttest.Subject {
			tr := track(t, v, fs)
			c := &cached{volume: v, f: open(t, v.path, os.O_RDWR)}
			return cbttest.Subject{
				Tracker: tr, Volume: c, Size: v.size, Block: block, Epoch: epoch,
				Discard: c.discard, Lose: func() { tr.Lose("told to") },
			}
		})
	})
}

// warmFS is a bpffs in which another device is tracked as long as the test runs,
// so that the programs stay: to load them takes seconds on an emulated machine.
func warmFS(t *testing.T) string {
	t.Helper()
	control := open(t, "/dev/loop-control", os.O_RDWR)
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	back := open(t, filepath.Join(t.TempDir(), "other"), os.O_RDWR|os.O_CREATE)
	if err := back.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	other := volume{path: fmt.Sprintf("/dev/loop%d", n), size: 1 << 20}
	conf := unix.LoopConfig{Fd: uint32(back.Fd())}
	conf.Info.Flags = unix.LO_FLAGS_AUTOCLEAR // with the test, which has it open
	if err := unix.IoctlLoopConfigure(int(open(t, other.path, os.O_RDWR).Fd()), &conf); err != nil {
		t.Fatal(err)
	}
	fs := ownFS(t)
	track(t, other, fs)
	return fs
}

// cached writes a device through its page cache and waits for the device.
type cached struct {
	volume
	f *os.File
	// A discard drops pages that a write beside it may be filling: what the
	// cache holds then is not what the device does. So they take turns.
	turns sync.RWMutex
}

func (c *cached) ReadAt(p []byte, off int64) (int, error) { return c.f.ReadAt(p, off) }

func (c *cached) WriteAt(p []byte, off int64) (int, error) {
	c.turns.RLock()
	defer c.turns.RUnlock()
	n, err := c.f.WriteAt(p, off)
	return n, errors.Join(err, c.f.Sync())
}

// discard gives whole units back and writes zeroes to the rest; where nothing
// is discarded, to all of it.
func (c *cached) discard(off, n int64) error {
	first, end := off, off
	if c.unit > 0 {
		first, end = (off+c.unit-1)/c.unit*c.unit, (off+n)/c.unit*c.unit
	}
	if first >= end {
		_, err := c.WriteAt(make([]byte, n), off)
		return err
	}
	for _, rest := range [][2]int64{{off, first}, {end, off + n}} {
		if _, err := c.WriteAt(make([]byte, rest[1]-rest[0]), rest[0]); err != nil {
			return err
		}
	}
	c.turns.Lock()
	defer c.turns.Unlock()
	return ioctlRange(c.f, unix.BLKDISCARD, first, end-first)
}
