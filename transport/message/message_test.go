package message_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/failback/failback/transport/message"
)

var update = flag.Bool("update", false, "write the golden files anew")

type decoder interface{ Decode([]byte) error }

// fresh returns a receiver of the type of m.
func fresh(m message.Message) decoder {
	return reflect.New(reflect.TypeOf(m)).Interface().(decoder)
}

func value(d decoder) any { return reflect.ValueOf(d).Elem().Interface() }

func fill(n int, from byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func volume(tree bool) message.VolumeInfo {
	v := message.VolumeInfo{Size: 16 << 40, Align: 4096, Sparse: true, Identity: "wwn-0x5000c500a1b2c3d4", Name: "db"}
	if tree {
		v.Tree = &message.TreeInfo{Algorithm: 2, Leaf: 64 << 10, Epoch: 7, Root: [32]byte(fill(32, 0x20))}
	}
	return v
}

type example struct {
	name string
	m    message.Message
}

// examples has one or more of every message; the golden file has them all.
func examples() []example {
	session, share := [16]byte(fill(16, 0xa0)), [16]byte(fill(16, 0xc0))
	root := [32]byte(fill(32, 1))
	spans := []message.Extent{{Off: 4096, End: 8192}, {Off: 8192, End: 8192 + 4608}}
	stats := []message.Stat{{ID: 1, Value: 1 << 30}, {ID: 2, Value: 4096}, {ID: 200, Value: 1<<64 - 1}}
	return []example{
		{"open/source", message.Open{MinVersion: 1, MaxVersion: 1, Session: session, Role: 1, Volume: "db"}},
		{"open/target", message.Open{MinVersion: 1, MaxVersion: 3, Features: 5, Session: session, Role: 2, Write: true, Volume: "/dev/vg0/größe"}},
		{"open/join", message.Open{MinVersion: 1, MaxVersion: 1, Session: session, Role: 3, Stream: 2, Volume: "db"}},
		{"opened", message.Opened{Version: 1, Volume: volume(false)}},
		{"opened/tree", message.Opened{Version: 1, Features: 1, Volume: volume(true)}},
		{"task", message.Task{Mode: 1, Codec: "auto", Limit: 50 << 20, Streams: 4, Window: 16 << 20, Leaf: 64 << 10, Verify: 1, Seal: 2, Dirty: true, TrustTrees: true, Resume: 2, Checkpoint: 5000}},
		{"task/compare", message.Task{Mode: 2, Codec: "none", Rung: 6, AllowLarger: true, DryRun: true, Medium: true, Stage: true, Resume: 1, Undo: 2}},
		{"start", message.Start{Session: session, Mode: 1, Share: share, Volume: volume(true), Allocated: true, Streams: 1, Medium: true, Stage: true, Resume: 1, Undo: 1, Stamp: "written=17", After: share, Left: "written=4"}},
		{"info", message.Info{Share: share, Volume: message.VolumeInfo{Size: 512, Align: 512, ReadOnly: true, Mapped: true}}},
		{"info/journal", message.Info{Share: share, Volume: volume(true), Journal: true, Done: 1 << 40, Basis: root, Stamp: "written=17"}},
		{"info/unwatched", message.Info{Share: share, Volume: volume(true), Journal: true, Unwatched: true, Spent: true, Done: 1 << 30, Basis: root}},
		{"info/kept", message.Info{Share: share, Volume: volume(false), Kept: true, Staged: true}},
		{"info/doubt", message.Info{Share: share, Volume: volume(false), Doubt: true}},
		{"extents", message.Extents{Purpose: 1, Last: true, Extents: []message.Extent{{Off: 0, End: 4096}, {Off: 8192, End: 1 << 40}, {Off: 1<<62 - 1, End: 1 << 62}}}},
		{"extents/empty", message.Extents{Purpose: 4, Last: true}},
		{"plan", message.Plan{Rung: 4, Reason: "the target's map is not trusted: epoch lost", Level: 2, From: 1, Leaf: 64 << 10, Candidates: 1 << 32, Verify: 1, Seal: 1, Resume: 1 << 33, Basis: root}},
		{"agree", message.Agree{Window: 16 << 20}},
		{"digests/16", message.Digests{Unit: 3, Size: 16, Sums: fill(48, 9)}},
		{"digests/32", message.Digests{Unit: 1 << 40, Size: 32, Sums: fill(64, 9)}},
		{"want", message.Want{Unit: 3, Leaves: 1<<63 | 1}},
		{"pieces", message.Pieces{Unit: 3, Leaves: 1, Sums: fill(16*16, 0)}},
		{"pieces/none", message.Pieces{Unit: 3}},
		{"release", message.Release{Unit: 4}},
		{"data", message.Data{Spans: spans, Sums: fill(3*16, 0x40)}},
		{"zero", message.Zero{Spans: []message.Extent{{Off: 0, End: 1 << 40}, {Off: 1 << 41, End: 1<<41 + 512}}}},
		{"discard", message.Discard{Spans: spans}},
		{"barrier", message.Barrier{ID: 9, Frames: 1000, Done: 1 << 35, Final: true}},
		{"ack", message.Ack{ID: 9, Written: 1 << 30, Verified: 1 << 29}},
		{"credit", message.Credit{Bytes: 1 << 20}},
		{"nodes", message.Nodes{ID: 7, Level: 3, Ranges: []message.NodeRange{{First: 0, End: 16}, {First: 16, End: 32}, {First: 4096, End: 1 << 50}}}},
		{"nodehashes", message.NodeHashes{ID: 7, Hashes: fill(64, 0), Last: true}},
		{"pass", message.Pass{Purpose: 2, Digest: 1, Leaf: 4 << 20}},
		{"pass/round", message.Pass{Purpose: 3, Leaf: 4 << 10}},
		{"seal", message.Seal{Algorithm: 1, Root: root, Stats: stats}},
		{"seal/none", message.Seal{}},
		{"sealed", message.Sealed{Algorithm: 2, Root: root, Stats: stats[:1], Stamp: "written=18"}},
		{"report", message.Report{Last: true, Chunk: []byte(`{"schema":1}`)}},
		{"report/empty", message.Report{}},
		{"error", message.Error{Code: message.CodeVolume, Text: "read 4096 bytes at 0x1000: input/output error", Next: "check the device's log", Volume: "db"}},
		{"bye", message.Bye{}},
	}
}

func TestRoundTrip(t *testing.T) {
	seen := map[int]string{}
	for _, x := range examples() {
		t.Run(x.name, func(t *testing.T) {
			b := x.m.Append([]byte("before"))[len("before"):]
			d := fresh(x.m)
			if err := d.Decode(b); err != nil {
				t.Fatal(err)
			}
			if got := value(d).(message.Message).Append(nil); !bytes.Equal(got, b) {
				t.Errorf("decoded and appended:\n%x, was\n%x", got, b)
			}
			if got := fmt.Sprintf("%+v", value(d)); !strings.Contains(got, "Tree:0x") && got != fmt.Sprintf("%+v", x.m) {
				t.Errorf("got %s\nwant %+v", got, x.m)
			}
			// A receiver that held something else gives the same.
			for _, y := range examples() {
				if reflect.TypeOf(y.m) == reflect.TypeOf(x.m) {
					d := fresh(x.m)
					if err := errors.Join(d.Decode(y.m.Append(nil)), d.Decode(b)); err != nil {
						t.Fatal(err)
					}
					if got := value(d).(message.Message).Append(nil); !bytes.Equal(got, b) {
						t.Errorf("receiver used before: %x, want %x", got, b)
					}
				}
			}
			name := reflect.TypeOf(x.m).Name()
			if was := seen[int(x.m.Kind())]; was != "" && was != name {
				t.Errorf("%s and %s are both kind %d", was, name, x.m.Kind())
			}
			seen[int(x.m.Kind())] = name
		})
	}
	if len(seen) != 26 {
		t.Errorf("examples of %d messages, want 26", len(seen))
	}
}

// TestCut: no start of a message is a message, and none with a byte more.
// (Report ends with its frame and Extents may be empty: only the counts differ.)
func TestCut(t *testing.T) {
	for _, x := range examples() {
		b := x.m.Append(nil)
		for n := range b {
			if _, isReport := x.m.(message.Report); isReport && n > 0 {
				continue
			}
			if err := fresh(x.m).Decode(b[:n:n]); err == nil {
				t.Errorf("%s: accepted %d of %d bytes", x.name, n, len(b))
			} else {
				malformed(t, x.name, err)
			}
		}
		if _, isReport := x.m.(message.Report); isReport {
			continue
		}
		err := fresh(x.m).Decode(append(b[:len(b):len(b)], 0))
		if err == nil {
			t.Errorf("%s: accepted a byte too many", x.name)
			continue
		}
		malformed(t, x.name, err)
	}
}

// TestFlips: whatever single bit is turned, what is accepted is canonical.
func TestFlips(t *testing.T) {
	for _, x := range examples() {
		b := x.m.Append(nil)
		for i := range len(b) * 8 {
			c := bytes.Clone(b)
			c[i/8] ^= 1 << (i % 8)
			d := fresh(x.m)
			if err := d.Decode(c); err != nil {
				malformed(t, x.name, err)
			} else if got := value(d).(message.Message).Append(nil); !bytes.Equal(got, c) {
				t.Errorf("%s, bit %d: accepted %x, which we write as %x", x.name, i, c, got)
			}
		}
	}
}

func malformed(t *testing.T, name string, err error) {
	t.Helper()
	var m *message.ErrMalformed
	if !errors.As(err, &m) || m.Message == "" || m.Field == "" || m.Reason == "" {
		t.Errorf("%s: error does not say which field: %v", name, err)
	} else if !strings.EqualFold(m.Message, strings.Split(name, "/")[0]) {
		t.Errorf("%s: error is of %s", name, m.Message)
	}
}

const goldenFile = "testdata/v1.golden"

// TestGolden: the bytes of version 1. A difference is a change of the wire.
func TestGolden(t *testing.T) {
	if *update {
		var b strings.Builder
		for _, x := range examples() {
			fmt.Fprintf(&b, "%d %s %x\n", x.m.Kind(), x.name, x.m.Append(nil))
		}
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(goldenFile, []byte(b.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for _, x := range examples() {
		if !lines.Scan() {
			t.Fatalf("no golden bytes of %s", x.name)
		}
		want := lines.Text()
		if got := fmt.Sprintf("%d %s %x", x.m.Kind(), x.name, x.m.Append(nil)); got != want {
			t.Errorf("the wire changed:\n got %s\nwant %s", got, want)
		}
		raw, err := hex.DecodeString(want[strings.LastIndexByte(want, ' ')+1:])
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh(x.m).Decode(raw); err != nil {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	if lines.Scan() {
		t.Errorf("golden bytes of a message that has no example: %s", lines.Text())
	}
}
