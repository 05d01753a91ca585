package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/failback/failback"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/dial"
)

// side is an argument opened as one side of a session.
type side struct {
	failback.Side
	arg  string
	disk *failback.Disk // nil: a volume elsewhere, or a digest file
}

// openVolume opens a path or notes down how to reach a volume elsewhere. A
// side that is not written to is opened for reading only.
func openVolume(arg string, write bool, o dial.Options) (*side, error) {
	addr, err := dial.Parse(arg)
	if err != nil {
		return nil, err
	}
	s := &side{arg: arg}
	if !addr.Local() {
		s.Name = addr.Volume
		s.Dial = func(ctx context.Context) (io.ReadWriteCloser, error) { return dial.Dial(ctx, addr, o) }
		return s, nil
	}
	s.disk, err = failback.Open(addr.Volume, failback.OpenOptions{Write: write})
	if err != nil {
		return nil, err
	}
	s.Volume, s.Name = s.disk, addr.Volume
	return s, nil
}

// openEither opens a digest file or a volume, for reading.
func openEither(arg string, o dial.Options) (*side, error) {
	is, err := isDigest(arg)
	if err != nil {
		return nil, err
	}
	if is {
		return &side{Side: failback.Side{Tree: arg, Name: arg}, arg: arg}, nil
	}
	return openVolume(arg, false, o)
}

const (
	// digestMagic is what a digest file begins with, see docs/format-tree.md.
	digestMagic = "FBTREE\r\n"
	// digestSuffix is what names of digest files end in by habit. The content
	// decides, but a name that claims to be one is held to it.
	digestSuffix = ".fbt"
)

// isDigest looks at the first bytes of a local file. What cannot be read is left to
// whoever opens it as a volume and knows what to say.
func isDigest(arg string) (bool, error) {
	addr, err := dial.Parse(arg)
	if err != nil || !addr.Local() {
		return false, nil
	}
	info, err := os.Stat(arg)
	if err != nil || !info.Mode().IsRegular() {
		return false, nil
	}
	f, err := os.Open(arg)
	if err != nil {
		return false, nil
	}
	head := make([]byte, len(digestMagic))
	_, err = io.ReadFull(f, head)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil && string(head) == digestMagic {
		return true, nil
	}
	if strings.HasSuffix(arg, digestSuffix) {
		return false, &outcomeError{
			error: fmt.Errorf("open %s: %w", arg, merkle.ErrNotTree),
			next:  "a digest file is made by failback digest; a volume must not have a name that ends in " + digestSuffix,
		}
	}
	return false, nil
}

func (s *side) close() error {
	if s == nil || s.disk == nil {
		return nil
	}
	return s.disk.Close()
}

// closeSides closes what was opened and adds to err what went wrong with that.
func closeSides(err error, sides ...*side) error {
	for _, s := range sides {
		err = errors.Join(err, s.close())
	}
	return err
}
