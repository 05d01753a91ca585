package embedtest

import (
	"bytes"
	"io"
	"testing"

	"github.com/failback/failback"
)

// ReadAt, Size and Sync make memory a volume of the library.
func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) Size() int64 { return int64(len(m)) }
func (m memory) Sync() error { return nil }

var _ failback.Volume = memory(nil)

// A product brings one of its volumes in line with another in one call.
func TestSync(t *testing.T) {
	source, target := memory(make([]byte, 4<<20)), memory(make([]byte, 4<<20))
	for i := range source {
		source[i] = byte(i >> 8)
	}
	copy(target, source)
	copy(source[1<<20:], "written while the target was away")
	report, err := failback.Sync(t.Context(),
		failback.Side{Volume: source, Name: "source"}, failback.Side{Volume: target, Name: "target"}, failback.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(source, target) {
		t.Error("the target differs from the source")
	}
	if report == nil {
		t.Error("no report")
	}
}
