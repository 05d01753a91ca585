package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/failback/failback"
)

func TestParseExposed(t *testing.T) {
	for in, want := range map[string]exposed{
		"db=/dev/vg/db":                 {"db", "/dev/vg/db", false, ""},
		"db=/dev/vg/db,rw":              {"db", "/dev/vg/db", true, ""},
		"db=/dev/vg/db,ro":              {"db", "/dev/vg/db", false, ""},
		"db=/dev/vg/db,tree=/t.fbt,ro":  {"db", "/dev/vg/db", false, "/t.fbt"},
		"a b=/dir/with, comma/x":        {"a b", "/dir/with, comma/x", false, ""},
		"a=/x=y,ro":                     {"a", "/x=y", false, ""},
		"a=/images/a,rov":               {"a", "/images/a,rov", false, ""},
		"a=/images/a,rwx":               {"a", "/images/a,rwx", false, ""},
		"a=/images/a,b,tree=/t,with,ro": {"a", "/images/a,b,tree=/t,with", false, ""},
	} {
		if got, err := parseExposed(in); err != nil || got != want {
			t.Errorf("parseExposed(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "=/x", "a=", "a=,ro", "a=/x,ro,rw", "a=/x,ro,ro", "a=/x,tree=", "a=/x,tree=/1,tree=/2", "a=/x,rw,tree=/t"} {
		var usage *usageError
		if got, err := parseExposed(in); !errors.As(err, &usage) {
			t.Errorf("parseExposed(%q) = %+v, %v; want a usage error", in, got, err)
		}
	}
}

// TestLookup: L4, a peer reaches nothing that was not exposed to it, and
// overwrites nothing that was exposed for reading.
func TestLookup(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	named, err := newExposure([]string{"ro=" + path + ",ro", "rw=" + path + ",rw", "plain=" + path})
	if err != nil {
		t.Fatal(err)
	}
	only := &exposure{byName: map[string]exposed{}}
	if err := only.only(path); err != nil {
		t.Fatal(err)
	}
	onlyWritable := &exposure{byName: map[string]exposed{}}
	if err := onlyWritable.only(path + ",rw"); err != nil {
		t.Fatal(err)
	}
	anything := &exposure{any: true}
	for _, c := range []struct {
		name    string
		x       *exposure
		volume  string
		write   bool
		refused bool
	}{
		{"read what is read-only", named, "ro", false, false},
		{"write what is read-only", named, "ro", true, true},
		{"write what is writable", named, "rw", true, false},
		{"read what does not say", named, "plain", false, false},
		{"write what does not say", named, "plain", true, true},
		{"a path instead of a name", named, path, false, true},
		{"no name", named, "", false, true},
		{"the only path", only, path, false, false},
		{"write to the only path", only, path, true, true},
		{"write to the only path, given rw", onlyWritable, path, true, false},
		{"another path", only, filepath.Join(dir, "b.img"), false, true},
		{"the only path, another spelling", only, dir + "/./a.img", false, true},
		{"any path", anything, path, true, false},
		{"a relative path", anything, "a.img", false, true},
		{"a path that is not there", anything, filepath.Join(dir, "b.img"), false, true},
	} {
		served, err := c.x.lookup(t.Context(), c.volume, c.write)
		var refused *failback.RefusedError
		if errors.As(err, &refused) != c.refused || (err == nil) == c.refused {
			t.Errorf("%s: error %v, refused should be %v", c.name, err, c.refused)
		}
		if err == nil {
			if err := served.Close(); err != nil {
				t.Errorf("%s: close: %v", c.name, err)
			}
		}
	}
}

// TestAllow: a volume with --allow is there for the peers that are named, as
// far as they are, and does not exist for others.
func TestAllow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f := serveFlags{
		volumes: []string{"db=" + path + ",rw", "open=" + path + ",rw", "ro=" + path},
		allow:   []string{"db=home,rw", "db=auditor", "db=uid:7,ro", "ro=home", "ro=Doe, J"},
	}
	x, err := f.exposure()
	if err != nil {
		t.Fatal(err)
	}
	var barred []string
	x.barred = func(peer, name string) { barred = append(barred, name+" from "+peer) }
	const read, write, unseen = "read", "write", "unseen"
	for _, c := range []struct{ volume, peer, may string }{
		{"db", "home", write}, {"db", "auditor", read}, {"db", "uid:7", read},
		{"db", "Home", unseen}, {"db", "hom", unseen}, {"db", "", unseen}, {"db", "uid:70", unseen}, {"db", "home,rw", unseen},
		{"open", "home", write}, {"open", "anybody", write}, {"open", "", write},
		{"ro", "home", read}, {"ro", "Doe, J", read}, {"ro", "auditor", unseen},
		{"none", "home", unseen},
	} {
		ctx := withPeer(t.Context(), c.peer)
		for _, w := range []bool{false, true} {
			served, err := x.lookup(ctx, c.volume, w)
			if ok := c.may == write || c.may == read && !w; ok != (err == nil) {
				t.Errorf("%s for %q, write %v: %v", c.volume, c.peer, w, err)
			}
			if err == nil {
				err = served.Close()
				if err != nil {
					t.Error(err)
				}
				continue
			}
			var refused *failback.RefusedError
			if !errors.As(err, &refused) || refused.Volume != c.volume || !strings.HasSuffix(refused.Reason, to(c.peer)) {
				t.Errorf("%s for %q: the refusal must name both: %v", c.volume, c.peer, err)
			}
		}
	}
	_, hidden := x.lookup(withPeer(t.Context(), "eve"), "db", false)
	_, absent := x.lookup(withPeer(t.Context(), "eve"), "nope", false)
	if strings.ReplaceAll(hidden.Error(), "db", "nope") != absent.Error() {
		t.Errorf("a volume that eve may not see: %v\none that is not there:         %v", hidden, absent)
	}
	if want := "db from eve"; len(barred) == 0 || barred[len(barred)-1] != want {
		t.Errorf("the log says %q, want %q last", barred, want)
	}
}

func TestAllowUsage(t *testing.T) {
	for _, allow := range [][]string{{""}, {"db"}, {"=x"}, {"db="}, {"db=,rw"}, {"other=x"}, {"db=x,rw"}, {"rw=x", "rw=x,rw"}} {
		f := serveFlags{volumes: []string{"db=/x", "rw=/y,rw"}, allow: allow}
		var usage *usageError
		if x, err := f.exposure(); !errors.As(err, &usage) {
			t.Errorf("--allow %q: %+v, %v; want a usage error", allow, x, err)
		}
	}
	f := serveFlags{stdio: true, volumes: []string{"db=/x"}, allow: []string{"db=x"}, maxConnections: 1, maxPerPeer: 1}
	var usage *usageError
	if err := f.check(); !errors.As(err, &usage) {
		t.Errorf("--allow with --stdio: %v", err)
	}
}
