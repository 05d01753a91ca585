package cli

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/failback/failback"
)

func TestParseExposed(t *testing.T) {
	for in, want := range map[string]exposed{
		"db=/dev/vg/db":                 {"db", "/dev/vg/db", true, ""},
		"db=/dev/vg/db,ro":              {"db", "/dev/vg/db", false, ""},
		"db=/dev/vg/db,rw,tree=/t.fbt":  {"db", "/dev/vg/db", true, "/t.fbt"},
		"db=/dev/vg/db,tree=/t.fbt,ro":  {"db", "/dev/vg/db", false, "/t.fbt"},
		"a b=/dir/with, comma/x":        {"a b", "/dir/with, comma/x", true, ""},
		"a=/x=y,ro":                     {"a", "/x=y", false, ""},
		"a=/images/a,rov":               {"a", "/images/a,rov", true, ""},
		"a=/images/a,b,tree=/t,with,ro": {"a", "/images/a,b,tree=/t,with", false, ""},
	} {
		if got, err := parseExposed(in); err != nil || got != want {
			t.Errorf("parseExposed(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "=/x", "a=", "a=,ro", "a=/x,ro,rw", "a=/x,ro,ro", "a=/x,tree=", "a=/x,tree=/1,tree=/2"} {
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
	named, err := newExposure([]string{"ro=" + path + ",ro", "rw=" + path})
	if err != nil {
		t.Fatal(err)
	}
	only := &exposure{byName: map[string]exposed{}}
	if err := only.only(path + ",ro"); err != nil {
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
		{"a path instead of a name", named, path, false, true},
		{"no name", named, "", false, true},
		{"the only path", only, path, false, false},
		{"write to the only path", only, path, true, true},
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
