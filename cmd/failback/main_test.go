package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"failback": main})
}

// TestScript runs the scripts: each command, each exit code, each refusal.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Cmds:                scriptCommands,
		Condition:           condition,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"exits":   exits,
	"image":   image,
	"poke":    poke,
	"same":    same,
	"keys":    keys,
	"field":   field,
	"appears": appears,
	"port":    port,
	"flip":    flip,
	"matches": matches,
}

// condition: [root] holds for the superuser.
func condition(cond string) (bool, error) {
	if cond == "root" {
		return os.Geteuid() == 0, nil
	}
	return false, fmt.Errorf("unknown condition %q", cond)
}

// exits N command args... runs the command and requires the exit code N.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N command args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// image FILE SIZE SEED makes a volume: text, random bytes, zeroes and a hole,
// a block of each in turn.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: image FILE SIZE SEED")
	}
	size, seed := number(ts, args[1]), number(ts, args[2])
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	random := rand.NewChaCha8([32]byte{byte(seed)})
	for off := int64(0); off < size; off += 4096 {
		b := make([]byte, min(4096, size-off))
		switch off / 4096 % 4 {
		case 0:
			copy(b, bytes.Repeat(fmt.Appendf(nil, "volume %d, block %d\n", seed, off/4096), 300))
		case 1:
			_, err = random.Read(b)
			ts.Check(err)
		case 3:
			continue
		}
		_, err = f.WriteAt(b, off)
		ts.Check(err)
	}
	ts.Check(f.Truncate(size))
	ts.Check(f.Close())
}

// poke FILE OFFSET LENGTH writes there what was not there.
func poke(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: poke FILE OFFSET LENGTH")
	}
	off, n := number(ts, args[1]), number(ts, args[2])
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	b := make([]byte, n)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	for i := range b {
		b[i] ^= 0x5a
	}
	_, err = f.WriteAt(b, off)
	ts.Check(err)
	ts.Check(f.Close())
}

// flip FILE OFFSET changes one bit.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: flip FILE OFFSET")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[number(ts, args[1])] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}

// same A B compares the bytes of two files.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] same A B")
	}
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s and %s: equal is %v", args[0], args[1], !neg)
	}
}

// object is the one JSON object that FILE (stdout, or a path) holds.
func object(ts *testscript.TestScript, file string) map[string]any {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(file)))
	d.UseNumber()
	var o map[string]any
	ts.Check(d.Decode(&o))
	if d.More() {
		ts.Fatalf("%s holds more than one object", file)
	}
	return o
}

// keys FILE KEY... requires that the object has these members and no others.
func keys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: keys FILE KEY...")
	}
	got, want := slices.Sorted(maps.Keys(object(ts, args[0]))), slices.Sorted(slices.Values(args[1:]))
	if !slices.Equal(got, want) {
		ts.Fatalf("the object has\n  %v\nwant\n  %v", got, want)
	}
}

// field FILE KEY VALUE requires a member's value, as JSON without quotes. With
// ! it requires another one.
func field(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: [!] field FILE KEY VALUE")
	}
	v, ok := object(ts, args[0])[args[1]]
	if !ok {
		ts.Fatalf("no member %s", args[1])
	}
	b, err := json.Marshal(v)
	ts.Check(err)
	got := strings.Trim(string(b), `"`)
	if (got == args[2]) == neg {
		ts.Fatalf("%s is %s, want %s (negated: %v)", args[1], got, args[2], neg)
	}
}

// matches FILE TEXT... requires that the file holds each text.
func matches(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] matches FILE TEXT...")
	}
	content := ts.ReadFile(args[0])
	for _, text := range args[1:] {
		if strings.Contains(content, text) == neg {
			ts.Fatalf("%s: contains %q is %v", args[0], text, !neg)
		}
	}
}

// appears FILE waits until a command in the background has made it.
func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appears FILE")
	}
	await(ts, args[0]+" to appear", func() bool {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err == nil
	})
}

// port FILE SCHEME VAR waits until the log of a server in the background tells
// the port it listens on.
func port(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: port FILE SCHEME VAR")
	}
	told := regexp.MustCompile(`listening on ` + args[1] + `://.*:(\d+)\n`)
	await(ts, args[0]+" to say where "+args[1]+" listens", func() bool {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		found := told.FindSubmatch(b)
		if err != nil || found == nil {
			return false
		}
		ts.Setenv(args[2], string(found[1]))
		return true
	})
}

// await asks again and again, for what another process does.
func await(ts *testscript.TestScript, what string, happened func() bool) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-late:
			ts.Fatalf("waited in vain for %s", what)
		}
	}
}

func number(ts *testscript.TestScript, s string) int64 {
	n, err := strconv.ParseInt(s, 0, 64)
	ts.Check(err)
	return n
}
