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
		return exposed{}, usagef("--volume %q: write NAME=PATH, with ,rw or ,tree=FILE behind it if need be", s)
	}
	e, err := parseExposedPath(rest)
	e.name = name
	if err != nil {
		return e, usagef("--volume %q: %w", s, err)
	}
	return e, nil
}

// parseExposedPath reads PATH[,ro|rw][,tree=FILE]. Commas that no such word
// follows are the path's. What does not say rw is for reading (L4).
func parseExposedPath(s string) (exposed, error) {
	e := exposed{path: s}
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
			return e, e.check()
		}
		e.path = e.path[:i]
	}
	return e, e.check()
}

// check says what is missing, or goes together badly: nothing would tell what was
// written since its tree was made to a volume that peers may write.
func (e exposed) check() error {
	switch {
	case e.path == "":
		return errors.New("no path")
	case e.tree != "" && e.write:
		return errors.New("tree=FILE is for a volume that nobody writes: leave out rw, or the tree")
	}
	return nil
}

// exposure says which volumes which peers may use. It is the Lookup of a server.
type exposure struct {
	byName map[string]exposed
	// allowed are the peers of a volume, by its name, and whether they may write
	// to it. A volume that is not in it is for every peer that gets in.
	allowed map[string]map[string]bool
	any     bool // serve --stdio without a restriction: every path, with this process's rights

	keep keeping

	opened func(peer, name string, write bool) // told of each session; nil: nobody is told
	barred func(peer, name string)             // told of a volume that is not for a peer; nil likewise
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

// allow reads NAME=PEER[,ro|rw]: from now on the volume is for the peers that
// are named and for nobody else.
func (x *exposure) allow(s string) error {
	name, peer, ok := strings.Cut(s, "=")
	write := false
	if cut, is := strings.CutSuffix(peer, ",rw"); is {
		peer, write = cut, true
	} else {
		peer = strings.TrimSuffix(peer, ",ro")
	}
	if !ok || name == "" || peer == "" {
		return usagef("--allow %q: write NAME=PEER, with ,rw behind it if the peer may write", s)
	}
	e, known := x.byName[name]
	_, twice := x.allowed[name][peer]
	switch {
	case !known:
		return usagef("--allow %q: there is no --volume %s", s, name)
	case twice:
		return usagef("--allow %q: the peer is named twice", s)
	case write && !e.write:
		return usagef("--allow %q: the volume is read-only; serve it with ,rw if it is meant to be overwritten", s)
	}
	if x.allowed == nil {
		x.allowed = make(map[string]map[string]bool)
	}
	if x.allowed[name] == nil {
		x.allowed[name] = make(map[string]bool)
	}
	x.allowed[name][peer] = write
	return nil
}

// peerKey is where a session's context holds who the peer is.
type peerKey struct{}

// withPeer says in a context who the peer of a connection is.
func withPeer(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, peerKey{}, name)
}

// peerOf is the peer's name, "" if the connection says nothing of it.
func peerOf(ctx context.Context) string {
	name, _ := ctx.Value(peerKey{}).(string)
	return name
}

// lookup opens a volume for one session.
func (x *exposure) lookup(ctx context.Context, name string, write bool) (failback.Served, error) {
	peer := peerOf(ctx)
	e, known := x.byName[name]
	if known {
		if peers, some := x.allowed[name]; some {
			may, listed := peers[peer]
			known, e.write = listed, e.write && may
			if !listed && x.barred != nil {
				x.barred(peer, name)
			}
		}
	}
	switch {
	case known && write && !e.write:
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "it is served read-only" + to(peer),
			Next: "serve it with ,rw if it is meant to be overwritten, and say so in --allow if that names the peers"}
	case known:
	case !x.any:
		// The same words for what is not there and for what this peer may not see.
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "no volume of that name is served here" + to(peer),
			Next: "look at --volume, --allow and --only of failback serve there"}
	case !filepath.IsAbs(name):
		return failback.Served{}, &failback.RefusedError{Volume: name, Reason: "not an absolute path", Next: "write ssh://host/PATH"}
	default:
		e = exposed{name: name, path: name, write: true}
	}
	s, err := e.open(write, x.keep)
	if err == nil && x.opened != nil {
		x.opened(peer, name, write)
	}
	return s, err
}

// to names the peer in a refusal, if it has a name.
func to(peer string) string {
	if peer == "" {
		return ""
	}
	return " to " + peer
}

func (e exposed) open(write bool, keep keeping) (failback.Served, error) {
	d, err := failback.Open(e.path, failback.OpenOptions{Write: write})
	if err != nil {
		return failback.Served{}, err
	}
	side := failback.Side{Volume: d, Name: e.name, Tree: e.tree, TrustTree: e.tree != "", Undo: keep.undo}
	if write && keep.stage != "" {
		if side.Stage, err = makeStageDir(keep.stage, e.name); err != nil {
			return failback.Served{}, errors.Join(err, d.Close())
		}
	}
	if side.Journal, err = keep.place.journal(d, e.path, write); err != nil {
		return failback.Served{}, errors.Join(err, d.Close())
	}
	return failback.Served{Side: side, Close: d.Close}, nil
}

// keeping says where a server keeps what belongs beside the targets it serves.
type keeping struct {
	place placeFlags
	undo  string // a directory, or a file; "": no undo logs
	stage string // a directory; "": no stages
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
