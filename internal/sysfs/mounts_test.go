package sysfs

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestMounts(t *testing.T) {
	h := machine(t, nil, nil)
	if list, err := h.Mounts(); err == nil {
		t.Errorf("without mountinfo: %v", list)
	}
	put(t, h.Proc, "self/mountinfo", strings.Join([]string{
		`22 27 0:21 / /proc rw - proc proc rw`,
		`30 27 8:2 / /mnt/a\040b\134c rw,relatime shared:1 master:2 - ext4 /dev/sda2 ro,errors=continue`,
		`31 27 0:50 / /btrfs ro - btrfs /else\040where rw,space_cache`,
		`broken`, ``, `1 2 3`, `1 2 x:y / /z - ext4 /dev/x rw`, `a 2 8:32 / /z - ext4 /dev/x rw`, ` - `, `1 2 8:32 / - x`,
	}, "\n"))
	list, err := h.Mounts()
	if want := []Mount{
		{22, Devno{0, 21}, "/proc", "proc", true},
		{30, Devno{8, 2}, `/mnt/a b\c`, "/dev/sda2", false},
		{31, Devno{0, 50}, "/btrfs", "/else where", true},
	}; err != nil || !slices.Equal(list, want) {
		t.Errorf("mounts %+v, %v, want %+v", list, err, want)
	}
}

func TestSwaps(t *testing.T) {
	h := machine(t, nil, nil)
	if list := h.Swaps(); list != nil {
		t.Errorf("without a file: %q", list)
	}
	put(t, h.Proc, "swaps", "Filename Type Size Used Priority\n/swap\\040file file 4 0 -2\n\n/dev/sda3 partition 4 0 -3\n")
	if list := h.Swaps(); !slices.Equal(list, []string{"/swap file", "/dev/sda3"}) {
		t.Errorf("swaps %q", list)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{"": "", `a\040b`: "a b", `\134040`: `\040`, `\04`: `\04`, `\999x`: `\999x`, `x\`: `x\`} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzUnescape(f *testing.F) {
	for _, s := range []string{"", "/a b\\c\n", `\`, `\0`, `\04`, `\999`, "/plain", "\t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var escaped strings.Builder
		for _, c := range []byte(s) {
			if strings.IndexByte(" \t\n\\", c) >= 0 {
				fmt.Fprintf(&escaped, `\%03o`, c)
			} else {
				escaped.WriteByte(c)
			}
		}
		if got := unescape(escaped.String()); got != s {
			t.Errorf("unescape(%q) = %q, want %q", escaped.String(), got, s)
		}
		_ = unescape(s) // whatever it is: no panic
	})
}
