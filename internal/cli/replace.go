package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// replaceFile makes b the durable content of the file at path: all of it, or
// what was there before. The directory is made if it is not there.
func replaceFile(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return putInPlace(f, path, err)
}

// replaceBy is replaceFile for what is written piece by piece. The other file has a
// name of its own, so that at most one is ever left: there must be only one process
// that does this for path.
func replaceBy(path string, write func(io.Writer) error) error {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(tempBeside(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return putInPlace(f, path, write(f))
}

func tempBeside(path string) string { return path + ".tmp" }

// putInPlace gives f, which was written to with that result, the name.
//
//  1. write another file, sync it
//  2. give it the name
//  3. sync the directory: a power cut before that may bring the old content back
func putInPlace(f *os.File, path string, err error) error {
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
