package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/failback/failback/cbt"
)

// Status is what is known of one tracked volume.
type Status struct {
	Device   string // its name in /dev, or its number when it has none now
	Number   string // "major:minor"
	Name     string // that was given to Start
	Identity string // of the volume
	Size     int64  // bytes
	Block    int64  // bytes
	Started  time.Time
	Trust    cbt.Trust

	Dirty     int64 // bytes, taken and not proven ones included
	Discarded int64 // bytes

	Writes      uint64 // of any kind since the start, discards included
	Discards    uint64
	Written     uint64 // bytes that they covered
	Passthrough uint64 // commands that went around the block layer's writes, some of them twice: as they began and as they ended
	Unmarked    uint64 // writes that could not be marked

	Drained   bool  // what was under way at the start has ended
	Reading   bool  // the programs that mark the end of writes are at work
	Uncounted bool  // the disk was seen with its io statistics off: they go on until Stop
	Holds     bool  // its driver may hold back writes that the kernel does not count: likewise
	Memory    int64 // bytes of the kernel for this volume
}

// count is what the programs count, for each processor.
type count struct{ Writes, Discards, Sectors uint64 }

func (k *kernel) resetCounts(i int) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the processors: %w", err)
	}
	if err := k.maps["counts"].Put(uint32(i), make([]count, cpus)); err != nil {
		return fmt.Errorf("reset the counters: %w", err)
	}
	return nil
}

func (k *kernel) counts(i int) (count, error) {
	var each []count
	var sum count
	if err := k.maps["counts"].Lookup(uint32(i), &each); err != nil {
		return sum, fmt.Errorf("read the counters: %w", err)
	}
	for _, c := range each {
		sum.Writes += c.Writes
		sum.Discards += c.Discards
		sum.Sectors += c.Sectors
	}
	return sum, nil
}

// Status returns what is known of the volume. Cost: one pass over the bitmap.
func (t *Tracker) Status() (Status, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return Status{}, t.errorf("status", os.ErrClosed)
	}
	return t.status()
}

func (t *Tracker) status() (Status, error) {
	n, err := t.k.counts(t.number)
	if err != nil {
		return Status{}, t.errorf("status", err)
	}
	s := Status{
		Device: deviceName(kernelNumber(t.rec.get(offDevice))), Number: kernelNumber(t.rec.get(offDevice)).String(), Name: t.rec.text(offName), Identity: t.rec.text(offIdentity),
		Size: t.rec.size(), Block: t.rec.block(), Started: time.Unix(0, int64(t.rec.get(offStarted))), Trust: t.trust(),
		Writes: n.Writes, Discards: n.Discards, Written: n.Sectors * sector,
		Passthrough: t.rec.get(offPassthrough), Unmarked: t.rec.get(offLost),
		Drained: t.rec.get(offDrained) == 1, Reading: t.armed(), Memory: t.memoryUsed(),
		Uncounted: t.rec.get(offUncounted)&uncountedStats != 0, Holds: t.rec.get(offUncounted)&uncountedHolds != 0,
	}
	s.Dirty, s.Discarded = t.planes.count()
	return s, nil
}

// memoryUsed returns what the maps of the volume take up. Of a bitmap that is
// known to the byte; kernels before 6.4 count its keys too, which are nowhere.
func (t *Tracker) memoryUsed() int64 {
	sum := int64(len(t.memory))
	m, err := ebpf.LoadPinnedMap(t.inflightPin(), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return sum
	}
	defer m.Close()
	if info, err := m.Info(); err == nil {
		n, _ := info.Memlock()
		sum += int64(n)
	}
	return sum
}

// count adds up the bytes in each state; the last block of a volume may be
// short, which it does not count.
func (p *planes) count() (dirty, discarded int64) {
	for i := range p.dirty {
		d := atomic.LoadUint64(&p.dirty[i]) | atomic.LoadUint64(&p.held[i])
		x := atomic.LoadUint64(&p.discarded[i]) &^ d
		dirty += int64(bits.OnesCount64(d)) * p.block
		discarded += int64(bits.OnesCount64(x)) * p.block
	}
	return min(dirty, p.size), min(discarded, p.size)
}

// deviceName is the path of a device node.
func deviceName(n kernelNumber) string {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + n.String())
	if err != nil {
		return n.String()
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/")
}

// List returns the status of every tracked volume, also of those that another
// process has open. No tracker at all is no error.
func List(o Options) ([]Status, error) {
	p, err := openPins(o.FS)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the tracked volumes: %w", err)
	}
	defer p.close()
	k, err := openKernel(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the tracked volumes: %w", err)
	}
	defer k.close()
	var all []Status
	for i := range maxViews {
		if !k.views.view(i).live() {
			continue
		}
		err := k.look(p, i, func(t *Tracker) error {
			s, err := t.status()
			all = append(all, s)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the tracked volumes: %w", err)
		}
	}
	return all, nil
}

// Peek returns what [Tracker.Map] does, also while another process has the
// tracker open; what that one has taken counts as dirty.
func Peek(path string, o Options) (*cbt.Map, error) {
	wrap := func(err error) (*cbt.Map, error) {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotTracked
		}
		return nil, fmt.Errorf("look into the tracker of %s: %w", path, err)
	}
	d, err := lookDevice(path)
	if err != nil && d.number == 0 {
		return nil, err
	}
	p, err := openPins(o.FS)
	if err != nil {
		return wrap(err)
	}
	defer p.close()
	k, err := openKernel(p)
	if err != nil {
		return wrap(err)
	}
	defer k.close()
	for i := range maxViews {
		if !k.views.view(i).same(d) {
			continue
		}
		var m *cbt.Map
		err := k.look(p, i, func(t *Tracker) error {
			all, err := cbt.NewDirtyMap(t.planes.size, t.planes.block)
			if err != nil {
				return err
			}
			t.planes.peek(all)
			t.planes.heldTo(all) // last: a bit on its way is there before it leaves its plane
			m = t.label(all.Map())
			return nil
		})
		if err != nil {
			return wrap(err)
		}
		return m, nil
	}
	return wrap(ErrNotTracked)
}

// look calls f with view i, whose tracker is not opened.
func (k *kernel) look(p *pins, i int, f func(*Tracker) error) error {
	t := &Tracker{number: i, dir: p.view(i), pins: p, k: k, rec: k.views.view(i)}
	t.device = deviceName(kernelNumber(t.rec.get(offDevice)))
	if d, err := lookNumber(kernelNumber(t.rec.get32(offDisk))); err == nil { // else trust says that it is gone
		t.request = d.request
	}
	if err := t.rec.check(); err != nil {
		return err
	}
	if err := t.openBitmap(); err != nil {
		return err
	}
	return errors.Join(f(t), t.memory.close(), t.bitmap.Close())
}
