package cbt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// parseJSON is the second form of ParseRuns. It decodes member by member and
// extent by extent, so that memory does not follow the input.
func parseJSON(r io.Reader, size int64, yield func(Run, error) bool) error {
	src := &lineReader{r: r, line: 1}
	p := jsonParser{src: src, dec: json.NewDecoder(src), size: size, yield: yield}
	p.dec.DisallowUnknownFields()
	return p.object()
}

type jsonParser struct {
	src   *lineReader
	dec   *json.Decoder
	size  int64 // of the volume, bytes
	yield func(Run, error) bool
}

// object reads the whole text.
func (p *jsonParser) object() error {
	if err := p.delim('{'); err != nil {
		return err
	}
	seen := false
	for p.dec.More() {
		key, err := p.dec.Token()
		if err != nil {
			return p.fail(err)
		}
		p.src.advance(p.dec.InputOffset())
		switch {
		case key != "extents":
			err = p.skip()
		case seen:
			err = p.fail(errors.New("extents are there twice"))
		default:
			seen = true
			err = p.extents()
		}
		if err != nil {
			return err
		}
	}
	if err := p.delim('}'); err != nil {
		return err
	}
	if !seen {
		return p.fail(errors.New("no member extents"))
	}
	switch _, err := p.dec.Token(); err {
	case io.EOF:
		return nil
	case nil:
		return p.fail(errors.New("text after the object"))
	default:
		return p.fail(err)
	}
}

// delim reads the given delimiter.
func (p *jsonParser) delim(want json.Delim) error {
	tok, err := p.dec.Token()
	if err != nil {
		return p.fail(err)
	}
	p.src.advance(p.dec.InputOffset())
	if tok != want {
		return p.fail(fmt.Errorf("%.32v, want %v", tok, want))
	}
	return nil
}

// skip reads a value that does not matter.
func (p *jsonParser) skip() error {
	var value json.RawMessage
	if err := p.dec.Decode(&value); err != nil {
		return p.fail(err)
	}
	p.src.advance(p.dec.InputOffset())
	return nil
}

// extents reads the array of extents.
func (p *jsonParser) extents() error {
	if err := p.delim('['); err != nil {
		return err
	}
	for p.dec.More() {
		var e struct {
			Offset *int64 `json:"offset"`
			Length *int64 `json:"length"`
			State  string `json:"state"`
		}
		if err := p.dec.Decode(&e); err != nil {
			return p.fail(err)
		}
		p.src.advance(p.dec.InputOffset())
		if e.Offset == nil || e.Length == nil {
			return p.fail(errors.New("extent without offset or length"))
		}
		r, err := newRun(*e.Offset, *e.Length, e.State, p.size)
		if err != nil {
			return p.fail(err)
		}
		if err := emit(r, p.yield); err != nil {
			return err
		}
	}
	return p.delim(']')
}

// fail gives err its line: where the syntax breaks, else where the value ends
// that was read last.
func (p *jsonParser) fail(err error) error {
	if p.src.err != nil && errors.Is(err, p.src.err) {
		return fmt.Errorf("read extents: line %d: %w", p.src.line, err)
	}
	var syntax *json.SyntaxError
	at := p.dec.InputOffset()
	switch {
	case errors.As(err, &syntax):
		if syntax.Offset != at {
			at = p.brokenAt()
		}
	case err == errLongValue:
		at += int64(p.lead())
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		at = p.src.read
		err = errors.New("text ends too early")
	}
	p.src.advance(at)
	return textError(p.src.line, "%s", plainWords(err))
}

// lead returns how many bytes lie between what is used and the next value.
func (p *jsonParser) lead() int {
	rest, _ := io.ReadAll(p.dec.Buffered()) // in memory: no error
	return len(rest) - len(bytes.TrimLeft(rest, " \t\r\n,:"))
}

// brokenAt returns the offset at which the value that could not be read
// breaks. The offset in the error of a Decoder leaves out what was read by
// Token, so the value, which is still in the buffer, is read once more.
func (p *jsonParser) brokenAt() int64 {
	lead := p.lead()
	rest, _ := io.ReadAll(p.dec.Buffered()) // in memory: no error
	var value json.RawMessage
	var syntax *json.SyntaxError
	at := p.dec.InputOffset() + int64(lead)
	if errors.As(json.Unmarshal(rest[lead:], &value), &syntax) {
		at += syntax.Offset
	}
	return at
}

// plainWords returns the text of err without the words of Go.
func plainWords(err error) string {
	var kind *json.UnmarshalTypeError
	switch {
	case !errors.As(err, &kind):
		return strings.TrimPrefix(err.Error(), "json: ")
	case kind.Field == "state":
		return fmt.Sprintf("state is a %.32s, want a string", kind.Value)
	case kind.Field != "":
		return fmt.Sprintf("%s is %.32s, want a whole number of bytes", kind.Field, kind.Value)
	}
	return fmt.Sprintf("extent is a %.32s, want an object", kind.Value)
}

// lineReader counts the lines of a text up to what the decoder has used, and
// bounds how far the decoder reads ahead of that: the decoder itself would
// buffer a value of any length.
type lineReader struct {
	r    io.Reader
	err  error   // of r, but for io.EOF
	read int64   // bytes handed out
	used int64   // bytes the decoder is done with
	ends []int64 // offsets of the line ends in [used, read)
	line int64   // the line that holds byte used, from 1
}

var errLongValue = fmt.Errorf("value of more than %d bytes", maxValue)

func (l *lineReader) Read(b []byte) (int, error) {
	if l.read-l.used > maxValue {
		return 0, errLongValue
	}
	n, err := l.r.Read(b[:min(len(b), maxLine)])
	for i, c := range b[:n] {
		if c == '\n' {
			l.ends = append(l.ends, l.read+int64(i))
		}
	}
	l.read += int64(n)
	if err != io.EOF {
		l.err = err
	}
	return n, err
}

// advance moves used to off and counts the lines on the way.
func (l *lineReader) advance(off int64) {
	k := 0
	for k < len(l.ends) && l.ends[k] < off {
		k++
	}
	l.ends = append(l.ends[:0], l.ends[k:]...)
	l.line += int64(k)
	l.used = off
}
