package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes the images are made of, in bytes.
const (
	piece = 4 << 10  // smallest range that is compared and listed
	leaf  = 64 << 10 // range that a divergence is counted in
)

// recipe numbers the way images are made. A cached image of another recipe is made anew.
const recipe = 1

// zeroShare is the part of an image that no file fills, as on a file system in use. Tables and directories take some of it:
// about 15% of the pieces are zero in the end.
const zeroShare = 0.17

// leastFree is what a small image keeps free of files, in bytes: its journal and its tables do not shrink with it.
const leastFree = 12 << 20

// ImageOptions says what image to measure with. The zero value is usable.
type ImageOptions struct {
	Dir   string    // where images are kept; default $FAILBACK_BENCH_DIR, else failback-bench under the temporary directory
	Size  int64     // bytes, a multiple of 64 KiB; default 4 GiB
	Seed  uint64    // chooses what diverges; default 1
	Roots []string  // directories whose files fill the image; default the Go tree, the module cache, /usr
	Log   io.Writer // told what takes long; default nobody
}

// ImageInfo is what is known of a built image. It lies beside it as JSON.
type ImageInfo struct {
	Recipe    int       `json:"recipe"`
	Size      int64     `json:"size_bytes"`
	ZeroBytes int64     `json:"zero_bytes"` // in all-zero pieces
	Files     int       `json:"files"`
	SHA256    string    `json:"sha256"`
	Built     time.Time `json:"built"`
	Roots     []string  `json:"roots"`
}

// A Set is a source image of real content and a target of the same size that [Set.Diverge] makes differ from it.
// Both are dense files that share no block, so that they behave like two devices. A Set is not safe for concurrent use.
type Set struct {
	Dir    string
	Source string // path of the image that never changes
	Target string // path of the image that is brought in line
	Info   ImageInfo
	seed   uint64
	state  *Divergent                // how the target differs now; nil when it does not
	known  map[Divergence]*Divergent // what was drawn before
	log    io.Writer
}

func (o ImageOptions) withDefaults() (ImageOptions, error) {
	if o.Dir == "" {
		o.Dir = os.Getenv("FAILBACK_BENCH_DIR")
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(os.TempDir(), "failback-bench")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("find image directory: %w", err)
	}
	o.Dir = dir
	if o.Size == 0 {
		o.Size = 4 << 30
	}
	if o.Seed == 0 {
		o.Seed = 1
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if len(o.Roots) == 0 {
		o.Roots = defaultRoots()
	}
	if o.Size <= leastFree || o.Size%leaf != 0 {
		return o, fmt.Errorf("image size %d: want a multiple of %d, more than %d", o.Size, leaf, leastFree)
	}
	return o, nil
}

// defaultRoots are the directories every machine that builds this program on Linux has.
func defaultRoots() []string {
	var roots []string
	for _, name := range []string{"GOROOT", "GOMODCACHE"} {
		out, err := exec.Command("go", "env", name).Output()
		if dir := string(bytes.TrimSpace(out)); err == nil && dir != "" {
			roots = append(roots, dir)
		}
	}
	return append(roots, "/usr/bin", "/usr/share", "/usr/lib", "/usr")
}

// OpenSet opens the images in o.Dir and builds what is missing: once, some 20 s for 4 GiB. It reads both images
// to make sure that the target equals the source and repairs it where a run that was broken off left it different.
func OpenSet(ctx context.Context, o ImageOptions) (*Set, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("open image directory: %w", err)
	}
	base := filepath.Join(o.Dir, fmt.Sprintf("image-%dMiB", o.Size>>20))
	s := &Set{Dir: o.Dir, Source: base + ".img", Target: base + ".target.img", seed: o.Seed, log: o.Log,
		known: map[Divergence]*Divergent{}}
	if err := s.load(base+".json", o.Size); err != nil {
		fmt.Fprintf(o.Log, "building %s: %v\n", s.Source, err)
		if err := s.build(ctx, o); err != nil {
			return nil, fmt.Errorf("build %s: %w", s.Source, err)
		}
		if err := s.save(base + ".json"); err != nil {
			return nil, err
		}
	}
	if err := s.Repair(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// load reads the description of a built image; its error is the reason to build.
func (s *Set) load(path string, size int64) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return errors.New("not there yet")
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &s.Info); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	fi, err := os.Stat(s.Source)
	switch {
	case err != nil:
		return err
	case s.Info.Recipe != recipe:
		return fmt.Errorf("made by recipe %d, this is %d", s.Info.Recipe, recipe)
	case s.Info.Size != size || fi.Size() != size:
		return fmt.Errorf("size %d, want %d", fi.Size(), size)
	}
	return nil
}

// save writes the description last: an image without one is not whole.
func (s *Set) save(path string) error {
	b, err := json.MarshalIndent(s.Info, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// build makes the source image: stage files, turn them into a file system, copy it so that no hole is left.
func (s *Set) build(ctx context.Context, o ImageOptions) error {
	stageDir, err := os.MkdirTemp(o.Dir, "stage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stageDir)
	free := max(int64(float64(o.Size)*zeroShare), leastFree)
	files, err := stage(ctx, stageDir, o.Roots, o.Size-free)
	if err != nil {
		return err
	}
	sparse := filepath.Join(stageDir, "..", filepath.Base(stageDir)+".ext4")
	defer os.Remove(sparse)
	if err := makeFS(ctx, sparse, stageDir, o.Size, files); err != nil {
		return err
	}
	if err := copyDense(ctx, s.Source, sparse); err != nil {
		return err
	}
	sum, zero, err := digestFile(ctx, s.Source)
	if err != nil {
		return err
	}
	s.Info = ImageInfo{Recipe: recipe, Size: o.Size, ZeroBytes: zero, Files: files,
		SHA256: fmt.Sprintf("%x", sum), Built: time.Now().UTC().Truncate(time.Second), Roots: o.Roots}
	return nil
}

// makeFS makes an ext4 image of a directory. The numbers that mke2fs would draw at random are fixed.
func makeFS(ctx context.Context, path, dir string, size int64, files int) error {
	const id = "6661696c-6261-636b-8062-656e63680001"
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(piece), "-m", "0",
		"-N", strconv.Itoa(files+files/8+1024), "-U", id, "-E", "hash_seed="+id+",root_owner=0:0",
		"-d", dir, path, strconv.FormatInt(size/1024, 10)+"k")
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1700000000")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("run mke2fs: %w: install e2fsprogs", err)
	}
	if err != nil {
		return fmt.Errorf("run mke2fs: %w: %s", err, complaint(out))
	}
	return nil
}

// copyDense copies a file so that the copy has no hole and shares no block with it, and syncs it.
func copyDense(ctx context.Context, to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	// Room in one go keeps the file in few fragments. Not every file system can; then it grows as it is written.
	if err := unix.Fallocate(int(dst.Fd()), 0, 0, fi.Size()); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("allocate %s: %w", to, err)
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < fi.Size(); off += int64(len(buf)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		b := buf[:min(int64(len(buf)), fi.Size()-off)]
		if _, err := src.ReadAt(b, off); err != nil {
			return fmt.Errorf("read %s: %w", from, err)
		}
		if _, err := dst.WriteAt(b, off); err != nil {
			return fmt.Errorf("write %s: %w", to, err)
		}
	}
	return dst.Sync()
}
