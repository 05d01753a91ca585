package failback

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/failback/failback/cbt"
)

// TestPeerReport: L9. What an honest peer sends arrives as it was; what is made
// to fill our memory or to speak to a terminal does not.
func TestPeerReport(t *testing.T) {
	root := "0123"
	honest := Report{Schema: schemaSync, Result: ResultEqual, Rung: "merkle", Reason: "because; of größe", Source: "a", Target: "b",
		VolumeBytes: 1 << 40, Codec: map[string]int64{"zstd": 5, "none": 1}, Verified: "full", Root: &root,
		Extents: []cbt.Extent{{Off: 0, End: 512}, {Off: 1024, End: 4096}}}
	b, err := honest.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodePeerReport(b)
	if err != nil || !reflect.DeepEqual(*got, honest) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, honest)
	}
	many := func(head, each, tail string) []byte {
		n := maxReport / 4 / len(each)
		return bytes.Join([][]byte{[]byte(head), bytes.Repeat([]byte(each), n), []byte(tail)}, nil)
	}
	var codecs bytes.Buffer
	codecs.WriteString(`{"codec":{`)
	for i := range 1 << 20 {
		fmt.Fprintf(&codecs, `"%x":1,`, i)
	}
	codecs.WriteString(`"z":1}}`)
	var extents bytes.Buffer
	extents.WriteString(`{"extents":[`)
	for i := range maxExtents + 1 {
		fmt.Fprintf(&extents, `{"Off":%d,"End":%d},`, 2*i, 2*i+1)
	}
	extents.WriteString(`{}]}`)
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"no JSON":                {[]byte("x"), "invalid character"},
		"deep":                   {bytes.Repeat([]byte("["), 1<<20), "max depth"},
		"extents of nothing":     {many(`{"extents":[`, "{},", "{}]}"), "out of order"},
		"extents back and forth": {[]byte(`{"extents":[{"Off":4096,"End":8192},{"Off":0,"End":512}]}`), "out of order"},
		"extents below":          {[]byte(`{"extents":[{"Off":-4096,"End":8192}]}`), "out of order"},
		"extents without end":    {extents.Bytes(), "more than 1048576 extents"},
		"extents that are none":  {[]byte(`{"extents":7}`), "not a list"},
		"codecs without end":     {codecs.Bytes(), "more than 16 codecs"},
		"codecs that are none":   {[]byte(`{"codec":[]}`), "not an object"},
		"a terminal's words":     {[]byte(`{"reason":"\u001b[2J"}`), "reason: control character"},
		"in a codec":             {[]byte(`{"codec":{"\u0007":1}}`), "control character"},
		"in the root":            {[]byte(`{"root":"\n"}`), "root: control character"},
		"a long story":           {fmt.Appendf(nil, `{"rung":%q}`, strings.Repeat("x", 5000)), "text of 5000 bytes"},
	} {
		before := everAllocated()
		_, err := decodePeerReport(c.b)
		if !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		// Up to its bound a list takes 16 MiB, and twice that while it grows.
		if spent := everAllocated() - before; spent > 256<<20 {
			t.Errorf("%s: %d bytes were allocated", name, spent)
		}
	}
}
