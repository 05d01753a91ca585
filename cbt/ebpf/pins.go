package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What lies in bpffs, below the directory "failback":
//
//	v2/maps/disks, views, bitmaps, counts    shared by all volumes
//	v2/links/mark_queued, see_passthrough            the programs at work
//	v2/N/bitmap                                      the planes of view N
//	v2/N/inflight, v2/N/links/...                    while a session reads it
//
// v2 is layoutVersion. It is made under another name (v2-new: bpffs takes no dot
// in a name) and renamed when it is whole; a view counts when its record says that
// it is live. So whoever dies on the way leaves only things that the next start
// removes.
//
// The directory "failback" is locked by who starts and stops, v2/N by who has
// the tracker open. The kernel gives both back when a process dies. Who gives back
// "failback" removes it if it is empty: then nothing is tracked. A lock is good only
// if the directory is still there under its name when it is had.

// defaultFS is where bpffs is mounted, by whoever does first.
const defaultFS = "/sys/fs/bpf"

const pinsName = "failback"

// pins is the open and locked directory of all that is pinned.
type pins struct {
	mount string // where bpffs is
	dir   string // of this version
	lock  *os.File
}

// makePins mounts bpffs where it is not, and opens the directory for pins.
func makePins(dir string) (*pins, error) {
	if dir == "" {
		dir = defaultFS
	}
	if err := mountFS(dir); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		if err := os.Mkdir(filepath.Join(dir, pinsName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make the directory for pins: %w", err)
		}
		p, err := openPins(dir)
		if !errors.Is(err, fs.ErrNotExist) || try == pinsTries {
			return p, err
		}
		// Somebody else has ended the last tracking, and removed it before we had it.
	}
}

// pinsTries is how often somebody else may do that in a row.
const pinsTries = 100

// openPins locks the directory for pins. It returns an error that wraps
// fs.ErrNotExist if there is none: then nothing is tracked.
func openPins(dir string) (*pins, error) {
	if dir == "" {
		dir = defaultFS
	}
	root := filepath.Join(dir, pinsName)
	lock, err := lockDir(root, true)
	if err == nil {
		err = stillThere(root, lock)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	p := &pins{mount: dir, dir: filepath.Join(root, fmt.Sprintf("v%d", layoutVersion)), lock: lock}
	if err := p.checkVersion(root); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// stillThere returns an error that wraps fs.ErrNotExist, and closes dir, if that is
// not the directory at path any more.
func stillThere(path string, dir *os.File) error {
	mine, err := dir.Stat()
	if err == nil {
		var now os.FileInfo
		now, err = os.Stat(path)
		if err == nil && !os.SameFile(mine, now) {
			err = &fs.PathError{Op: "stat", Path: path, Err: fs.ErrNotExist}
		}
	}
	if err != nil {
		dir.Close()
	}
	return err
}

// checkVersion refuses to work beside the pins of another version: its views
// would be unknown here, and a volume might be tracked twice.
func (p *pins) checkVersion(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("read %s: %w", root, err)
	}
	for _, e := range entries {
		name := e.Name()
		if name == filepath.Base(p.dir) {
			continue
		}
		if strings.HasSuffix(name, "-new") { // never finished
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				return fmt.Errorf("remove what an interrupted start left: %w", err)
			}
			continue
		}
		return fmt.Errorf("volumes are tracked by another version of this program (%s, this one has %s): stop them with that version",
			filepath.Join(root, name), filepath.Base(p.dir))
	}
	return nil
}

func (p *pins) view(i int) string         { return filepath.Join(p.dir, fmt.Sprint(i)) }
func (p *pins) shared(name string) string { return filepath.Join(p.dir, "maps", name) }
func (p *pins) links() string             { return filepath.Join(p.dir, "links") }
func (p *pins) link(name string) string   { return filepath.Join(p.links(), name) }

// close unlocks the directory, and removes it first if nothing is in it.
func (p *pins) close() error {
	_ = os.Remove(p.lock.Name()) // it has something in it, or is to stay for want of a permission
	return p.lock.Close()
}

// bpfMagic is BPF_FS_MAGIC.
const bpfMagic = 0xcafe4a11

func mountFS(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &UnsupportedError{Feature: "bpffs at " + dir, Config: "CONFIG_BPF_SYSCALL", Err: err}
	}
	if uint32(st.Type) == bpfMagic {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs on %s: %w; the tracker would die with this command: mount it, or name another directory", dir, err)
	}
	return nil
}

// lockDir locks a directory for this process.
func lockDir(dir string, wait bool) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
