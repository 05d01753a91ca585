package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// source is a tree of real files on this machine that content is taken from.
type source struct {
	words string
	root  string
	files []sourceFile // in the order of a walk, together at most the limit
	bytes int64
}

type sourceFile struct {
	rel  string
	size int64
}

// findSource takes the Go source tree, or else what /usr has, up to limit bytes.
func findSource(limit int64) (*source, error) {
	roots := []struct{ dir, words string }{
		{filepath.Join(goroot(), "src"), "the Go source tree"},
		{"/usr/local/go/src", "the Go source tree"},
		{"/usr/lib/go/src", "the Go source tree"},
		{"/usr/share", "files of /usr/share"},
		{"/usr/lib", "files of /usr/lib"},
	}
	for _, r := range roots {
		s := &source{words: r.words, root: r.dir}
		if err := s.list(limit); err != nil {
			return nil, fmt.Errorf("list %s: %w", r.dir, err)
		}
		if len(s.files) >= minFiles {
			return s, nil
		}
	}
	return nil, errors.New("find real content: neither a Go source tree nor files in /usr/share")
}

// minFiles is how many files are enough to be removed, added and changed.
const minFiles = 30

func goroot() string {
	if dir := os.Getenv("GOROOT"); dir != "" {
		return dir
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "/usr/local/go"
	}
	return strings.TrimSpace(string(out))
}

// list walks the tree. What cannot be read is passed over.
func (s *source) list(limit int64) error {
	return filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && d != nil && d.IsDir():
			return fs.SkipDir
		case err != nil || !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o004 == 0 {
			return nil
		}
		// A file takes whole blocks, and an inode.
		cost := (info.Size()+4095)&^4095 + 256
		if s.bytes+cost > limit {
			return fs.SkipAll
		}
		rel, err := filepath.Rel(s.root, path)
		if err != nil {
			return err
		}
		s.files = append(s.files, sourceFile{rel, info.Size()})
		s.bytes += cost
		return nil
	})
}

// fileApp works on a directory of files and a database beside it.
type fileApp struct {
	dir    string
	source *source
	db     database
}

func (a *fileApp) database() database { return a.db }

func (a *fileApp) fill(ctx context.Context) (string, error) {
	if err := a.copyFiles(ctx, "", a.source.files); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (%d files, %s)", a.source.words, len(a.source.files), size(a.source.bytes)), nil
}

// copyFiles copies files below dir/under and makes all of it durable.
func (a *fileApp) copyFiles(ctx context.Context, under string, files []sourceFile) error {
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		content, err := os.ReadFile(filepath.Join(a.source.root, f.rel))
		if err != nil {
			return err
		}
		path := filepath.Join(a.dir, under, f.rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// touch rewrites the end of some files, durably: on a crash they stay.
func (a *fileApp) touch(ctx context.Context) error {
	for i := 0; i < len(a.source.files); i += 1 + len(a.source.files)/40 {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(a.dir, a.source.files[i].rel), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "// written at the primary, line %d\n", i)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// rework removes a tenth of the files, unpacks a tenth again under another
// name, and changes every fiftieth of the rest.
func (a *fileApp) rework(ctx context.Context) error {
	n := len(a.source.files)
	for _, f := range a.source.files[:n/10] {
		if err := os.Remove(filepath.Join(a.dir, f.rel)); err != nil {
			return err
		}
	}
	if err := a.copyFiles(ctx, "unpacked", a.source.files[n/10:n/5]); err != nil {
		return err
	}
	for i := n / 5; i < n; i += 50 {
		path := filepath.Join(a.dir, a.source.files[i].rel)
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content = append(content, "// changed at the backup\n"...)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
