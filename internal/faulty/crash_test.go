package faulty

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestCrashSparesWhatWasSynced: whatever was written and synced in which order,
// a sector after a power cut is what it was at the last Sync or what one write
// since then put there; so a sector that no write touched since is as it was.
func TestCrashSparesWhatWasSynced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const sectors = 24
		v := NewVolume("disk", make([]byte, sectors*sector), nil)
		may := make([]map[byte]bool, sectors)
		for i := range may {
			may[i] = map[byte]bool{0: true}
		}
		last := make([]byte, sectors)
		for step := range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.IntRange(0, 4).Draw(t, "op") == 0 {
				if err := v.Sync(); err != nil {
					t.Fatal(err)
				}
				for i := range may {
					may[i] = map[byte]bool{last[i]: true}
				}
				continue
			}
			first := rapid.IntRange(0, sectors-1).Draw(t, "first")
			n := rapid.IntRange(1, sectors-first).Draw(t, "n")
			if _, err := v.WriteAt(filled(byte(step+1), n*sector), int64(first*sector)); err != nil {
				t.Fatal(err)
			}
			for i := first; i < first+n; i++ {
				may[i][byte(step+1)], last[i] = true, byte(step+1)
			}
		}
		seed := rapid.Uint64().Draw(t, "seed")
		left := v.Crash(seed).Bytes()
		for i := range may {
			s := left[i*sector : (i+1)*sector]
			if !may[i][s[0]] || bytes.Count(s, s[:1]) != sector {
				t.Fatalf("sector %d holds %d, may hold %v", i, s[0], may[i])
			}
		}
		if !bytes.Equal(left, v.Crash(seed).Bytes()) {
			t.Fatal("the same seed left something else")
		}
		if !bytes.Equal(left, v.Crash(seed).Durable()) {
			t.Fatal("what was found after the cut is not durable")
		}
	})
}

