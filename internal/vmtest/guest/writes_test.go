package main

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
)

// logOf is a log device's content.
func logOf(entries ...write) []byte {
	le := binary.LittleEndian
	b := make([]byte, sector)
	le.PutUint64(b, logMagic)
	le.PutUint64(b[8:], logVersion)
	le.PutUint64(b[16:], uint64(len(entries)))
	le.PutUint32(b[24:], sector)
	for _, w := range entries {
		head := make([]byte, sector)
		le.PutUint64(head, uint64(w.off/sector))
		le.PutUint64(head[8:], uint64(w.n/sector))
		le.PutUint64(head[16:], w.flags)
		b = append(append(b, head...), w.data...)
	}
	return b
}

func data(off int, fill byte, sectors int) write {
	return write{off: off * sector, n: sectors * sector, data: bytes.Repeat([]byte{fill}, sectors*sector)}
}

var (
	flush = write{flags: flagFlush}
	mark  = write{flags: flagMark}
)

func TestParseLog(t *testing.T) {
	list, err := parseLog(append(logOf(data(0, 1, 2), flush, mark, write{off: sector, n: 3 * sector, flags: flagDiscard}, data(4, 2, 1)), 0))
	if err != nil {
		t.Fatal(err)
	}
	image := bytes.Repeat([]byte{9}, 6*sector)
	for _, w := range list {
		w.apply(image)
	}
	var got strings.Builder
	for off := 0; off < len(image); off += sector {
		got.WriteByte('0' + image[off])
	}
	if got.String() != "100029" || len(list) != 4 {
		t.Errorf("%d entries make %s", len(list), got.String())
	}
}

func TestParseLogRefuses(t *testing.T) {
	good := logOf(data(0, 1, 2), data(4, 2, 1))
	for name, spoil := range map[string]func(b []byte) []byte{
		"empty":        func([]byte) []byte { return nil },
		"magic":        func(b []byte) []byte { b[0]++; return b },
		"version":      func(b []byte) []byte { b[8]++; return b },
		"sector size":  func(b []byte) []byte { b[24]++; return b },
		"many entries": func(b []byte) []byte { b[22]++; return b },
		"long entry":   func(b []byte) []byte { b[sector+8+4]++; return b },
		"far entry":    func(b []byte) []byte { b[sector+7]++; return b },
		"cut data":     func(b []byte) []byte { return b[:len(b)-1] },
		"cut":          func(b []byte) []byte { return b[:2*sector] },
	} {
		if list, err := parseLog(spoil(bytes.Clone(good))); err == nil {
			t.Errorf("%s: %d entries, no error", name, len(list))
		}
	}
}

// A cut leaves what was flushed, nothing that was not written, and of what lies
// between anything.
func TestCutKeepsWhatWasFlushed(t *testing.T) {
	fua := data(5, 6, 1)
	fua.flags = flagFUA
	log := []write{data(0, 1, 1), data(1, 2, 1), flush, data(2, 3, 2), fua, data(4, 5, 1), flush, data(0, 7, 6), flush}
	base := make([]byte, 6*sector)
	dice := rand.New(rand.NewPCG(1, 1))
	seen := map[string]bool{}
	for range 500 {
		image := cut{n: 4, reordered: true}.medium(base, log, dice)
		var got strings.Builder
		for off := 0; off < len(image); off += sector {
			got.WriteByte('0' + image[off])
		}
		s := got.String()
		seen[s] = true
		if s[:2] != "12" || s[5] != '0' || !strings.Contains("0 3", s[2:3]) || !strings.Contains("0 5", s[4:5]) {
			t.Fatalf("the cut leaves %s", s)
		}
	}
	for _, want := range []string{"120000", "123350", "123000", "120050"} {
		if !seen[want] {
			t.Errorf("never %s in %v", want, seen)
		}
	}
	if image := (cut{n: 5}).medium(base, log, dice); image[5*sector] != 6 || image[4*sector] != 0 {
		t.Error("an orderly cut is not the log up to it")
	}
	for _, c := range cuts(log, 50, dice) {
		if c.n < 0 || c.n > len(log) {
			t.Errorf("cut %v of %d entries", c, len(log))
		}
		c.medium(base, log, dice)
	}
}
