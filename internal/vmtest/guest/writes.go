package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// The log that dm-log-writes keeps: each write in the order in which it was
// completed, those that a flush made durable just before the flush. Little
// endian. See Documentation/admin-guide/device-mapper/log-writes.rst in Linux.
//
//	super, at 0:             entry, in a sector of its own:
//	off size field           off size field
//	  0    8 magic             0    8 sector
//	  8    8 version           8    8 sectors of data, which follow
//	 16    8 entries          16    8 flags
//	 24    4 sector, bytes    24    8 length of a mark's text, which follows in this sector
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
	flagMark    = 8
)

// write is an entry of the log.
type write struct {
	off   int    // bytes
	n     int    // bytes; of a discard too
	data  []byte // nil for a discard
	flags uint64
}

// flush reports whether it makes durable all that came before it.
func (w write) flush() bool { return w.flags&flagFlush != 0 }

// parseLog reads the entries out of a log device's content.
func parseLog(log []byte) ([]write, error) {
	if len(log) < sector {
		return nil, errors.New("no log of writes: shorter than its first sector")
	}
	le := binary.LittleEndian
	if m, v := le.Uint64(log), le.Uint64(log[8:]); m != logMagic || v != logVersion {
		return nil, fmt.Errorf("no log of writes: magic %#x, version %d", m, v)
	}
	unit := uint64(le.Uint32(log[24:]))
	if unit < sector || unit > 64<<10 || unit&(unit-1) != 0 {
		return nil, fmt.Errorf("log of writes: sectors of %d bytes", unit)
	}
	room := uint64(len(log)) / unit
	entries := le.Uint64(log[16:])
	if entries > room {
		return nil, fmt.Errorf("log of writes: %d entries in %d sectors", entries, room)
	}
	var list []write
	at := uint64(1)
	for i := range entries {
		if at >= room {
			return nil, fmt.Errorf("log of writes: entry %d lies outside", i)
		}
		e := log[at*unit:]
		first, count, flags := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:])
		at++
		w := write{off: int(first * unit), n: int(count * unit), flags: flags}
		if count > 1<<32 || first > 1<<32 {
			return nil, fmt.Errorf("log of writes: entry %d: %d sectors at %d", i, count, first)
		}
		if flags&(flagDiscard|flagMark) == 0 {
			if count > room-at {
				return nil, fmt.Errorf("log of writes: the data of entry %d lies outside", i)
			}
			w.data = log[at*unit : (at+count)*unit]
			at += count
		}
		if flags&flagMark == 0 {
			list = append(list, w)
		}
	}
	return list, nil
}

// apply does a write to an image of the medium. A discard makes zeroes, as it
// does on the RAM disk.
func (w write) apply(image []byte) {
	switch {
	case w.off > len(image) || w.n > len(image)-w.off:
	case w.flags&flagDiscard != 0:
		clear(image[w.off : w.off+w.n])
	default:
		copy(image[w.off:], w.data)
	}
}

// cut is a moment at which the power goes: after the first n entries.
type cut struct {
	n int
	// reordered: of the writes that no flush has made durable yet, any may have
	// come to the medium, and one of them in part.
	reordered bool
}

func (c cut) String() string {
	if c.reordered {
		return fmt.Sprintf("after write %d, the unflushed ones at random", c.n)
	}
	return fmt.Sprintf("after write %d", c.n)
}

// medium is what the cut leaves on a medium that held base. Writes that were
// asked to be durable by themselves are, when they come before the cut.
func (c cut) medium(base []byte, log []write, dice *rand.Rand) []byte {
	image := append([]byte(nil), base...)
	if !c.reordered {
		for _, w := range log[:c.n] {
			w.apply(image)
		}
		return image
	}
	begin, end := c.n, c.n
	for begin > 0 && !log[begin-1].flush() {
		begin--
	}
	for end < len(log) && !log[end].flush() {
		end++
	}
	for _, w := range log[:begin] {
		w.apply(image)
	}
	torn := begin + dice.IntN(end-begin+1)
	for i, w := range log[begin:end] {
		i += begin
		durable := w.flags&flagFUA != 0
		switch {
		case durable && i >= c.n, !durable && dice.IntN(2) == 0:
			continue
		case !durable && i == torn && w.data != nil:
			w.n = dice.IntN(w.n/sector+1) * sector
			w.data = w.data[:w.n]
		}
		w.apply(image)
	}
	return image
}

// cuts chooses n moments: half of them beside a flush, the others anywhere.
func cuts(log []write, n int, dice *rand.Rand) []cut {
	var flushes []int
	for i, w := range log {
		if w.flush() {
			flushes = append(flushes, i)
		}
	}
	var list []cut
	for i := range n {
		c := cut{n: dice.IntN(len(log) + 1)}
		if i%2 == 0 && len(flushes) > 0 {
			c.n = flushes[dice.IntN(len(flushes))] + dice.IntN(2)
		} else {
			c.reordered = i%4 == 1
		}
		list = append(list, c)
	}
	return list
}
