package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/failback/failback"
)

// exposed is a volume that serve makes reachable.
type exposed struct {
	name  string // what peers call it
	path  string
	write bool   // peers may write to it
	tree  string // kept tree, "" for none
}

// parseExposed reads NAME=PATH[,ro|rw][,tree=FILE].
func parseExposed(s string) (exposed, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return exposed{}, usagef("--volume %q: write NAME=PATH, with ,ro or ,tree=FILE behind it if need be", s)
	}
	e, err := parseExposedPath(rest)
	e.name = name
	if err != nil {
		return e, usagef("--volume %q: %w", s, err)
	}
	return e, nil
}

// parseExposedPath reads PATH[,ro|rw][,tree=FILE]. Commas that no such word
// follows are the path's.
func parseExposedPath(s string) (exposed, error) {
	e := exposed{path: s, write: true}
	access := ""
	for {
		i := strings.LastIndexByte(e.path, ',')
		if i < 0 {
			break
		}
		word := e.path[i+1:]
		tree, isTree := strings.CutPrefix(word, "tree=")
		switch {
		case isTree && e.tree == "" && tree != "":
			e.tree = tree
		case (word == "ro" || word == "rw") && access == "":
			access, e.write = word, word == "rw"
		case isTree || word == "ro" || word == "rw":
			return e, errors.New("ro or rw, and tree=FILE, at most once each")
		default:
			return e, checkExposedPath(e.path)
		}
		e.path = e.path[:i]
	}
	return e, checkExposedPath(e.path)
}

func checkExposedPath(path string) error {
	if path == "" {
		return errors.New("no path")
	}
	return nil
}

// exposure says which volumes peers may use. It is the Lookup of a server.
type exposure struct {
	byName map[string]exposed
	any    bool                          // serve --stdio without a restriction: every path, with this process's rights
	opened func(name string, write bool) // told of each session; nil: nobody is told
}

func newExposure(volumes []string) (*exposure, error) {
	x := &exposure{byName: make(map[string]exposed)}
	for _, s := range volumes {
		e, err := parseExposed(s)
		if err != nil {
			return nil, err
		}
		if _, twice := x.byName[e.name]; twice {
			return nil, usagef("--volume %s: the name is taken twice", e.name)
		}
		x.byName[e.name] = e
	}
	return x, nil
}

// only adds PATH[,ro|rw][,tree=FILE] under its own path.
func (x *exposure) only(s string) error {
	e, err := parseExposedPath(s)
	if err != nil {
		return usagef("--only %q: %w", s, err)
	}
	if e.path, err = filepath.Abs(e.path); err != nil {
		return err
	}
	e.name = e.path
	x.byName[e.name] = e
	return nil
}

// lookup opens a volume for one session.
func (x *exposure) lookup(_ context.Context, name string, write bool) (failback.Served, error) {
	e, ok := x.byName[name]
	switch {
	case ok && write && !e.write:
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "it is served read-only",
			Next: "serve it with ,rw if it is meant to be overwritten"}
	case ok:
	case !x.any:
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "no volume of that name is served here",
			Next: "look at --volume and --only of failback serve there"}
	case !filepath.IsAbs(name):
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "not an absolute path", Next: "write ssh://host/PATH"}
	default:
		e = exposed{name: name, path: name, write: true}
	}
	s, err := e.open(write)
	if err == nil && x.opened != nil {
		x.opened(name, write)
	}
	return s, err
}

func (e exposed) open(write bool) (failback.Served, error) {
	d, err := failback.Open(e.path, failback.OpenOptions{Write: write})
	if err != nil {
		return failback.Served{}, err
	}
	return failback.Served{Side: failback.Side{Volume: d, Name: e.name, Tree: e.tree}, Close: d.Close}, nil
}

// check finds out at the start what would only be found when a peer comes. A
// volume that is in use now may be free by then.
func (x *exposure) check() error {
	for _, e := range x.byName {
		if _, err := os.Stat(e.path); err != nil {
			return fmt.Errorf("volume %s: %w", e.name, err)
		}
	}
	return nil
}
