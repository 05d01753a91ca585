package message

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrMalformed is the error of every Decode: which field of which message holds
// what its layout forbids.
type ErrMalformed struct {
	Message string // name of the struct
	Field   string // name in the layout; "end" if bytes are left over
	Reason  string
}

// Error names message and field and says what is wrong.
func (e *ErrMalformed) Error() string {
	return fmt.Sprintf("malformed %s: %s: %s", e.Message, e.Field, e.Reason)
}

const (
	maxOffset = 1 << 62 // bytes; no volume is larger
	maxNode   = 1 << 50 // maxOffset by the smallest leaf
	digestLen = 16      // bytes of a piece's digest
	hashLen   = 32      // bytes of a tree's hash
)

// reader takes the fields of a message off b. After the first field that is
// wrong it stays in that state, gives zeroes, and end returns the error.
type reader struct {
	b       []byte
	message string
	err     *ErrMalformed
}

func (r *reader) bad(field, format string, args ...any) {
	if r.err == nil {
		r.err = &ErrMalformed{Message: r.message, Field: field, Reason: fmt.Sprintf(format, args...)}
		r.b = nil
	}
}

// end returns the first error; bytes that are left over are one.
func (r *reader) end() error {
	if len(r.b) > 0 {
		r.bad("end", "%d bytes left over", len(r.b))
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

// bytes returns the next n bytes, nil if they are not there.
func (r *reader) bytes(field string, n int) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.b) < n {
		r.bad(field, "cut: %d bytes left, needs %d", len(r.b), n)
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8(field string) uint8 {
	if p := r.bytes(field, 1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16(field string) uint16 {
	if p := r.bytes(field, 2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32(field string) uint32 {
	if p := r.bytes(field, 4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64(field string) uint64 {
	if p := r.bytes(field, 8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// between reads one byte that must be in [low, high].
func (r *reader) between(field string, low, high uint8) uint8 {
	v := r.u8(field)
	if r.err == nil && (v < low || v > high) {
		r.bad(field, "%d, must be %d to %d", v, low, high)
	}
	return v
}

func (r *reader) bool(field string) bool { return r.between(field, 0, 1) == 1 }

// flags reads a u32 of which only the bits of known may be set.
func (r *reader) flags(field string, known uint32) uint32 {
	v := r.u32(field)
	if v&^known != 0 {
		r.bad(field, "unknown bits %#x", v&^known)
	}
	return v
}

// size reads a number of bytes, at most maxOffset.
func (r *reader) size(field string) int64 {
	v := r.u64(field)
	if v > maxOffset {
		r.bad(field, "%d bytes, limit %d", v, int64(maxOffset))
		return 0
	}
	return int64(v)
}

// leaf reads a leaf size; 0 is one only where it has a meaning.
func (r *reader) leaf(field string, zero bool) uint32 {
	v := r.u32(field)
	if v == 0 && zero || r.err != nil {
		return v
	}
	if v < 4<<10 || v > 4<<20 || bits.OnesCount32(v) != 1 {
		r.bad(field, "%d bytes, must be a power of two, 4 KiB to 4 MiB", v)
	}
	return v
}

// uv reads an unsigned varint, at most most, in its shortest form.
func (r *reader) uv(field string, most uint64) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	switch {
	case n <= 0:
		r.bad(field, "not a varint of 64 bits")
		return 0
	case n > 1 && r.b[n-1] == 0:
		r.bad(field, "varint longer than it must be")
		return 0
	case v > most:
		r.bad(field, "%d, limit %d", v, most)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) str8(field string) string { return r.str(field, int(r.u8(field)), 255) }

func (r *reader) str16(field string, most int) string {
	return r.str(field, int(r.u16(field)), most)
}

func (r *reader) str(field string, n, most int) string {
	if n > most {
		r.bad(field, "%d bytes, limit %d", n, most)
		return ""
	}
	p := r.bytes(field, n)
	if !utf8.Valid(p) {
		r.bad(field, "not UTF-8")
		return ""
	}
	s := string(p)
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		r.bad(field, "control character at byte %d", i)
		return ""
	}
	return s
}

// sums reads count digests of size bytes each, as one slice.
func (r *reader) sums(field string, count, size int) []byte {
	if count > MaxHashes {
		r.bad(field, "%d digests, limit %d", count, MaxHashes)
		return nil
	}
	return r.bytes(field, count*size)
}

// put16, put32 and put64 are short for the little endian appends.
func put16(b []byte, v uint16) []byte { return binary.LittleEndian.AppendUint16(b, v) }
func put32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func put64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// flagBits sets bit i if the i-th value is true.
func flagBits(set ...bool) uint32 {
	var v uint32
	for i, on := range set {
		if on {
			v |= 1 << i
		}
	}
	return v
}

func putStr8(b []byte, s string) []byte {
	s = fit(s, 255)
	return append(append(b, byte(len(s))), s...)
}

func putStr16(b []byte, s string, most int) []byte {
	s = fit(s, most)
	return append(put16(b, uint16(len(s))), s...)
}

// fit makes s what a Decode accepts: valid UTF-8 without control characters, at
// most most bytes.
func fit(s string, most int) string {
	if !utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0 {
		s = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return utf8.RuneError
			}
			return r // an invalid byte comes as RuneError already
		}, s)
	}
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}
