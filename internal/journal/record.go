package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
)

// A Record is what a journal says: how far a session that writes a target has
// come, and which session that is.
//
// A slot of the file, 4096 bytes, little endian:
//
//	off size field
//	  0    8 magic      "FBJRNL\r\n"
//	  8    2 version    1
//	 10    1 state      1 under way, 2 complete
//	 11    1 flags      bit 0 touched, bit 1 suspect
//	 12    4            zero
//	 16    8 seq        one more than the other slot's
//	 24   16 run        id of the session that began it
//	 40    8 size       bytes of the source
//	 48    8 size       bytes of the target
//	 56    8 done       bytes; below it both sides are equal, durable at the target
//	 64    8 written    bytes written to the target since the run began
//	 72    8 saved      bytes of the undo log that are durable
//	 80    8 started    unix time, nanoseconds
//	 88    8 updated    unix time, nanoseconds
//	 96   32 basis      hash of what the plan rests on
//	128      source     identity, name: str8 each
//	  +      target     identity, name: str8 each
//	  +      stamp      str8, of the source when the run began
//	  +      undo       str16, path of the undo log; empty if there is none
//	  +      left       str8, stamp of the target when the session had ended; empty if it did not come to that
//	  +      stage      str16, path of the stage that is being applied; empty if there is none
//	  +   16 after      session as which's end a staged one found the target; zeroes: none
//	  +                 zeroes
//	4088   8 sum        xxhash64 of what is before it
//
// str8 and str16 are strings with their length in bytes before them, in one
// byte or two. Times are for people; nothing is decided by them.
type Record struct {
	// Complete says that the session came to its end: both sides are equal.
	Complete bool
	// Touched says that the target was, or was about to be, overwritten.
	Touched bool
	// Suspect says that nothing vouches for what the target holds: its medium did
	// not hold what was written to it, or somebody else has overwritten it. Whoever
	// comes next compares the whole of it, on the medium, past every cache.
	Suspect bool
	// Run is the id of the session that began what this records. A session that
	// goes on with it keeps it.
	Run [16]byte
	// Source and Target say whose journal it is.
	Source, Target Volume
	// Done, in bytes: every byte below is equal on both sides, and durable at
	// the target. Of a suspect target only what was compared on its medium counts.
	Done int64
	// Written is how many bytes the run has written to the target so far.
	Written          int64
	Started, Updated time.Time
	// Basis is a hash of what the plan rests on: the rung asked for, maps, trees.
	Basis [32]byte
	// Stamp changes when the source is written; empty if nothing tells.
	Stamp string
	// Undo is the path of the undo log that is kept with the run.
	Undo string
	// Saved is how many bytes of the undo log are durable: a shorter one is not all of it.
	Saved int64
	// Left is the target's stamp when the session had ended before its time and
	// nobody of it wrote any more: another one since then tells of somebody else.
	// Empty if it was killed, or the target has none.
	Left string
	// Stage is the path of a stage that holds all of what the session writes, whole
	// and durable: with Touched the target is to be made equal to it. It and the path
	// of the undo log share what room there is.
	Stage string
	// After is, of a session that was staged, the one as which's end it found the
	// target; zeroes if it did not know. What it has staged, its source holds for
	// changed since then until it hears that the session is complete.
	After [16]byte
}

// A Volume is what a journal knows of one side.
type Volume struct {
	Size     int64 // bytes
	Identity string
	Name     string
}

var (
	// ErrNotJournal says that a file is something else.
	ErrNotJournal = errors.New("not a resume journal")
	// ErrVersion says that a journal is of a newer failback.
	ErrVersion = errors.New("resume journal of an unknown version")
	// ErrCorrupt says that a journal is damaged: neither slot can be believed.
	ErrCorrupt = errors.New("damaged resume journal")
)

const (
	magic    = "FBJRNL\r\n"
	version  = 1
	slotSize = 4096
	fileSize = 2 * slotSize
	sumAt    = slotSize - 8

	stateUnderWay = 1
	stateComplete = 2
	flagTouched   = 1
	flagSuspect   = 2

	maxShort = 255  // bytes of an identity, a name, a stamp
	maxUndo  = 2048 // bytes of the path of an undo log, or of a stage
)

