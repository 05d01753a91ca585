package cli

import (
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "512B": 512, "64KiB": 64 << 10, "64K": 64 << 10, "64k": 64 << 10, "50MB": 50e6, "50 MiB": 50 << 20,
		"1G": 1 << 30, "1.5GiB": 3 << 29, "2TiB": 2 << 40, "7P": 7 << 50, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "K", "-1", "1X", "1.2.3", "KiB64", "9223372036854775808", "9000000P", "1e3", "0x10", ".", "99999999999999.9T"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestFlagValuesReadBack(t *testing.T) {
	for _, n := range []int64{0, 1, 512, 1 << 10, 3 << 20, 5<<30 + 1, 1 << 40} {
		size, again := byteSize(n), byteSize(-1)
		if err := again.Set(size.String()); err != nil || again != size {
			t.Errorf("%d: %q reads back as %d, %v", n, size.String(), again, err)
		}
		rate, back := byteRate(n), byteRate(-1)
		if err := back.Set(rate.String()); err != nil || back != rate {
			t.Errorf("%d: %q reads back as %d, %v", n, rate.String(), back, err)
		}
	}
	var r byteRate
	if err := r.Set("50MiB/s"); err != nil || r != 50<<20 {
		t.Errorf("50MiB/s = %d, %v", r, err)
	}
}

func TestHumanForms(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 512 << 20: "512 MiB", 1 << 40: "1.0 TiB", 99<<20 + 1<<19: "99.5 MiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("humanBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{40 * time.Millisecond: "0.04 s", 1500 * time.Millisecond: "1.5 s", 12 * time.Second: "12 s", 200 * time.Second: "3m20s"} {
		if got := humanTime(d); got != want {
			t.Errorf("humanTime(%v) = %q, want %q", d, got, want)
		}
	}
}
