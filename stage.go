package failback

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"github.com/failback/failback/cbt"
)

// A stage is what a session writes, gathered beside its target (Side.Stage): the
// target itself is as it was until all of it is there. As a volume it is the
// target as it will be: what is staged is read from the stage, all else from the
// target, and everything is written to the stage only.
//
//	filling ──whole──▶ whole ──(the journal names it)──▶ applied ──▶ removed
//	   │ kept: its peer was lost, and the session comes again
//	   └──────────▶ dropped: by this session's end, or the next on the same target
//
// The order of what is durable, and what a crash between two steps means, is
// told where it is done: see [target.enact].
//
// Memory: 4 KiB for each 32768 blocks of which one is staged, see [cbt.DirtyMap].
// That map is not what lies on disk: a dirty map may say too much, and a stage
// that did so would lay holes over the target. The index has a word for each block.
type stage struct {
	files stageFiles
	path  string
	h     stageHead
	base  *meter // the target; nothing counts what is read of it here
	data  stageData
	index stageIndex
	m     *cbt.DirtyMap // what is staged; dirty: data tells what, discarded: zeroes

	// parts are taken for a block that is written in part: a volume of more than
	// 2 TiB has blocks of more than a piece.
	parts [64]sync.Mutex
}

var (
	_ Volume       = (*stage)(nil)
	_ Zeroer       = (*stage)(nil)
	_ MediumReader = (*stage)(nil)
	_ Identifier   = (*stage)(nil)
	_ Stamper      = (*stage)(nil)
)

// stageFacts say which session a stage is of.
type stageFacts struct {
	target, source undoVolume
	session, after [16]byte
	stamp          string // of the target
	journal        string // of the target, an absolute path
}

// beginStage makes a stage for base at path, or goes on with one that the same
// session has kept while nobody wrote the target. Any other of the same target and
// journal is dropped: nothing of it was applied, or the journal would name it and it
// would have been finished before.
//
//  1. remove what is there, the head last
//  2. place the head: from here on the files of that name are ours
//  3. make the other two, and their names durable
func beginStage(files stageFiles, path string, base *meter, f stageFacts) (*stage, error) {
	h, err := readStageHead(files, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, errNotStage):
		return nil, &RefusedError{Volume: f.target.Name, cause: err, Reason: fmt.Sprintf("%s is where its stage belongs and is something else", path),
			Next: "move that file away, or name another directory (--stage DIR)"}
	case err != nil && !errors.Is(err, errStageCorrupt):
		return nil, err
	case err == nil && !h.of(path, f.target, f.journal):
		return nil, &RefusedError{Volume: f.target.Name, Reason: fmt.Sprintf("%s is the stage of another target, %s (%q, %d bytes)", path, cleanText(h.target.Name), cleanText(h.target.Identity), h.target.Size),
			Next: "name another directory (--stage DIR)"}
	case err == nil && h.state == stageKept && h.session == f.session && h.stamp == f.stamp && f.stamp != "":
		s, err := openStage(files, path, h, base)
		if err == nil {
			// What is changed from now on is not what the head tells.
			s.h.refill()
			err = files.place(path, s.h.encode())
		}
		if err == nil {
			return s, nil
		}
		if s != nil {
			err = errors.Join(err, s.close())
		}
		if !errors.Is(err, errStageCorrupt) {
			return nil, stageFailure(path, stageMaking, err)
		}
	}
	return makeStage(files, path, base, f, err == nil || errors.Is(err, errStageCorrupt))
}

// refuseStrangers refuses a place where there are files of the names that those of
// a stage are going to have, and no head that says that they are ours (L4).
func refuseStrangers(files stageFiles, path, target string) error {
	for _, suffix := range []string{"-data", "-index"} {
		f, err := files.index(path + suffix)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil:
			err = f.Close()
		}
		return &RefusedError{Volume: target, cause: err, Reason: fmt.Sprintf("%s is where its stage belongs and is something else", path+suffix),
			Next: "move that file away, or name another directory (--stage DIR)"}
	}
	return nil
}

// refill takes back what a head says of content.
func (h *stageHead) refill() { h.state, h.data, h.zeroes, h.pages = stageFilling, 0, 0, 0 }

