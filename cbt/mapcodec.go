package cbt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"
)

// Map file, version 1, little endian. Numbers are on disk: append only.
// docs/format-map.md says the same in more words, with an example.
//
//	header, 64 bytes
//	off size field
//	  0    8 magic     89 46 42 4d 0d 0a 1a 0a (0x89 "FBM" CR LF SUB LF)
//	  8    4 version   1
//	 12    2 identity  length of the identity, 0 to 255
//	 14    2 zero
//	 16    8 volume    size in bytes, at least 1
//	 24    4 block     size in bytes, power of two, 4096 to 1048576
//	 28    4 runs      how many follow, 0 to 8388608
//	 32    8 epoch
//	 40   16 zero
//	 56    8 sum       xxhash64 of bytes 0 to 55 and the identity
//
//	identity, as many bytes as the header says
//
//	chunk, repeated until all runs are read
//	  0    4 n         length of the body, 2 to 65536
//	  4    n body      whole runs
//	4+n    8 sum       xxhash64 of the sum before this one, n and the body
//
//	end of file
//
// A run is two unsigned varints, as short as they can be:
//
//	gap    blocks between the end of the run before, or 0, and this run
//	length (blocks - 1) * 2, plus 1 when the run is discarded
//
// One map has one file: adjacent runs of one state are one run, and a chunk
// ends only where the next run would take its body past 65536 bytes.
const (
	mapMagic      = "\x89FBM\r\n\x1a\n"
	mapVersion    = 1
	mapHeaderSize = 64
	mapSumOffset  = 56
	maxChunk      = 64 << 10 // bytes of a body
	minChunk      = 2        // bytes of the shortest run
)

var (
	// ErrNotMap says that the magic is not there: it is another kind of file.
	ErrNotMap = errors.New("not a dirty map")
	// ErrVersion says that the file is of a format this build does not read.
	ErrVersion = errors.New("dirty map version not supported")
	// ErrCorrupt says that the file is not as it was written. When its end is
	// missing, the error is also [io.ErrUnexpectedEOF].
	ErrCorrupt = errors.New("corrupt dirty map")
)

// MapError says where in a map file something is wrong. Err is or wraps
// [ErrNotMap], [ErrVersion], [ErrCorrupt] or the error of the reader.
type MapError struct {
	Off int64 // of the first byte of the field in question
	Err error
}

// Error returns "at 0x40: " and what is wrong there.
func (e *MapError) Error() string { return fmt.Sprintf("at %#x: %v", e.Off, e.Err) }

// Unwrap returns e.Err.
func (e *MapError) Unwrap() error { return e.Err }

// corrupt returns what is wrong with the field at off.
func corrupt(off int64, format string, args ...any) error {
	return &MapError{off, fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)}
}

// WriteTo writes m as a map file and returns the number of bytes written. It
// refuses a map whose fields were changed to what no file may hold.
func (m *Map) WriteTo(w io.Writer) (int64, error) {
	if err := m.check(); err != nil {
		return 0, fmt.Errorf("write dirty map: %w", err)
	}
	e := encoder{w: w}
	e.header(m)
	var next int64
	var buf [2 * binary.MaxVarintLen64]byte
	for r := range m.blockRuns() {
		e.run(appendRun(buf[:0], r, next))
		next = r.end
	}
	e.flush()
	if e.err != nil {
		return e.n, fmt.Errorf("write dirty map: %w", e.err)
	}
	return e.n, nil
}

// appendRun appends the two varints of r; the run before ended at next.
func appendRun(b []byte, r blockRun, next int64) []byte {
	length := uint64(r.end-r.first-1) << 1
	if r.state == Discarded {
		length |= 1
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.first-next)), length)
}

// encoder writes a map file piece by piece; after an error it does nothing.
type encoder struct {
	w    io.Writer
	n    int64
	sum  uint64 // the last one written
	body []byte // of the open chunk
	err  error
}

func (e *encoder) write(b []byte) {
	if e.err != nil {
		return
	}
	n, err := e.w.Write(b)
	e.n, e.err = e.n+int64(n), err
}

func (e *encoder) header(m *Map) {
	b := make([]byte, mapHeaderSize, mapHeaderSize+MaxIdentity)
	copy(b, mapMagic)
	binary.LittleEndian.PutUint32(b[8:], mapVersion)
	binary.LittleEndian.PutUint16(b[12:], uint16(len(m.Identity)))
	binary.LittleEndian.PutUint64(b[16:], uint64(m.VolumeSize))
	binary.LittleEndian.PutUint32(b[24:], uint32(m.BlockSize))
	binary.LittleEndian.PutUint32(b[28:], uint32(len(m.runs)))
	binary.LittleEndian.PutUint64(b[32:], uint64(m.Epoch))
	b = append(b, m.Identity...)
	e.sum = headerSum(b)
	binary.LittleEndian.PutUint64(b[mapSumOffset:], e.sum)
	e.write(b)
}

