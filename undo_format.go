package failback

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/cbt"
)

// Undo file, version 1, little endian. Numbers are on disk: append only.
// docs/format-undo.md says the same in more words, with an example.
//
//	header, 2048 bytes
//	off size field
//	  0    8 magic     89 46 42 55 0d 0a 1a 0a (0x89 "FBU" CR LF SUB LF)
//	  8    4 version   1
//	 12    4 flags     bit 0: best effort, there may be gaps; bit 1: the target was
//	                   inconsistent already
//	 16    8 size      of the target, bytes, a multiple of 512
//	 24    4 block     bytes, power of two, 4096 to 1048576
//	 28    4 lengths   of the names that follow, a byte each
//	 32   16 session
//	 48   16 key       random; makes the checksums of this file its own
//	 64    8 made      seconds since 1970
//	 72    8 source    size of the source, bytes
//	 80    8 sum       xxhash64 of bytes 0 to 79 and 88 to 2047
//	 88      names     of the target its identity and its name, of the source its
//	                   identity and its name; then zeroes
//	2032 16 before     the session that had left the target inconsistent (flag
//	                   bit 1); zeroes if there was none, or it is not known
//
//	record, repeated up to the end of the file
//	  0    8 magic     b5 75 6e 64 6f 0d 0a 1a (0xb5 "undo" CR LF SUB)
//	  8    2 kind      1 data, 2 zero, 3 gap, 4 end
//	 10    2 codec     0 as it is, 3 S2 block
//	 12    4 spans     how many, at most 2048
//	 16    8 at        offset of this record in the file
//	 24    8 durable   all of the file before this offset was durable before
//	                   the record was written
//	 32    8 seq       number of this record, from 0
//	 40    4 raw       bytes of the body before compression, at most 1048576
//	 44    4 stored    bytes of the body
//	 48    8 table     xxhash64 of the span table
//	 56    8 body      xxhash64 of the body
//	 64    8 sum       xxhash64 of the key and bytes 0 to 63
//	 72      span table: for each its offset and length in the target, 8 bytes
//	         each; sorted, disjoint, whole blocks (the last of the volume may be
//	         short)
//	         body
//
// The body of a data record is what the spans held, one after the other. A zero
// record has no body. A gap's body says why, in words. An end's is 24 bytes:
// how many data and zero records lie before it, how many bytes of the target
// they stand for, and 1 if the session was finished, else 0.
const (
	undoMagic        = "\x89FBU\r\n\x1a\n"
	undoVersion      = 1
	undoHeaderBytes  = 2048
	undoSumOffset    = 80
	undoNamesOffset  = 88
	undoBeforeOffset = 2032
	maxUndoName      = 255

	undoRecordMagic = "\xb5undo\r\n\x1a"
	undoRecordBytes = 72
	undoSpanBytes   = 16
	maxUndoSpans    = 2048
	maxUndoRaw      = 1 << 20 // bytes of a record before compression
	maxUndoReason   = 512     // bytes of a gap's reason
	undoEndBytes    = 24

	undoFlagBestEffort   = 1
	undoFlagInconsistent = 2
)

type undoKind uint16

const (
	undoData undoKind = 1
	undoZero undoKind = 2
	undoGap  undoKind = 3
	undoEnd  undoKind = 4
)

// undoCodec is how a record's body is compressed.
type undoCodec uint16

const (
	undoPlain undoCodec = 0
	undoS2    undoCodec = 3 // a block of github.com/klauspost/compress/s2; states its decoded length
)

// undoVolume is one of the two volumes of the session that made an undo file.
type undoVolume struct {
	Size           int64  // bytes
	Identity, Name string // at most maxUndoName bytes each
}

// undoHeader is what an undo file says of itself.
type undoHeader struct {
	block          int64 // bytes
	target, source undoVolume
	session, key   [16]byte
	made           int64 // seconds since 1970
	bestEffort     bool
	inconsistent   bool     // the target held what another interrupted sync had left
	before         [16]byte // the session of that one; zeroes: not known
}

// encode makes the header block.
func (h *undoHeader) encode() []byte {
	b := make([]byte, undoHeaderBytes)
	le := binary.LittleEndian
	copy(b, undoMagic)
	le.PutUint32(b[8:], undoVersion)
	flags := uint32(0)
	if h.bestEffort {
		flags |= undoFlagBestEffort
	}
	if h.inconsistent {
		flags |= undoFlagInconsistent
	}
	le.PutUint32(b[12:], flags)
	le.PutUint64(b[16:], uint64(h.target.Size))
	le.PutUint32(b[24:], uint32(h.block))
	copy(b[32:], h.session[:])
	copy(b[48:], h.key[:])
	le.PutUint64(b[64:], uint64(h.made))
	le.PutUint64(b[72:], uint64(h.source.Size))
	at := undoNamesOffset
	for i, name := range []string{h.target.Identity, h.target.Name, h.source.Identity, h.source.Name} {
		b[28+i] = byte(len(name))
		at += copy(b[at:], name)
	}
	copy(b[undoBeforeOffset:], h.before[:])
	le.PutUint64(b[undoSumOffset:], undoHeaderSum(b))
	return b
}

