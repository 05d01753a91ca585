package throttle

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A line of io.max holds one limit. Two who change it in turns would each take the
// other's for what was there before, and the last of them to end would leave it. So
// there is one at a time for a group and a disk, and a lock on a file says which.
//
// The keeper inherits the lock, so that it lasts as long as either of the two, and
// notes in the file what there is to undo before it changes anything. Where the lock
// is free and there is a note, both were killed: who comes next undoes it.
type claim struct {
	file *os.File // open and locked
	path string
}

// claims is where the files are. After a reboot there are none, as there are no
// limits.
const claims = "/run/failback"

// note is the content of the file of a claim, one line; none where there is nothing
// to undo.
type note struct {
	Group  string  `json:"group"`  // directory, for people
	Former int64   `json:"former"` // what the limit was
	Ours   []int64 `json:"ours"`   // what it may have been set to
}

// Claim makes this process the one that may limit the group on its disk, until
// [Group.Release]; another is refused meanwhile, with a [*RefusedError]. A limit
// that was left by one that was killed together with its keeper is taken away, and
// returned: 0 for none.
func (g *Group) Claim() (undone int64, err error) {
	dir, err := os.Open(g.Dir)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	if g.claim, err = g.lock(dir); err != nil {
		return 0, err
	}
	undone, err = ioMax{dir: dir, disk: g.Disk, claim: g.claim}.undo()
	if err != nil {
		err = errors.Join(fmt.Errorf("take away the limit that was left in force for %s: %w", g.Dir, err), g.Release())
	}
	return undone, err
}

func (g *Group) lock(dir *os.File) (*claim, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: g.Dir, Err: err}
	}
	if g.claims == "" {
		g.claims = claims
	}
	if err := os.MkdirAll(g.claims, 0o700); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("limit-%x-%d-%s", st.Dev, st.Ino, strings.ReplaceAll(g.Disk, ":", "-"))
	for {
		c := &claim{path: filepath.Join(g.claims, name)}
		var err error
		if c.file, err = os.OpenFile(c.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600); err != nil {
			return nil, err
		}
		err = unix.Flock(int(c.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && c.there() {
			return c, nil
		}
		c.file.Close()
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, refuse(g.Dir, "let that end, then run this again", "another failback slows down, or may, what it writes to the disk %s", g.Disk)
		case err != nil:
			return nil, fmt.Errorf("lock %s: %w", c.path, err)
		}
		// Who had it has removed it just now.
	}
}

// Release gives the claim up. A limit that could not be taken away stays noted.
func (g *Group) Release() error {
	c := g.claim
	g.claim = nil
	if c == nil {
		return nil
	}
	return errors.Join(c.remove(), c.file.Close())
}

// there reports whether the file is the one of its name. Only who has locked that
// removes it.
func (c *claim) there() bool {
	a, err := c.file.Stat()
	b, err2 := os.Lstat(c.path)
	return err == nil && err2 == nil && os.SameFile(a, b)
}

// remove removes the file, unless there is something to undo.
func (c *claim) remove() error {
	if n, err := c.read(); err != nil || n != nil || !c.there() {
		return err
	}
	return os.Remove(c.path)
}

// read returns nil if there is no note.
func (c *claim) read() (*note, error) {
	line, err := bufio.NewReader(io.NewSectionReader(c.file, 0, math.MaxInt64)).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 {
		return nil, nil
	}
	var n note
	if err == nil {
		err = json.Unmarshal(line, &n)
	}
	if err != nil || n.Former <= 0 {
		return nil, fmt.Errorf("%s does not tell what there is to undo: look at io.max, then remove it", c.path)
	}
	return &n, nil
}

// write notes what there is to undo, or with nil that there is nothing.
func (c *claim) write(n *note) error {
	if n == nil {
		return c.file.Truncate(0)
	}
	line, err := json.Marshal(n)
	if err != nil {
		return err
	}
	line = append(line, '\n') // what may be behind it is of a longer one before
	_, err = c.file.WriteAt(line, 0)
	return err
}

// undo takes away what is noted, unless somebody else has changed it since.
func (m ioMax) undo() (undone int64, err error) {
	n, err := m.claim.read()
	if err != nil || n == nil {
		return 0, err
	}
	was, err := m.read()
	if err != nil {
		return 0, err
	}
	s := state{Former: n.Former, Now: n.Former}
	if err := s.restore(m, n.Ours...); err != nil {
		return 0, err
	}
	if was == n.Former || !slices.Contains(n.Ours, was) {
		return 0, nil // somebody else has
	}
	return was, nil
}
