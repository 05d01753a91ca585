package bench

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// An Engine makes cases of failback's own command lines on a set. Each reports what the command says of itself in JSON.
type Engine struct {
	Binary string // path of failback
	Set    *Set
}

// file returns the path of a file that the engine keeps beside the images.
func (e Engine) file(kind string) string { return filepath.Join(e.Set.Dir, "engine-"+kind) }

// run runs failback for what a case needs before it can start.
func (e Engine) run(ctx context.Context, args ...string) error {
	if err := command(ctx, append([]string{e.Binary}, args...)...); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	return nil
}

// Sync brings the target in line; flags say how it finds what differs.
func (e Engine) Sync(name string, flags ...string) Case {
	args := append([]string{e.Binary, "sync", "--json", "--no-progress"}, flags...)
	return Case{Name: name, Args: append(args, e.Set.Source, e.Set.Target), Facts: JSONFacts}
}

// Exact syncs with a dirty map made from a list of extents.
func (e Engine) Exact(name, list string, flags ...string) Case {
	dirty := e.file("dirty-" + filepath.Base(list) + ".fbm")
	c := e.Sync(name, append([]string{"--dirty", dirty}, flags...)...)
	c.Prepare = func(ctx context.Context) error {
		return e.run(ctx, "map", "from-extents", "-o", dirty, "--volume", e.Set.Source, list)
	}
	return c
}

// Kept syncs with a tree of the target made before the run, so that the target is not read; with both, one of the source
// too, so that nothing is read but what differs.
func (e Engine) Kept(name string, both bool, flags ...string) Case {
	kept := e.file("target-kept.fbt")
	work, source := e.file("target.fbt"), e.file("source.fbt")
	flags = append(flags, "--target-tree", work, "--trust-tree")
	if both {
		flags = append(flags, "--source-tree", source)
	}
	c := e.Sync(name, flags...)
	var made *Divergent
	c.Prepare = func(ctx context.Context) error {
		if made != e.Set.state {
			if err := e.run(ctx, "digest", "--quiet", "-o", kept, e.Set.Target); err != nil {
				return err
			}
			if err := e.run(ctx, "digest", "--quiet", "-o", source, e.Set.Source); err != nil {
				return err
			}
			made = e.Set.state
		}
		return copySmall(work, kept) // a sync may bring the tree in line too
	}
	return c
}

// Digest writes the tree of the source to a file.
func (e Engine) Digest(hash string) Case {
	out := e.file("digest-" + hash + ".fbt")
	return Case{Name: "failback digest " + hash, Reads: true, Facts: JSONFacts,
		Args: []string{e.Binary, "digest", "--json", "--no-progress", "--hash", hash, "-o", out, e.Set.Source}}
}

// VerifyDigest compares the source with a tree of it.
func (e Engine) VerifyDigest(hash string) Case {
	tree := e.file("verify-" + hash + ".fbt")
	return Case{Name: "failback verify A " + hash, Reads: true, Facts: JSONFacts,
		Args: []string{e.Binary, "verify", "--json", "--no-progress", e.Set.Source, tree},
		Prepare: func(ctx context.Context) error {
			return e.run(ctx, "digest", "--quiet", "--hash", hash, "-o", tree, e.Set.Source)
		}}
}

// Verify compares both images; differ says whether they do.
func (e Engine) Verify(differ bool) Case {
	c := Case{Name: "failback verify A B", Reads: true, Facts: JSONFacts,
		Args: []string{e.Binary, "verify", "--json", "--no-progress", e.Set.Source, e.Set.Target}}
	if differ {
		c.Exit = 1
	}
	return c
}

// Remote syncs to a server that has the target, over a unix socket; line relays between both, where there is one.
func (e Engine) Remote(name string, line []string, flags ...string) Case {
	server, relay := e.file("server.sock"), e.file("relay.sock")
	args := append([]string{e.Binary, "sync", "--json", "--no-progress"}, flags...)
	c := Case{Name: name, Facts: JSONFacts, Servers: []Server{{
		Args:   []string{e.Binary, "serve", "--quiet", "--listen", "unix://" + server, "--volume", "target=" + e.Set.Target},
		Socket: server,
	}}}
	to := server
	if line != nil {
		c.Servers = append(c.Servers, Server{Socket: relay, Args: append(line, relay, server)})
		to = relay
	}
	c.Args = append(args, e.Set.Source, "unix://"+to+"?volume=target")
	return c
}

// find says what is wrong with the binary before anything is measured.
func (e Engine) find() error {
	if _, err := exec.LookPath(e.Binary); err != nil {
		return fmt.Errorf("find failback: %w: build it first", err)
	}
	return nil
}
