package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// plainVolume is a file without a file system in it: an archive of files, one
// after the other, and behind it the ring of a recordLog.
type plainVolume struct {
	file   string
	size   int64 // bytes
	source *source
}

// archiveShare of a plain volume is archive, the rest is the log.
const archiveShare = 0.75

func (p *play) plainStage() (stage, error) {
	src, err := findSource(p.Size / 2)
	if err != nil {
		return stage{}, err
	}
	s := stage{words: "plain files", content: src.words + ", as an archive", database: "a log of records with checksums"}
	var both [2]*plainVolume
	for i, name := range siteNames {
		both[i] = &plainVolume{file: p.file(name + "-plain.img"), size: p.Size, source: src}
		if err := makeFile(both[i].file, p.Size); err != nil {
			return stage{}, err
		}
	}
	s.primary, s.backup = both[0], both[1]
	return s, nil
}

func (v *plainVolume) path() string { return v.file }

func (v *plainVolume) start(context.Context) (application, error) { return v, nil }

func (v *plainVolume) stop(context.Context) error { return nil }

func (v *plainVolume) crash(context.Context) (string, error) {
	return "the application was stopped", nil
}

func (v *plainVolume) examine(context.Context) (string, error) {
	return "There is no file system on a plain file to examine: that verify finds both equal is all there is.", nil
}

func (v *plainVolume) archive() int64 { return int64(float64(v.size)*archiveShare) &^ (recordSize - 1) }

func (v *plainVolume) database() database {
	return &recordLog{path: v.file, off: v.archive(), size: v.size - v.archive()}
}

func (v *plainVolume) fill(ctx context.Context) (string, error) {
	at := int64(0)
	err := v.edit(func(f *os.File) error {
		for _, s := range v.source.files {
			n, err := v.pack(ctx, f, at, s)
			if err != nil {
				return err
			}
			at += n
		}
		return nil
	})
	return fmt.Sprintf("%s (%d files, %s)", v.source.words, len(v.source.files), size(at)), err
}

// pack writes one file into the archive and returns the room it takes.
func (v *plainVolume) pack(ctx context.Context, f *os.File, at int64, s sourceFile) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	content, err := os.ReadFile(filepath.Join(v.source.root, s.rel))
	if err != nil {
		return 0, err
	}
	b := append(fmt.Appendf(nil, "%s %d\n", s.rel, len(content)), content...)
	if at+int64(len(b)) > v.archive() {
		return 0, errors.New("the archive is full")
	}
	_, err = f.WriteAt(b, at)
	return int64(len(b)), err
}

func (v *plainVolume) touch(context.Context) error {
	return v.edit(func(f *os.File) error { return v.sprinkle(f, "primary", 40) })
}

// rework writes a tenth of the files again, elsewhere, and sprinkles changes.
func (v *plainVolume) rework(ctx context.Context) error {
	return v.edit(func(f *os.File) error {
		at := v.archive() - v.archive()/8
		for _, s := range v.source.files[:len(v.source.files)/10] {
			if at+s.size+recordSize > v.archive() {
				break
			}
			n, err := v.pack(ctx, f, at, s)
			if err != nil {
				return err
			}
			at += n
		}
		return v.sprinkle(f, "backup", 200)
	})
}

// sprinkle writes a few bytes at n places of the archive.
func (v *plainVolume) sprinkle(f *os.File, where string, n int64) error {
	for i := range n {
		at := v.archive() / n * i
		if _, err := f.WriteAt(fmt.Appendf(nil, "written at the %s, change %d\n", where, i), at+int64(len(where))*512); err != nil {
			return err
		}
	}
	return nil
}

// edit opens the volume's file for f and makes durable what it wrote.
func (v *plainVolume) edit(f func(*os.File) error) error {
	file, err := os.OpenFile(v.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f(file), file.Sync(), file.Close())
}
