package merkle

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
)

// Update journal, format version 1, little endian, in a file of its own beside
// the tree: path.journal. It has the nodes that an update changes.
//
//	header, 16 bytes
//	off size field
//	  0    8 magic    "FBTJRNL\n"
//	  8    2 version  1
//	 10    6 reserved zero
//
//	record, 16 + 32·count bytes, any number of them
//	  0    1 level    of the nodes
//	  1    1 count    of the nodes, 1 to 16, all of one group
//	  2    6 reserved zero
//	  8    8 first    index of the first in its level
//	 16      nodes    32 bytes each, in their form in the tree file
//
//	end, 96 bytes; the file ends with it
//	  0    1 level    255
//	  1    7 reserved zero
//	  8    8 epoch    that the header shall have
//	 16   32 old      root that the header has
//	 48   32 new      root that the header shall have
//	 80    8 records  number of records
//	 88    8 sum      xxhash64 of all bytes before
const (
	magicJournal  = "FBTJRNL\n"
	journalSuffix = ".journal"

	jnlHeader = 16
	jnlRecord = 16
	jnlEnd    = 96
	jnlLast   = 255 // level of the end
)

// journalEnd is what the end of a journal says.
type journalEnd struct {
	epoch    Epoch
	old, new Hash
	records  uint64
}

// journalWriter writes a journal through a buffer.
type journalWriter struct {
	m       media
	w       *bufio.Writer
	sum     xxhash.Digest
	records uint64
	head    [jnlEnd]byte
}

func newJournalWriter(d disk, path string) (*journalWriter, error) {
	m, err := d.open(path, os.O_RDWR|os.O_CREATE)
	if err == nil {
		err = m.Truncate(0)
	}
	if err != nil {
		return nil, fmt.Errorf("create update journal: %w", err)
	}
	j := &journalWriter{m: m, w: bufio.NewWriterSize(io.NewOffsetWriter(m, 0), 64<<10)}
	j.sum.Reset()
	h := j.clean(jnlHeader)
	copy(h, magicJournal)
	binary.LittleEndian.PutUint16(h[8:], formatVersion)
	return j, j.put(h)
}

// clean returns n zero bytes to fill.
func (j *journalWriter) clean(n int) []byte {
	clear(j.head[:n])
	return j.head[:n]
}

func (j *journalWriter) put(p []byte) error {
	_, _ = j.sum.Write(p) // xxhash never returns an error
	if _, err := j.w.Write(p); err != nil {
		return fmt.Errorf("write update journal: %w", err)
	}
	return nil
}

func (j *journalWriter) record(level int, first int64, stored []Hash) error {
	h := j.clean(jnlRecord)
	h[0], h[1] = byte(level), byte(len(stored))
	binary.LittleEndian.PutUint64(h[8:], uint64(first))
	j.records++
	if err := j.put(h); err != nil {
		return err
	}
	return j.put(hashBytes(stored))
}

// end completes the journal and syncs it.
func (j *journalWriter) end(e journalEnd) error {
	h := j.clean(jnlEnd)
	h[0] = jnlLast
	binary.LittleEndian.PutUint64(h[8:], uint64(e.epoch))
	copy(h[16:], e.old[:])
	copy(h[48:], e.new[:])
	binary.LittleEndian.PutUint64(h[80:], j.records)
	_, _ = j.sum.Write(h[:88])
	binary.LittleEndian.PutUint64(h[88:], j.sum.Sum64())
	if _, err := j.w.Write(h); err != nil {
		return fmt.Errorf("write update journal: %w", err)
	}
	if err := errors.Join(j.w.Flush(), j.m.Sync()); err != nil {
		return fmt.Errorf("write update journal: %w", err)
	}
	return nil
}

// readJournal checks the whole journal at path and then calls apply for each
// record. It calls apply for none unless the journal is whole and every record
// lies inside of the tree. It reads the file twice and holds 64 KiB of it.
func readJournal(d disk, path string, lay *layout, apply func(level int, first int64, stored []Hash) error) (journalEnd, error) {
	m, err := d.open(path, os.O_RDONLY)
	if err != nil {
		return journalEnd{}, fmt.Errorf("open update journal: %w", err)
	}
	end, err := scanJournal(m, path, lay, func(int, int64, []Hash) error { return nil })
	if err == nil {
		end, err = scanJournal(m, path, lay, apply)
	}
	return end, errors.Join(err, m.Close())
}

