package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/failback/failback/internal/looptest"
)

// Volumes that fail in mid-session: what the user is told, and that the next run
// mends it. Real file systems on real loop devices, taken down in any case.

const (
	goneVolume = 32 << 20  // bytes
	goneRate   = "40MiB/s" // so that a session takes most of a second
	goneWindow = "2MiB"    // so that little is read ahead
	fsSize     = 3 << 20   // bytes of a file system that is soon full
	fsSlack    = 12 << 20  // bytes that a file system has besides a volume
)

// told is what a command that failed prints with --json.
type told struct{ Result, Error, Volume, State, Next string }

// fails runs the command and requires exit code 3 and all parts of a message.
func fails(t *testing.T, p *process, words ...string) told {
	t.Helper()
	return ends(t, p, 3, "failed", words...)
}

// ends requires this exit code, this result, and one of the words in the error.
func ends(t *testing.T, p *process, code int, result string, words ...string) told {
	t.Helper()
	if got := p.wait(t); got != code {
		t.Fatalf("exit code %d, want %d; stdout %s; it said:\n%s", got, code, p.stdout.String(), p.said.String())
	}
	var f told
	if err := json.Unmarshal(p.stdout.Bytes(), &f); err != nil {
		t.Fatalf("%v: %q", err, p.stdout.String())
	}
	if f.Result != result {
		t.Errorf("told %+v: want result %q", f, result)
	}
	if !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(f.Error, w) }) {
		t.Errorf("told %q, want one of %q in it", f.Error, words)
	}
	t.Logf("%s", strings.TrimSpace(p.said.String()))
	return f
}

// partly requires that the state and the next step of a target are told that
// holds a part of what it is to hold.
func (f told) partly(t *testing.T) {
	t.Helper()
	if !strings.Contains(f.State, "may hold a part of the change") || f.Next == "" {
		t.Errorf("told %+v, which says not what the target holds, or no next step", f)
	}
}

// loss is a way for a volume to go.
type loss struct {
	name   string
	happen func(t *testing.T, c *goneCell)
	words  []string // of the error, one of them; none: the session ends well
}

var losses = []loss{
	// Linux detaches a loop device when its last user closes it, not before.
	{"detached", func(t *testing.T, c *goneCell) { c.device.Detach(t) }, nil},
	// The file behind it is cut short: reads fail, writes make it longer again.
	{"cut short", func(t *testing.T, c *goneCell) {
		if err := os.Truncate(c.volume, 0); err != nil {
			t.Fatal(err)
		}
	}, []string{"input/output error", "the medium does not hold what was written"}},
	{"pulled out", func(t *testing.T, c *goneCell) { c.fs.cutOff(t) }, []string{"input/output error"}},
}

// untouched is what targets hold, again and again, before a session.
const untouched = "what the target held before "

// goneCell is a pair of volumes, one of which is a device that goes.
type goneCell struct {
	bin, dir string
	source   bool // it is the source that goes
	served   bool // by a server, as the other is not
	fs       *smallFS
	volume   string // the file behind the device
	other    string // the volume that stays
	device   *looptest.Device
	server   *process
	content  []byte
}

func (c *goneCell) start(t *testing.T, more ...string) *process {
	t.Helper()
	gone := c.device.Path
	if c.served {
		socket := filepath.Join(c.dir, "s.sock")
		c.server = serve(t, c.bin, socket, "--limit", goneRate, "--window", goneWindow,
			"--state", c.dir, "--volume", "v="+gone+map[bool]string{true: ",ro", false: ",rw"}[c.source])
		gone = "unix://" + socket + "?volume=v"
	}
	args := append([]string{"sync", "--json", "--codec", "none", "--limit", goneRate, "--window", goneWindow, "--dirty", filepath.Join(c.dir, "all.fbm")}, more...)
	if c.source || !c.served {
		args = append(args, "--state", c.dir)
	}
	if c.source {
		return start(t, c.bin, append(args, gone, c.other)...)
	}
	return start(t, c.bin, append(args, c.other, gone)...)
}

// stop ends the server, if there is one.
func (c *goneCell) stop(t *testing.T) {
	t.Helper()
	if c.server == nil {
		return
	}
	c.server.signal(t, syscall.SIGTERM)
	if code := c.server.wait(t); code != 0 {
		t.Errorf("the server's exit code is %d; it said:\n%s", code, c.server.said.String())
	}
}

// target is the file whose content the target is.
func (c *goneCell) target() string {
	if c.source {
		return c.other
	}
	return c.volume
}

