package cbt

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// LoadMap reads the map file at path. Errors are those of opening it and of
// [ReadMap], with the path.
func LoadMap(path string) (*Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load dirty map: %w", err)
	}
	defer f.Close()
	m, err := ReadMap(f)
	if err != nil {
		return nil, fmt.Errorf("load dirty map %s: %w", path, err)
	}
	return m, nil
}

// Save writes m to path, in place of a file that is there; a symbolic link is
// replaced, not followed. It is durable when Save returns nil. After an error
// or a crash the whole old file or the whole new one is there.
//
//  1. write a new file beside path and sync it: the map is on disk under a
//     name that nobody reads
//  2. rename it to path: readers see the new map, a power cut may still bring
//     the old one back
//  3. sync the directory: the new map stays
//
// A crash before 2 leaves the old map and perhaps a file path.tmp-*, which may
// be removed. A crash between 2 and 3 leaves the old or the new map. An error
// of 3 means the same: the map is not known to be durable.
func (m *Map) Save(path string) error {
	if err := m.save(path, osSteps{}); err != nil {
		return fmt.Errorf("save dirty map %s: %w", path, err)
	}
	return nil
}

// saveSteps are the durable steps of Save; tests put faults into them.
type saveSteps interface {
	write(m io.WriterTo, temp *os.File) error
	sync(temp *os.File) error
	rename(from, to string) error
	syncDir(dir string) error
}

func (m *Map) save(path string, steps saveSteps) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	temp, err := os.CreateTemp(dir, name+".tmp-*")
	if err != nil {
		return err
	}
	err = steps.write(m, temp)
	if err == nil {
		err = steps.sync(temp)
	}
	if cerr := temp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = steps.rename(temp.Name(), path)
	}
	if err != nil {
		os.Remove(temp.Name()) // best effort: it is only litter
		return err
	}
	return steps.syncDir(dir)
}

// osSteps are the steps on the real file system.
type osSteps struct{}

func (osSteps) write(m io.WriterTo, temp *os.File) error {
	_, err := m.WriteTo(temp)
	return err
}

func (osSteps) sync(temp *os.File) error { return temp.Sync() }

func (osSteps) rename(from, to string) error { return os.Rename(from, to) }

func (osSteps) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
