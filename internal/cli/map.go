package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
)

const schemaMap = "failback.map/1"

func (a *app) mapCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "map",
		Short: "Look into and make dirty map files",
		Long: `Look into and make dirty map files. A dirty map says which blocks of a volume
were written since it was last equal to another; failback sync --dirty looks
only there.`,
		Example: `  failback map from-extents --volume backup.img -o backup.fbm changed.txt
  failback map show backup.fbm
  failback map union -o all.fbm monday.fbm tuesday.fbm`,
		RunE: a.group,
	}
	c.AddCommand(a.mapShowCommand(), a.mapUnionCommand(), a.mapFromExtentsCommand())
	return c
}

func (a *app) mapShowCommand() *cobra.Command {
	var extents bool
	c := &cobra.Command{
		Use:   "show MAP",
		Short: "Say what a dirty map holds",
		Long:  "Say what a dirty map holds. With --extents, list it: offset, length and state, one run on a line.",
		Example: `  failback map show backup.fbm
  failback map show --extents --json backup.fbm`,
		Args:        exactly(1, "MAP"),
		Annotations: map[string]string{schemaKey: schemaMap},
	}
	c.Flags().BoolVar(&extents, "extents", false, "list what is dirty or discarded")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
	return a.runs(c, func(_ context.Context, args []string) error {
		m, err := cbt.LoadMap(args[0])
		if err != nil {
			return err
		}
		return a.showMap(args[0], m, extents)
	})
}

func (a *app) mapUnionCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "union -o OUT MAP...",
		Short: "Join dirty maps of one volume, or of both sides of a pair",
		Long: `Join dirty maps into one that holds all that any of them holds. They must be for
volumes of one size. Its blocks are the smallest of theirs, its epoch the
oldest; its volume's identity stays known only if all name the same.`,
		Example:     "  failback map union -o all.fbm monday.fbm tuesday.fbm",
		Args:        atLeast(1, "MAP..."),
		Annotations: map[string]string{schemaKey: schemaMap},
	}
	a.addMapOutput(c, &output)
	return a.runs(c, func(_ context.Context, args []string) error {
		if output == "" {
			return usagef("no file to write: give -o OUT")
		}
		m, err := loadMaps(args)
		if err != nil {
			return err
		}
		return a.saveMap(output, m)
	})
}

func (a *app) addMapOutput(c *cobra.Command, output *string) {
	c.Flags().StringVarP(output, "output", "o", "", "the map `FILE` to write (required); one that is there is replaced")
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
}

type fromExtentsFlags struct {
	output, volume, identity string
	size, block              byteSize
	epoch                    uint64
}

func (a *app) mapFromExtentsCommand() *cobra.Command {
	var f fromExtentsFlags
	c := &cobra.Command{
		Use:   "from-extents -o OUT (--volume PATH | --size SIZE) [FILE]",
		Short: "Make a dirty map of a list of extents",
		Long: `Make a dirty map of a list of extents, read from FILE or, without one or with -,
from standard input: one on a line as failback diff prints them, offset and
length in bytes and perhaps a state (dirty, discarded), or an object as
failback diff --json prints it. Extents grow outward to whole blocks.

Lines have no end mark: a list that is cut off makes a map that holds too
little. Prefer the JSON form where the list comes through a pipe.`,
		Example: `  failback diff --json backup.img old.img | failback map from-extents --volume backup.img -o backup.fbm
  echo 1048576 65536 | failback map from-extents --size 1GiB -o backup.fbm`,
		Args:        cobra.MaximumNArgs(1),
		Annotations: map[string]string{schemaKey: schemaMap},
	}
	fl := c.Flags()
	fl.StringVar(&f.volume, "volume", "", "`PATH` of the volume that the map is for: gives size and identity")
	fl.Var(&f.size, "size", "size of that volume in bytes, instead of --volume")
	fl.Var(&f.block, "block", "bytes of a block, 4KiB to 1MiB, a power of two (default: by the size)")
	fl.StringVar(&f.identity, "identity", "", "identity `TEXT` of that volume, if --volume does not give it")
	fl.Uint64Var(&f.epoch, "epoch", 0, "the map holds every write since epoch `N`; 0: not known")
	a.addMapOutput(c, &f.output)
	return a.runs(c, func(_ context.Context, args []string) error {
		m, err := a.mapOf(&f, args)
		if err != nil {
			return err
		}
		return a.saveMap(f.output, m)
	})
}

// mapOf makes the map that from-extents writes.
func (a *app) mapOf(f *fromExtentsFlags, args []string) (*cbt.Map, error) {
	switch {
	case f.output == "":
		return nil, usagef("no file to write: give -o OUT")
	case (f.volume == "") == (f.size == 0):
		return nil, usagef("give either --volume PATH or --size SIZE")
	}
	size, identity := int64(f.size), f.identity
	if f.volume != "" {
		d, err := failback.Open(f.volume, failback.OpenOptions{})
		if err != nil {
			return nil, err
		}
		size = d.Size()
		if identity == "" {
			identity = d.Identity()
		}
		if err := d.Close(); err != nil {
			return nil, err
		}
	}
	in, name := a.stdin, "standard input"
	if len(args) == 1 && args[0] != "-" {
		file, err := os.Open(args[0])
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in, name = file, args[0]
	}
	m, err := readExtents(in, name, size, int64(f.block))
	if err != nil {
		return nil, err
	}
	m.Identity, m.Epoch = identity, cbt.Epoch(f.epoch)
	return m, nil
}