func undoHeaderSum(b []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(b[:undoSumOffset]) // a Digest never returns an error
	_, _ = d.Write(b[undoNamesOffset:undoHeaderBytes])
	return d.Sum64()
}

// parseUndoHeader reads what the file begins with; b is shorter than a header
// only if the file is. Errors are undoFault: magic, version, checksum, fields.
func parseUndoHeader(b []byte) (*undoHeader, error) {
	le := binary.LittleEndian
	if n := min(len(b), len(undoMagic)); string(b[:n]) != undoMagic[:n] {
		return nil, undoFault{0, errNotUndo}
	}
	if len(b) < 12 {
		return nil, undoCut(int64(len(b)), "header")
	}
	if v := le.Uint32(b[8:]); v != undoVersion {
		return nil, undoFault{8, fmt.Errorf("%w: version %d, this build reads %d", errUndoVersion, v, undoVersion)}
	}
	if len(b) < undoHeaderBytes {
		return nil, undoCut(int64(len(b)), "header")
	}
	if got, want := undoHeaderSum(b), le.Uint64(b[undoSumOffset:]); got != want {
		return nil, undoCorrupt(0, "header checksum is %#018x, its bytes give %#018x", want, got)
	}
	return parseUndoFields(b)
}

// parseUndoFields reads a header whose checksum is right.
func parseUndoFields(b []byte) (*undoHeader, error) {
	le := binary.LittleEndian
	flags := le.Uint32(b[12:])
	size := int64(le.Uint64(b[16:]))
	h := &undoHeader{
		block: int64(le.Uint32(b[24:])), session: [16]byte(b[32:]), key: [16]byte(b[48:]),
		made: int64(le.Uint64(b[64:])), bestEffort: flags&undoFlagBestEffort != 0,
		inconsistent: flags&undoFlagInconsistent != 0, before: [16]byte(b[undoBeforeOffset:]),
	}
	names := b[undoNamesOffset:undoBeforeOffset]
	take := func(i int) string {
		n := int(b[28+i])
		name := string(names[:n])
		names = names[n:]
		return name
	}
	h.target = undoVolume{size, take(0), take(1)}
	h.source = undoVolume{int64(le.Uint64(b[72:])), take(2), take(3)}
	switch {
	case flags&^(undoFlagBestEffort|undoFlagInconsistent) != 0:
		return nil, undoCorrupt(12, "unknown flags %#x", flags)
	case size <= 0 || size%sectorSize != 0 || size > cbt.MaxBlocks*cbt.MaxBlock:
		return nil, undoCorrupt(16, "a target of %d bytes", size)
	case h.block < cbt.MinBlock || h.block > cbt.MaxBlock || h.block&(h.block-1) != 0 || (size-1)/h.block >= cbt.MaxBlocks:
		return nil, undoCorrupt(24, "blocks of %d bytes for a target of %d", h.block, size)
	case h.source.Size < 0:
		return nil, undoCorrupt(72, "a source of %d bytes", h.source.Size)
	case !allZero(names):
		return nil, undoCorrupt(int64(undoBeforeOffset-len(names)), "reserved bytes are not zero")
	case !h.inconsistent && h.before != [16]byte{}:
		return nil, undoCorrupt(undoBeforeOffset, "a session that left the target inconsistent, which it was not")
	}
	return h, nil
}

// time is when the file was made.
func (h *undoHeader) time() time.Time { return time.Unix(h.made, 0).UTC() }

// undoRecord is a record without its body.
type undoRecord struct {
	kind           undoKind
	codec          undoCodec
	at, durable    int64 // offsets in the file
	seq            uint64
	raw, stored    int // bytes
	tableSum, body uint64
	spans          []cbt.Extent
	spanCount      int
}

// tableBytes is the length of the span table.
func (r *undoRecord) tableBytes() int { return undoSpanBytes * r.spanCount }

// bodyAt is where the body begins in the file.
func (r *undoRecord) bodyAt() int64 { return r.at + undoRecordBytes + int64(r.tableBytes()) }

// end is where the next record begins.
func (r *undoRecord) end() int64 { return r.bodyAt() + int64(r.stored) }

// appendHead adds the record up to its body. spans, kind, codec, at, durable,
// seq, raw, stored and body are set; spanCount and tableSum are filled in.
func (r *undoRecord) appendHead(b []byte, key *[16]byte) []byte {
	le := binary.LittleEndian
	start := len(b)
	b = append(b, make([]byte, undoRecordBytes)...)
	for _, x := range r.spans {
		b = le.AppendUint64(b, uint64(x.Off))
		b = le.AppendUint64(b, uint64(x.Len()))
	}
	r.spanCount = len(r.spans)
	r.tableSum = xxhash.Sum64(b[start+undoRecordBytes:])
	f := b[start:]
	copy(f, undoRecordMagic)
	le.PutUint16(f[8:], uint16(r.kind))
	le.PutUint16(f[10:], uint16(r.codec))
	le.PutUint32(f[12:], uint32(r.spanCount))
	le.PutUint64(f[16:], uint64(r.at))
	le.PutUint64(f[24:], uint64(r.durable))
	le.PutUint64(f[32:], r.seq)
	le.PutUint32(f[40:], uint32(r.raw))
	le.PutUint32(f[44:], uint32(r.stored))
	le.PutUint64(f[48:], r.tableSum)
	le.PutUint64(f[56:], r.body)
	le.PutUint64(f[64:], undoRecordSum(f, key))
	return b
}

