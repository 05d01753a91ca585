package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What lies on the medium: the target, if it is a device, then an ext4 with the
// dirty map, the journal, the undo file, and the target, if it is a file. One
// medium for all, so that a power cut hits all of it at one moment.
const (
	fsDir    = "/mnt"
	dirtyMap = fsDir + "/dirty.fbm"
	undoFile = fsDir + "/undo.fbu"
	stateDir = fsDir + "/state"
	fileName = fsDir + "/target.img"
)

// site is the medium while it is in use.
type site struct {
	target string // path of the volume
	source string
	names  []string // devices to remove, the last first
}

// powerSet is a pair of volumes, what was on the medium before the session, or
// the undo of it, that is cut, and all that this wrote to it.
type powerSet struct {
	pair
	file    bool // the target is a file
	undoing bool // it is undo that is cut
	fsSize  int
	base    []byte
	log     []write
	dirty   []byte
}

func (p *powerSet) size() int { return volumeSize + p.fsSize }

// attach makes the devices over the medium, always in the same order, so that
// they have the same numbers each time, and mounts the file system.
func (p *powerSet) attach(logged bool) (s *site, err error) {
	s = &site{source: "/dev/dm-0"}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.detach())
		}
	}()
	medium := linear(mediumRAM, 0, p.size())
	if logged {
		medium = table{uint64(p.size() / sector), "log-writes", mediumRAM + " " + logRAM}
	}
	over, err := s.create("medium", medium)
	if err != nil {
		return s, err
	}
	if s.target, err = s.create("volume", linear(over, 0, volumeSize)); err != nil {
		return s, err
	}
	fs, err := s.create("fs", linear(over, volumeSize, p.fsSize))
	if err != nil {
		return s, err
	}
	if p.file {
		s.target = fileName
	}
	if err := unix.Mount(fs, fsDir, "ext4", 0, ""); err != nil {
		return s, fmt.Errorf("mount: %w", err)
	}
	s.names = append(s.names, "")
	return s, nil
}

func (s *site) create(name string, t table) (string, error) {
	path, err := dmCreate(name, t)
	if err == nil {
		s.names = append(s.names, name)
	}
	return path, err
}

// detach unmounts the file system and removes the devices.
func (s *site) detach() error {
	for len(s.names) > 0 {
		last := s.names[len(s.names)-1]
		s.names = s.names[:len(s.names)-1]
		if last == "" {
			if err := unix.Unmount(fsDir, 0); err != nil {
				return fmt.Errorf("unmount: %w", err)
			}
			continue
		}
		if err := dmRemove(last); err != nil {
			return err
		}
	}
	return nil
}

// with runs do on the attached medium.
func (p *powerSet) with(logged bool, do func(*site) error) error {
	s, err := p.attach(logged)
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.detach())
}

// powerCuts records one session to its end, then plays it to the medium up to
// many moments, and goes on from each.
func (g *guest) powerCuts(p powerSet) (string, error) {
	if p.undoing && !g.knows["--undo"] {
		return "not shown", nil
	}
	source, err := dmCreate("source", linear(sourceRAM, 0, volumeSize))
	if err != nil {
		return "", err
	}
	p.pair = g.newPair()
	did, err := g.powerCutsFrom(source, &p)
	return did, errors.Join(err, dmRemove("source"))
}

func (g *guest) powerCutsFrom(source string, p *powerSet) (string, error) {
	if err := store(source, p.new); err != nil {
		return "", err
	}
	if err := g.prepare(p); err != nil {
		return "", fmt.Errorf("prepare the medium: %w", err)
	}
	if err := g.record(p); err != nil {
		return "", fmt.Errorf("record a session: %w", err)
	}
	flushes, tally := 0, map[string]int{}
	for _, w := range p.log {
		if w.flush() {
			flushes++
		}
	}
	moments := cuts(p.log, g.Cuts, g.dice)
	for i, c := range moments {
		if err := store(mediumRAM, c.medium(p.base, p.log, g.dice)); err != nil {
			return "", err
		}
		stage := ""
		if err := p.with(false, func(s *site) (err error) {
			if p.undoing {
				stage, err = g.afterUndo(p, s)
			} else {
				stage, err = g.after(p, s, i%2 == 0)
			}
			return err
		}); err != nil {
			return "", fmt.Errorf("power cut %d of %d, %v: %w", i, len(moments), c, err)
		}
		tally[stage]++
	}
	what := map[bool]string{false: "a session", true: "an undo"}[p.undoing]
	return fmt.Sprintf("%s of %d writes and %d flushes, cut at %d moments: %v", what, len(p.log), flushes, len(moments), tally), nil
}

// prepare puts on the medium what is there before the session.
func (g *guest) prepare(p *powerSet) error {
	packed, err := os.Open("/ext4.gz")
	if err != nil {
		return err
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		return err
	}
	var fs bytes.Buffer
	if _, err := fs.ReadFrom(z); err != nil {
		return err
	}
	p.fsSize = fs.Len()
	if err := store(mediumRAM, append(bytes.Clone(p.old), fs.Bytes()...)); err != nil {
		return err
	}
	err = p.with(false, func(s *site) error {
		if err := errors.Join(os.Mkdir(stateDir, 0o700), os.WriteFile("/tmp/extents", []byte(p.extents), 0o600)); err != nil {
			return err
		}
		if p.file {
			if err := store(s.target, p.old); err != nil {
				return err
			}
		}
		if err := g.must("map", "from-extents", "--volume", s.target, "-o", dirtyMap, "/tmp/extents"); err != nil {
			return err
		}
		if p.dirty, err = os.ReadFile(dirtyMap); err != nil || !p.undoing {
			return err
		}
		return g.must(g.sync(p, s)...)
	})
	if err != nil {
		return err
	}
	p.base, err = fetch(mediumRAM, p.size())
	return err
}

