package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// warm reads what of the files is not in the page cache yet, so that a run starts with all of it there.
func warm(ctx context.Context, paths ...string) error {
	for _, path := range paths {
		in, err := resident(path)
		if err != nil {
			return err
		}
		fi, err := os.Stat(path)
		if err != nil {
			return err
		}
		if in >= fi.Size() {
			continue
		}
		err = eachChunk(ctx, []string{path}, fi.Size(), func(int64, [][]byte) error { return nil })
		if err != nil {
			return fmt.Errorf("warm %s: %w", path, err)
		}
	}
	return nil
}

// coldShare is what may stay in the cache of a file that counts as cold: pages that someone else just looked at.
const coldShare = 0.01

// chill syncs the files, drops them from the page cache, and only them, and makes sure that they are gone.
func chill(paths ...string) error {
	for _, path := range paths {
		if err := chillOne(path); err != nil {
			return fmt.Errorf("drop %s from the page cache: %w", path, err)
		}
	}
	return nil
}

func chillOne(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	// Only clean pages are dropped, and pages of a batch not yet on its list are missed the first time.
	const tries = 3
	var in int64
	for range tries {
		if err := f.Sync(); err != nil {
			return err
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		if in, err = resident(path); err != nil {
			return err
		}
		if float64(in) <= coldShare*float64(fi.Size()) {
			return nil
		}
	}
	return fmt.Errorf("%d of %d bytes stay: another process holds them", in, fi.Size())
}

// resident returns how many bytes of a file are in the page cache, in whole pages. It asks cachestat (Linux 6.5),
// on older kernels mincore.
func resident(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var st unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0)
	if err == nil {
		return int64(st.Cache) * int64(os.Getpagesize()), nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return 0, fmt.Errorf("cachestat %s: %w", path, err)
	}
	return residentByMap(f)
}

// residentByMap asks mincore, a gigabyte of the file at a time.
func residentByMap(f *os.File) (in int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	page := int64(os.Getpagesize())
	const window = 1 << 30
	for off := int64(0); off < fi.Size(); off += window {
		n := min(window, fi.Size()-off)
		m, err := unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, fmt.Errorf("map %s: %w", f.Name(), err)
		}
		vec := make([]byte, (n+page-1)/page)
		err = mincore(m, vec)
		if err := errors.Join(err, unix.Munmap(m)); err != nil {
			return 0, fmt.Errorf("mincore %s: %w", f.Name(), err)
		}
		for _, v := range vec {
			in += int64(v&1) * page
		}
	}
	return in, nil
}
