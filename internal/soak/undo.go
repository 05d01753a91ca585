package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// undoDir is where undo logs are kept, by commands and servers.
const undoDir = "undo"

// undoLog is the undo log of a sync, and what the target held before that sync.
type undoLog struct {
	path   string
	before []byte
}

// look finds out what an interrupted sync has left at the target.
func (s *soak) look() error {
	s.interrupted, s.chain = false, ""
	path := s.target().path + ".fbj"
	if !exists(path) {
		return nil
	}
	p, code, err := s.command("resume-info", "--json", path)
	switch {
	case err != nil:
		return err
	case code != 0 && !exists(path): // its session came to its end just now
		return nil
	case code != 0:
		return fmt.Errorf("resume-info: exit code %d; it said:\n%s", code, p.said.String())
	}
	var told struct{ Undo string }
	if err := json.Unmarshal(p.stdout.Bytes(), &told); err != nil {
		return err
	}
	s.interrupted, s.chain = true, told.Undo
	return nil
}

// expect notes what the target holds before a sync that saves it, and gives up
// the undo logs that no longer lead back once that sync has run.
func (s *soak) expect(t trip) error {
	s.before = nil
	switch {
	case t.fault == flipBit: // not everything that changes the target is saved
		s.undos = nil
	case t.resume:
		// What came after the log it goes on with has overwritten nothing.
		at := slices.IndexFunc(s.undos, func(u undoLog) bool { return u.path == s.chain })
		s.undos = s.undos[:at+1]
	case !t.undo:
		s.undos = nil
	default:
		if err := s.idle(); err != nil {
			return err
		}
		var err error
		s.before, err = os.ReadFile(s.target().path)
		return err
	}
	return nil
}

// idle waits until no server has the target open: one that lost its peer may
// need a moment to notice.
func (s *soak) idle() error {
	return until(context.Background(), "the servers to let go of the target", func() bool {
		for _, v := range []*server{s.old, s.young} {
			open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", v.cmd.Process.Pid))
			if err != nil {
				return false
			}
			for _, name := range open {
				if to, err := os.Readlink(name); err == nil && to == s.target().path {
					return false
				}
			}
		}
		return true
	})
}

// mayUndo undoes the sync that ended, or several, or none. It reports whether
// the target holds something else now.
func (s *soak) mayUndo(t trip) (undone bool, err error) {
	if err := s.found(); err != nil {
		return false, err
	}
	for len(s.undos) > 0 && t.fault != flipBit && s.dice.IntN(2) == 0 {
		last := s.undos[len(s.undos)-1]
		s.undos = s.undos[:len(s.undos)-1]
		if err := s.undo(last); err != nil {
			return false, err
		}
		undone = true
	}
	return undone, nil
}

// found looks for the undo log of the sync that ended. It has none if it came
// not so far.
func (s *soak) found() error {
	names, err := filepath.Glob(filepath.Join(s.path(undoDir), "*"))
	if err != nil {
		return err
	}
	made := slices.DeleteFunc(names, func(n string) bool { return s.logs[n] })
	if len(made) > 1 {
		return fmt.Errorf("one sync made %d undo logs: %q", len(made), made)
	}
	for _, n := range made {
		s.logs[n] = true
		if s.before != nil {
			s.undos = append(s.undos, undoLog{n, s.before})
		}
	}
	return nil
}

// undo puts back what the target held before a sync. At times it is killed, and
// run again.
func (s *soak) undo(u undoLog) error {
	if err := s.idle(); err != nil {
		return err
	}
	if s.dice.IntN(3) == 0 {
		p, err := s.start("undo", s.target().path, u.path)
		if err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(s.dice.IntN(300)) * time.Millisecond):
			s.tally.undosKilled++
		case <-p.ended:
		}
		if err := p.signal(syscall.SIGKILL); err != nil {
			return err
		}
		if code, err := p.wait(s.timeout); err != nil || code > 0 {
			return errors.Join(fmt.Errorf("undo: exit code %d; it said:\n%s", code, p.said.String()), err)
		}
	}
	if err := s.must(0, "undo", s.target().path, u.path); err != nil {
		return err
	}
	now, err := os.ReadFile(s.target().path)
	if err != nil {
		return err
	}
	if err := sameBytes(now, u.before); err != nil {
		return fmt.Errorf("undo did not put back what the target held: %w", err)
	}
	s.tally.undone++
	s.tainted = true
	return nil
}

// forget removes all undo logs: both volumes are equal, and stay so.
func (s *soak) forget() error {
	s.undos, s.logs = nil, map[string]bool{}
	if err := os.RemoveAll(s.path(undoDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Mkdir(s.path(undoDir), 0o700)
}
