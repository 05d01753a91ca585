package throttle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ioMax is the file io.max of a control group, as far as it is about the bytes that
// are written to one disk: a line for each disk that has a limit,
//
//	8:16 rbps=max wbps=1048576 riops=max wiops=max
//
// of which what is written changes the values that it names, and no other. The
// group is named by its open directory: one that is made anew under the name is
// another.
type ioMax struct {
	dir   *os.File
	disk  string
	claim *claim // where it is noted what there is to undo
}

// noLimit is where the line, or the file, says none.
const noLimit int64 = math.MaxInt64

// maxIOMax bounds the file, bytes: a line for each disk.
const maxIOMax = 1 << 20

func (m ioMax) open(flags int) (*os.File, error) {
	fd, err := unix.Openat(int(m.dir.Fd()), "io.max", flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: m.dir.Name() + "/io.max", Err: err}
	}
	return os.NewFile(uintptr(fd), m.dir.Name()+"/io.max"), nil
}

// read returns the bytes a second that may be written.
func (m ioMax) read() (int64, error) {
	f, err := m.open(unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxIOMax))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || fields[0] != m.disk {
			continue
		}
		for _, field := range fields[1:] {
			if v, ok := strings.CutPrefix(field, "wbps="); ok {
				return parseLimit(v)
			}
		}
	}
	return noLimit, nil
}

func parseLimit(s string) (int64, error) {
	if s == "max" {
		return noLimit, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("read io.max: wbps=%.40s is no limit", s)
	}
	return int64(min(n, uint64(noLimit))), nil
}

// order is what is written to have a limit, or none.
func (m ioMax) order(limit int64) string {
	if limit == noLimit {
		return m.disk + " wbps=max"
	}
	return m.disk + " wbps=" + strconv.FormatInt(limit, 10)
}

func (m ioMax) write(limit int64) error {
	f, err := m.open(unix.O_WRONLY | unix.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteString(m.order(limit) + "\n")
	return errors.Join(err, f.Close())
}

// gone reports whether an error says that the group or the disk is no more, and its
// limit with it.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO)
}

// state is what is known of a limit by who changes it.
type state struct {
	Former int64 `json:"former"` // what it was, and will be
	Now    int64 `json:"now"`    // what we left it at
}

// notice looks for a change that is not ours. What others set is what it will be
// afterwards; ours are limits that we may have set and have not heard of.
func (s *state) notice(m ioMax, ours ...int64) error {
	now, err := m.read()
	if err != nil {
		return err
	}
	if now == s.Now {
		return nil
	}
	if now != s.Former && !slices.Contains(ours, now) {
		s.Former = now
	}
	s.Now = now
	return nil
}

// set makes the limit, unless there is a lower one.
func (s *state) set(m ioMax, limit int64) error {
	if err := s.notice(m); err != nil {
		return err
	}
	limit = min(limit, s.Former)
	if limit == s.Now {
		return nil
	}
	// What is there now is ours, too, or the former.
	if err := m.claim.write(&note{Group: m.dir.Name(), Former: s.Former, Ours: []int64{s.Now, limit}}); err != nil {
		return fmt.Errorf("note what there is to undo: %w", err)
	}
	if err := m.write(limit); err != nil {
		return err
	}
	s.Now = limit
	return nil
}

// restore makes the limit what it was; ours as with notice.
func (s *state) restore(m ioMax, ours ...int64) error {
	err := s.notice(m, ours...)
	if err == nil && s.Now != s.Former {
		if err = m.write(s.Former); err == nil {
			s.Now = s.Former
		}
	}
	if gone(err) {
		s.Now, err = s.Former, nil
	}
	if err != nil {
		return err
	}
	return m.claim.write(nil)
}