// begun reports whether the first of the data has arrived.
func (c *goneCell) begun(t *testing.T) bool {
	t.Helper()
	f, err := os.Open(c.target())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, len(untouched))
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	return string(head) != untouched
}

func (c *goneCell) mount(t *testing.T) {
	t.Helper()
	c.device = looptest.Attach(t, c.volume, looptest.Options{})
}

// mend brings the device back: a source with its content, a target with
// whatever it had left. A server that goes on must not hold on to the one that
// went.
func (c *goneCell) mend(t *testing.T) {
	t.Helper()
	device := c.device
	device.Release()
	eventually(t, "the device to be free", func() bool { return !device.Attached() })
	c.stop(t)
	c.fs.unmount(t)
	c.fs.mount(t)
	if c.source {
		write(t, c.volume, c.content)
	} else if err := os.Truncate(c.volume, goneVolume); err != nil {
		t.Fatal(err)
	}
	c.mount(t)
}

func newGoneCell(t *testing.T, bin string, source, served bool) *goneCell {
	t.Helper()
	c := &goneCell{bin: bin, dir: t.TempDir(), source: source, served: served, content: noise(goneVolume, 5)}
	c.fs = newSmallFS(t, goneVolume+fsSlack)
	c.volume, c.other = c.fs.path("v.img"), filepath.Join(c.dir, "other.img")
	first, second := c.volume, c.other
	if !source {
		first, second = second, first
	}
	write(t, first, c.content)
	write(t, second, bytes.Repeat([]byte(untouched), goneVolume/len(untouched)+1)[:goneVolume])
	c.fs.sync(t)
	list := filepath.Join(c.dir, "all")
	write(t, list, fmt.Appendln(nil, 0, goneVolume))
	finish(t, 0, bin, "map", "from-extents", "--size", fmt.Sprint(goneVolume), "-o", list+".fbm", list)
	c.mount(t)
	return c
}

// TestDeviceGone takes the device away under a session: under either side, at
// this end and behind a server.
func TestDeviceGone(t *testing.T) {
	bin := build(t)
	for _, source := range []bool{true, false} {
		for _, served := range []bool{false, true} {
			for _, l := range losses {
				name := map[bool]string{true: "source", false: "target"}[source] + "/" + map[bool]string{true: "served", false: "here"}[served]
				t.Run(name+"/"+l.name, func(t *testing.T) { testGone(t, newGoneCell(t, bin, source, served), l) })
			}
		}
	}
}

func testGone(t *testing.T, c *goneCell, l loss) {
	dirty := read(t, filepath.Join(c.dir, "all.fbm"))
	device := c.device
	p := c.start(t)
	eventually(t, "data to arrive", func() bool { return c.begun(t) })
	l.happen(t, c)
	if l.words == nil {
		if code := p.wait(t); code != 0 {
			t.Fatalf("exit code %d; it said:\n%s", code, p.said.String())
		}
		eventually(t, "the device to go with its last user", func() bool { return !device.Attached() })
	} else {
		f := fails(t, p, l.words...)
		if !strings.Contains(f.Error, device.Path) && !strings.Contains(f.Error, " v:") {
			t.Errorf("told %q, which names neither the device %s nor the volume v", f.Error, device.Path)
		}
		f.partly(t)
		c.mend(t)
		p = c.start(t, more(c.source)...) // that a source is another one is told by its stamp
		if code := p.wait(t); code != 0 {
			t.Fatalf("next run: exit code %d; it said:\n%s", code, p.said.String())
		}
	}
	c.stop(t)
	if !bytes.Equal(read(t, c.target()), c.content) {
		t.Error("the volumes differ")
	}
	if !bytes.Equal(read(t, filepath.Join(c.dir, "all.fbm")), dirty) {
		t.Error("the dirty map has changed (L2)")
	}
}

// TestDiskFull: the target is a sparse file, and its file system has no room for
// what is to come; or there is none for the journal.
func TestDiskFull(t *testing.T) {
	bin := build(t)
	for _, served := range []bool{false, true} {
		for _, journal := range []bool{false, true} {
			name := map[bool]string{true: "served", false: "here"}[served] + "/" + map[bool]string{true: "journal", false: "target"}[journal]
			t.Run(name, func(t *testing.T) { testDiskFull(t, bin, served, journal) })
		}
	}
}

