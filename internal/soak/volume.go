package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"

	"github.com/failback/failback/cbt"
)

const piece = 4 << 10 // bytes; what a sync sends at least

// volume is an image file with the tracker that its application writes through.
type volume struct {
	path    string
	size    int64
	tracker *cbt.Writer
	epoch   cbt.Epoch
	file    *os.File // nil while no application runs on it
	wrote   atomic.Int64
}

func newVolume(path string, content []byte) (*volume, error) {
	v := &volume{path: path, size: int64(len(content)), epoch: 1}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return nil, err
	}
	var err error
	if v.tracker, err = cbt.Wrap(v, v.size, cbt.WriterOptions{}); err != nil {
		return nil, err
	}
	return v, v.tracker.Seal(v.epoch)
}

// WriteAt is the device below the tracker.
func (v *volume) WriteAt(p []byte, off int64) (int, error) { return v.file.WriteAt(p, off) }

// with opens the volume for what its application does there.
func (v *volume) with(do func() error) (err error) {
	if v.file, err = os.OpenFile(v.path, os.O_RDWR, 0); err != nil {
		return err
	}
	err = errors.Join(do(), v.file.Close())
	v.file = nil
	return err
}

// work is one random write of an application: noise, zeroes, text, or what is
// there already.
func (v *volume) work(dice *rand.Rand) error {
	n := int64(1+dice.IntN(16)) * piece
	if dice.IntN(8) == 0 {
		n *= 16
	}
	off := dice.Int64N((v.size-n)/512+1) * 512
	var p []byte
	switch dice.IntN(8) {
	case 0:
		p = make([]byte, n)
	case 1:
		p = make([]byte, n)
		if _, err := v.file.ReadAt(p, off); err != nil {
			return err
		}
	case 2, 3:
		line := fmt.Appendf(nil, "%d wrote this at %d\n", dice.Uint64(), off)
		p = bytes.Repeat(line, int(n)/len(line)+1)[:n]
	default:
		p = noise(dice, int(n))
	}
	_, err := v.tracker.WriteAt(p, off)
	v.wrote.Add(n)
	return err
}

// works does n random writes.
func (v *volume) works(dice *rand.Rand, n int) error {
	return v.with(func() error {
		for range n {
			if err := v.work(dice); err != nil {
				return err
			}
		}
		return nil
	})
}

// busy writes until ctx ends.
func (v *volume) busy(ctx context.Context, dice *rand.Rand) error {
	return v.with(func() error {
		pause := time.NewTicker(3 * time.Millisecond)
		defer pause.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-pause.C:
				if err := v.work(dice); err != nil {
					return err
				}
			}
		}
	})
}

// flip changes a bit behind everybody's back.
func (v *volume) flip(off int64) error {
	f, err := os.OpenFile(v.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 1 << (off % 8)
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	return errors.Join(err, f.Close())
}

// noise is n bytes that no codec makes smaller.
func noise(dice *rand.Rand, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], dice.Uint64())
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

// same requires that two volumes hold the same.
func same(a, b *volume) error {
	x, err := os.ReadFile(a.path)
	if err != nil {
		return err
	}
	y, err := os.ReadFile(b.path)
	if err != nil {
		return err
	}
	return sameBytes(x, y)
}

func sameBytes(x, y []byte) error {
	if len(x) != len(y) {
		return fmt.Errorf("%d bytes and %d bytes", len(x), len(y))
	}
	if bytes.Equal(x, y) {
		return nil
	}
	first, differ := -1, 0
	for off := 0; off < len(x); off += piece {
		end := min(off+piece, len(x))
		if bytes.Equal(x[off:end], y[off:end]) {
			continue
		}
		if first < 0 {
			first = off
		}
		differ++
	}
	return fmt.Errorf("%d pieces differ, the first at %#x", differ, first)
}
