package cbt_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/failback/failback/cbt"
	"pgregory.net/rapid"
)

// parse collects runs up to the first error.
func parse(r io.Reader, size int64) ([]cbt.Run, error) {
	var out []cbt.Run
	for run, err := range cbt.ParseRuns(r, size) {
		if err != nil {
			return out, err
		}
		out = append(out, run)
	}
	return out, nil
}

func run(off, end int64, s cbt.State) cbt.Run {
	return cbt.Run{Extent: cbt.Extent{Off: off, End: end}, State: s}
}

func TestParseRuns(t *testing.T) {
	want := []cbt.Run{run(0x1000, 0x3000, cbt.Dirty), run(0, 10, cbt.Discarded), run(1<<20-1, 1<<20, cbt.Dirty)}
	for name, text := range map[string]string{
		"lines":        "0x1000 8192\n0 010 discarded\n1048575 0X1 dirty",
		"comments":     "# extents\n\n0x1000 8192 # first\n   \t\n0 10 discarded#x\r\n1048575 1\r\n#",
		"json":         `{"extents":[{"offset":4096,"length":8192},{"offset":0,"length":10,"state":"discarded"},{"offset":1048575,"length":1,"state":"dirty"}]}`,
		"json of diff": "\n\t {\n\"schema\": 1, \"extents\": [\n{\"length\":8192,\"offset\":4096},\n{\"offset\":0,\"length\":10,\"state\":\"discarded\"},{\"offset\":1048575,\"length\":1}],\n\"more\":{\"extents\":[1]}}\n",
	} {
		for _, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text)), iotest.DataErrReader(strings.NewReader(text))} {
			if got, err := parse(r, 1<<20); err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: got %v, %v", name, got, err)
			}
		}
	}
	for _, nothing := range []string{"", "\n", "# none", `{"extents":[]}`} {
		if got, err := parse(strings.NewReader(nothing), 1); err != nil || len(got) > 0 {
			t.Errorf("%q: got %v, %v", nothing, got, err)
		}
	}
}

func TestParseRunsErrors(t *testing.T) {
	for text, want := range map[string]string{
		"0 1\n1":                            "line 2: 1 fields",
		"0 1 dirty now":                     "line 1: 4 fields",
		"\n\n-1 4":                          `line 3: offset "-1" is not a number`,
		"0 +1":                              `line 1: length "+1" is not a number`,
		"0 1_0":                             `line 1: length "1_0"`,
		"0b1 1":                             `line 1: offset "0b1"`,
		"0x 1":                              `line 1: offset "0x"`,
		"9223372036854775808 1":             "line 1: offset \"9223372036854775808\" does not fit",
		"9223372036854775807 1":             "line 1: 1 bytes at 9223372036854775807 reach out",
		"1 9223372036854775807":             "reach out of the volume of 1000 bytes",
		"# a\n1000 1":                       "line 2: 1 bytes at 1000 reach out",
		"0 0":                               "line 1: length 0",
		"0 1 clean":                         `line 1: state "clean", want dirty or discarded`,
		"0 1\n" + strings.Repeat("#", 5000): "line 2: longer than 4096 bytes",
		strings.Repeat("9", 500) + " 1":     "line 1: offset \"99999999999999999999999999999999\" does not fit",

		"{":                                 "line 1: text ends too early",
		"{}":                                "line 1: no member extents",
		"{\"a\":1,\n\"b\":[2]}":             "line 2: no member extents",
		"{\n\"extents\":null}":              "line 2: <nil>, want [",
		"{\"extents\":{}}":                  "line 1: {, want [",
		"{\"extents\":[],\n\"extents\":[]}": "line 2: extents are there twice",
		"{\"extents\":[]}\n\nx":             "line 3: invalid character 'x'",
		"{\"extents\":[]}\n{}":              "line 2: text after the object",
		"{\"extents\":[\n1]}":               "line 2: extent is a number, want an object",
		"{\"extents\":[\nnull]}":            "line 2: extent without offset or length",
		"{\"extents\":[\n{\"offset\":1}]}":  "line 2: extent without offset or length",
		"{\"extents\":[\n\n{\"offset\":1.5,\"length\":2}]}":                          "line 3: offset is number 1.5, want a whole number",
		"{\"extents\":[\n\n{\"offset\":\"1\",\"length\":2}]}":                        "line 3: offset is string",
		"{\"extents\":[{\"offset\":-1,\"length\":2}]}":                               "line 1: offset -1 is negative",
		"{\"extents\":[{\"offset\":1,\"length\":2},\n{\"offset\":1,\"length\":-2}]}": "line 2: length -2",
		"{\"extents\":[{\"offset\":1,\"length\":2,\n\"state\":3}]}":                  "line 2: state is a number",
		"{\"extents\":[{\"offset\":1,\"length\":2,\n\"stat\":3}]}":                   `line 2: unknown field "stat"`,
		"{\"extents\":[{\"offset\":1,\"length\":2}\n\n{}]}":                          "line 3: expected comma",
		"{\n\n\"extents\":[{\"offset\":1x}]}":                                        "line 3: invalid character 'x'",
		"{\n\"extents\":[{\"offset\":1,\"length\":2},\n":                             "line 3: text ends too early",
		"{\"a\":\n\"" + strings.Repeat("x", 100_000) + "\"}":                         "line 2: value of more than 65536 bytes",
		"{\"a\":" + strings.Repeat("[", 100_000):                                     "line 1: ",
		"{\"extents\":[" + strings.Repeat(" ", 100_000) + "]}":                       "line 1: value of more than 65536 bytes",
		"{\"extents\":[{\"offset\":1,\n\n\"length\":x}]}":                            "line 3: invalid character 'x'",
		"{5:1}": "line 1: invalid character '5'",
	} {
		_, err := parse(strings.NewReader(text), 1000)
		if !errors.Is(err, cbt.ErrText) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, want %q", text, err, want)
		}
	}
}

