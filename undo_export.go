package failback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/failback/failback/cbt"
)

// Export writes an image of target as it was before the sync to a new file at
// path: what target holds now, with what was saved laid over it. What is zero
// stays a hole. The target is only read; it must not be written meanwhile. The
// file is there only if it is whole and durable.
func (u *UndoLog) Export(ctx context.Context, target Volume, path string, progress func(phase string, done int64)) (err error) {
	vol := &meter{v: target, name: Side{Volume: target}.label()}
	if err := u.admit(vol); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil {
		return &RefusedError{Volume: path, Reason: "it is there already", Next: "name another file for the image"}
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("export %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("export %s: %w", path, err), f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := f.Truncate(u.TargetSize); err != nil {
		return err
	}
	tell := func(phase string) func(int64) {
		return func(done int64) {
			if progress != nil {
				progress(phase, done)
			}
		}
	}
	if err := u.copyRest(ctx, vol, f, tell("copy")); err != nil {
		return err
	}
	err = u.lay(ctx, tell("lay"), func(_ context.Context, x cbt.Extent, content []byte) error {
		if content == nil || allZero(content) {
			return nil // nothing was copied there: it is a hole
		}
		_, err := f.WriteAt(content, x.Off)
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// Whatever has come to be there meanwhile stays.
	err = unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // this file system cannot do that
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return undoDisk{}.syncDir(filepath.Dir(path))
}

// copyRest copies what target holds where nothing was saved.
func (u *UndoLog) copyRest(ctx context.Context, vol *meter, f *os.File, progress func(int64)) error {
	saved := newBlockSet(u.index.h.block)
	err := u.index.spans(func(spans []cbt.Extent) {
		for _, x := range spans {
			_ = saved.add(x, func(cbt.Extent) error { return nil }) // the function gives no error
		}
	})
	if err != nil {
		return undoFailure(u.Path, undoReading, err)
	}
	list, known, err := vol.allocated(ctx)
	if err != nil {
		return err
	}
	if !known {
		list = wholeOf(u.TargetSize)
	}
	buf := getBuf(maxUndoRaw)
	defer buf.put()
	for _, x := range cbt.Align(list, u.index.h.block, u.TargetSize) {
		for off := x.Off; off < x.End; off += maxUndoRaw {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf.b[:min(maxUndoRaw, x.End-off)]
			if err := vol.readAt(b, off); err != nil {
				return err
			}
			if err := copyBlocks(f, b, off, saved); err != nil {
				return err
			}
			progress(off + int64(len(b)))
		}
	}
	return nil
}

// copyBlocks writes the blocks of b that are neither zero nor in the set.
func copyBlocks(f *os.File, b []byte, off int64, but *blockSet) error {
	for len(b) > 0 {
		n := min(int64(len(b)), but.block)
		if !but.has(off/but.block) && !allZero(b[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+n
	}
	return nil
}
