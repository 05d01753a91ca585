package fuzz_test

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/failback/failback/transport/message"
)

// messages is one of every message, with something in every field.
func messages() []message.Message {
	id := [16]byte([]byte("sixteen bytes id"))
	root := [32]byte([]byte("the thirty-two bytes of the root"))
	volume := message.VolumeInfo{Size: 1 << 40, Align: 4096, Sparse: true, Mapped: true, Identity: "wwn-0x5000c500a1b2c3d4",
		Name: "db", Tree: &message.TreeInfo{Algorithm: 1, Leaf: 65536, Epoch: 3, Root: root}}
	extents := []message.Extent{{Off: 0, End: 4096}, {Off: 1 << 20, End: 1 << 21}}
	stats := []message.Stat{{ID: 1, Value: 1 << 40}, {ID: 2, Value: 7}}
	return []message.Message{
		message.Open{MinVersion: 1, MaxVersion: 1, Session: id, Role: 3, Stream: 1, Write: true, Volume: "db"},
		message.Opened{Version: 1, Volume: volume},
		message.Task{Mode: 1, Codec: "zstd-fast", Limit: 1 << 20, Streams: 2, Window: 1 << 24, Leaf: 65536, Verify: 1, Seal: 1, Rung: 4, Dirty: true},
		message.Start{Session: id, Mode: 1, Share: id, Volume: volume, DryRun: true, Streams: 2},
		message.Info{Share: id, Volume: volume, Journal: true, Done: 1 << 20, Basis: root, Stamp: "written=17"},
		message.Extents{Purpose: 1, Last: true, Extents: extents},
		message.Plan{Rung: 1, Reason: "both maps are trusted", Level: 2, From: 1, Leaf: 65536, Candidates: 1 << 30, Verify: 1, Seal: 1, Resume: 1 << 20, Basis: root},
		message.Agree{Window: 16 << 20},
		message.Digests{Unit: 1, Size: 16, Sums: root[:]},
		message.Want{Unit: 1, Leaves: 5},
		message.Pieces{Unit: 1, Leaves: 5, Sums: root[:]},
		message.Release{Unit: 2},
		message.Data{Spans: extents[:1], Sums: id[:]},
		message.Zero{Spans: extents},
		message.Discard{Spans: extents},
		message.Barrier{ID: 1, Frames: 2, Done: 4096, Final: true},
		message.Ack{ID: 1, Written: 4096, Verified: 4096},
		message.Credit{Bytes: 4096},
		message.Nodes{ID: 1, Level: 2, Ranges: []message.NodeRange{{First: 0, End: 16}, {First: 32, End: 48}}},
		message.NodeHashes{ID: 1, Hashes: root[:], Last: true},
		message.Pass{Purpose: 1, Digest: 1, Leaf: 65536},
		message.Seal{Algorithm: 1, Root: root, Stats: stats},
		message.Sealed{Algorithm: 1, Root: root, Stats: stats},
		message.Report{Last: true, Chunk: []byte(`{"schema":1}`)},
		message.Error{Code: message.CodeVolume, Text: "read: input/output error", Next: "check the device", Volume: "db"},
		message.Bye{},
	}
}

// FuzzMessage gives any bytes to the decoder of each message. It never panics,
// allocates in proportion to the input, and what it accepts Append gives back.
func FuzzMessage(f *testing.F) {
	made := map[string][]any{}
	types := map[byte]reflect.Type{}
	for _, m := range messages() {
		t := reflect.TypeOf(m)
		types[byte(m.Kind())] = t
		made[fmt.Sprintf("%02d-%s", m.Kind(), t.Name())] = []any{byte(m.Kind()), m.Append(nil)}
	}
	streamSeeds(f, made)
	f.Fuzz(func(t *testing.T, kind byte, in []byte) {
		kind = (kind-1)%byte(len(types)) + 1 // so that a seed keeps its kind
		m := reflect.New(types[kind])
		var err error
		n := allocated(func() { err = m.Interface().(interface{ Decode([]byte) error }).Decode(in) })
		if n > 16<<10+64*uint64(len(in)) {
			t.Errorf("kind %d: allocated %d bytes for %d", kind, n, len(in))
		}
		if err != nil {
			var where *message.ErrMalformed
			if !errors.As(err, &where) || where.Message != types[kind].Name() || where.Field == "" {
				t.Errorf("an error without its place: %v", err)
			}
			return
		}
		if back := m.Elem().Interface().(message.Message).Append(nil); !bytes.Equal(back, in) {
			t.Errorf("kind %d: accepted %x, which Append writes as %x", kind, in, back)
		}
	})
}
