package failback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/s2"

	"github.com/failback/failback/cbt"
)

// An undoIndex is what a walk over an undo file's records finds. It keeps 8
// bytes for each record, which stands for up to 1 MiB of the target.
type undoIndex struct {
	r       io.ReaderAt
	h       *undoHeader
	at      []int64 // of data and zero records, in order
	gaps    []string
	gapAt   []int64 // where they are
	whole   bool    // the end record is there: the session was finished
	end     int64   // where the next record would begin
	nextSeq uint64  // its number
	torn    int64   // bytes behind end that a crash left
	count   uint64
	bytes   int64 // of the target that the records stand for, what is there twice twice
	durable int64 // all before it was durable, by what the records say
}

// maxUndoRecords bounds an index at 512 MiB. It is reached at some 60 TiB of
// saved content.
const maxUndoRecords = 1 << 26

// indexUndo walks a file of the given size. Every record's own checksums are
// looked at; bodies only where a crash may have torn them. Cost: 72 bytes and
// the span table read for each record.
func indexUndo(r io.ReaderAt, size int64) (*undoIndex, error) {
	b := make([]byte, min(size, undoHeaderBytes))
	if err := readAtFull(r, b, 0); err != nil {
		return nil, err
	}
	h, err := parseUndoHeader(b)
	if err != nil {
		return nil, err
	}
	x := &undoIndex{r: r, h: h, end: undoHeaderBytes, durable: undoHeaderBytes}
	rec := undoRecord{}
	for x.end < size && !x.whole {
		ok, err := x.record(&rec, x.end, size)
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		err = x.take(&rec)
		if errors.Is(err, errUndoBody) {
			break // if it was durable, a later one knows
		}
		if err != nil {
			return nil, err
		}
	}
	return x, x.tail(size)
}

// take adds a record to the index.
func (x *undoIndex) take(r *undoRecord) error {
	switch r.kind {
	case undoData, undoZero:
		if len(x.at) == maxUndoRecords {
			return undoCorrupt(r.at, "more than %d records", maxUndoRecords)
		}
		x.at = append(x.at, r.at)
		x.count++
		for _, s := range r.spans {
			if s.Len() > math.MaxInt64-x.bytes {
				return undoCorrupt(r.at, "more bytes than can be counted")
			}
			x.bytes += s.Len()
		}
	case undoGap:
		why, err := x.body(r, nil)
		if err != nil {
			return err
		}
		x.gaps = append(x.gaps, cleanText(string(why)))
		x.gapAt = append(x.gapAt, r.at)
	case undoEnd:
		if err := x.endRecord(r); err != nil {
			return err
		}
		// The next session that goes on with the file begins here.
		x.whole = true
		x.durable = max(x.durable, r.durable)
		return nil
	}
	x.durable = max(x.durable, r.durable)
	x.end, x.nextSeq = r.end(), x.nextSeq+1
	return nil
}

func (x *undoIndex) endRecord(r *undoRecord) error {
	b, err := x.body(r, nil)
	if err != nil {
		return err
	}
	if want := undoEndBody(x.count, uint64(x.bytes)); !bytes.Equal(b, want) {
		return undoCorrupt(r.bodyAt(), "its end speaks of %d records, there are %d", binary.LittleEndian.Uint64(b), x.count)
	}
	if r.durable != r.at {
		return undoCorrupt(r.at+24, "an end before which not all was durable")
	}
	return nil
}

func undoEndBody(count, stands uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, count)
	b = binary.LittleEndian.AppendUint64(b, stands)
	return binary.LittleEndian.AppendUint64(b, 1)
}

// record reads the head and the span table of the record at offset at. It is not
// ok where none was written, or not all of it, as a crash leaves it.
func (x *undoIndex) record(r *undoRecord, at, size int64) (bool, error) {
	var fixed [undoRecordBytes]byte
	if at+undoRecordBytes > size {
		return false, nil
	}
	if err := readAtFull(x.r, fixed[:], at); err != nil {
		return false, err
	}
	spans := r.spans
	got, ok := parseUndoRecord(fixed[:], at, &x.h.key)
	if !ok {
		return false, nil
	}
	*r = got
	r.spans = spans
	if err := r.check(x.nextSeq); err != nil {
		return false, err
	}
	if r.end() > size {
		return false, nil
	}
	table := make([]byte, r.tableBytes())
	if err := readAtFull(x.r, table, at+undoRecordBytes); err != nil {
		return false, err
	}
	if xxhash.Sum64(table) != r.tableSum {
		return false, nil
	}
	return true, r.parseSpans(table, x.h)
}

// tail decides about what lies behind the last record that was read, and about
// the bodies that may not have become durable. What is known to have been
// durable was overwritten at the target: if that is not whole, it is damage. What
// is not known to have been is what a crash left, and was not overwritten.
func (x *undoIndex) tail(size int64) error {
	if x.end < x.durable {
		return undoCorrupt(x.end, "no whole record, where there was one that was durable")
	}
	if x.whole {
		return x.closed(size)
	}
	room := getBuf(maxUndoRaw)
	defer room.put()
	behind := int64(0) // bytes that records from i on stand for
	for i := len(x.at) - 1; i >= 0 && x.at[i] >= x.durable; i-- {
		r, err := x.reread(x.at[i], size)
		if err != nil {
			return err
		}
		behind += cbt.Total(r.spans)
		_, err = x.body(r, room.b)
		switch {
		case errors.Is(err, errUndoBody):
			x.cutAt(i, r, behind)
			behind = 0
		case err != nil:
			return err // no crash makes that
		}
	}
	x.torn = size - x.end
	return x.stray(size)
}