func makeStage(files stageFiles, path string, base *meter, f stageFacts, there bool) (*stage, error) {
	if there {
		// Whoever has it open is at it.
		d, err := files.data(path + "-data")
		var refused *RefusedError
		if errors.As(err, &refused) && refused.busy {
			return nil, err
		}
		if err == nil {
			err = d.Close()
			if err != nil {
				return nil, stageFailure(path, stageMaking, err)
			}
		}
		if err := removeStage(files, path); err != nil {
			return nil, err
		}
	}
	if err := refuseStrangers(files, path, f.target.Name); err != nil {
		return nil, err
	}
	h := stageHead{state: stageFilling, block: cbt.BlockSize(f.target.Size), target: f.target, source: f.source,
		session: f.session, after: f.after, stamp: f.stamp, made: time.Now().Unix()}
	if err := h.draw(); err != nil {
		return nil, err
	}
	if err := files.place(path, h.encode()); err != nil {
		return nil, stageFailure(path, stageMaking, err)
	}
	err := files.create(path+"-data", h.target.Size)
	if err == nil {
		err = files.create(path+"-index", h.pageCount()*stagePage)
	}
	if err == nil {
		err = files.syncDir(filepath.Dir(path))
	}
	var s *stage
	if err == nil {
		s, err = openFiles(files, path, &h, base)
	}
	if err != nil {
		return nil, errors.Join(stageFailure(path, stageMaking, err), removeStage(files, path))
	}
	return s, nil
}

func readStageHead(files stageFiles, path string) (*stageHead, error) {
	b, err := files.head(path)
	if err != nil {
		return nil, stageFailure(path, stageReading, err)
	}
	h, err := parseStageHead(b)
	return h, stageFailure(path, stageReading, err)
}

// openFiles opens the files of a stage whose head is h, and looks at nothing in them.
func openFiles(files stageFiles, path string, h *stageHead, base *meter) (*stage, error) {
	s := &stage{files: files, path: path, h: *h, base: &meter{v: base.v, name: base.name}}
	var err error
	if s.m, err = cbt.NewDirtyMap(h.target.Size, h.block); err != nil {
		return nil, err
	}
	if s.data, err = files.data(path + "-data"); err != nil {
		return nil, err
	}
	if s.data.Size() != h.target.Size {
		err = stageCorrupt("%d bytes of content for a target of %d", s.data.Size(), h.target.Size)
	}
	if err == nil {
		s.index, err = files.index(path + "-index")
	}
	if err != nil {
		return nil, errors.Join(err, s.data.Close())
	}
	return s, nil
}

// openStage opens a stage and learns from its index what is staged.
func openStage(files stageFiles, path string, h *stageHead, base *meter) (*stage, error) {
	s, err := openFiles(files, path, h, base)
	if err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) close() error {
	err := s.data.Close()
	return stageFailure(s.path, stageWriting, errors.Join(err, s.index.Close()))
}

// Size implements [Volume].
func (s *stage) Size() int64 { return s.h.target.Size }

// Identity implements [Identifier]: the target's.
func (s *stage) Identity() string { return s.base.identity() }

// Stamp implements [Stamper]: the target's, which staging does not change.
func (s *stage) Stamp() (string, error) { return s.base.stamp() }

// Sync makes what is staged durable.
func (s *stage) Sync() error { return stageFailure(s.path, stageWriting, s.data.Sync()) }

// ReadAt implements [Volume].
func (s *stage) ReadAt(p []byte, off int64) (int, error) {
	return s.read(p, off, s.data.ReadAt, s.base.readAt)
}

// ReadMediumAt implements [MediumReader]: of what is staged it reads the medium of
// the stage.
func (s *stage) ReadMediumAt(p []byte, off int64) (int, error) {
	return s.read(p, off, s.data.ReadMediumAt, s.base.readMedium)
}

func (s *stage) read(p []byte, off int64, staged func([]byte, int64) (int, error), under func([]byte, int64) error) (int, error) {
	if off < 0 || off >= s.Size() {
		return 0, io.EOF
	}
	end := min(off+int64(len(p)), s.Size())
	for at := off; at < end; {
		state, next := s.run(at, end)
		b := p[at-off : next-off]
		var err error
		switch state {
		case cbt.Clean:
			err = under(b, at)
		case cbt.Discarded:
			clear(b)
		default:
			err = stageFailure(s.path, stageReading, readAll(staged, b, at))
		}
		if err != nil {
			return int(at - off), err
		}
		at = next
	}
	if n := int(end - off); n < len(p) {
		return n, io.EOF
	}
	return len(p), nil
}

