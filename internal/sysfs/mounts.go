package sysfs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Mount is a mounted file system, a line of mountinfo.
type Mount struct {
	ID       uint64 // as statx gives it for a file
	Dev      Devno  // of the file system; major 0 where it is not one device's
	Point    string // where it is mounted
	Source   string // what was mounted
	Writable bool   // the file system, not only this mount of it
}

// Mounts reads the mounts that this process sees. Lines that are not as they
// should be are passed over.
func (h Host) Mounts() ([]Mount, error) {
	text, err := os.ReadFile(filepath.Join(h.Proc, "self", "mountinfo"))
	if err != nil {
		return nil, err
	}
	var list []Mount
	for line := range strings.Lines(string(text)) {
		// 36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/source rw,errors=continue
		before, after, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 2 {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		n, ok := ParseDevno(fields[2])
		if !ok || err != nil {
			continue
		}
		state, _, _ := strings.Cut(tail[len(tail)-1], ",")
		list = append(list, Mount{ID: id, Dev: n, Point: unescape(fields[4]), Source: unescape(tail[1]), Writable: state == "rw"})
	}
	return list, nil
}

// Swaps lists the files and devices used as swap; none where the kernel has no
// swap or does not tell.
func (h Host) Swaps() []string {
	text, err := os.ReadFile(filepath.Join(h.Proc, "swaps"))
	if err != nil {
		return nil
	}
	var list []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.HasPrefix(fields[0], "/") {
			list = append(list, unescape(fields[0]))
		}
	}
	return list
}

// unescape undoes the octal escapes (\040 for a space) of files in /proc.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
