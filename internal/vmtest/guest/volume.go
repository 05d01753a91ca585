package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Sizes, in bytes.
const (
	volumeSize = 24 << 20
	diskSize   = volumeSize // of the disk that can be pulled out
	ramSize    = 128 << 20  // of each RAM disk; what is not written takes no memory
	sector     = 512
	piece      = 4 << 10 // what failback sends at least
)

// The RAM disks.
const (
	mediumRAM = "/dev/ram0" // what the power cuts are played on
	logRAM    = "/dev/ram1" // the log of its writes
	sourceRAM = "/dev/ram2"

	ramDisks = 8
)

// pair is the content of two volumes, and where they may differ.
type pair struct {
	old, new []byte
	extents  string // offset and length of each, a line each
}

// newPair makes volumes that differ in two thirds of their content: in random
// extents, of which some become zeroes, and some differ only in single pieces.
func (g *guest) newPair() pair {
	p := pair{old: g.noise(volumeSize)}
	p.new = bytes.Clone(p.old)
	var list strings.Builder
	for at := 0; at < volumeSize; at += 1 << 20 {
		off := at + g.dice.IntN(64)*piece
		n := (128 + g.dice.IntN(64)) * piece
		part := p.new[off : off+n]
		switch g.dice.IntN(8) {
		case 0:
			clear(part)
		case 1:
			for i := 0; i < n; i += 3 * piece {
				copy(part[i:min(i+piece, n)], g.noise(piece))
			}
		default:
			copy(part, g.noise(n))
		}
		fmt.Fprintln(&list, off, n)
	}
	p.extents = list.String()
	return p
}

func (g *guest) noise(n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := g.dice.Uint64()
		for j := range min(8, n-i) {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// check requires that each sector is the old one or the new one, and returns
// how many bytes are not yet new.
func (p pair) check(got []byte) (missing int, err error) {
	for off := 0; off < len(p.new); off += sector {
		s := got[off : off+sector]
		if bytes.Equal(s, p.new[off:off+sector]) {
			continue
		}
		if !bytes.Equal(s, p.old[off:off+sector]) {
			return 0, fmt.Errorf("the sector at %#x is neither what the target held nor what the source holds", off)
		}
		missing += sector
	}
	return missing, nil
}

// store writes content to a device or file and makes it durable.
func store(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// fetch reads n bytes from the start of a device or file, from the medium and
// not from a cache.
func fetch(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	_, err = f.ReadAt(b, 0)
	return b, err
}

// holds requires that a device or file holds this content.
func holds(path string, want []byte, what string) error {
	got, err := fetch(path, len(want))
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		for off := 0; ; off += sector {
			if !bytes.Equal(got[off:off+sector], want[off:off+sector]) {
				return fmt.Errorf("%s: first difference in the sector at %#x", what, off)
			}
		}
	}
	return nil
}
