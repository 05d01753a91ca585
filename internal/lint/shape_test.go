package lint

import (
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
)

// The budgets. Lines count everything, comments and blanks too.
const (
	maxFileLines     = 500
	maxFunctionLines = 100
	p90FunctionLines = 45 // nine functions of ten are no longer
	maxNesting       = 4
	p90Nesting       = 2
	maxParameters    = 5
	maxExports       = 50 // names that a reader of a package meets: without methods
)

func TestFiles(t *testing.T) {
	for _, s := range sources(t) {
		if n := strings.Count(s.text, "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines, at most %d: split it by noun, each file named after what is in it", s.path, n, maxFileLines)
		}
	}
}

func TestFunctions(t *testing.T) {
	var lengths, depths []int
	for _, s := range sources(t) {
		if s.test {
			continue // a table of cases may be long
		}
		for _, f := range s.functions() {
			at := fmt.Sprintf("%s:%d: %s", s.path, s.line(f.node), f.name)
			length, depth := s.lines(f.body), nesting(f.body)
			if length > maxFunctionLines {
				t.Errorf("%s has %d lines, at most %d: give its steps names and make them functions", at, length, maxFunctionLines)
			}
			if depth > maxNesting {
				t.Errorf("%s is nested %d deep, at most %d: return early, or make the inner loop a function", at, depth, maxNesting)
			}
			if n := f.parameters(); n > maxParameters {
				t.Errorf("%s has %d parameters, at most %d: those that travel together are a struct", at, n, maxParameters)
			}
			if _, declared := f.node.(*ast.FuncDecl); declared {
				lengths, depths = append(lengths, length), append(depths, depth)
			}
		}
	}
	if p := p90(lengths); p > p90FunctionLines {
		t.Errorf("one function of ten has more than %d lines (p90 is %d): shorten the long ones", p90FunctionLines, p)
	}
	if p := p90(depths); p > p90Nesting {
		t.Errorf("one function of ten is nested deeper than %d (p90 is %d): flatten the deep ones", p90Nesting, p)
	}
}

func p90(x []int) int {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[len(x)*9/10]
}

func TestExports(t *testing.T) {
	names := map[string][]string{}
	for _, s := range sources(t) {
		if s.test || s.main {
			continue
		}
		for _, e := range s.exports() {
			if !e.method {
				names[s.dir] = append(names[s.dir], e.name)
			}
			if !e.documented {
				t.Errorf("%s:%d: %s has no doc comment: say what it promises, with units, errors and cost", s.path, s.line(e.node), e.name)
			}
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(names)) {
		if n := len(names[dir]); n > maxExports {
			t.Errorf("package %s exports %d names, at most %d: unexport what only the package itself uses, or move a noun out", dir, n, maxExports)
		}
	}
}

func TestPackages(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "types", "misc", "shared", "base"}
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if slices.Contains(vague, s.file.Name.Name) || slices.Contains(vague, path.Base(s.dir)) {
			t.Errorf("%s: package %s says nothing about what it is: name it after its noun", s.path, s.file.Name.Name)
		}
		if !s.test {
			documented[s.dir] = documented[s.dir] || s.file.Doc != nil
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(documented)) {
		if !documented[dir] {
			t.Errorf("package %s has no package comment: say what it is, then in what order to read it", dir)
		}
	}
}

// forTests are files that run in tests: conformance suites too.
func (s source) forTests() bool { return s.test || strings.HasSuffix(s.file.Name.Name, "test") }

func TestNoSleep(t *testing.T) {
	for _, s := range sources(t) {
		if !s.forTests() {
			continue
		}
		for _, n := range s.uses("time", "Sleep") {
			t.Errorf("%s:%d: time.Sleep in a test is slow or flaky: wait for what happens (a channel, Process.Wait), or receive from time.After inside testing/synctest", s.path, s.line(n))
		}
	}
}

func TestContexts(t *testing.T) {
	for _, s := range sources(t) {
		contexts := s.uses("context", "Context")
		ast.Inspect(s.file, func(n ast.Node) bool {
			st, ok := n.(*ast.StructType)
			if !ok {
				return true
			}
			for _, f := range st.Fields.List {
				if slices.Contains(contexts, ast.Node(f.Type)) {
					t.Errorf("%s:%d: a context in a struct outlives its call: pass it as the first parameter", s.path, s.line(f))
				}
			}
			return true
		})
		if s.main || s.forTests() {
			continue
		}
		for _, n := range s.uses("context", "Background", "TODO") {
			t.Errorf("%s:%d: a context made here cannot be cancelled by the caller: take one as the first parameter", s.path, s.line(n))
		}
	}
}

// Numbers on the wire and on disk are written out, so that a line put in
// between changes none of them.
func TestNoIota(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains([]string{"cbt", "merkle", "transport", "transport/message"}, s.dir) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && id.Name == "iota" {
				t.Errorf("%s:%d: iota in a package whose numbers are on wire or disk: write each number out", s.path, s.line(n))
			}
			return true
		})
	}
}

func TestNothingLeftToDo(t *testing.T) {
	// in two parts, so that this file passes its own test
	marks := []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}
	for _, s := range sources(t) {
		for _, group := range s.file.Comments {
			for _, m := range marks {
				if slices.Contains(strings.FieldsFunc(group.Text(), func(r rune) bool { return !('A' <= r && r <= 'Z') }), m) {
					t.Errorf("%s:%d: %s: do it, or open an issue and say what is missing in the docs", s.path, s.line(group), m)
				}
			}
		}
	}
}
