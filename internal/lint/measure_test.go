package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// source is one parsed Go file of the module.
type source struct {
	path string // from the module root, with slashes
	dir  string // of path; "." is the root package
	test bool   // compiled for tests only
	main bool   // package main
	text string
	file *ast.File
	fset *token.FileSet
}

func (s source) line(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// lines is how many lines n takes, both ends counted.
func (s source) lines(n ast.Node) int { return s.fset.Position(n.End()).Line - s.line(n) + 1 }

func parseSource(path, text string) (source, error) {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, text, parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	return source{
		path: path, dir: filepath.Dir(path), text: text, file: f, fset: fset,
		test: strings.HasSuffix(path, "_test.go"), main: f.Name.Name == "main",
	}, nil
}

// sources reads every Go file that a person wrote, the modules below included.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := fs.WalkDir(moduleFS, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name == "testdata" || path != "." && strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := fs.ReadFile(moduleFS, path)
		if err != nil {
			return err
		}
		s, err := parseSource(path, string(text))
		if err != nil {
			return err
		}
		if !ast.IsGenerated(s.file) {
			all = append(all, s)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read the sources: %v", err)
	}
	if len(all) == 0 {
		t.Fatal("found no Go file: the tests of this package run from internal/lint")
	}
	return all
}

// function is a declared function or a function literal.
type function struct {
	name string
	node ast.Node // the declaration or literal
	typ  *ast.FuncType
	body *ast.BlockStmt
}

func (s source) functions() []function {
	var all []function
	for _, decl := range s.file.Decls {
		outer := "a package-level function literal"
		if d, ok := decl.(*ast.FuncDecl); ok {
			outer = d.Name.Name
			if d.Body != nil {
				all = append(all, function{outer, d, d.Type, d.Body})
			}
		}
		ast.Inspect(decl, func(n ast.Node) bool {
			if lit, ok := n.(*ast.FuncLit); ok {
				all = append(all, function{"a function literal in " + outer, lit, lit.Type, lit.Body})
			}
			return true
		})
	}
	return all
}

// parameters counts names, and types where they have no name.
func (f function) parameters() int {
	n := 0
	for _, field := range f.typ.Params.List {
		n += max(1, len(field.Names))
	}
	return n
}

// nesting is how many control structures the deepest statement of body is in.
// An else-if is as deep as its if. Function literals are measured on their own.
func nesting(body *ast.BlockStmt) int {
	deepest := 0
	var inside func(n ast.Node, depth int)
	inside = func(n ast.Node, depth int) {
		ast.Inspect(n, func(c ast.Node) bool {
			if c == n || c == nil {
				return true
			}
			switch c := c.(type) {
			case *ast.FuncLit:
				return false
			case *ast.IfStmt:
				deepest = max(deepest, depth)
				below := depth + 1
				if outer, ok := n.(*ast.IfStmt); ok && outer.Else == c {
					below = depth
				}
				inside(c, below)
				return false
			case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
				deepest = max(deepest, depth)
				inside(c, depth+1)
				return false
			case *ast.BlockStmt, *ast.CaseClause, *ast.CommClause, *ast.LabeledStmt:
			case ast.Stmt:
				deepest = max(deepest, depth)
			}
			return true
		})
	}
	inside(body, 0)
	return deepest
}

// export is an exported name, or a method of one.
type export struct {
	name       string
	method     bool
	documented bool
	node       ast.Node
}

func (s source) exports() []export {
	var all []export
	for _, decl := range s.file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			recv, method := receiver(d)
			if !d.Name.IsExported() || method && !ast.IsExported(recv) {
				continue
			}
			name := d.Name.Name
			if method {
				name = recv + "." + name
			}
			all = append(all, export{name, method, d.Doc != nil, d})
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				all = append(all, specExports(d, spec)...)
			}
		}
	}
	return all
}

func specExports(d *ast.GenDecl, spec ast.Spec) []export {
	var all []export
	switch s := spec.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() {
			all = append(all, export{s.Name.Name, false, d.Doc != nil || s.Doc != nil || s.Comment != nil, s})
		}
	case *ast.ValueSpec:
		for _, name := range s.Names {
			if name.IsExported() {
				all = append(all, export{name.Name, false, d.Doc != nil || s.Doc != nil || s.Comment != nil, s})
			}
		}
	}
	return all
}

// receiver is the name of the type that d is a method of.
func receiver(d *ast.FuncDecl) (name string, method bool) {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return "", false
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name, true
		default:
			return "", true
		}
	}
}

// uses lists where the file names member of the package path, such as
// time.Sleep, under whatever name it imports it.
func (s source) uses(path string, members ...string) []ast.Node {
	local := ""
	for _, spec := range s.file.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil && p == path {
			local = filepath.Base(path)
			if spec.Name != nil {
				local = spec.Name.Name
			}
		}
	}
	var all []ast.Node
	ast.Inspect(s.file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok || local == "" || x.Name != local {
			return true
		}
		for _, m := range members {
			if sel.Sel.Name == m {
				all = append(all, n)
			}
		}
		return true
	})
	return all
}

// The rulers themselves: what they say about a file whose measures are known.
func TestMeasures(t *testing.T) {
	s, err := parseSource("x/y.go", sample)
	if err != nil {
		t.Fatal(err)
	}
	type measures struct{ lines, parameters, nesting int }
	want := map[string]measures{
		"flat":                       {1, 3, 0},
		"deep":                       {17, 0, 3},
		"a function literal in deep": {5, 1, 2},
		"M":                          {1, 0, 0},
		"Exported":                   {1, 0, 0},
	}
	for _, f := range s.functions() {
		got := measures{s.lines(f.body), f.parameters(), nesting(f.body)}
		if got != want[f.name] {
			t.Errorf("%s: %+v, want %+v", f.name, got, want[f.name])
		}
		delete(want, f.name)
	}
	for name := range want {
		t.Errorf("%s was not seen", name)
	}
	exports := map[string]bool{}
	for _, e := range s.exports() {
		exports[e.name] = e.documented
	}
	for name, documented := range map[string]bool{"T": true, "T.M": false, "A": true, "B": false, "G": true} {
		if got, ok := exports[name]; !ok || got != documented {
			t.Errorf("export %s: seen %v, documented %v, want %v", name, ok, got, documented)
		}
	}
	if len(exports) != 5 {
		t.Errorf("exports %v", exports)
	}
	if n := len(s.uses("time", "Sleep", "Now")); n != 2 {
		t.Errorf("%d uses of time.Sleep and time.Now, want 2", n)
	}
	if n := len(s.uses("context", "Context")); n != 0 {
		t.Errorf("%d uses of a package that is not imported", n)
	}
}

const sample = `package y

import clock "time"

func flat(a, b int, _ string) { clock.Sleep(1); _ = clock.Now() }

func deep() {
	if true {
		for {
			switch {
			case true:
				flat(1, 2, "")
			}
		}
	} else if false {
		flat(1, 2, "")
	}
	_ = func(int) {
		for range 2 {
			if true { flat(1, 2, "") }
		}
	}
}

// T is documented.
type T[K any] struct{}

func (*T[K]) M() {}

const (
	A = 1 // documented
	B = 2
)

// G is documented.
var g, G int

type hidden struct{}

func (hidden) Exported() { time.Sleep(1) }
`
