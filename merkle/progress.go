package merkle

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Progress table of an unfinished file, from its first checkpoint on, after the leaves at the next multiple
// of 4096: for each chunk of 4096 leaves 8 bytes, little endian, so that a
// resumed build believes no leaf that is not there as it was written.
//
//	0      the chunk is not whole
//	other  xxhash64 of the chunk's leaves as stored and the chunk's number (8
//	       bytes, little endian) after them; 1 where that is 0
//
// A sealed file has no table.
const progressEntry = 8

func (l *layout) progressOff() int64 { return roundUp(l.size, pageSize) }

func (l *layout) progressEnd(chunks int64) int64 { return l.progressOff() + chunks*progressEntry }

// chunkSum returns the table's entry for a chunk.
func chunkSum(c int64, stored []Hash) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(hashBytes(stored)) // xxhash never returns an error
	var num [8]byte
	binary.LittleEndian.PutUint64(num[:], uint64(c))
	_, _ = d.Write(num[:])
	return max(d.Sum64(), 1)
}

// storedChunk reads a chunk's leaves as they are on disk. Holes are not read.
func (b *Builder) storedChunk(c int64, buf []Hash) ([]Hash, error) {
	r := b.chunkRange(c)
	buf = buf[:r.Len()]
	off, raw := b.st.lay.place(0, r.First), hashBytes(buf)
	if b.st.m.nextData(off) >= off+int64(len(raw)) {
		clear(buf)
		return buf, nil
	}
	if err := readFull(b.st.m, raw, off); err != nil {
		return nil, fmt.Errorf("read %s at %d: %w", b.st.path, off, err)
	}
	return buf, nil
}

// Checkpoint makes durable which chunks are whole, so that a later Builder with
// [Options].Resume need not set them again. SetLeaf may go on meanwhile.
//
//  1. write the checksums of the chunks that are whole into the progress table
//  2. sync the file, and the folder that names it
//
// A crash in or before 2 may keep any part of the leaves and of the table. An
// entry whose leaves are not on disk does not match them, and that chunk is
// built again. A leaf set again during 1 makes its chunk's entry stale, which
// is the same case, until the next Checkpoint.
func (b *Builder) Checkpoint(ctx context.Context) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if b.over != nil {
		return b.over
	}
	return b.checkpoint(ctx)
}

func (b *Builder) checkpoint(ctx context.Context) error {
	if b.o.Temporary || b.sealed {
		return nil // nothing to resume, or nothing left to set
	}
	b.saving.Lock()
	defer b.saving.Unlock()
	if !b.tabled {
		if err := b.st.m.Truncate(b.st.lay.progressEnd(b.chunkCount())); err != nil {
			return fmt.Errorf("make progress table: %w", err)
		}
		b.tabled = true
	}
	buf := make([]Hash, chunkLeaves)
	for c := range b.chunkCount() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.saveChunk(c, buf); err != nil {
			return fmt.Errorf("write progress: %w", err)
		}
	}
	if err := errors.Join(b.st.m.Sync(), b.o.disk.syncDir(b.st.path)); err != nil {
		return fmt.Errorf("sync %s: %w", b.st.path, err)
	}
	return nil
}

// saveChunk writes the table's entry of a chunk that is whole and not yet saved.
func (b *Builder) saveChunk(c int64, buf []Hash) error {
	lock := &b.locks[c%int64(len(b.locks))]
	lock.Lock()
	defer lock.Unlock()
	ch := &b.chunks[c]
	if ch.saved || int64(ch.set) != b.chunkRange(c).Len() {
		return nil
	}
	stored, err := b.storedChunk(c, buf)
	if err != nil {
		return err
	}
	var entry [progressEntry]byte
	binary.LittleEndian.PutUint64(entry[:], chunkSum(c, stored))
	if _, err := b.st.m.WriteAt(entry[:], b.st.lay.progressOff()+c*progressEntry); err != nil {
		return err
	}
	ch.saved = true
	return nil
}

// takeUp goes on with the file as an earlier Builder left it. It returns false
// if there is nothing in it that this build can use.
//
// State complete means that a crash hit Seal after its header was durable: then
// only what follows there is left to do. Else each chunk whose leaves match its
// entry is taken, and everything else is made zero, the upper levels too: so a
// leaf that is not set is a zero on disk, as it is in a new file.
func (b *Builder) takeUp() (bool, error) {
	hdr, err := readHeader(b.st.path, b.st.m)
	if errors.Is(err, ErrNotTree) || errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) {
		return false, nil // new, or torn in its first write
	}
	if err != nil {
		return false, err
	}
	if hdr.shape != b.st.shape || hdr.identity != b.o.Identity || hdr.epoch != b.o.Epoch {
		return false, nil
	}
	size, err := b.st.m.size()
	if err != nil {
		return false, fmt.Errorf("size of %s: %w", b.st.path, err)
	}
	end := b.st.lay.progressEnd(b.chunkCount())
	switch {
	case hdr.state == stateComplete && (size == end || size == b.st.lay.size):
		b.sealed, b.tabled = true, size == end
		for c := range b.chunks {
			b.chunks[c].set = int32(b.chunkRange(int64(c)).Len())
		}
		return true, nil
	case hdr.state != stateBuilding || size != end:
		return false, nil // no checkpoint was made, or other than ours
	}
	b.tabled = true
	return true, b.takeChunks()
}

// takeChunks takes the chunks that match the table and wipes the rest.
func (b *Builder) takeChunks() error {
	if err := b.wipeUpper(); err != nil {
		return err
	}
	buf, table := make([]Hash, chunkLeaves), make([]byte, 512*progressEntry)
	for c := range b.chunkCount() {
		slot := c % 512 * progressEntry
		if slot == 0 {
			n := min(512, b.chunkCount()-c) * progressEntry
			if err := readFull(b.st.m, table[:n], b.st.lay.progressOff()+c*progressEntry); err != nil {
				return fmt.Errorf("read progress of %s: %w", b.st.path, err)
			}
		}
		if err := b.takeChunk(c, binary.LittleEndian.Uint64(table[slot:]), buf); err != nil {
			return err
		}
	}
	return nil
}

// wipeUpper makes all levels above the leaves zero.
func (b *Builder) wipeUpper() error {
	if err := b.st.m.zero(headerSize, b.st.lay.off[0]-headerSize); err != nil {
		return fmt.Errorf("clear upper levels of %s: %w", b.st.path, err)
	}
	return nil
}

func (b *Builder) takeChunk(c int64, sum uint64, buf []Hash) error {
	r := b.chunkRange(c)
	if sum != 0 {
		stored, err := b.storedChunk(c, buf)
		if err != nil {
			return err
		}
		if chunkSum(c, stored) == sum {
			b.chunks[c].set, b.chunks[c].saved = int32(r.Len()), true
			return nil
		}
	}
	if err := b.st.m.zero(b.st.lay.place(0, r.First), r.Len()*HashSize); err != nil {
		return fmt.Errorf("clear leaves %v of %s: %w", r, b.st.path, err)
	}
	return nil
}