func TestParseRunsReaderErrors(t *testing.T) {
	broken := errors.New("input/output error")
	for _, text := range []string{"", "0 1\n", "0 1\n2", "{", "{\"extents\":[", "{\"extents\":[{\"offset\":1,\"length\":1},", "{\"extents\":[]}"} {
		// A full buffer first, so that the error comes while parsing, too.
		for _, pad := range []string{"", strings.Repeat(" ", 4000)} {
			r := io.MultiReader(strings.NewReader(text+pad), iotest.ErrReader(broken))
			if _, err := parse(r, 1000); !errors.Is(err, broken) || errors.Is(err, cbt.ErrText) {
				t.Errorf("%q and %d spaces: got %v", text, len(pad), err)
			}
		}
	}
}

// TestParseRunsStreams reads lists far longer than a line or a value may be,
// and stops in the middle when told to.
func TestParseRunsStreams(t *testing.T) {
	var lines, object strings.Builder
	object.WriteString("{\"extents\":[")
	const n = 20_000
	for i := range n {
		fmt.Fprintf(&lines, "%d 1\n", i)
		if i > 0 {
			object.WriteString(",\n")
		}
		fmt.Fprintf(&object, "{\"offset\":%d,\"length\":1}", i)
	}
	bad := object.String() + ",\n{\"offset\":1,\"length\":0}]}"
	object.WriteString("]}")
	for _, text := range []string{lines.String(), object.String()} {
		got, err := parse(strings.NewReader(text), n)
		if err != nil || len(got) != n || got[n-1] != run(n-1, n, cbt.Dirty) {
			t.Errorf("%.20q...: %d runs, %v", text, len(got), err)
		}
		seen := 0
		for range cbt.ParseRuns(strings.NewReader(text), n) {
			if seen++; seen == 10 {
				break
			}
		}
		if seen != 10 {
			t.Errorf("%.20q...: %d runs after a stop at 10", text, seen)
		}
	}
	if _, err := parse(strings.NewReader(bad), n); err == nil || !strings.Contains(err.Error(), "line 20001:") {
		t.Errorf("got %v, want line 20001", err)
	}
}

func TestParseRunsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 1 << 40
		var lines strings.Builder
		var object []string
		var want []cbt.Run
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			off := rapid.Int64Range(0, size-1).Draw(t, "off")
			r := run(off, rapid.Int64Range(off+1, size).Draw(t, "end"), cbt.State(rapid.IntRange(1, 2).Draw(t, "state")))
			want = append(want, r)
			verb := rapid.SampledFrom([]string{"%d %#x %v\n", "%#x %d\t%v # %[1]d\n"}).Draw(t, "form")
			fmt.Fprintf(&lines, verb, r.Off, r.Len(), r.State)
			object = append(object, fmt.Sprintf(`{"offset":%d,"length":%d,"state":%q}`, r.Off, r.Len(), r.State))
		}
		for _, text := range []string{lines.String(), `{"extents":[` + strings.Join(object, ",") + `]}`} {
			if got, err := parse(strings.NewReader(text), size); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%s\ngot %v, %v\nwant %v", text, got, err, want)
			}
		}
	})
}
