package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// byteSize is a flag value: a number of bytes, written 65536, 64KiB, 64K,
// 1.5GiB or 50MB. Without a B, and with iB, units are powers of 1024; MB and
// its like are powers of 1000.
type byteSize int64

// String is the exact form, which Set reads back.
func (b *byteSize) String() string {
	n := int64(*b)
	for i := len(binaryUnits) - 1; i >= 0; i-- {
		if u := binaryUnits[i]; n != 0 && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// Set parses s.
func (b *byteSize) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	*b = byteSize(n)
	return nil
}

// Type is the word for the value in help.
func (b *byteSize) Type() string { return "SIZE" }

// byteRate is a byteSize for each second, with or without "/s".
type byteRate int64

// String is the exact form, which Set reads back.
func (r *byteRate) String() string {
	if *r == 0 {
		return "0"
	}
	b := byteSize(*r)
	return b.String() + "/s"
}

// Set parses s.
func (r *byteRate) Set(s string) error {
	n, err := parseSize(strings.TrimSuffix(s, "/s"))
	if err != nil {
		return err
	}
	*r = byteRate(n)
	return nil
}

// Type is the word for the value in help.
func (r *byteRate) Type() string { return "RATE" }

type unit struct {
	name  string
	bytes int64
}

var binaryUnits = []unit{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50}}

var unitFactors = map[string]float64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
	"p": 1 << 50, "pib": 1 << 50, "pb": 1e15,
}

// parseSize reads a number of bytes that is not negative.
func parseSize(s string) (int64, error) {
	digits := strings.TrimSpace(s)
	i := strings.IndexFunc(digits, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	name := ""
	if i >= 0 {
		digits, name = digits[:i], strings.TrimSpace(digits[i:])
	}
	factor, known := unitFactors[strings.ToLower(name)]
	if !known || digits == "" {
		return 0, fmt.Errorf("%q is not a size: write 65536, 64KiB, 50MB or 1.5G", s)
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n > math.MaxInt64/int64(factor) {
			return 0, fmt.Errorf("size %q is too large", s)
		}
		return n * int64(factor), nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: write 65536, 64KiB, 50MB or 1.5G", s)
	}
	if f *= factor; f >= math.MaxInt64 {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return int64(f), nil
}

// humanBytes is n with three digits or so: "0 B", "4.0 KiB", "512 MiB".
func humanBytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	u := binaryUnits[0]
	for _, v := range binaryUnits {
		if n >= v.bytes {
			u = v
		}
	}
	f := float64(n) / float64(u.bytes)
	if f >= 99.95 {
		return fmt.Sprintf("%.0f %s", f, u.name)
	}
	return fmt.Sprintf("%.1f %s", f, u.name)
}

// humanTime is a duration as a person says it: "0.43 s", "1.2 s", "12 s", "3m20s".
func humanTime(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%.2f s", d.Seconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// plural is "1 extent", "2 extents".
func plural[T int | int64](n T, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
