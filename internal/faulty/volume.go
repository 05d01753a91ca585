package faulty

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
)

// Volume is a volume in memory with a cache that a power cut loses. It is safe
// for concurrent use.
//
// ReadAt sees every write at once. ReadMediumAt sees what a Sync that returned
// has brought to the device, and nothing else: a caller who did not sync reads
// old bytes, and one whose write was flipped or lost on the way reads that.
type Volume struct {
	identity string
	m        *image
	faults   atomic.Pointer[Faults]
}

// NewVolume returns a volume that holds a copy of content, durable, of a machine
// f, which may be nil. It panics if content is not a multiple of 512 bytes.
func NewVolume(identity string, content []byte, f *Faults) *Volume {
	if len(content)%sector != 0 {
		panic(fmt.Sprintf("faulty: volume of %d bytes, which is no multiple of %d", len(content), sector))
	}
	v := &Volume{identity: identity, m: newImage(content)}
	v.faults.Store(f)
	return v
}

// Plug makes the volume part of another machine, or of none: its rules and its
// power hold from now on.
func (v *Volume) Plug(f *Faults) { v.faults.Store(f) }

// Identity returns the name it was made with.
func (v *Volume) Identity() string { return v.identity }

// Size returns its size in bytes.
func (v *Volume) Size() int64 { return v.m.size() }

// run does an operation, which lies inside the volume or is refused.
func (v *Volume) run(op Op, off, n int64, effect func(alteration) error) error {
	if off < 0 || n < 0 || off+n > v.Size() {
		return fmt.Errorf("%s %s: [%d, %d) is not in a volume of %d bytes", op, v.identity, off, off+n, v.Size())
	}
	return v.faults.Load().run(Event{Op: op, On: v.identity, Off: off, Len: n}, effect)
}

// ReadAt reads through the cache.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) { return v.read(Read, p, off, v.m.read) }

// ReadMediumAt reads from the device, past the cache of the machine.
func (v *Volume) ReadMediumAt(p []byte, off int64) (int, error) {
	return v.read(ReadMedium, p, off, v.m.readMedium)
}

func (v *Volume) read(op Op, p []byte, off int64, from func([]byte, int64, alteration) (int, error)) (n int, err error) {
	rest := max(0, v.Size()-off)
	if off >= 0 && rest < int64(len(p)) {
		n, err = v.read(op, p[:rest], off, from)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	err = v.run(op, off, int64(len(p)), func(how alteration) error {
		n, err = from(p, off, how)
		return err
	})
	return n, err
}

// WriteAt writes to the cache. Nothing is written past the end.
func (v *Volume) WriteAt(p []byte, off int64) (n int, err error) {
	err = v.run(Write, off, int64(len(p)), func(how alteration) error {
		n, err = v.m.write(p, off, how)
		return err
	})
	return answered(n, err), err
}

// answered is what a caller hears of n bytes that were written: after an answer
// that was lost nothing, after a short write how far it went.
func answered(n int, err error) int {
	if err == nil || errors.Is(err, io.ErrShortWrite) {
		return n
	}
	return 0
}

// ZeroAt makes n bytes at off zero in the cache.
func (v *Volume) ZeroAt(off, n int64) error {
	return v.run(Zero, off, n, func(how alteration) error {
		_, err := v.m.write(make([]byte, n), off, how)
		return err
	})
}

// Sync brings the cache to the medium.
func (v *Volume) Sync() error {
	return syncImage(v.faults.Load(), Event{Op: Sync, On: v.identity}, v.m)
}

// syncImage syncs m as the rules have it. What a Sync that failed should have
// saved is forgotten.
func syncImage(f *Faults, e Event, m *image) error {
	done := false
	err := f.run(e, func(how alteration) error {
		m.sync(how)
		done = true
		return nil
	})
	if err != nil && !done && !errors.Is(err, ErrPower) {
		m.forget()
	}
	return err
}

// Bytes returns a copy of what the running system sees.
func (v *Volume) Bytes() []byte { return v.m.cached() }

// Durable returns a copy of what survives every power cut.
func (v *Volume) Durable() []byte { return v.m.durable() }

// Rot turns a bit of the byte at off, on the medium and in the caches: a sector
// gone bad that was read long ago.
func (v *Volume) Rot(off int64) { v.m.rot(off) }

// Crash returns the volume as a power cut now leaves it, on no machine. The same
// seed leaves the same of the same writes. v is as it was: one state can be left
// in many ways.
func (v *Volume) Crash(seed uint64) *Volume {
	return &Volume{identity: v.identity, m: v.m.crash(newRand(seed))}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0xfa017)) }