// TestCrashShapes: in a hundred seeds every way to lose power occurs.
func TestCrashShapes(t *testing.T) {
	v := NewVolume("disk", make([]byte, 4*page), nil)
	for i := range 4 {
		if _, err := v.WriteAt(filled(byte(i+1), page), int64(i)*page); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	for seed := range uint64(100) {
		b := v.Crash(seed).Bytes()
		var whole []bool
		for i := range 4 {
			switch n := bytes.Count(b[i*page:(i+1)*page], []byte{byte(i + 1)}); {
			case n%sector != 0:
				t.Fatalf("seed %d: %d bytes of a write", seed, n)
			case n > 0 && n < page:
				seen["torn"]++
			default:
				whole = append(whole, n > 0)
			}
		}
		switch {
		case len(whole) < 4:
		case !slices.Contains(whole, true):
			seen["none"]++
		case !slices.Contains(whole, false):
			seen["all"]++
		case slices.Index(whole, false) < 3 && slices.Contains(whole[slices.Index(whole, false):], true):
			seen["reordered"]++
		default:
			seen["in order"]++
		}
	}
	for _, k := range []string{"none", "all", "torn", "reordered", "in order"} {
		if seen[k] == 0 {
			t.Errorf("no seed left it %s: %v", k, seen)
		}
	}
}

// TestFileCrash: a file that grew may have its size without its content; what
// was truncated may be there; what was synced is.
func TestFileCrash(t *testing.T) {
	f := NewFile("journal", []byte("old"), nil)
	if _, err := f.WriteAt(filled(1, 2*page), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(page); err != nil {
		t.Fatal(err)
	}
	sizes, zeroes := map[int64]int{}, 0
	for seed := range uint64(200) {
		c := f.Crash(seed)
		sizes[c.Size()]++
		if c.Size() == 2*page && !bytes.Contains(c.Bytes(), []byte{1}) {
			zeroes++
		}
	}
	if sizes[3] == 0 || sizes[page] == 0 || sizes[2*page] == 0 || zeroes == 0 {
		t.Errorf("sizes %v, %d times without content", sizes, zeroes)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(20) {
		if c := f.Crash(seed); !bytes.Equal(c.Bytes(), filled(1, page)) {
			t.Fatalf("seed %d: %d bytes", seed, c.Size())
		}
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, d *Dir, path string, flag int) *File {
	t.Helper()
	f, err := d.Open(path, flag)
	must(t, err)
	return f
}

// TestReplace: the usual way to replace a file, with each of its syncs left out
// once. Only the whole of it leaves the old or the new content for every seed.
func TestReplace(t *testing.T) {
	for _, without := range []string{"", "sync", "sync directory"} {
		t.Run("without "+without, func(t *testing.T) {
			seen := map[string]int{}
			for cut := 1; ; cut++ {
				m := New(Rule{Op: Step, N: cut, Kind: Cut, After: cut%2 == 0})
				d := NewDir(m)
				d.WriteFile("a/b", []byte("old"))
				err := replace(d, without)
				for seed := range uint64(50) {
					content, rerr := d.Crash(seed).ReadFile("a/b")
					must(t, rerr)
					if err == nil {
						seen["afterwards "+string(content)]++
					}
					seen[strings.Trim(string(content), "\x00")]++
				}
				if err == nil {
					break
				}
			}
			sound := seen[""] == 0 && seen["old"] > 0 && seen["new"] > 0 && len(seen) == 3
			if sound != (without == "") || (without == "") != (seen["afterwards old"] == 0 && seen["afterwards new"] == 50) {
				t.Errorf("left %v", seen)
			}
		})
	}
}

func replace(d *Dir, without string) error {
	f, err := d.Open("a/b.new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("new"), 0); err != nil {
		return err
	}
	if without != "sync" {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Close(), d.Rename("a/b.new", "a/b")); err != nil || without == "sync directory" {
		return err
	}
	return d.SyncDir("a")
}

// TestDirAgainstReal: a Dir answers as a real folder does.
func TestDirAgainstReal(t *testing.T) {
	real := t.TempDir()
	d := NewDir(nil)
	at := func(name string) string { return filepath.Join(real, name) }
	class := func(err error) string {
		for _, e := range []error{fs.ErrExist, fs.ErrNotExist, os.ErrClosed} {
			if errors.Is(err, e) {
				return e.Error()
			}
		}
		return fmt.Sprint(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	names := []string{"a", "b", "c"}
	for step := range 300 {
		name, to := names[r.IntN(3)], names[r.IntN(3)]
		var mine, theirs error
		what := ""
		switch op := r.IntN(4); op {
		case 0, 1:
			flag := []int{os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_RDWR | os.O_CREATE | os.O_EXCL, os.O_RDWR | os.O_TRUNC}[r.IntN(5)]
			what = fmt.Sprintf("open %s %#x", name, flag)
			mine, theirs = touch(d, name, flag, byte(step)), touchReal(at(name), flag, byte(step))
		case 2:
			what = "rename " + name + " " + to
			mine, theirs = d.Rename(name, to), os.Rename(at(name), at(to))
		case 3:
			what = "remove " + name
			mine, theirs = d.Remove(name), os.Remove(at(name))
		}
		if class(mine) != class(theirs) && (mine == nil) != (theirs == nil) {
			t.Fatalf("step %d, %s: %v, really %v", step, what, mine, theirs)
		}
		for _, n := range names {
			a, aerr := d.ReadFile(n)
			b, berr := os.ReadFile(at(n))
			if !bytes.Equal(a, b) || class(aerr) != class(berr) && (aerr == nil) != (berr == nil) {
				t.Fatalf("step %d, %s: %s is %q, %v, really %q, %v", step, what, n, a, aerr, b, berr)
			}
		}
	}
	out := t.TempDir()
	must(t, d.Export(out))
	left, err := os.ReadDir(out)
	must(t, err)
	if len(left) != len(d.Names()) || len(d.Unclosed()) != 0 {
		t.Errorf("exported %v of %v, open %v", left, d.Names(), d.Unclosed())
	}
}

func touch(d *Dir, name string, flag int, b byte) error {
	f, err := d.Open(name, flag)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b}, int64(b%7))
	return errors.Join(err, f.Close())
}

func touchReal(path string, flag int, b byte) error {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{b}, int64(b%7))
	return errors.Join(err, f.Close())
}

// TestOpenFiles: an opening keeps its file whatever happens to the name, locks
// as flock does, and is of no use once closed.
func TestOpenFiles(t *testing.T) {
	d := NewDir(nil)
	a := open(t, d, "x", os.O_RDWR|os.O_CREATE)
	b := open(t, d, "x", os.O_RDONLY)
	must(t, a.Lock(false), b.Lock(false))
	if err := a.Lock(true); err == nil {
		t.Error("locked alone next to a reader")
	}
	if err := b.Lock(true); err != nil { // a lost its own when it asked for more
		t.Error(err)
	}
	must(t, d.Remove("x"))
	if _, err := a.WriteAt([]byte{5}, 5000); err != nil {
		t.Error(err)
	}
	if off := b.NextData(0); off != 4096 {
		t.Errorf("data from %d on", off)
	}
	must(t, a.ZeroAt(4096, 1<<20))
	if off := b.NextData(0); off != 5001 || a.Size() != 5001 {
		t.Errorf("data from %d on, size %d", off, a.Size())
	}
	if _, err := b.WriteAt([]byte{1}, 0); err == nil {
		t.Error("wrote to what is open for reading")
	}
	must(t, b.Close(), a.Lock(true))
	if !slices.Equal(d.Unclosed(), []string{"x"}) {
		t.Error(d.Unclosed())
	}
	must(t, a.Close())
	for _, err := range []error{a.Close(), a.Sync(), a.Truncate(0)} {
		if !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
}
