package quiesce

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/internal/sysfs"
)

// Check refuses, with a [*RefusedError], a plan that cannot bring the volume's
// writers to rest: Mount must be the mount point of a file system that lies on
// Device, on a partition of it or on what is stacked on it; and without commands
// no other file system there may be mounted for writing, for its writers would
// go on. It changes nothing. Whether the file system can be frozen, and is not
// already, turns out in [Plan.Begin].
func (p Plan) Check() error {
	p, err := p.complete()
	if err != nil {
		return err
	}
	f, err := p.open(thisHost)
	if f != nil {
		f.Close()
	}
	return err
}

// open opens the root of the file system that is to be frozen, and checks it on
// the open file, so that nothing else is frozen by that name; nil without Mount.
func (p Plan) open(h host) (*os.File, error) {
	if p.OnQuiesce != "" {
		f, err := openCache(p.Device)
		if err != nil {
			return nil, p.refuse("name the device that the commands are for", "what its writers leave in memory cannot be written out: %v", err)
		}
		f.Close()
	}
	if p.Mount == "" {
		return nil, nil
	}
	f, err := os.OpenFile(p.Mount, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, p.refuse("name the mount point of the file system on it (findmnt "+p.Device+")", "its file system cannot be frozen at %s: %v", p.Mount, cause(err))
	}
	if err := p.checkMount(h, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// cause is an error without the path, which the sentence around it names.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func (p Plan) checkMount(h host, f *os.File) error {
	volume, ok := sysfs.BlockDevice(p.Device)
	if !ok {
		return p.refuse("name the device that the file system lies on", "it is not a block device, so no file system lies on it")
	}
	list, err := h.Mounts()
	if err != nil {
		return p.refuse("mount /proc and /sys where failback runs", "cannot tell what is mounted on it: %v", err)
	}
	m, root, err := h.mountOf(f, list)
	if err != nil {
		return p.refuse("mount /proc and /sys where failback runs", "cannot tell what is mounted on it: %v", err)
	}
	find := "name the mount point of the file system on it (findmnt " + p.Device + ")"
	if !root {
		return p.refuse(find, "%s is not a mount point; it lies on the file system of %s", p.Mount, m.Point)
	}
	above := h.above(volume)
	if !lies(h.devices(m), above) {
		return p.refuse(find, "the file system on %s does not lie on it, but on %s", p.Mount, m.Source)
	}
	if p.OnQuiesce != "" {
		return nil // those who gave the commands know what else writes
	}
	for _, other := range list {
		if other.Dev != m.Dev && other.Writable && lies(h.devices(other), above) {
			return p.refuse("unmount that or remount it read-only, or give commands that stop its writers too",
				"another file system on it is mounted for writing on %s and would not be frozen", other.Point)
		}
	}
	return nil
}

func lies(devices []sysfs.Devno, on map[sysfs.Devno]bool) bool {
	for _, n := range devices {
		if on[n] {
			return true
		}
	}
	return false
}

// Outside refuses, with a [*RefusedError], paths that lie on the file system that
// is to be frozen, be it as files there or as devices over files there: who
// writes them during the pause waits for its end, and the end may wait for that.
// A path need not exist; "" is passed over. Without Mount all are well.
func (p Plan) Outside(paths ...string) error {
	if p.Mount == "" {
		return nil
	}
	f, err := p.open(thisHost)
	if err != nil {
		return err
	}
	defer f.Close()
	o := outside{h: thisHost}
	if o.list, err = o.h.Mounts(); err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	if o.frozen, _, err = o.h.mountOf(f, o.list); err != nil {
		return err
	}
	for _, path := range paths {
		if path == "" {
			continue
		}
		inside, err := o.inside(path, maxDepth)
		if err != nil {
			return p.refuse("see to that, or put it where that can be told", "cannot tell whether %s lies on the file system that will be frozen: %v", path, err)
		}
		if inside {
			return p.refuse("put it on another file system", "%s lies on the file system on %s and is written while that is frozen: each would wait for the other", path, p.Mount)
		}
	}
	return nil
}

// outside looks where paths lie.
type outside struct {
	h      host
	list   []sysfs.Mount
	frozen sysfs.Mount
}

// maxDepth is how many file systems over files over file systems are looked through.
const maxDepth = 16

func (o *outside) inside(path string, depth int) (bool, error) {
	if depth == 0 {
		return false, errors.New("too many loop devices over files")
	}
	f, err := nearest(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return o.behind(sysfs.DevnoOf(st.Rdev), depth)
	}
	m, _, err := o.h.mountOf(f, o.list)
	if err != nil {
		return false, err
	}
	if m.Dev == o.frozen.Dev {
		return true, nil
	}
	for _, n := range o.h.devices(m) {
		if in, err := o.behind(n, depth); in || err != nil {
			return in, err
		}
	}
	return false, nil
}

// behind looks at the files that lie behind a device.
func (o *outside) behind(n sysfs.Devno, depth int) (bool, error) {
	loops := o.h.loops()
	for m := range o.h.below(n) {
		back := loops[m]
		if back == "" {
			continue
		}
		if _, block := sysfs.BlockDevice(back); block {
			continue // it is below too
		}
		if in, err := o.inside(back, depth-1); in || err != nil {
			return in, err
		}
	}
	return false, nil
}

// nearest opens what is at path, or the directory where it would be.
func nearest(path string) (*os.File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return f, err
		}
		if to, err := os.Readlink(path); err == nil { // to nothing: it will be made there
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(path), to)
			}
			path = to
			continue
		}
		path = filepath.Dir(path)
	}
}
