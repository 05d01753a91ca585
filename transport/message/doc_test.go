package message_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const protocolPage = "../../docs/PROTOCOL.md"

// TestProtocolPage: every layout in the code is on the page, word for word, and
// every message under its number.
func TestProtocolPage(t *testing.T) {
	page, err := os.ReadFile(protocolPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range examples() {
		if title := fmt.Sprintf("\n### %d %s: ", x.m.Kind(), reflect.TypeOf(x.m).Name()); !bytes.Contains(page, []byte(title)) {
			t.Errorf("no %q on the page", strings.TrimSpace(title))
		}
	}
	layouts := 0
	for _, dir := range []string{".", ".."} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			for _, l := range layoutsOf(t, name) {
				layouts++
				if !bytes.Contains(page, []byte(l)) {
					t.Errorf("%s: not on the page:\n%s", name, l)
				}
			}
		}
	}
	if layouts < 26 {
		t.Errorf("found %d layouts in the code", layouts)
	}
}

// layoutsOf returns the offset tables in the comments of a file, as the page has them.
func layoutsOf(t *testing.T, name string) (out []string) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Doc == nil || !strings.Contains(g.Doc.Text(), "off size field") {
			continue
		}
		var table []string
		for l := range strings.Lines(g.Doc.Text()) {
			if rest, indented := strings.CutPrefix(l, "\t"); indented {
				table = append(table, "    "+rest)
			}
		}
		out = append(out, strings.Join(table, ""))
	}
	return out
}
