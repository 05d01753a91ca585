package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
)

// archive writes the format that the kernel unpacks its first file system from,
// cpio "newc". See Documentation/driver-api/early-userspace/buffer-format.rst in
// Linux. All numbers are 8 hexadecimal digits:
//
//	off size field
//	  0    6 magic     070701
//	  6    8 ino
//	 14    8 mode      type and permissions
//	 22    8 uid
//	 30    8 gid
//	 38    8 nlink
//	 46    8 mtime
//	 54    8 filesize
//	 62   16 device    major, minor of the file system
//	 78   16 rdev      major, minor of a device
//	 94    8 namesize  with its zero byte
//	102    8 check     0
//	110      name, zero byte, zeroes up to a multiple of 4; content, zeroes up to a multiple of 4
type archive struct {
	w   *bufio.Writer
	ino int
	err error // the first
}

const (
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFile   = 0o100000
	endOfFiles = "TRAILER!!!"
)

func newArchive(w io.Writer) *archive { return &archive{w: bufio.NewWriter(w)} }

func (a *archive) dir(name string) { a.entry(name, modeDir|0o755, [2]int{}, nil) }

func (a *archive) file(name string, mode os.FileMode, content []byte) {
	a.entry(name, modeFile|int(mode.Perm()), [2]int{}, content)
}

// console adds the device that the first process finds as its standard files.
func (a *archive) console(name string) { a.entry(name, modeChar|0o600, [2]int{5, 1}, nil) }

func (a *archive) entry(name string, mode int, device [2]int, content []byte) {
	a.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, device[0], device[1], len(name)+1, 0, name)
	a.padded([]byte(head))
	a.padded(content)
}

func (a *archive) padded(p []byte) {
	for _, b := range [][]byte{p, make([]byte, -len(p)&3)} {
		if _, err := a.w.Write(b); err != nil && a.err == nil {
			a.err = err
		}
	}
}

// close ends the archive and returns the first error of all.
func (a *archive) close() error {
	a.entry(endOfFiles, 0, [2]int{}, nil)
	if err := a.w.Flush(); err != nil && a.err == nil {
		a.err = err
	}
	return a.err
}