// headerSum returns the checksum of a header and the identity behind it.
func headerSum(b []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	d.Write(b[:mapSumOffset]) // a Digest never returns an error
	d.Write(b[mapHeaderSize:])
	return d.Sum64()
}

func (e *encoder) run(b []byte) {
	if len(e.body)+len(b) > maxChunk {
		e.flush()
	}
	e.body = append(e.body, b...)
}

func (e *encoder) flush() {
	if len(e.body) == 0 {
		return
	}
	e.sum = chunkSum(e.sum, e.body)
	e.write(binary.LittleEndian.AppendUint32(nil, uint32(len(e.body))))
	e.write(e.body)
	e.write(binary.LittleEndian.AppendUint64(nil, e.sum))
	e.body = e.body[:0]
}

// chunkSum chains a chunk to what lies before it: a chunk of another file or
// from another place does not fit.
func chunkSum(before uint64, body []byte) uint64 {
	var head [12]byte
	binary.LittleEndian.PutUint64(head[:], before)
	binary.LittleEndian.PutUint32(head[8:], uint32(len(body)))
	var d xxhash.Digest
	d.Reset()
	d.Write(head[:]) // a Digest never returns an error
	d.Write(body)
	return d.Sum64()
}

// ReadMap reads one map file up to the end of r. Every error is a [MapError]
// and no map is returned with it. It accepts exactly the bytes that
// [Map.WriteTo] makes. Memory: 64 KiB, and at most 16 bytes a run read so far.
func ReadMap(r io.Reader) (*Map, error) {
	d := decoder{r: bufio.NewReaderSize(r, 4<<10)}
	m, runs, err := d.header()
	if err != nil {
		return nil, err
	}
	d.end = blocks(m.VolumeSize, m.BlockSize)
	for runs > len(d.runs) {
		if err := d.chunk(runs); err != nil {
			return nil, err
		}
	}
	if _, err := d.r.ReadByte(); err == nil {
		return nil, corrupt(d.off, "bytes after the last run")
	} else if err != io.EOF {
		return nil, &MapError{d.off, err}
	}
	m.runs = d.runs
	return m, nil
}

// decoder reads a map file. off is the file offset of the next byte.
type decoder struct {
	r     *bufio.Reader
	off   int64
	sum   uint64 // the last one read
	body  []byte
	prior int // length of the body before, 0 for the first
	runs  []packedRun
	last  blockRun // the last of runs
	end   int64    // blocks of the volume
}

// full fills b, the field of the given name.
func (d *decoder) full(b []byte, name string) error {
	n, err := io.ReadFull(d.r, b)
	at := d.off
	d.off += int64(n)
	switch err {
	case nil:
		return nil
	case io.EOF, io.ErrUnexpectedEOF:
		return &MapError{at, fmt.Errorf("%w: file ends at %#x inside the %s: %w", ErrCorrupt, d.off, name, io.ErrUnexpectedEOF)}
	}
	return &MapError{d.off, fmt.Errorf("read %s: %w", name, err)}
}

// header reads the header and the identity. It returns the map they describe,
// without runs, and how many there are to be.
func (d *decoder) header() (*Map, int, error) {
	b := make([]byte, mapHeaderSize, mapHeaderSize+MaxIdentity)
	n, err := io.ReadFull(d.r, b[:len(mapMagic)])
	if string(b[:n]) != mapMagic[:n] {
		return nil, 0, &MapError{0, ErrNotMap}
	}
	d.off = int64(n)
	if err == nil {
		err = d.full(b[n:12], "header")
	} else if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = &MapError{0, fmt.Errorf("%w: file ends at %#x inside the magic: %w", ErrCorrupt, n, io.ErrUnexpectedEOF)}
	} else {
		err = &MapError{d.off, fmt.Errorf("read magic: %w", err)}
	}
	if err != nil {
		return nil, 0, err
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != mapVersion {
		return nil, 0, &MapError{8, fmt.Errorf("%w: version %d, this build reads %d", ErrVersion, v, mapVersion)}
	}
	if err := d.full(b[12:], "header"); err != nil {
		return nil, 0, err
	}
	identity := int(binary.LittleEndian.Uint16(b[12:]))
	if identity > MaxIdentity {
		return nil, 0, corrupt(12, "identity of %d bytes, limit %d", identity, MaxIdentity)
	}
	b = b[:mapHeaderSize+identity]
	if err := d.full(b[mapHeaderSize:], "identity"); err != nil {
		return nil, 0, err
	}
	d.sum = binary.LittleEndian.Uint64(b[mapSumOffset:])
	if sum := headerSum(b); sum != d.sum {
		return nil, 0, corrupt(0, "header checksum is %#018x, its bytes give %#018x", d.sum, sum)
	}
	return parseHeader(b)
}

