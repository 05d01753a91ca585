package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// An engine makes cases of failback's own command lines on a set. Each reports what the command says of itself in JSON.
type engine struct {
	binary string // path of failback
	set    *Set
}

// file returns the path of a file that the engine keeps beside the images.
func (e engine) file(kind string) string { return filepath.Join(e.set.Dir, "engine-"+kind) }

// run runs failback for what a case needs before it can start.
func (e engine) run(ctx context.Context, args ...string) error {
	return runProcess(ctx, append([]string{e.binary}, args...))
}

// sync brings the target in line; flags say how it finds what differs.
func (e engine) sync(name string, flags ...string) Case {
	args := append([]string{e.binary, "sync", "--json", "--no-progress"}, flags...)
	return Case{Name: name, Args: append(args, e.set.Source, e.set.Target), Facts: jsonFacts}
}

// exact syncs with a dirty map made from a list of extents.
func (e engine) exact(name, list string, flags ...string) Case {
	dirty := e.file("dirty-" + filepath.Base(list) + ".fbm")
	c := e.sync(name, append([]string{"--dirty", dirty}, flags...)...)
	c.Prepare = func(ctx context.Context) error {
		return e.run(ctx, "map", "from-extents", "-o", dirty, "--volume", e.set.Source, list)
	}
	return c
}

// kept syncs with a tree of the target made before the run, so that the target is not read; with both, one of the source
// too, so that nothing is read but what differs.
func (e engine) kept(name string, both bool, flags ...string) Case {
	kept := e.file("target-kept.fbt")
	work, source := e.file("target.fbt"), e.file("source.fbt")
	flags = append(flags, "--target-tree", work, "--trust-tree")
	if both {
		flags = append(flags, "--source-tree", source)
	}
	c := e.sync(name, flags...)
	var made *Divergent
	c.Prepare = func(ctx context.Context) error {
		if made != e.set.state {
			if err := e.run(ctx, "digest", "--quiet", "-o", kept, e.set.Target); err != nil {
				return err
			}
			if err := e.run(ctx, "digest", "--quiet", "-o", source, e.set.Source); err != nil {
				return err
			}
			made = e.set.state
		}
		return copySmall(work, kept) // a sync may bring the tree in line too
	}
	return c
}

// undo syncs and saves what is overwritten to a file that is not there yet.
func (e engine) undo(name, list string) Case {
	log := e.file("undo.fbu")
	c := e.exact(name, list, "--undo", log)
	prepare := c.Prepare
	c.Prepare = func(ctx context.Context) error {
		if err := os.Remove(log); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return prepare(ctx)
	}
	return c
}

// digest writes the tree of the source to a file.
func (e engine) digest(hash string) Case {
	out := e.file("digest-" + hash + ".fbt")
	return Case{Name: "failback digest " + hash, Reads: true, Facts: jsonFacts,
		Args: []string{e.binary, "digest", "--json", "--no-progress", "--hash", hash, "-o", out, e.set.Source}}
}

// verifyDigest compares the source with a tree of it.
func (e engine) verifyDigest(hash string) Case {
	tree := e.file("verify-" + hash + ".fbt")
	return Case{Name: "failback verify A " + hash, Reads: true, Facts: jsonFacts,
		Args: []string{e.binary, "verify", "--json", "--no-progress", e.set.Source, tree},
		Prepare: func(ctx context.Context) error {
			return e.run(ctx, "digest", "--quiet", "--hash", hash, "-o", tree, e.set.Source)
		}}
}

// verify compares both images; differ says whether they do.
func (e engine) verify(differ bool) Case {
	c := Case{Name: "failback verify A B", Reads: true, Facts: jsonFacts,
		Args: []string{e.binary, "verify", "--json", "--no-progress", e.set.Source, e.set.Target}}
	if differ {
		c.Exit = 1
	}
	return c
}

// remote syncs to a server that has the target, over a unix socket; line relays between both, where there is one.
func (e engine) remote(name string, line []string, flags ...string) Case {
	server, relay := e.file("server.sock"), e.file("relay.sock")
	args := append([]string{e.binary, "sync", "--json", "--no-progress"}, flags...)
	c := Case{Name: name, Facts: jsonFacts, Servers: []Server{{
		Args:   []string{e.binary, "serve", "--quiet", "--listen", "unix://" + server, "--volume", "target=" + e.set.Target + ",rw"},
		Socket: server,
	}}}
	to := server
	if line != nil {
		c.Servers = append(c.Servers, Server{Socket: relay, Args: append(line, relay, server)})
		to = relay
	}
	c.Args = append(args, e.set.Source, "unix://"+to+"?volume=target")
	return c
}

// find says what is wrong with the binary before anything is measured.
func (e engine) find() error {
	if _, err := exec.LookPath(e.binary); err != nil {
		return fmt.Errorf("find failback: %w: build it first", err)
	}
	return nil
}