// closed holds a file with an end record to having nothing behind it but what an
// earlier, longer one can have left.
func (x *undoIndex) closed(size int64) error {
	r := undoRecord{}
	if ok, err := x.record(&r, x.end, size); err != nil || !ok || r.kind != undoEnd {
		return errors.Join(err, undoCorrupt(x.end, "its end cannot be read again"))
	}
	if r.end() != size {
		return undoCorrupt(r.end(), "%d bytes behind its end", size-r.end())
	}
	return nil
}

// cutAt takes record i and all behind it, which stand for so many bytes, for torn.
// A gap among them was not durable, so nothing was overwritten after it.
func (x *undoIndex) cutAt(i int, r *undoRecord, bytes int64) {
	x.at, x.end, x.nextSeq = x.at[:i], r.at, r.seq
	x.count, x.bytes = uint64(i), x.bytes-bytes
	for n := len(x.gaps); n > 0 && x.gapAt[n-1] > r.at; n-- {
		x.gaps, x.gapAt = x.gaps[:n-1], x.gapAt[:n-1]
	}
}

// stray looks for a record behind the torn place that knows it to have been durable.
func (x *undoIndex) stray(size int64) error {
	const step = 1 << 20
	b := make([]byte, min(step+undoRecordBytes, size-x.end))
	for at := x.end; at < size; at += step {
		n := int(min(int64(len(b)), size-at))
		if err := readAtFull(x.r, b[:n], at); err != nil {
			return err
		}
		for i := 0; ; i++ {
			j := bytes.Index(b[i:n], []byte(undoRecordMagic))
			if j < 0 {
				break
			}
			i += j
			if r, ok := parseUndoRecord(b[i:n], at+int64(i), &x.h.key); ok && r.durable > x.end {
				return undoCorrupt(x.end, "no whole record, though the one at %#x knows it to have been durable", r.at)
			}
		}
	}
	return nil
}

// reread reads the head of a record that was read before.
func (x *undoIndex) reread(at, size int64) (*undoRecord, error) {
	var fixed [undoRecordBytes]byte
	if err := readAtFull(x.r, fixed[:], at); err != nil {
		return nil, err
	}
	r, ok := parseUndoRecord(fixed[:], at, &x.h.key)
	if !ok {
		return nil, undoCorrupt(at, "a record that was whole is not any more")
	}
	if err := r.check(r.seq); err != nil {
		return nil, err
	}
	table := make([]byte, r.tableBytes())
	if err := readAtFull(x.r, table, at+undoRecordBytes); err != nil {
		return nil, err
	}
	if xxhash.Sum64(table) != r.tableSum || r.end() > size {
		return nil, undoCorrupt(at, "a record that was whole is not any more")
	}
	return &r, r.parseSpans(table, x.h)
}

// body returns what a record holds, in room if that is compressed; room has
// maxUndoRaw bytes. A zero record has none.
func (x *undoIndex) body(r *undoRecord, room []byte) ([]byte, error) {
	stored := make([]byte, r.stored)
	if err := readAtFull(x.r, stored, r.bodyAt()); err != nil {
		return nil, err
	}
	if xxhash.Sum64(stored) != r.body {
		return nil, undoFault{r.bodyAt(), errUndoBody}
	}
	if r.codec == undoPlain {
		return stored, nil
	}
	// The length first: what a forged block claims is never made room for.
	if n, err := s2.DecodedLen(stored); err != nil || n != r.raw {
		return nil, undoCorrupt(r.bodyAt(), "content does not decompress to %d bytes", r.raw)
	}
	b, err := s2.Decode(room[:r.raw], stored)
	if err != nil || len(b) != r.raw {
		return nil, undoCorrupt(r.bodyAt(), "content does not decompress to %d bytes", r.raw)
	}
	return b, nil
}

// each calls f with every record and its content, in order: of two that overlap
// the first counts. A zero record's content is nil.
func (x *undoIndex) each(f func(r *undoRecord, content []byte) error) error {
	room := getBuf(maxUndoRaw)
	defer room.put()
	for _, at := range x.at {
		r, err := x.reread(at, math.MaxInt64)
		if err != nil {
			return err
		}
		var content []byte
		if r.kind == undoData {
			if content, err = x.body(r, room.b); err != nil {
				return err
			}
		}
		if err := f(r, content); err != nil {
			return err
		}
	}
	return nil
}

// spans calls f with the spans of every record, without reading contents.
func (x *undoIndex) spans(f func([]cbt.Extent)) error {
	for _, at := range x.at {
		r, err := x.reread(at, math.MaxInt64)
		if err != nil {
			return err
		}
		f(r.spans)
	}
	return nil
}

// readAtFull fills b; an end is an error.
func readAtFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d of %d bytes at %#x: %w", n, len(b), off, err)
}

// cleanText leaves no control characters in a text from a file.
func cleanText(s string) string {
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, bytes.ToValidUTF8([]byte(s), []byte("?"))))
}