// parseHeader reads the fields of a header whose checksum is right.
func parseHeader(b []byte) (*Map, int, error) {
	if b[14]|b[15] != 0 {
		return nil, 0, corrupt(14, "reserved bytes are not zero")
	}
	if string(b[40:mapSumOffset]) != string(make([]byte, mapSumOffset-40)) {
		return nil, 0, corrupt(40, "reserved bytes are not zero")
	}
	m := &Map{
		VolumeSize: int64(binary.LittleEndian.Uint64(b[16:])), // negative is refused below
		BlockSize:  int64(binary.LittleEndian.Uint32(b[24:])),
		Identity:   string(b[mapHeaderSize:]),
		Epoch:      Epoch(binary.LittleEndian.Uint64(b[32:])),
	}
	if err := m.check(); err != nil {
		return nil, 0, corrupt(16, "%v", err)
	}
	runs := binary.LittleEndian.Uint32(b[28:])
	if runs > maxRuns {
		return nil, 0, corrupt(28, "%d runs, limit %d", runs, maxRuns)
	}
	return m, int(runs), nil
}

// chunk reads one chunk; all chunks hold limit runs.
func (d *decoder) chunk(limit int) error {
	start := d.off
	var head [4]byte
	if err := d.full(head[:], "chunk length"); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n < minChunk || n > maxChunk {
		return corrupt(start, "chunk of %d bytes, want %d to %d", n, minChunk, maxChunk)
	}
	if cap(d.body) < int(n) {
		d.body = make([]byte, n)
	}
	d.body = d.body[:n]
	if err := d.full(d.body, "chunk"); err != nil {
		return err
	}
	var tail [8]byte
	if err := d.full(tail[:], "chunk checksum"); err != nil {
		return err
	}
	want := binary.LittleEndian.Uint64(tail[:])
	if sum := chunkSum(d.sum, d.body); sum != want {
		return corrupt(start, "chunk checksum is %#018x, its bytes give %#018x", want, sum)
	}
	d.sum = want
	return d.decode(start+int64(len(head)), limit)
}

// decode reads the runs of a body that begins at file offset base.
func (d *decoder) decode(base int64, limit int) error {
	for at := 0; at < len(d.body); {
		off := base + int64(at)
		if len(d.runs) == limit {
			return corrupt(off, "more than the %d runs of the header", limit)
		}
		gap, n, ok := shortUvarint(d.body[at:])
		length, k, ok2 := shortUvarint(d.body[at+n:])
		if !ok || !ok2 {
			return corrupt(off, "varint is cut, too long or not the shortest")
		}
		if at == 0 && d.prior > 0 && d.prior+n+k <= maxChunk {
			return corrupt(off, "run fits the chunk before and is not in it")
		}
		if err := d.add(off, gap, length); err != nil {
			return err
		}
		at += n + k
	}
	d.prior = len(d.body)
	return nil
}

// add appends the run of two numbers found at file offset off.
func (d *decoder) add(off int64, gap, length uint64) error {
	left := uint64(d.end - d.last.end)
	if gap >= left || length>>1 >= left-gap {
		return corrupt(off, "run reaches past block %d, the end of the volume", d.end)
	}
	r := blockRun{first: d.last.end + int64(gap), state: Dirty}
	r.end = r.first + int64(length>>1) + 1
	if length&1 != 0 {
		r.state = Discarded
	}
	// Clean is the state before the first run.
	if gap == 0 && r.state == d.last.state {
		return corrupt(off, "run adjoins one of the same state")
	}
	d.last = r
	d.runs = append(d.runs, pack(r))
	return nil
}

// shortUvarint reads an unsigned varint and refuses all but its shortest form.
func shortUvarint(b []byte) (v uint64, n int, ok bool) {
	v, n = binary.Uvarint(b)
	if n <= 0 {
		return 0, 0, false
	}
	return v, n, n == 1 || b[n-1] != 0
}