func readExtents(in io.Reader, name string, size, block int64) (*cbt.Map, error) {
	var failed error
	m, err := cbt.NewMap(size, block, func(yield func(cbt.Run) bool) {
		for run, err := range cbt.ParseRuns(in, size) {
			if err != nil {
				failed = fmt.Errorf("read %s: %w", name, err)
				return
			}
			if !yield(run) {
				return
			}
		}
	})
	switch {
	case failed != nil:
		return nil, failed
	case err != nil:
		return nil, &usageError{err}
	}
	return m, nil
}

// loadMaps returns the union of the dirty maps at paths, nil if there is none.
func loadMaps(paths []string) (*cbt.Map, error) {
	var union *cbt.Map
	for _, path := range paths {
		m, err := cbt.LoadMap(path)
		if err != nil {
			return nil, err
		}
		if union == nil {
			union = m
			continue
		}
		if union, err = unionMaps(union, m); err != nil {
			return nil, fmt.Errorf("join %s with %s: %w", path, paths[0], err)
		}
	}
	return union, nil
}

var errSizes = errors.New("the maps are for volumes of different sizes")

// unionMaps holds all that x or y holds: every write since the older epoch, if
// each of them says so of its own.
func unionMaps(x, y *cbt.Map) (*cbt.Map, error) {
	if x.VolumeSize != y.VolumeSize {
		return nil, fmt.Errorf("%w: %d and %d bytes", errSizes, x.VolumeSize, y.VolumeSize)
	}
	m, err := cbt.NewMap(x.VolumeSize, min(x.BlockSize, y.BlockSize), both(x.Runs(), y.Runs()))
	if err != nil {
		return nil, err
	}
	m.Epoch = min(x.Epoch, y.Epoch)
	if x.Identity == y.Identity {
		m.Identity = x.Identity
	}
	return m, nil
}

func both(x, y iter.Seq[cbt.Run]) iter.Seq[cbt.Run] {
	return func(yield func(cbt.Run) bool) {
		for _, runs := range []iter.Seq[cbt.Run]{x, y} {
			for r := range runs {
				if !yield(r) {
					return
				}
			}
		}
	}
}

func (a *app) saveMap(path string, m *cbt.Map) error {
	if err := m.Save(path); err != nil {
		return err
	}
	return a.showMap(path, m, false)
}

// mapJSON is what is told of a dirty map.
type mapJSON struct {
	Schema         string      `json:"schema"`
	Result         string      `json:"result"` // always "map"
	File           string      `json:"file"`
	VolumeBytes    int64       `json:"volume_bytes"`
	BlockBytes     int64       `json:"block_bytes"`
	Identity       string      `json:"identity"`
	Epoch          uint64      `json:"epoch"`
	DirtyBytes     int64       `json:"dirty_bytes"`
	DiscardedBytes int64       `json:"discarded_bytes"`
	Runs           int         `json:"runs"`
	Extents        []mapExtent `json:"extents,omitempty"`
}

type mapExtent struct {
	extent
	State string `json:"state"`
}

func (a *app) showMap(path string, m *cbt.Map, extents bool) error {
	j := mapJSON{Schema: schemaMap, Result: "map", File: path, VolumeBytes: m.VolumeSize, BlockBytes: m.BlockSize, Identity: m.Identity, Epoch: uint64(m.Epoch)}
	j.DirtyBytes, j.DiscardedBytes = m.Bytes()
	for r := range m.Runs() {
		j.Runs++
		if extents {
			j.Extents = append(j.Extents, mapExtent{extent{r.Off, r.Len()}, r.State.String()})
		}
	}
	if a.json {
		return writeJSON(a.stdout, j)
	}
	if extents {
		for _, e := range j.Extents {
			if _, err := fmt.Fprintln(a.stdout, e.Offset, e.Length, e.State); err != nil {
				return fmt.Errorf("write extents: %w", err)
			}
		}
		return nil
	}
	epoch := "not known"
	if m.Epoch != 0 {
		epoch = fmt.Sprint(m.Epoch)
	}
	return writeLines(a.stdout, []line{
		{"map", path},
		{"volume", fmt.Sprintf("%s (%d bytes) %s", humanBytes(m.VolumeSize), m.VolumeSize, m.Identity)},
		{"epoch", epoch},
		{"block", humanBytes(m.BlockSize)},
		{"dirty", humanBytes(j.DirtyBytes)},
		{"discarded", humanBytes(j.DiscardedBytes)},
		{"runs", fmt.Sprint(j.Runs)},
	})
}
