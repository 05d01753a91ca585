package message_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/transport/message"
)

func uv(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.AppendUvarint(b, x)
	}
	return b
}

func u64(v ...uint64) (b []byte) {
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

// with returns the encoding of m with the bytes at off replaced.
func with(m message.Message, off int, by ...byte) []byte {
	b := m.Append(nil)
	copy(b[off:], by)
	return b
}

// wrong is a message that breaks one rule, and the field that must be named.
type wrong struct {
	m     message.Message
	field string
	b     []byte
}

func byName() map[string]message.Message {
	ex := map[string]message.Message{}
	for _, x := range examples() {
		ex[x.name] = x.m
	}
	return ex
}

func wrongOpenings(ex map[string]message.Message) []wrong {
	open, opened, task := ex["open/source"], ex["opened"], ex["task"]
	opened2 := ex["opened/tree"]
	treeAt := len(opened2.Append(nil)) - 45
	start, journal := ex["start"], ex["info/journal"]
	const big = 1 << 62
	return []wrong{
		{open, "magic", with(open, 0, 'F')},
		{open, "minVersion", with(open, 8, 0)},
		{open, "minVersion", with(open, 8, 2)},
		{open, "role", with(open, 36, 0)},
		{open, "role", with(open, 36, 4)},
		{open, "stream", with(open, 36, 3)},
		{open, "stream", with(open, 37, 1)},
		{open, "write", with(open, 38, 2)},
		{open, "volume", with(open, 39, 0, 0)[:41]},
		{open, "volume", with(open, 39, 1, 16)},
		{open, "volume", with(open, 41, 'a', 0xff)},
		{open, "volume", with(open, 41, 'a', '\n')},
		{open, "volume", with(open, 41, 0x7f)},
		{opened, "version", with(opened, 0, 0)},
		{opened, "size", with(opened, 10, u64(0)...)},
		{opened, "size", with(opened, 10, u64(513)...)},
		{opened, "size", with(opened, 10, u64(big+512)...)},
		{opened, "size", with(opened, 10, u64(1<<63)...)},
		{opened, "align", with(opened, 18, 0, 1)},
		{opened, "align", with(opened, 18, 0, 3)},
		{opened, "align", with(opened, 18, 0, 0, 2)},
		{opened, "flags", with(opened, 22, 16)},
		{opened, "tree algorithm", with(opened, 22, 4)},
		{opened2, "tree algorithm", with(opened2, treeAt, 3)},
		{opened2, "tree leaf", with(opened2, treeAt+1, 0, 0, 0, 0)},
		{opened2, "tree leaf", with(opened2, treeAt+1, 0, 8)},
		{task, "mode", with(task, 0, 4)},
		{task, "codec", with(task, 2, 'b')},
		{task, "limit", with(task, 13, 0x41)},
		{task, "streams", with(task, 14, 65)},
		{task, "leaf", with(task, 19, 1)},
		{task, "verify", with(task, 23, 3)},
		{task, "seal", with(task, 24, 3)},
		{task, "rung", with(task, 25, 7)},
		{task, "flags", with(task, 26, 64)},
		{task, "resume", with(task, 30, 3)},
		{task, "undo", with(task, 31, 3)},
		{ex["start"], "mode", with(ex["start"], 16, 0)},
		{start, "flags", with(start, len(start.Append(nil))-44, 32)},
		{start, "resume", with(start, len(start.Append(nil))-39, 3)},
		{start, "undo", with(start, len(start.Append(nil))-38, 3)},
		{start, "stamp", with(start, len(start.Append(nil))-36, '\n')},
		{ex["info"], "flags", with(ex["info"], 16, 2)},
		{ex["info"], "flags", with(ex["info"], 16, 64)},
		{ex["info"], "size", with(ex["info"], 17, 1)},
		{journal, "done", with(journal, len(journal.Append(nil))-44, 0x80)},
		{journal, "basis", journal.Append(nil)[:len(journal.Append(nil))-12]},
	}
}

func wrongPlans(ex map[string]message.Message) []wrong {
	plan := ex["plan"]
	const big = 1 << 62
	return []wrong{
		{ex["extents"], "purpose", []byte{0, 1, 0}},
		{ex["extents"], "last", []byte{1, 2, 0}},
		{ex["extents"], "count", append([]byte{1, 1}, uv(1)...)},
		{ex["extents"], "count", append([]byte{1, 1}, uv(message.MaxExtents+1, 1, 1)...)},
		{ex["extents"], "count", append([]byte{1, 1}, 0x80, 0)},
		{ex["extents"], "count", append([]byte{1, 1}, slices.Repeat([]byte{0xff}, 11)...)},
		{ex["extents"], "gap", append([]byte{1, 1}, uv(2, 0, 1, 0, 1)...)},
		{ex["extents"], "gap", append([]byte{1, 1}, uv(1, big+1, 1)...)},
		{ex["extents"], "gap", append([]byte{1, 1}, 1, 0x81, 0, 1)},
		{ex["extents"], "length", append([]byte{1, 1}, uv(1, 5, 0)...)},
		{ex["extents"], "length", append([]byte{1, 1}, uv(1, big, 1)...)},
		{ex["extents"], "length", append([]byte{1, 1}, uv(1, 1, 1<<63)...)},
		{plan, "rung", with(plan, 0, 0)},
		{plan, "reason", with(plan, 1, 1, 4)},
		{plan, "level", with(plan, 46, 3)},
		{plan, "digest", with(plan, 47, 3)},
		{plan, "from", with(plan, 48, 0)},
		{plan, "leaf", with(plan, 49, 1)},
		{plan, "candidates", with(plan, 60, 0x80)},
		{plan, "verify", with(plan, 61, 3)},
		{plan, "seal", with(plan, 62, 3)},
		{plan, "resume", with(plan, 70, 0x80)},
		{plan, "basis", plan.Append(nil)[:102]},
		{ex["agree"], "window", []byte{0xff, 0xff, 0x1f, 0}},
		{ex["agree"], "end", append(ex["agree"].Append(nil), 0)},
		{ex["bye"], "end", []byte{0}},
	}
}

func wrongWork(ex map[string]message.Message) []wrong {
	data := func(count uint16, rest ...[]byte) []byte {
		return append(binary.LittleEndian.AppendUint16(nil, count), slices.Concat(rest...)...)
	}
	span := func(off uint64, n uint32) []byte { return binary.LittleEndian.AppendUint32(u64(off), n) }
	piece := make([]byte, 16)
	const big = 1 << 62
	return []wrong{
		{ex["digests/16"], "size", with(ex["digests/16"], 8, 17)},
		{ex["digests/16"], "count", with(ex["digests/16"], 9, 0, 0)[:11]},
		{ex["digests/16"], "digests", with(ex["digests/16"], 9, 1, 128)},
		{ex["digests/16"], "digests", with(ex["digests/16"], 9, 4)},
		{ex["pieces"], "size", with(ex["pieces"], 16, 32)},
		{ex["pieces"], "end", with(ex["pieces"], 17, 15)},
		{ex["data"], "count", data(0)},
		{ex["data"], "count", data(message.MaxSpans + 1)},
		{ex["data"], "len", data(1, span(0, 0))},
		{ex["data"], "len", data(1, span(0, 511), piece)},
		{ex["data"], "len", data(1, span(0, 1<<20+512))},
		{ex["data"], "len", data(2, span(0, 1<<20), span(1<<20, 512))},
		{ex["data"], "len", data(1, span(big, 512), piece)},
		{ex["data"], "off", data(1, span(1, 512), piece)},
		{ex["data"], "off", data(1, span(big+512, 512), piece)},
		{ex["data"], "off", data(2, span(4096, 512), span(4096, 512), piece, piece)},
		{ex["data"], "digests", data(1, span(0, 4096+512), piece)},
		{ex["data"], "end", data(1, span(0, 4096), piece, piece)},
		{ex["zero"], "count", data(0)},
		{ex["zero"], "len", data(1, u64(0, 1<<40+512))},
		{ex["zero"], "off", data(2, u64(512, 512, 0, 512))},
		{ex["discard"], "len", data(1, u64(0, 0))},
		{ex["barrier"], "done", with(ex["barrier"], 23, 0x80)},
		{ex["barrier"], "final", with(ex["barrier"], 24, 2)},
		{ex["ack"], "written", with(ex["ack"], 15, 0x80)},
		{ex["ack"], "verified", with(ex["ack"], 23, 0x80)},
		{ex["credit"], "bytes", []byte{0, 0, 0, 0}},
		{ex["nodes"], "level", with(ex["nodes"], 4, 64)},
		{ex["nodes"], "count", with(ex["nodes"], 5, 0)[:6]},
		{ex["nodes"], "count", append(make([]byte, 5), uv(message.MaxRanges+1)...)},
		{ex["nodes"], "n", append(make([]byte, 5), uv(1, 0, 0)...)},
		{ex["nodes"], "gap", append(make([]byte, 5), uv(1, 1<<50+1, 1)...)},
		{ex["nodes"], "n", append(make([]byte, 5), uv(1, 1<<50, 1)...)},
		{ex["nodehashes"], "hashes", with(ex["nodehashes"], 4, 1, 128)},
		{ex["nodehashes"], "hashes", with(ex["nodehashes"], 4, 0xff, 0xff, 0xff, 0xff)},
		{ex["nodehashes"], "last", with(ex["nodehashes"], 72, 2)},
		{ex["pass"], "purpose", with(ex["pass"], 0, 4)},
		{ex["pass"], "digest", with(ex["pass"], 1, 3)},
		{ex["pass"], "leaf", with(ex["pass"], 2, 0, 0, 0, 0)},
		{ex["seal"], "algorithm", with(ex["seal"], 0, 3)},
		{ex["seal"], "root", with(ex["seal"], 0, 0)},
		{ex["seal"], "count", with(ex["seal"], 33, 33)},
		{ex["seal"], "stat id", with(ex["seal"], 34, 0)},
		{ex["seal"], "stat id", with(ex["seal"], 43, 1)},
		{ex["report"], "last", []byte{2}},
		{ex["report"], "chunk", make([]byte, 2+message.MaxChunk)},
		{ex["error"], "code", with(ex["error"], 0, 0)},
		{ex["error"], "code", with(ex["error"], 0, 11)},
		{ex["error"], "text", with(ex["error"], 1, 1, 16)},
	}
}

// TestWrong: one vector for every rule, each refused by the field that breaks it.
func TestWrong(t *testing.T) {
	ex := byName()
	for i, tt := range slices.Concat(wrongOpenings(ex), wrongPlans(ex), wrongWork(ex)) {
		t.Run(fmt.Sprintf("%d/%T/%s", i, tt.m, tt.field), func(t *testing.T) {
			err := fresh(tt.m).Decode(tt.b)
			var m *message.ErrMalformed
			if !errors.As(err, &m) {
				t.Fatalf("accepted %x (%v)", tt.b, err)
			}
			if m.Field != tt.field {
				t.Errorf("refused for %q, want %q", m.Error(), tt.field)
			}
		})
	}
}

// TestDecodeAllocates (L9): a count that the bytes do not bear out makes no list.
func TestDecodeAllocates(t *testing.T) {
	hostile := append([]byte{1, 1}, uv(message.MaxExtents, 1, 1)...)
	if n := testing.AllocsPerRun(10, func() {
		var m message.Extents
		if m.Decode(hostile) == nil || cap(m.Extents) > 0 {
			t.Error("accepted, or made room")
		}
	}); n > 20 {
		t.Errorf("%v allocations for an error", n)
	}
	sums := make([]byte, 16*256)
	b := message.Data{Spans: []message.Extent{{Off: 0, End: 1 << 20}}, Sums: sums}.Append(nil)
	var m message.Data
	buf := make([]byte, 0, len(b))
	if n := testing.AllocsPerRun(100, func() {
		if err := m.Decode(b); err != nil || m.Raw() != 1<<20 {
			t.Error(err)
		}
		buf = m.Append(buf[:0])
	}); n != 0 {
		t.Errorf("%v allocations to decode and append Data, want 0", n)
	}
}

// TestStringsFit: whatever the text, what Append writes can be read.
func TestStringsFit(t *testing.T) {
	for _, s := range []string{
		"", "plain", "two\nlines\x00\x1b[31m", "\xff\xfe", strings.Repeat("ä", 5000),
		strings.Repeat("x", 4095) + "€", strings.Repeat("\x01", 4096),
	} {
		b := message.Error{Code: message.CodeInternal, Text: s, Next: s, Volume: s}.Append(nil)
		var m message.Error
		if err := m.Decode(b); err != nil {
			t.Errorf("%.20q: %v", s, err)
			continue
		}
		if s == "plain" && (m.Text != s || m.Next != s || m.Volume != s) {
			t.Errorf("%q became %+v", s, m)
		}
		if len(s) > 4096 && len(m.Text) < 4090 {
			t.Errorf("%d bytes cut to %d", len(s), len(m.Text))
		}
	}
}

func TestCodeString(t *testing.T) {
	seen := map[string]bool{}
	for c := message.CodeRefused; c <= message.CodeVersion; c++ {
		seen[c.String()] = true
	}
	if len(seen) != 9 || message.Code(77).String() != "code 77" {
		t.Errorf("names: %v", seen)
	}
}