// encode returns the slot that says r under the number seq.
func (r *Record) encode(seq uint64) ([]byte, error) {
	b := make([]byte, 0, slotSize)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	state, flags := byte(stateUnderWay), byte(0)
	if r.Complete {
		state = stateComplete
	}
	if r.Touched {
		flags |= flagTouched
	}
	if r.Suspect {
		flags |= flagSuspect
	}
	b = append(b, state, flags, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = append(b, r.Run[:]...)
	for _, n := range []int64{r.Source.Size, r.Target.Size, r.Done, r.Written, r.Saved, r.Started.UnixNano(), r.Updated.UnixNano()} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	b = append(b, r.Basis[:]...)
	for _, s := range []string{r.Source.Identity, r.Source.Name, r.Target.Identity, r.Target.Name, r.Stamp} {
		if len(s) > maxShort {
			return nil, fmt.Errorf("%d bytes of %.20q…, limit %d", len(s), s, maxShort)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	if len(r.Undo) > maxUndo {
		return nil, fmt.Errorf("path of the undo log has %d bytes, limit %d", len(r.Undo), maxUndo)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.Undo)))
	b = append(b, r.Undo...)
	if len(r.Left) > maxShort {
		return nil, fmt.Errorf("%d bytes of %.20q…, limit %d", len(r.Left), r.Left, maxShort)
	}
	b = append(append(b, byte(len(r.Left))), r.Left...)
	if room := sumAt - len(b) - 2 - len(r.After); len(r.Stage) > min(maxUndo, room) {
		return nil, fmt.Errorf("path of the stage has %d bytes, limit %d", len(r.Stage), min(maxUndo, room))
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.Stage)))
	b = append(b, r.Stage...)
	b = append(b, r.After[:]...)
	b = b[:slotSize]
	binary.LittleEndian.PutUint64(b[sumAt:], xxhash.Sum64(b[:sumAt]))
	return b, nil
}

// Fits reports an error if r says more than a journal has room for.
func (r *Record) Fits() error {
	_, err := r.encode(1)
	return err
}

// decode reads one slot. What it accepts, encode gives back to the byte.
func decode(b []byte) (*Record, uint64, error) {
	switch {
	case string(b[:len(magic)]) != magic:
		return nil, 0, ErrNotJournal
	case binary.LittleEndian.Uint16(b[8:]) != version:
		return nil, 0, fmt.Errorf("%w: %d, we read %d", ErrVersion, binary.LittleEndian.Uint16(b[8:]), version)
	case binary.LittleEndian.Uint64(b[sumAt:]) != xxhash.Sum64(b[:sumAt]):
		return nil, 0, fmt.Errorf("%w: wrong checksum", ErrCorrupt)
	}
	r := &Record{Complete: b[10] == stateComplete, Touched: b[11]&flagTouched != 0, Suspect: b[11]&flagSuspect != 0}
	seq := binary.LittleEndian.Uint64(b[16:])
	copy(r.Run[:], b[24:])
	n := func(off int) int64 { return int64(binary.LittleEndian.Uint64(b[off:])) }
	r.Source.Size, r.Target.Size, r.Done, r.Written, r.Saved = n(40), n(48), n(56), n(64), n(72)
	r.Started, r.Updated = time.Unix(0, n(80)), time.Unix(0, n(88))
	copy(r.Basis[:], b[96:])
	at := 128
	for _, s := range []*string{&r.Source.Identity, &r.Source.Name, &r.Target.Identity, &r.Target.Name, &r.Stamp} {
		end := at + 1 + int(b[at])
		*s, at = string(b[at+1:end]), end
	}
	undo := int(binary.LittleEndian.Uint16(b[at:]))
	if undo > maxUndo {
		return nil, 0, fmt.Errorf("%w: a path of %d bytes", ErrCorrupt, undo)
	}
	at += 2 + undo
	r.Undo = string(b[at-undo : at])
	end := at + 1 + int(b[at])
	r.Left = string(b[at+1 : end])
	stage := int(binary.LittleEndian.Uint16(b[end:]))
	at = end + 2
	if stage > min(maxUndo, sumAt-at-len(r.After)) {
		return nil, 0, fmt.Errorf("%w: a path of %d bytes", ErrCorrupt, stage)
	}
	r.Stage = string(b[at : at+stage])
	copy(r.After[:], b[at+stage:])
	if err := r.check(); err != nil {
		return nil, 0, err
	}
	if again, err := r.encode(seq); err != nil || !bytes.Equal(again, b) {
		return nil, 0, fmt.Errorf("%w: bytes that mean nothing", ErrCorrupt)
	}
	return r, seq, nil
}

// check says what cannot be.
func (r *Record) check() error {
	for _, n := range []int64{r.Source.Size, r.Target.Size} {
		if n <= 0 || n%512 != 0 {
			return fmt.Errorf("%w: a volume of %d bytes", ErrCorrupt, n)
		}
	}
	if r.Done < 0 || r.Done > min(r.Source.Size, r.Target.Size) || r.Written < 0 || r.Saved < 0 {
		return fmt.Errorf("%w: done up to %d of %d bytes, %d written", ErrCorrupt, r.Done, r.Source.Size, r.Written)
	}
	return nil
}