// journalReader reads a journal in order and knows where it is.
type journalReader struct {
	path string
	r    *bufio.Reader
	off  int64 // of what next returned last
	end  int64 // of the same
	sum  xxhash.Digest
	buf  [jnlRecord + FanOut*HashSize]byte
	rec  [FanOut]Hash // the nodes of the record read last
}

// next returns the next n bytes; they are good until the next call.
func (j *journalReader) next(at, n int) ([]byte, error) {
	j.off, j.end = j.end, j.end+int64(n)
	p := j.buf[at : at+n]
	if _, err := io.ReadFull(j.r, p); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil, j.bad(io.ErrUnexpectedEOF)
		}
		return nil, fmt.Errorf("read update journal: %w", err)
	}
	return p, nil
}

func (j *journalReader) bad(err error) error {
	return &CorruptError{Path: j.path, Offset: j.off, Level: -1, Err: fmt.Errorf("%w: %w", errJournal, err)}
}

func scanJournal(m media, path string, lay *layout, apply func(int, int64, []Hash) error) (journalEnd, error) {
	size, err := m.size()
	if err != nil {
		return journalEnd{}, fmt.Errorf("size of update journal: %w", err)
	}
	j := &journalReader{path: path, r: bufio.NewReaderSize(io.NewSectionReader(m, 0, size), 64<<10)}
	j.sum.Reset()
	h, err := j.next(0, jnlHeader)
	if err != nil {
		return journalEnd{}, err
	}
	if string(h[:8]) != magicJournal || binary.LittleEndian.Uint16(h[8:]) != formatVersion || !IsZero(h[10:]) {
		return journalEnd{}, j.bad(errHeaderField)
	}
	_, _ = j.sum.Write(h)
	for records := uint64(0); ; records++ {
		h, err := j.next(0, jnlRecord)
		if err != nil {
			return journalEnd{}, err
		}
		if h[0] == jnlLast {
			return j.readEnd(h, records, size)
		}
		if err := j.readRecord(h, lay, apply); err != nil {
			return journalEnd{}, err
		}
	}
}

// readRecord reads the nodes of the record that begins with h.
func (j *journalReader) readRecord(h []byte, lay *layout, apply func(int, int64, []Hash) error) error {
	level, count := int(h[0]), int64(h[1])
	first := int64(binary.LittleEndian.Uint64(h[8:]))
	if level >= lay.levels || count < 1 || count > FanOut || !IsZero(h[2:8]) ||
		first < 0 || first >= lay.width[level] || first+count > groupEnd(first+1, lay.width[level]) {
		return j.bad(errHeaderField)
	}
	_, _ = j.sum.Write(h)
	raw, err := j.next(jnlRecord, int(count)*HashSize)
	if err != nil {
		return err
	}
	_, _ = j.sum.Write(raw)
	copy(hashBytes(j.rec[:]), raw)
	return apply(level, first, j.rec[:count])
}

// readEnd reads the end that begins with h.
func (j *journalReader) readEnd(h []byte, records uint64, size int64) (journalEnd, error) {
	if _, err := j.next(jnlRecord, jnlEnd-jnlRecord); err != nil {
		return journalEnd{}, err
	}
	b := j.buf[:jnlEnd]
	e := journalEnd{
		epoch:   Epoch(binary.LittleEndian.Uint64(b[8:])),
		old:     Hash(b[16:48]),
		new:     Hash(b[48:80]),
		records: binary.LittleEndian.Uint64(b[80:]),
	}
	_, _ = j.sum.Write(b[:88])
	switch {
	case j.sum.Sum64() != binary.LittleEndian.Uint64(b[88:]):
		return e, j.bad(errChecksum)
	case e.records != records || !IsZero(b[1:8]):
		return e, j.bad(errHeaderField)
	case j.end != size:
		return e, j.bad(errTrailing)
	}
	return e, nil
}
