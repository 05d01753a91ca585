package failback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/failback/failback/cbt"
)

// peerReport is a report as a peer sent it. What its lists hold is bounded while
// it is read: a few bytes of JSON make many of memory.
type peerReport struct {
	Report
	Extents peerExtents `json:"extents,omitempty"`
	Codec   peerCodecs  `json:"codec"`
}

type peerExtents []cbt.Extent

type peerCodecs map[string]int64

const (
	maxPeerCodecs = 16   // codecs in a peer's report; there are three
	maxPeerText   = 4096 // bytes of a text in it
)

// decodePeerReport reads the report of a peer. Its figures are the peer's word,
// but not below zero; its texts can be printed, and its extents are in order.
func decodePeerReport(b []byte) (*Report, error) {
	var p peerReport
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, protocolf("report: %v", err)
	}
	p.Report.Extents, p.Report.Codec = p.Extents, p.Codec
	if err := errors.Join(printable(&p.Report), notNegative(&p.Report)); err != nil {
		return nil, protocolf("report: %v", err)
	}
	return &p.Report, nil
}

// UnmarshalJSON reads the list one by one, to its bound.
func (x *peerExtents) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return fmt.Errorf("extents: not a list")
	}
	var list peerExtents
	for d.More() {
		var e cbt.Extent
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("extents: %w", err)
		}
		if len(list) == maxExtents {
			return fmt.Errorf("more than %d extents", maxExtents)
		}
		if e.Off < 0 || e.End <= e.Off || len(list) > 0 && e.Off <= list[len(list)-1].End {
			return fmt.Errorf("extent %v is out of order", e)
		}
		list = append(list, e)
	}
	*x = list
	return nil
}

// UnmarshalJSON reads the map one by one, to its bound.
func (c *peerCodecs) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return fmt.Errorf("codec: not an object")
	}
	m := peerCodecs{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return fmt.Errorf("codec: %w", err)
		}
		var n int64
		if err := d.Decode(&n); err != nil {
			return fmt.Errorf("codec: %w", err)
		}
		if len(m) == maxPeerCodecs {
			return fmt.Errorf("more than %d codecs", maxPeerCodecs)
		}
		text, _ := name.(string)
		if err := printableText(text); err != nil {
			return fmt.Errorf("codec: %w", err)
		}
		m[text] = n
	}
	*c = m
	return nil
}

// printable refuses a report with a text that does something to a terminal.
func printable(r *Report) error {
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Pointer && !f.IsNil() {
			f = f.Elem()
		}
		if f.Kind() != reflect.String {
			continue
		}
		if err := printableText(f.String()); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(v.Type().Field(i).Name), err)
		}
	}
	return nil
}

// notNegative refuses a report with a figure below zero.
func notNegative(r *Report) error { return countsUp(reflect.ValueOf(r).Elem(), "") }

func countsUp(v reflect.Value, name string) error {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if err := countsUp(v.Field(i), name+" "+strings.ToLower(v.Type().Field(i).Name)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if err := countsUp(it.Value(), name+" "+it.Key().String()); err != nil {
				return err
			}
		}
	case reflect.Int, reflect.Int64:
		if v.Int() < 0 {
			return fmt.Errorf("%s: %d", name[1:], v.Int())
		}
	case reflect.Float64:
		if v.Float() < 0 {
			return fmt.Errorf("%s: %g", name[1:], v.Float())
		}
	}
	return nil
}

func printableText(s string) error {
	switch {
	case len(s) > maxPeerText:
		return fmt.Errorf("text of %d bytes, limit %d", len(s), maxPeerText)
	case !utf8.ValidString(s):
		return fmt.Errorf("text is not UTF-8")
	}
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		return fmt.Errorf("control character at byte %d", i)
	}
	return nil
}
