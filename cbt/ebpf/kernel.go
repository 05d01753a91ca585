package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// sharedMaps are the maps that all views share, and their programs.
var (
	sharedMaps     = []string{"disks", "views", "bitmaps", "counts"}
	sharedPrograms = []string{"mark_queued", "see_passthrough"}
)

// kernel is the shared part of all trackers: the maps that the programs read.
type kernel struct {
	maps  map[string]*ebpf.Map
	views shared
	table shared // of disks
}

// openKernel returns what is pinned, or an error that wraps fs.ErrNotExist.
func openKernel(p *pins) (*kernel, error) {
	k := &kernel{maps: map[string]*ebpf.Map{}}
	for _, name := range sharedMaps {
		m, err := ebpf.LoadPinnedMap(p.shared(name), nil)
		if err != nil {
			k.close()
			return nil, fmt.Errorf("open the pinned map %s: %w", name, err)
		}
		k.maps[name] = m
	}
	if err := k.share(); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// share maps views and the table of disks. A map of another shape is refused: whoever made
// it was not this program.
func (k *kernel) share() error {
	for _, want := range []struct {
		name       string
		size, many uint32
	}{{"views", viewSize, maxViews}, {"disks", tableSize, 1}} {
		if m := k.maps[want.name]; m.ValueSize() != want.size || m.MaxEntries() != want.many {
			return fmt.Errorf("pinned map %s has %d values of %d bytes, want %d of %d", want.name, m.MaxEntries(), m.ValueSize(), want.many, want.size)
		}
	}
	var err error
	if k.views, err = mapShared(k.maps["views"], maxViews*viewSize); err != nil {
		return err
	}
	k.table, err = mapShared(k.maps["disks"], tableSize)
	return err
}

// makeKernel loads the programs and puts them to work. Cost: the verifier, some
// 100 ms, for the first volume of a machine.
func makeKernel(p *pins) (*kernel, error) {
	spec, err := loadSpec("tracker", trackerObject)
	if err != nil {
		return nil, err
	}
	spec.Maps["bitmaps"].InnerMap = bitmapSpec(1)
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, explainLoad(err)
	}
	defer c.Close()
	fresh := p.dir + "-new"
	defer os.RemoveAll(fresh) // it is gone, by its name, when all is well
	for _, dir := range []string{fresh, fresh + "/maps", fresh + "/links"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a directory for pins: %w", err)
		}
	}
	for _, name := range sharedMaps {
		if err := c.Maps[name].Pin(filepath.Join(fresh, "maps", name)); err != nil {
			return nil, fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for _, name := range sharedPrograms {
		if err := attachPinned(c.Programs[name], filepath.Join(fresh, "links", name)); err != nil {
			return nil, err
		}
	}
	// From here on the programs outlive this process.
	if err := os.Rename(fresh, p.dir); err != nil {
		return nil, fmt.Errorf("give the pins their name: %w", err)
	}
	return openKernel(p)
}

// attachPinned attaches a program for as long as there is the file.
func attachPinned(prog *ebpf.Program, path string) error {
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return fmt.Errorf("attach program %s: %w", filepath.Base(path), explainLoad(err))
	}
	defer l.Close() // the pin keeps it
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin program %s: %w", filepath.Base(path), err)
	}
	return nil
}

// missedEvents returns how often the programs pinned in dir were not run at all:
// the kernel runs no program inside of itself, so an event in an interrupt that
// came while the same program was at work on that processor passes it by.
func missedEvents(dir string, names []string) (uint64, error) {
	var sum uint64
	for _, name := range names {
		n, err := missedBy(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // detached: the doubt is told by trust
			n = 1
		case err != nil:
			return 0, fmt.Errorf("ask what program %s missed: %w", name, err)
		}
		sum += n
	}
	return sum, nil
}

func missedBy(pin string) (uint64, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return 0, err
	}
	defer prog.Close()
	s, err := prog.Stats()
	if err != nil {
		return 0, err
	}
	return s.RecursionMisses, nil
}

// ensureKernel opens what is pinned, or makes it.
func ensureKernel(p *pins) (*kernel, error) {
	k, err := openKernel(p)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKernel(p)
	}
	return k, err
}

func (k *kernel) close() error {
	err := errors.Join(k.views.close(), k.table.close())
	k.views, k.table = nil, nil
	for _, m := range k.maps {
		err = errors.Join(err, m.Close())
	}
	k.maps = nil
	return err
}

// settle returns when no program is at work on view i: an update of a map of
// maps waits until every program that ran before has ended.
func (k *kernel) settle(i int, bitmap *ebpf.Map) error {
	if err := k.maps["bitmaps"].Put(uint32(i), bitmap); err != nil {
		return fmt.Errorf("wait for the programs of view %d: %w", i, err)
	}
	return nil
}