func undoRecordSum(b []byte, key *[16]byte) uint64 {
	var x [16 + 64]byte
	copy(x[:], key[:])
	copy(x[16:], b[:64])
	return xxhash.Sum64(x[:])
}

// parseUndoRecord reads the fixed part of the record at offset at. ok is false
// where no record was written there or not all of it: only the magic, the place
// and the checksum decide, so that a crash can be told from a fault.
func parseUndoRecord(b []byte, at int64, key *[16]byte) (r undoRecord, ok bool) {
	le := binary.LittleEndian
	if len(b) < undoRecordBytes || string(b[:8]) != undoRecordMagic || int64(le.Uint64(b[16:])) != at ||
		le.Uint64(b[64:]) != undoRecordSum(b, key) {
		return r, false
	}
	r = undoRecord{
		kind: undoKind(le.Uint16(b[8:])), at: at, durable: int64(le.Uint64(b[24:])), seq: le.Uint64(b[32:]),
		tableSum: le.Uint64(b[48:]), body: le.Uint64(b[56:]),
	}
	// Numbers that do not fit are made such as check refuses.
	r.codec = undoCodec(le.Uint16(b[10:]))
	r.spanCount = int(min(le.Uint32(b[12:]), maxUndoSpans+1))
	r.raw = int(min(le.Uint32(b[40:]), maxUndoRaw+1))
	r.stored = int(min(le.Uint32(b[44:]), maxUndoRaw+1))
	return r, true
}

// check refuses a fixed part that no writer makes. Everything that is allocated
// for a record is bounded here.
func (r *undoRecord) check(seq uint64) error {
	switch {
	case r.seq != seq:
		return undoCorrupt(r.at+32, "record %d where %d belongs", r.seq, seq)
	case r.durable < undoHeaderBytes || r.durable > r.at:
		return undoCorrupt(r.at+24, "durable up to %#x, told by the record at %#x", r.durable, r.at)
	case r.spanCount > maxUndoSpans:
		return undoCorrupt(r.at+12, "more than %d spans", maxUndoSpans)
	case r.raw > maxUndoRaw || r.stored > r.raw:
		return undoCorrupt(r.at+40, "%d bytes stored for %d, limit %d", r.stored, r.raw, maxUndoRaw)
	case r.codec != undoPlain && r.codec != undoS2 || r.codec == undoPlain && r.stored != r.raw || r.codec != undoPlain && r.kind != undoData:
		return undoCorrupt(r.at+10, "%d bytes stored for %d with codec %d", r.stored, r.raw, r.codec)
	}
	fits := false
	switch r.kind {
	case undoData:
		fits = r.spanCount > 0 && r.stored > 0
	case undoZero:
		fits = r.spanCount > 0 && r.raw == 0
	case undoGap:
		fits = r.raw <= maxUndoReason
	case undoEnd:
		fits = r.spanCount == 0 && r.raw == undoEndBytes
	default:
		return undoCorrupt(r.at+8, "unknown kind %d", r.kind)
	}
	if !fits {
		return undoCorrupt(r.at+8, "%d spans and %d bytes in a record of kind %d", r.spanCount, r.raw, r.kind)
	}
	return nil
}

// parseSpans reads the span table, whose checksum is right, into r.spans.
func (r *undoRecord) parseSpans(b []byte, h *undoHeader) error {
	le := binary.LittleEndian
	r.spans = r.spans[:0]
	total, last := int64(0), int64(0)
	for i := range r.spanCount {
		off, n := le.Uint64(b[undoSpanBytes*i:]), le.Uint64(b[undoSpanBytes*i+8:])
		if off >= uint64(h.target.Size) || n == 0 || n > uint64(h.target.Size)-off {
			return undoCorrupt(r.at+undoRecordBytes+int64(undoSpanBytes*i), "%d bytes at %#x of a target of %d", n, off, h.target.Size)
		}
		x := cbt.Extent{Off: int64(off), End: int64(off + n)}
		if x.Off < last || x.Off%h.block != 0 || x.End%h.block != 0 && x.End != h.target.Size {
			return undoCorrupt(r.at+undoRecordBytes+int64(undoSpanBytes*i), "%v is out of order, or not of whole blocks of %d bytes", x, h.block)
		}
		last = x.End
		total += x.Len()
		r.spans = append(r.spans, x)
	}
	if r.kind == undoData && total != int64(r.raw) {
		return undoCorrupt(r.at+40, "%d bytes for spans of %d", r.raw, total)
	}
	return nil
}
