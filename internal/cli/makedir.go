package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// makeDir makes a directory for what has to be found again after a power cut, and
// those above it. Their names are durable when it returns: where a file system does
// not see to that by itself, a file in a directory that is gone is gone, however often
// it was synced (L10).
//
//  1. make them
//  2. sync what holds each that was not there. A crash before leaves them empty: what
//     lies in them is made later
func makeDir(dir string) error {
	var made []string
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break // what else may be wrong is told when it is made
		}
		made = append(made, at)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, at := range made {
		if err := syncDir(filepath.Dir(at)); err != nil {
			return err
		}
	}
	return nil
}

// syncDir makes the names in a directory durable. A test looks on.
var syncDir = func(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
