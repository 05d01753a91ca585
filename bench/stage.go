package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// A stager copies files into a directory until it holds the bytes asked for. The directory becomes a file system image.
type stager struct {
	dir    string
	left   int64 // bytes still wanted, counted in file system blocks
	files  int   // files, directories and links made so far: each takes an inode
	skip   map[fileID]bool
	copies int
}

// fileID names a file independently of its path, so that hard links and nested roots are taken once.
type fileID struct{ dev, ino uint64 }

// stageBlock is the unit in which a file takes room in the image.
const stageBlock = 4096

// stageEnough is what may be missing at the end, in bytes: the last few are not worth another walk.
const stageEnough = 64 << 10

// stage fills dir with the content of roots, in order, until want bytes are there. Where the roots hold less it takes them
// again under another name: content repeats then, far outside the reach of any compressor's window.
func stage(ctx context.Context, dir string, roots []string, want int64) (files int, err error) {
	s := &stager{dir: dir, left: want}
	for s.left >= stageEnough {
		before := s.left
		s.skip = map[fileID]bool{}
		for _, root := range roots {
			if err := s.add(ctx, root); err != nil {
				return s.files, err
			}
		}
		if s.left == before {
			return s.files, fmt.Errorf("stage content: nothing readable under %v", roots)
		}
		s.copies++
	}
	return s.files, nil
}

func (s *stager) add(ctx context.Context, root string) error {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.left < stageEnough {
			return fs.SkipAll
		}
		if err != nil { // a file that is not ours to read, or went away meanwhile, is left out
			return nil
		}
		return s.take(path, d)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *stager) take(path string, d fs.DirEntry) error {
	to := filepath.Join(s.dir, fmt.Sprintf("%d", s.copies), path)
	info, err := d.Info()
	if err != nil {
		return nil
	}
	switch {
	case d.IsDir():
		s.files++
		return os.MkdirAll(to, 0o755)
	case d.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return nil
		}
		s.files++
		return os.Symlink(target, to)
	case !d.Type().IsRegular() || info.Size() > s.left:
		return nil
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if s.skip[id] {
		return nil
	}
	s.skip[id] = true
	n, err := copyFile(to, path, info)
	s.files++
	s.left -= (n + stageBlock - 1) / stageBlock * stageBlock
	return err
}

// copyFile copies one file and its time of change, so that two builds on the same machine hold the same times.
func copyFile(to, from string, info fs.FileInfo) (int64, error) {
	src, err := os.Open(from)
	if err != nil { // unreadable: left out like above
		return 0, nil
	}
	defer src.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return 0, err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm()|0o600)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return n, fmt.Errorf("stage %s: %w", from, err)
	}
	return n, os.Chtimes(to, info.ModTime(), info.ModTime())
}