// record runs what is cut, undisturbed.
func (g *guest) record(p *powerSet) error {
	err := p.with(true, func(s *site) error {
		if p.undoing {
			return g.undo(p, s)
		}
		var slow []string
		if g.knows["--resume"] { // for a barrier or two before the last
			slow = []string{"--codec", "none", "--limit", "1MiB/s", "--window", "2MiB", "--checkpoint", "500ms"}
		}
		if err := g.must(g.sync(p, s, slow...)...); err != nil {
			return err
		}
		return holds(s.target, p.new, "the session made something else of the target")
	})
	if err != nil {
		return err
	}
	log, err := fetch(logRAM, ramSize)
	if err != nil {
		return err
	}
	p.log, err = parseLog(log)
	return err
}

// sync is the command that is cut, and that goes on.
func (g *guest) sync(p *powerSet, s *site, more ...string) []string {
	args := []string{"sync", "--dirty", dirtyMap}
	if g.knows["--state"] && !p.file {
		args = append(args, "--state", stateDir)
	}
	if g.knows["--undo"] {
		args = append(args, "--undo", undoFile)
	}
	return append(append(args, more...), s.source, s.target)
}

// after is what is done once the power is back: what is there is looked at, put
// back where undo is true and there is something to put back, and then the
// session goes on. It returns in a word how far the cut one had come.
func (g *guest) after(p *powerSet, s *site, undo bool) (stage string, err error) {
	now, err := fetch(s.target, volumeSize)
	if err != nil {
		return "", err
	}
	missing, err := p.check(now)
	if err != nil {
		return "", err
	}
	untouched := bytes.Equal(now, p.old)
	switch {
	case untouched:
		stage = "untouched"
	case missing > 0:
		stage = "in part"
	default:
		stage = "equal"
	}
	if err := p.mapWhole(); err != nil {
		return "", err
	}
	undo = undo && g.knows["--undo"]
	if undo && !untouched {
		if err := g.undo(p, s); err != nil {
			return "", err
		}
		stage += ", undone"
	}
	resume, err := g.journal(undo)
	if err != nil {
		return "", err
	}
	var more []string
	if resume {
		more = []string{"--resume"}
	}
	o, err := g.failback(g.sync(p, s, append(more, "--json")...)...)
	switch {
	case err != nil:
		return "", err
	case o.code != 0:
		return "", fmt.Errorf("the next run: %v", o)
	case resume && strings.Contains(o.stdout, `"resumed_from":0,`):
		stage += ", resumed from its beginning"
	case resume:
		stage += ", resumed"
	}
	if err := holds(s.target, p.new, "the next run said that the volumes are equal; they are not"); err != nil {
		return "", err
	}
	return stage, p.mapWhole()
}

// undo puts back what there was before the session, and looks whether it did.
func (g *guest) undo(p *powerSet, s *site) error {
	args := []string{"undo", s.target, undoFile}
	if g.knows["--state"] && !p.file {
		args = append(args, "--state", stateDir)
	}
	if err := g.must(args...); err != nil {
		return err
	}
	marks, err := journals()
	if err == nil && len(marks) > 0 {
		err = fmt.Errorf("undo left the target marked: %q", marks)
	}
	return errors.Join(err, holds(s.target, p.old, "undo did not put back what the target held"))
}

// afterUndo is what is done once the power is back that went during undo: what
// is there is looked at, and undo is run again. It returns in a word how far the
// cut one had come.
func (g *guest) afterUndo(p *powerSet, s *site) (stage string, err error) {
	now, err := fetch(s.target, volumeSize)
	if err != nil {
		return "", err
	}
	missing, err := p.check(now)
	if err != nil {
		return "", err
	}
	marks, err := journals()
	if err != nil {
		return "", err
	}
	switch back := bytes.Equal(now, p.old); {
	case missing == 0:
		stage = "nothing back"
	case back:
		stage = "all back"
	default:
		stage = "in part"
		if len(marks) == 0 {
			return "", errors.New("the target is neither old nor new, and no journal says so (L5)")
		}
	}
	return stage, errors.Join(g.undo(p, s), p.mapWhole())
}

// journals are the resume journals on the medium.
func journals() ([]string, error) {
	beside, err := filepath.Glob(fileName + ".fbj")
	if err != nil {
		return nil, err
	}
	apart, err := filepath.Glob(stateDir + "/*.fbj")
	return append(beside, apart...), err
}

// journal reports whether there is one to go on from. Without it, or after an
// undo, the session is a new one, with an undo file of its own.
func (g *guest) journal(undone bool) (bool, error) {
	found, err := journals()
	if err != nil {
		return false, err
	}
	if g.knows["--resume"] && len(found) > 0 && !undone {
		return true, nil
	}
	for _, name := range append(found, undoFile) {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// mapWhole requires that the dirty map is what it was (L2).
func (p *powerSet) mapWhole() error {
	m, err := os.ReadFile(dirtyMap)
	if err == nil && !bytes.Equal(m, p.dirty) {
		err = errors.New("the dirty map has changed (L2)")
	}
	return err
}