func testDiskFull(t *testing.T, bin string, served, journal bool) {
	fs := newSmallFS(t, goneVolume+fsSlack)
	dir := t.TempDir()
	source, target := filepath.Join(dir, "a.img"), fs.path("b.img")
	content := noise(goneVolume, 6)
	write(t, source, content)
	write(t, target, nil)
	if err := os.Truncate(target, goneVolume); err != nil {
		t.Fatal(err)
	}
	makeRoom := fs.fill(t)
	place := []string{"--state", filepath.Join(dir, "state")}
	if journal {
		place = nil // beside the target
	}
	args := append([]string{"sync", "--json", source, target}, place...)
	if served {
		socket := filepath.Join(dir, "s.sock")
		serve(t, bin, socket, append(place, "--volume", "b="+target+",rw")...)
		args = []string{"sync", "--json", source, "unix://" + socket + "?volume=b"}
	}
	p := start(t, bin, args...)
	if journal {
		if code := p.wait(t); code != 4 || !strings.Contains(p.said.String(), "its resume journal cannot be kept") {
			t.Errorf("exit code %d; it said:\n%s", code, p.said.String())
		}
		if slices.ContainsFunc(read(t, target), func(b byte) bool { return b != 0 }) {
			t.Error("the target was written (L4)")
		}
	} else {
		f := fails(t, p, "no space left on device")
		f.partly(t)
	}
	makeRoom()
	finish(t, 0, bin, append(args, more(journal)...)...)
	if !bytes.Equal(read(t, target), content) {
		t.Error("the volumes differ")
	}
	left, err := filepath.Glob(filepath.Join(dir, "state", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the state directory: %q, %v", left, err)
	}
}

// more goes on with what was begun, or does not.
func more(anew bool) []string {
	if anew {
		return nil
	}
	return []string{"--resume"}
}

// TestDiskFullOfFiles: what failback itself writes finds no room. Nothing that
// is only half there is left under its name.
func TestDiskFullOfFiles(t *testing.T) {
	bin := build(t)
	fs := newSmallFS(t, fsSize)
	dir := t.TempDir()
	volume, list := filepath.Join(dir, "a.img"), filepath.Join(dir, "extents")
	write(t, volume, noise(goneVolume, 7))
	var extents strings.Builder
	for off := 0; off < goneVolume; off += 3 * killPiece {
		fmt.Fprintln(&extents, off, killPiece)
	}
	write(t, list, []byte(extents.String()))
	commands := map[string][]string{
		"digest": {"digest", "--json", "--leaf", "4KiB", "-o", fs.path("file"), volume},
		"map":    {"map", "from-extents", "--json", "--size", fmt.Sprint(goneVolume), "-o", fs.path("file"), list},
	}
	for name, args := range commands {
		t.Run(name, func(t *testing.T) {
			makeRoom := fs.fill(t)
			f := fails(t, start(t, bin, args...), "no space left on device")
			if !strings.Contains(f.Error, fs.dir) {
				t.Errorf("told %q, which does not name the file", f.Error)
			}
			if _, err := os.Lstat(fs.path("file")); err == nil {
				t.Error("a file is there though it is not whole")
			}
			makeRoom()
			finish(t, 0, bin, args...)
			if err := os.Remove(fs.path("file")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestUndoDiskFull: the undo log finds no room, from the start or in mid-session.
func TestUndoDiskFull(t *testing.T) {
	bin := build(t)
	for _, served := range []bool{false, true} {
		for name, room := range map[string]int64{"from the start": 0, "later": 6 << 20} {
			for _, best := range []bool{false, true} {
				if best && room == 0 {
					continue // a log that cannot even be begun is none
				}
				title := map[bool]string{true: "served", false: "here"}[served] + "/" + name
				if best {
					title += "/best effort"
				}
				t.Run(title, func(t *testing.T) { newUndoCell(t, bin, served).play(t, room, best) })
			}
		}
	}
}

// undoCell is a pair of volumes that differ everywhere, with room for an undo
// log on a file system of its own.
type undoCell struct {
	bin, dir       string
	source, target string
	fs             *smallFS
	args           []string // of a sync, but for --undo-best-effort and --resume
	server         *process // nil: both volumes are here
	content, old   []byte
}

func newUndoCell(t *testing.T, bin string, served bool) *undoCell {
	t.Helper()
	c := &undoCell{bin: bin, dir: t.TempDir(), fs: newSmallFS(t, goneVolume+fsSlack), content: noise(goneVolume, 8), old: noise(goneVolume, 9)}
	c.source, c.target = filepath.Join(c.dir, "a.img"), filepath.Join(c.dir, "b.img")
	write(t, c.source, c.content)
	write(t, c.target, c.old)
	c.args = []string{"sync", "--json", "--codec", "none", "--window", goneWindow}
	if served {
		socket := filepath.Join(c.dir, "s.sock")
		c.server = serve(t, bin, socket, "--undo", c.fs.dir, "--volume", "b="+c.target+",rw")
		c.args = append(c.args, "--undo-served", c.source, "unix://"+socket+"?volume=b")
	} else {
		c.args = append(c.args, "--undo", c.fs.dir, c.source, c.target)
	}
	return c
}

// log is the one undo log that there is. One that found no room for its first
// byte is none.
func (c *undoCell) log(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob(c.fs.path("*.fbu"))
	names = slices.DeleteFunc(names, func(n string) bool { return len(read(t, n)) == 0 })
	if err != nil || len(names) != 1 {
		t.Fatalf("undo logs: %q, %v", names, err)
	}
	return names[0]
}

// saved requires that nothing was overwritten but what the undo log holds, and
// returns how much that is, bytes.
func (c *undoCell) saved(t *testing.T) (bytesSaved int64) {
	t.Helper()
	p := finish(t, 0, c.bin, "undo", "--list", c.log(t))
	untouched := read(t, c.target)
	for line := range strings.Lines(p.stdout.String()) {
		var off, n int64
		if _, err := fmt.Sscan(line, &off, &n); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		bytesSaved += n
		copy(untouched[off:off+n], c.old[off:off+n])
	}
	if !bytes.Equal(untouched, c.old) {
		t.Error("more was overwritten than was saved")
	}
	return bytesSaved
}

// play runs a sync while the disk of the undo log has this much room, bytes.
func (c *undoCell) play(t *testing.T, room int64, best bool) {
	makeRoom := c.fs.fill(t)
	if room > 0 {
		c.fs.leave(t, room)
	}
	if best {
		c.goesOn(t)
		return
	}
	code, result := 3, "failed"
	if room == 0 { // nothing is begun
		code, result = 4, "refused"
	}
	f := ends(t, start(t, c.bin, c.args...), code, result, "the disk of the undo file is full")
	if !strings.Contains(f.Error, c.fs.dir) || f.Next == "" || c.server == nil && !strings.Contains(f.Next, "make room") {
		t.Errorf("told %+v, which does not name the file, or what to do", f)
	}
	var more []string
	if room > 0 {
		t.Logf("%d bytes were saved", c.saved(t))
		more = []string{"--resume"}
	} else if _, err := os.Lstat(c.target + ".fbj"); err == nil || !bytes.Equal(read(t, c.target), c.old) {
		t.Error("the target was overwritten, or marked, and nothing was saved")
	}
	makeRoom()
	finish(t, 0, c.bin, append(c.args, more...)...)
	if !bytes.Equal(read(t, c.target), c.content) {
		t.Error("the volumes differ")
	}
	finish(t, 0, c.bin, "undo", c.target, c.log(t))
	if !bytes.Equal(read(t, c.target), c.old) {
		t.Error("undo did not put back what the target held")
	}
}

// goesOn is what a sync does that may go on without its undo log, and what undo
// makes of the log afterwards.
func (c *undoCell) goesOn(t *testing.T) {
	p := finish(t, 0, c.bin, append(c.args, "--undo-best-effort")...)
	var report struct {
		Saved   int64 `json:"undo_bytes"`
		Unsaved int64 `json:"unsaved_bytes"`
	}
	if err := json.Unmarshal(p.stdout.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, c.target), c.content) {
		t.Error("the volumes differ")
	}
	t.Logf("%d bytes were saved, %d were not; it said:\n%s", report.Saved, report.Unsaved, p.said.String())
	if report.Saved+report.Unsaved != goneVolume || report.Unsaved == 0 || report.Saved == 0 {
		t.Errorf("told %+v of %d bytes", report, goneVolume)
	}
	if c.server == nil && !strings.Contains(p.said.String(), "this sync cannot be undone as a whole") {
		t.Errorf("it said:\n%s", p.said.String())
	}
	refused := finish(t, 4, c.bin, "undo", c.target, c.log(t))
	if said := refused.said.String(); !strings.Contains(said, "--allow-gaps") {
		t.Errorf("undo was refused with:\n%s", said)
	}
	finish(t, 0, c.bin, "undo", "--allow-gaps", c.target, c.log(t))
	now := read(t, c.target)
	back := int64(0)
	for off := 0; off < goneVolume; off += killPiece {
		switch piece := now[off : off+killPiece]; {
		case bytes.Equal(piece, c.old[off:off+killPiece]):
			back += killPiece
		case !bytes.Equal(piece, c.content[off:off+killPiece]):
			t.Fatalf("piece at %#x is neither what the target held nor what the source holds", off)
		}
	}
	if back < report.Saved {
		t.Errorf("%d bytes were put back, %d were saved", back, report.Saved)
	}
}
