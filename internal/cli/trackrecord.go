package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
)

// trackRecord is what lies in the state directory of a volume that is or was
// tracked: NAME.track, and NAME.fbm beside it if it was stopped in order. NAME is
// the hash of its identity.
//
// While the volume is tracked its state is "tracking". A machine that goes down
// leaves it so: whatever map is beside it is not believed then (L1). Nor is a
// [checkpoint], which has a file of its own.
type trackRecord struct {
	Version  int       `json:"version"` // 1
	State    string    `json:"state"`   // tracking, stopped, ended
	Device   string    `json:"device"`
	Name     string    `json:"name,omitempty"`
	Identity string    `json:"identity"`
	Boot     string    `json:"boot"`  // id of the boot
	Epoch    cbt.Epoch `json:"epoch"` // the highest of all that the volume had
	Started  time.Time `json:"started"`
	Stopped  time.Time `json:"stopped"`
	Stamp    string    `json:"stamp,omitempty"` // of the disk, from before the recording ended
	Sync     bool      `json:"sync,omitempty"`  // tracking: for the time of a live sync
}

const (
	stateTracking = "tracking"
	stateStopped  = "stopped"
	stateEnded    = "ended" // after a live sync, with nothing saved
)

func (f *trackFlags) recordPath(identity string) (string, error) { return f.state.record(identity) }

// record is where the record of a volume lies.
func (p *placeFlags) record(identity string) (string, error) {
	dir, err := p.stateDir()
	return filepath.Join(dir, fmt.Sprintf("%016x.track", xxhash.Sum64String(identity))), err
}

func mapBeside(record string) string { return record[:len(record)-len(".track")] + ".fbm" }

// readRecord returns nil if there is none.
func readRecord(path string) (*trackRecord, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r trackRecord
	if err := json.Unmarshal(b, &r); err != nil || r.Version != 1 {
		return nil, fmt.Errorf("read %s: it is no record of a tracked volume that this version knows: remove it", path)
	}
	return &r, nil
}

func (r *trackRecord) write(path string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return replaceFile(path, append(b, '\n'))
}

// recordOf is the record of a volume that is tracked from now on.
func recordOf(s *ebpf.Status, device string) *trackRecord {
	return &trackRecord{
		Version: 1, State: stateTracking, Device: device, Name: s.Name, Identity: s.Identity,
		Boot: bootID(), Epoch: s.Trust.Since, Started: s.Started,
	}
}

// ofSync reports whether a record, nil for none, is of a tracker that was started
// for the time of a live sync, since the machine was.
func (r *trackRecord) ofSync() bool {
	return r != nil && r.Sync && r.State == stateTracking && r.Boot == bootID()
}

// renew replaces the record of a volume. The epoch does not go back.
func (r *trackRecord) renew(path string) error {
	old, err := readRecord(path)
	if err != nil {
		return err
	}
	if old != nil {
		r.Epoch = max(r.Epoch, old.Epoch)
	}
	return r.write(path)
}

// noteEpoch writes a new epoch into the record at path, if there is one, so that no
// later one is below it. It comes before the seal: whoever dies in between has
// noted an epoch that never was, which does no harm.
func noteEpoch(path string, e cbt.Epoch) error {
	r, err := readRecord(path)
	if err != nil || r == nil || r.Epoch >= e {
		return err
	}
	r.Epoch = e
	return r.write(path)
}

// notedEpoch returns the highest epoch that the volume is known to have had.
func (f *trackFlags) notedEpoch(identity string) (path string, e cbt.Epoch, err error) {
	if path, err = f.recordPath(identity); err != nil {
		return "", 0, err
	}
	r, err := readRecord(path)
	if err != nil || r == nil {
		return path, 0, err
	}
	return path, r.Epoch, nil
}

// startedBySync reports whether the tracker of a volume was started for the time of
// a live sync. What cannot be read does not say so.
func (f *trackFlags) startedBySync(identity string) bool {
	path, err := f.recordPath(identity)
	if err != nil {
		return false
	}
	r, err := readRecord(path)
	return err == nil && r.ofSync()
}

// liveRecord keeps the record of a volume during a live sync.
//
//  1. starts, before the tracker is started for the sync: killed from here on, the
//     record tells of a volume that is tracked and was not stopped in order
//  2. sealed, before anything names a new epoch
//  3. ends, after the tracker was stopped, or could not be started: what the record
//     said before; or keeps, if the tracker is left on
//
// With a tracker that somebody else started only 2 is called.
type liveRecord struct {
	path   string
	was    *trackRecord // nil: none, or of a live sync that was killed
	found  *trackRecord // nil: none
	adopts bool         // the tracker that is there is left over from that one
	now    trackRecord
}

// newLiveRecord looks at the record of a volume. Its tracker has to be started with
// the same identity.
func newLiveRecord(place *placeFlags, identity, device string) (*liveRecord, error) {
	path, err := place.record(identity)
	if err != nil {
		return nil, err
	}
	was, err := readRecord(path)
	if err != nil {
		return nil, err
	}
	found, adopts := was, was.ofSync()
	if was != nil && was.Sync {
		was = nil
	}
	return &liveRecord{path: path, was: was, found: found, adopts: adopts, now: trackRecord{
		Version: 1, State: stateTracking, Device: device, Identity: identity, Boot: bootID(), Started: time.Now(), Sync: true,
	}}, nil
}

// highest is the highest epoch that the volume is known to have had.
func (l *liveRecord) highest() cbt.Epoch {
	if l.found == nil {
		return 0
	}
	return l.found.Epoch
}

// unstopped says what is known of a tracker that was there and is no more, though
// nobody has stopped it, or "".
func (l *liveRecord) unstopped() string {
	if l.found == nil || l.found.State != stateTracking {
		return ""
	}
	text := fmt.Sprintf("; before that from %s on, and that was not stopped in order", l.found.Started.Local().Format(time.DateTime))
	if l.found.Boot != bootID() {
		text += ": the machine was started anew since"
	}
	return text
}

func (l *liveRecord) starts() error {
	if err := l.now.renew(l.path); err != nil {
		return fmt.Errorf("note that the volume is tracked: %w", err)
	}
	return nil
}

func (l *liveRecord) sealed(e cbt.Epoch) error {
	if err := noteEpoch(l.path, e); err != nil {
		return fmt.Errorf("note epoch %d: %w", e, err)
	}
	return nil
}

func (l *liveRecord) keeps() error {
	l.now.Sync = false
	if err := l.now.renew(l.path); err != nil {
		return fmt.Errorf("note that the volume is tracked: %w", err)
	}
	return nil
}

func (l *liveRecord) ends() error {
	now, err := readRecord(l.path)
	if err != nil {
		return fmt.Errorf("note that the volume is not tracked any more: %w", err)
	}
	if l.was == nil && now != nil && now.Epoch == 0 { // nothing has come of it
		return os.Remove(l.path)
	}
	r := l.was
	if r == nil {
		ended := l.now
		ended.State, ended.Sync, ended.Stopped = stateEnded, false, time.Now()
		r = &ended
	}
	if err := r.renew(l.path); err != nil {
		return fmt.Errorf("note that the volume is not tracked any more: %w", err)
	}
	return nil
}