// readAll fills b or says why not.
func readAll(read func([]byte, int64) (int, error), b []byte, off int64) error {
	n, err := read(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil || err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// run returns the state of the byte at off, and where it ends, at end at the latest.
func (s *stage) run(off, end int64) (cbt.State, int64) {
	state := s.m.State(off)
	next := off
	for next < end && s.m.State(next) == state {
		next = min(end, (next/s.h.block+1)*s.h.block)
	}
	return state, next
}

// WriteAt implements [Volume].
func (s *stage) WriteAt(p []byte, off int64) (int, error) {
	err := s.each(off, int64(len(p)), func(x cbt.Extent, whole bool) error {
		b := p[x.Off-off : x.End-off]
		if whole {
			return s.write(b, x)
		}
		return s.part(x, func(block []byte, at int64) { copy(block[x.Off-at:], b) })
	})
	if err != nil {
		return 0, stageFailure(s.path, stageWriting, err)
	}
	return len(p), nil
}

// ZeroAt implements [Zeroer].
func (s *stage) ZeroAt(off, n int64) error {
	return stageFailure(s.path, stageWriting, s.each(off, n, func(x cbt.Extent, whole bool) error {
		if whole {
			return s.zero(x)
		}
		return s.part(x, func(block []byte, at int64) { clear(block[x.Off-at : x.End-at]) })
	}))
}

// each calls do with the n bytes at off: the blocks that lie in them as a whole at
// once, and parts of one.
func (s *stage) each(off, n int64, do func(x cbt.Extent, whole bool) error) error {
	end := off + n
	if off < 0 || n < 0 || end > s.Size() {
		return fmt.Errorf("[%#x,%#x) is not in a target of %d bytes", off, end, s.Size())
	}
	last := end / s.h.block * s.h.block // whole blocks end there
	if end == s.Size() {
		last = end
	}
	for off < end {
		x := cbt.Extent{Off: off, End: last}
		whole := off%s.h.block == 0 && off < last
		if !whole {
			x.End = min(end, (off/s.h.block+1)*s.h.block)
		}
		if err := do(x, whole); err != nil {
			return err
		}
		off = x.End
	}
	return nil
}

// part changes a part of the block that x lies in.
func (s *stage) part(x cbt.Extent, change func(block []byte, at int64)) error {
	i := x.Off / s.h.block
	lock := &s.parts[i%int64(len(s.parts))]
	lock.Lock()
	defer lock.Unlock()
	whole := s.h.extent(i)
	buf := getBuf(int(s.h.block))
	defer buf.put()
	b := buf.b[:whole.Len()]
	if _, err := s.ReadAt(b, whole.Off); err != nil {
		return err
	}
	change(b, whole.Off)
	return s.write(b, whole)
}

// write stages whole blocks. They are marked last: until then they are read from
// where they were.
func (s *stage) write(p []byte, x cbt.Extent) error {
	if n, err := s.data.WriteAt(p, x.Off); err != nil || n != len(p) {
		return errors.Join(err, shortWrite(n, len(p)))
	}
	err := s.note(x, func(block int64) uint64 {
		e := s.h.extent(block)
		return s.h.entry(block, p[e.Off-x.Off:e.End-x.Off])
	})
	if err == nil {
		s.m.Mark(x.Off, x.Len())
	}
	return err
}

func shortWrite(n, want int) error {
	if n < want {
		return io.ErrShortWrite
	}
	return nil
}

// zero stages whole blocks of zeroes. What has content already gets zeroes for it.
func (s *stage) zero(x cbt.Extent) error {
	for at := x.Off; at < x.End; {
		state, next := s.run(at, x.End)
		if state == cbt.Dirty {
			if err := s.data.ZeroAt(at, next-at); err != nil {
				return err
			}
		}
		at = next
	}
	err := s.note(x, func(int64) uint64 { return entryZero })
	if err == nil {
		s.m.Discard(x.Off, x.Len())
	}
	return err
}

// note puts the entries of whole blocks into the index.
func (s *stage) note(x cbt.Extent, entry func(block int64) uint64) error {
	buf := getBuf(stagePage)
	defer buf.put()
	for i, end := x.Off/s.h.block, (x.End-1)/s.h.block+1; i < end; {
		first, b := i, buf.b[:0]
		for page := i / stageEntries; i < end && i/stageEntries == page; i++ {
			b = binary.LittleEndian.AppendUint64(b, entry(i))
		}
		if _, err := s.index.WriteAt(b, first/stageEntries*stagePage+8*(first%stageEntries)); err != nil {
			return err
		}
	}
	return nil
}

// staged is how many bytes of the target are staged.
func (s *stage) staged() int64 {
	dirty, discarded := s.m.Bytes()
	return dirty + discarded
}

// allocated is what a target that holds something in x may hold with what is staged.
func (s *stage) allocated(ctx context.Context, x []cbt.Extent) ([]cbt.Extent, error) {
	var mine []cbt.Extent
	for r := range s.m.Runs() {
		if len(mine) == 2*maxCandidates {
			mine = cbt.Coarsen(cbt.Normalize(mine), maxCandidates)
		}
		mine = append(mine, r.Extent)
	}
	return cbt.Union(x, cbt.Normalize(mine)), ctx.Err()
}

// draw makes the head's key.
func (h *stageHead) draw() error {
	var b [8]byte
	_, err := rand.Read(b[:])
	h.key = binary.LittleEndian.Uint64(b[:])
	return err
}
