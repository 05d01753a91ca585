package cli

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
)

// A pointFile says since which epoch the tracker of a volume holds all in which a
// target differs. It is small, and replaced as a whole.
type pointFile struct {
	path string
	now  syncPoint
}

// syncPoint is the content of a pointFile.
type syncPoint struct {
	Schema string    `json:"schema"`
	Source string    `json:"source"` // identity
	Target string    `json:"target"` // as it was given
	Epoch  cbt.Epoch `json:"epoch"`
	After  string    `json:"session"`
	Left   string    `json:"target_stamp"` // of the target then
	Time   time.Time `json:"time"`
}

const schemaPoint = "failback.point/1"

func newPoint(place *placeFlags, d *failback.Disk, target string) (*pointFile, error) {
	dir, err := place.stateDir()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%016x.point", xxhash.Sum64String(d.Identity()))
	return &pointFile{path: filepath.Join(dir, name), now: syncPoint{Schema: schemaPoint, Source: d.Identity(), Target: target}}, nil
}

// load adds what the file says to l, or says why that is nothing. What cannot be
// read is as good as none: both sides are compared then.
func (p *pointFile) load(l *failback.Live) (unsynced string) {
	b, err := os.ReadFile(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	var was syncPoint
	var session []byte
	if err == nil {
		err = json.Unmarshal(b, &was)
	}
	if err == nil {
		session, err = hex.DecodeString(was.After)
	}
	switch {
	case err != nil, was.Schema != schemaPoint, len(session) != len(l.After), [16]byte(session) == [16]byte{}, was.Epoch == 0:
		return fmt.Sprintf("the sync point in %s cannot be read", p.path)
	case was.Source != p.now.Source:
		return fmt.Sprintf("the sync point in %s is of another source, %s", p.path, was.Source)
	case was.Target != p.now.Target:
		return fmt.Sprintf("its last live sync was with another target, %s", was.Target)
	}
	l.Since, l.After, l.Left = was.Epoch, [16]byte(session), was.Left
	return ""
}

// save makes what l says durable.
func (p *pointFile) save(l *failback.Live) error {
	p.now.Epoch, p.now.After, p.now.Left, p.now.Time = l.Since, hex.EncodeToString(l.After[:]), l.Left, time.Now().UTC()
	b, err := json.Marshal(p.now)
	if err != nil {
		return err
	}
	if err := replaceFile(p.path, append(b, '\n')); err != nil {
		return fmt.Errorf("keep the sync point: %w", err)
	}
	return nil
}

// forget removes the file: its epoch will never be the tracker's again.
func (p *pointFile) forget() error {
	if err := os.Remove(p.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the sync point: %w", err)
	}
	return nil
}
