package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/failback/failback/cbt/ebpf"
)

// Status says why writes are marked at their end, and until when.
func TestShownMarksAtTheEnd(t *testing.T) {
	const busy, holds, off = "or the device was never quiet", "until tracking is stopped, because the driver may hold writes", "io statistics of the disk are off"
	for _, c := range []struct {
		s    ebpf.Status
		want []string
	}{
		{ebpf.Status{}, nil},
		{ebpf.Status{Reading: true}, []string{busy}},
		{ebpf.Status{Reading: true, Uncounted: true}, []string{busy, off}},
		{ebpf.Status{Reading: true, Holds: true}, []string{holds}},
		{ebpf.Status{Reading: true, Uncounted: true, Holds: true}, []string{holds}}, // to turn them on would be of no use
	} {
		lines := trackLines(&trackJSON{}, trackVolumeOf(c.s))
		at := slices.IndexFunc(lines, func(l line) bool { return l.label == "kernel" })
		for _, words := range []string{busy, holds, off} {
			if got, want := strings.Contains(lines[at].text, words), slices.Contains(c.want, words); got != want {
				t.Errorf("%+v: %q in %q: %v, want %v", c.s, words, lines[at].text, got, want)
			}
		}
	}
}
