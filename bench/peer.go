package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// A peer is a public tool that can bring a target in line, with the command line that its manual gives for it.
type peer struct {
	name   string
	needs  []string // programs looked for on PATH
	script string   // for bash; $1 source, $2 target, $3 a digest of the target as it is before the run
	digest string   // makes $3 from $2, where it is kept from an earlier run
	slow   bool     // takes far longer than the others: left out of short measurements
}

// A 64 KiB block is a fair size for tools that let one choose: what failback's own leaf is.
var peers = []peer{
	{name: "rsync", needs: []string{"rsync"},
		script: `rsync --inplace --no-whole-file --ignore-times "$1" "$2"`},
	{name: "rsync -z", needs: []string{"rsync"}, slow: true,
		script: `rsync --inplace --no-whole-file --ignore-times --compress --compress-choice=zstd "$1" "$2"`},
	{name: caseDigest, needs: []string{"blocksync-fast"},
		digest: `blocksync-fast --silent --make-digest -b 64K -s "$2" -f "$3"`,
		script: `blocksync-fast --silent --make-delta -b 64K -s "$1" -f "$3" | blocksync-fast --silent --apply-delta -d "$2"`},
	{name: caseBothRead, needs: []string{"blocksync-fast"},
		script: `rm -f "$3" && blocksync-fast --silent --make-digest -b 64K -s "$2" -f "$3" &&
			blocksync-fast --silent --make-delta -b 64K -s "$1" -f "$3" | blocksync-fast --silent --apply-delta -d "$2"`},
	{name: "bdsync", needs: []string{"bdsync"},
		script: `bdsync --hash=sha1 --blocksize=65536 "bdsync --server" "$1" "$2" | bdsync --patch="$2"`},
	{name: "nbdcopy", needs: []string{"nbdcopy", "nbdkit"},
		script: `nbdcopy -- [ nbdkit --exit-with-parent file "$1" ] [ nbdkit --exit-with-parent file "$2" ]`},
}

// errNotInstalled is a peer whose programs are not on PATH.
var errNotInstalled = errors.New("not installed")

// bringInLine returns a case that runs the tool on a set. Its error is errNotInstalled where a program is missing.
func (p peer) bringInLine(s *Set) (Case, error) {
	for _, name := range p.needs {
		if _, err := exec.LookPath(name); err != nil {
			return Case{}, fmt.Errorf("peer %s: %w: no %s on PATH", p.name, errNotInstalled, name)
		}
	}
	work := filepath.Join(s.Dir, "peer.digest")
	c := Case{Name: p.name, Args: p.args(p.script, s, work)}
	if p.digest == "" {
		return c, nil
	}
	// The digest is made once for each way the target differs; every run works on a copy of it, for it is updated.
	kept := ""
	c.Prepare = func(ctx context.Context) error {
		name := filepath.Join(s.Dir, "peer-kept-"+s.state.Divergence.String()+".digest")
		if name != kept {
			if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			if err := runProcess(ctx, p.args(p.digest, s, name)); err != nil {
				return fmt.Errorf("make the digest of %s: %w", p.name, err)
			}
			kept = name
		}
		return copySmall(work, name)
	}
	return c, nil
}

func (p peer) args(script string, s *Set, digest string) []string {
	return []string{"bash", "-e", "-o", "pipefail", "-c", script, p.needs[0], s.Source, s.Target, digest}
}

// copySmall replaces a file by a copy of another.
func copySmall(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
