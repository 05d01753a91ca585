package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ext4Volume is an ext4 file system on a loop device.
type ext4Volume struct {
	dev     string
	dir     string // mount point
	mounted bool
	source  *source
	sqlite  string // the sqlite3 program, "" for a log of our own
}

// ext4Stage makes two of them. It returns a missingError if this machine or
// this user cannot.
func (p *play) ext4Stage(ctx context.Context) (stage, error) {
	if os.Geteuid() != 0 {
		return stage{}, missing("one must be root")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			return stage{}, missing("%s must be installed", tool)
		}
	}
	src, err := findSource(p.Size * 2 / 5)
	if err != nil {
		return stage{}, err
	}
	s := stage{words: "ext4 on loop devices", content: src.words}
	s.database = "SQLite, through the sqlite3 program"
	sqlite, err := exec.LookPath("sqlite3")
	if err != nil {
		s.database = "a log of records with checksums (there is no sqlite3 here)"
	}
	var both [2]*ext4Volume
	for i, name := range siteNames {
		if both[i], err = p.attach(ctx, name); err != nil {
			return stage{}, err
		}
		both[i].source, both[i].sqlite = src, sqlite
	}
	s.primary, s.backup = both[0], both[1]
	// Nothing is left to be initialised in the background, where it would look like a write.
	return s, run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", s.primary.path())
}

// attach makes a file of the volume's size into a loop device.
func (p *play) attach(ctx context.Context, name string) (*ext4Volume, error) {
	file := p.file(name + ".img")
	if err := makeFile(file, p.Size); err != nil {
		return nil, err
	}
	out, err := output(ctx, "losetup", "--find", "--show", file)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, missing("losetup must work here (%v)", err)
	}
	v := &ext4Volume{dev: strings.TrimSpace(out), dir: filepath.Join(p.Dir, name)}
	p.later(func(ctx context.Context) error { return run(ctx, "losetup", "--detach", v.dev) })
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	p.later(func(context.Context) error { return os.Remove(v.dir) })
	p.later(func(ctx context.Context) error { return v.stop(ctx) })
	return v, nil
}

func (v *ext4Volume) path() string { return v.dev }

func (v *ext4Volume) mountPoint() string { return v.dir }

func (v *ext4Volume) start(context.Context) (application, error) {
	if err := unix.Mount(v.dev, v.dir, "ext4", 0, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", v.dev, err)
	}
	v.mounted = true
	app := &fileApp{dir: filepath.Join(v.dir, "files"), source: v.source}
	if v.sqlite != "" {
		app.db = &sqlite{program: v.sqlite, path: filepath.Join(v.dir, "demo.db")}
	} else {
		app.db = &recordLog{path: filepath.Join(v.dir, "demo.log"), size: recordLogSize}
	}
	return app, nil
}

// stop unmounts. It does nothing where nothing is mounted.
func (v *ext4Volume) stop(context.Context) error {
	if !v.mounted {
		return nil
	}
	if err := unix.Unmount(v.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", v.dev, err)
	}
	v.mounted = false
	return nil
}

// From linux/ext4: the file system stops at once and its journal stays as it
// is, as after a power cut.
const (
	ext4IocShutdown = 0x8004587d
	ext4NoLogFlush  = 2
)

func (v *ext4Volume) crash(ctx context.Context) (string, error) {
	how := "the file system was shut down as by a power cut"
	d, err := os.Open(v.dir)
	if err != nil {
		return "", err
	}
	err = unix.IoctlSetPointerInt(int(d.Fd()), ext4IocShutdown, ext4NoLogFlush)
	if err != nil {
		how = fmt.Sprintf("it was unmounted (this kernel cannot cut it off: %v)", err)
	}
	if err := d.Close(); err != nil {
		return "", err
	}
	return how, v.stop(ctx)
}

func (v *ext4Volume) examine(ctx context.Context) (string, error) {
	out, err := output(ctx, "e2fsck", "-fn", v.dev)
	if err != nil {
		return "", fmt.Errorf("examine %s: %w", v.dev, err)
	}
	last := strings.TrimSpace(out)
	if i := strings.LastIndexByte(last, '\n'); i >= 0 {
		last = last[i+1:]
	}
	return "e2fsck -fn finds nothing wrong: " + last, nil
}

func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

// output runs a program; what it writes to stderr is in the error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var errs bytes.Buffer
	c := exec.CommandContext(ctx, name, args...)
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		said := strings.TrimSpace(errs.String())
		if said == "" {
			said = strings.TrimSpace(string(out))
		}
		return "", errors.Join(ctx.Err(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said))
	}
	return string(out), nil
}
