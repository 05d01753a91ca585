package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// A stage is where the story is played: two volumes and words for what is on them.
type stage struct {
	primary, backup volume
	words           string // what the volumes are
	content         string
	database        string
}

// siteNames name the two volumes, and their files.
var siteNames = [2]string{"primary", "backup"}

// A volume is one site. An application runs on it between start and stop or
// crash; failback is given its path at no other time.
type volume interface {
	path() string
	start(ctx context.Context) (application, error)
	stop(ctx context.Context) error
	// crash ends the application as a power cut would, as far as the stage can,
	// and says how.
	crash(ctx context.Context) (string, error)
	// examine says in a sentence whether what is on the volume is sound.
	examine(ctx context.Context) (string, error)
}

// An application is what works on a volume: files and a database.
type application interface {
	fill(ctx context.Context) (string, error) // puts the first content there, and says how much
	touch(ctx context.Context) error          // a little work: the tail
	rework(ctx context.Context) error         // hours of it: removes, adds, changes
	database() database
}

// A database commits numbered transactions, durably.
type database interface {
	// load commits transactions, at least minTransactions, until enough is
	// closed, and returns the number of the last.
	load(ctx context.Context, enough <-chan struct{}) (int64, error)
	// check returns the number of the last transaction, or an error if not
	// everything up to it is whole.
	check(ctx context.Context) (int64, error)
}

// minTransactions is what load commits at the least.
const minTransactions = 100

// choose takes the best stage there is here and says why it is not the first.
func (p *play) choose(ctx context.Context) (stage, string, error) {
	if p.Plain {
		s, err := p.plainStage()
		return s, "", err
	}
	s, err := p.ext4Stage(ctx)
	var missing *missingError
	if errors.As(err, &missing) {
		why := ", for ext4 on loop devices " + missing.Error()
		s, err = p.plainStage()
		return s, why, err
	}
	return s, "", err
}

// missingError says what a stage lacks on this machine.
type missingError struct{ what string }

func (e *missingError) Error() string { return e.what }

func missing(format string, args ...any) error {
	return &missingError{fmt.Sprintf(format, args...)}
}

// makeFile makes a sparse file.
func makeFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("make volume %s: %w", path, err)
	}
	return nil
}
