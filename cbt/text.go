package cbt

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
)

const (
	maxLine  = 4 << 10  // bytes of a line of text
	maxValue = 64 << 10 // bytes of one JSON value and the white space before it
)

// ErrText says that text does not hold runs as [ParseRuns] takes them.
var ErrText = errors.New("bad extent list")

// ParseRuns yields the runs that r spells for a volume of size bytes, in the
// order they come. There are two forms:
//
//	# offset length [state], in bytes, decimal or 0x hexadecimal
//	0x1000 8192
//	65536 4096 discarded   # dirty when there is no state
//
//	{"extents": [{"offset": 4096, "length": 8192, "state": "dirty"}]}
//
// Text is read as JSON when its first byte that is not white space is "{".
// Other members beside extents are skipped, other members of an extent are
// refused. Runs may overlap and come in any order; [NewMap] sorts that out.
//
// The first error is yielded with a zero run and ends the sequence. It gives
// the line and wraps [ErrText], or wraps the error of r. Runs that are empty or
// reach out of the volume are errors. Plain text has no end mark: the caller
// must know that it is all there. Memory: a line, or 64 KiB of JSON.
func ParseRuns(r io.Reader, size int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		br := bufio.NewReaderSize(r, maxLine)
		isJSON, err := opensObject(br)
		switch {
		case err != nil:
		case isJSON:
			err = parseJSON(br, size, yield)
		default:
			err = parseLines(br, size, yield)
		}
		if err != nil && err != errStopped {
			yield(Run{}, err)
		}
	}
}

// errStopped ends a parse whose caller wants no more runs.
var errStopped = errors.New("stopped")

// emit yields r or says that the caller wants no more.
func emit(r Run, yield func(Run, error) bool) error {
	if !yield(r, nil) {
		return errStopped
	}
	return nil
}

// opensObject reports whether the text begins with "{" after white space, of
// which it looks at one line's worth; it consumes nothing.
func opensObject(br *bufio.Reader) (bool, error) {
	head, err := br.Peek(maxLine)
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("read extents: %w", err)
	}
	return bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")), nil
}

// textError returns what is wrong at a line.
func textError(line int64, format string, args ...any) error {
	return fmt.Errorf("%w: line %d: "+format, append([]any{ErrText, line}, args...)...)
}

func parseLines(br *bufio.Reader, size int64, yield func(Run, error) bool) error {
	for line := int64(1); ; line++ {
		b, err := br.ReadSlice('\n')
		switch {
		case err == bufio.ErrBufferFull:
			return textError(line, "longer than %d bytes", maxLine)
		case err != nil && err != io.EOF:
			return fmt.Errorf("read extents: line %d: %w", line, err)
		}
		end := err == io.EOF
		text, _, _ := strings.Cut(string(b), "#")
		if fields := strings.Fields(text); len(fields) > 0 {
			r, err := parseFields(fields, size)
			if err != nil {
				return textError(line, "%v", err)
			}
			if err := emit(r, yield); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
}

func parseFields(f []string, size int64) (Run, error) {
	if len(f) < 2 || len(f) > 3 {
		return Run{}, fmt.Errorf("%d fields, want offset, length and perhaps a state", len(f))
	}
	off, err := parseBytes(f[0])
	if err != nil {
		return Run{}, fmt.Errorf("offset %w", err)
	}
	n, err := parseBytes(f[1])
	if err != nil {
		return Run{}, fmt.Errorf("length %w", err)
	}
	state := ""
	if len(f) == 3 {
		state = f[2]
	}
	return newRun(off, n, state, size)
}

// parseBytes reads a number as ParseRuns takes it. Base 0 of strconv would
// read 010 as 8.
func parseBytes(s string) (int64, error) {
	base, digits := 10, s
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		base, digits = 16, hex
	}
	// ParseUint takes no sign.
	n, err := strconv.ParseUint(digits, base, 63)
	if errors.Is(err, strconv.ErrRange) {
		return 0, fmt.Errorf("%.32q does not fit 63 bits", s)
	} else if err != nil {
		return 0, fmt.Errorf("%.32q is not a number of bytes", s)
	}
	return int64(n), nil
}

// newRun checks what was read from either form.
func newRun(off, n int64, state string, size int64) (Run, error) {
	s := Dirty
	switch state {
	case "", "dirty":
	case "discarded":
		s = Discarded
	default:
		return Run{}, fmt.Errorf("state %.32q, want dirty or discarded", state)
	}
	switch {
	case off < 0:
		return Run{}, fmt.Errorf("offset %d is negative", off)
	case n <= 0:
		return Run{}, fmt.Errorf("length %d, want at least 1", n)
	case off > size || n > size-off:
		return Run{}, fmt.Errorf("%d bytes at %d reach out of the volume of %d bytes", n, off, size)
	}
	return Run{Extent{off, off + n}, s}, nil
}
