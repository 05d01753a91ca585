package failback

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/merkle"
)

// A Side is one side of a session: a volume at hand, or one that a peer
// serves. Exactly one of Volume and Dial is set.
type Side struct {
	// Volume is the side's volume, when it is in this process.
	Volume Volume
	// Dial reaches a peer that runs a [Server]. It is called once for each stream,
	// after the first one for several at once.
	Dial func(context.Context) (io.ReadWriteCloser, error)
	// Name is the volume's name at the peer; for a volume at hand, its name in messages.
	Name string
	// Tree is the path of a kept tree of this side, empty for none.
	Tree string
	// TrustTree says that the volume has not been written since the tree was
	// made, though no dirty map vouches for it.
	TrustTree bool
	// Dirty is what was written on this side: since its tree was made if it
	// has one, else since the sides were last equal. Nil means nobody knows.
	Dirty *cbt.Map
	// Journal is the path of the volume's resume journal, empty for none. As a
	// target the volume has it made before it is first overwritten, and removed
	// when the session is over; what an interrupted one leaves is gone on with
	// (Options.Resume). As a source it is refused while it has one (L5).
	Journal string
	// AllowInconsistent takes as a source also a volume whose last sync was interrupted.
	AllowInconsistent bool
	// ThoughWritten has ApplyStage lay a stage over what somebody has, or may have,
	// written to the volume since the sync was interrupted: that is lost.
	ThoughWritten bool
	// Undo is where a target saves what is overwritten, empty for nowhere: a new
	// file, or a directory in which a file of the session's own is made.
	Undo string
	// UndoBestEffort goes on without when that is no longer possible.
	UndoBestEffort bool
	// Stage is a directory in which a target gathers what a [Sync] writes, empty for
	// none. It is applied when it is whole, durable and proven: until then the target
	// is as it was, whatever happens, and from then on it is going to be what it is
	// to be. It takes a Journal, and room for what differs.
	Stage string
	// Commit decides about a stage that is whole and durable; a session that is not
	// staged does not ask it. It calls apply, once, which makes the target what it is to
	// be, or it returns an error, and the target stays as it was. The context that it
	// gets outlives the link to the peer and ends with whoever runs the target; the end
	// of the one that apply gets is like a crash. The source hears of the end when
	// Commit has returned. Nil: what is whole is applied.
	Commit func(ctx context.Context, apply func(context.Context) error) error

	files   journal.Files // where Journal lies; nil: on this machine
	undoAt  undoFiles     // where Undo lies, likewise
	stageAt stageFiles    // where Stage lies, likewise
}

func (s Side) label() string {
	if s.Name != "" {
		return s.Name
	}
	if n, ok := s.Volume.(fmt.Stringer); ok {
		return n.String()
	}
	return "volume"
}

// Verification says how much of the result is proven after a [Sync].
type Verification uint8

const (
	// VerifyChanged reads back and checks what was written. It is the default.
	VerifyChanged Verification = 1
	// VerifyFull compares the whole of both volumes afterwards, from the medium.
	VerifyFull Verification = 2
)

// String returns the word used in reports: "changed" or "full".
func (v Verification) String() string {
	switch v {
	case VerifyChanged:
		return "changed"
	case VerifyFull:
		return "full"
	}
	return fmt.Sprintf("verification(%d)", uint8(v))
}

// Options configures a session. The zero value is usable.
type Options struct {
	Verify      Verification     // default VerifyChanged
	Rung        Rung             // forces a rung; default: the highest that can be vouched for
	Seal        merkle.Algorithm // makes trees of both sides after a Sync and compares their roots; 0: no
	Hash        merkle.Algorithm // what Digest hashes with; default BLAKE3
	Leaf        int64            // bytes; power of two from 4 KiB to 4 MiB; default 64 KiB, or that of a kept tree
	Codec       string           // auto (default), none, lz4, zstd-fast, zstd
	Limit       int64            // bytes a second onto the link; 0: no limit
	Streams     int              // connections for one session; default 1, at most 16
	Window      int64            // bytes sent and not yet written by the target; default 12 MiB
	Workers     int              // goroutines that read and hash on each side; default 2 per processor, at least 4
	KeepAlive   time.Duration    // default 5s
	Timeout     time.Duration    // silence after which a peer is given up; default 30s
	Idle        time.Duration    // nothing but keep-alive after which a session with a peer is given up; default 15m; negative: never
	AllowLarger bool             // a target larger than the source is fine; its end is not touched
	DryRun      bool             // compare and report, write nothing
	// Resume goes on with a Sync, or a Digest of a volume at hand, that was
	// interrupted. Neither side must have been written since: a Sync that can
	// tell (see [Stamper]) refuses, a Digest cannot tell.
	Resume bool
	// Checkpoint is how often, at least, what a Sync has done is made durable and
	// recorded in the target's journal; default 5s.
	Checkpoint time.Duration
	// RetryFor is how long a Sync goes on trying to reach a peer it has lost, from
	// the moment it was lost; 0: not at all. It goes on where it was.
	RetryFor time.Duration
	// Repair has a Sync whose target's medium does not hold what it should try once
	// more, comparing the whole of both sides, whatever maps and trees there are.
	Repair bool
	// Undo asks a target at a peer to save what is overwritten, where its server keeps such logs.
	Undo bool
	// UndoBestEffort has it go on without when that is no longer possible.
	UndoBestEffort bool
	// Stage asks a target at a peer to gather what is written beside its volume, where
	// its server has a place for that, and to apply it when it is whole (Side.Stage).
	Stage bool
	// Live has a Sync copy a source at hand while it is being written; nil:
	// nobody writes it.
	Live   *Live
	Events Events

	barrier int64 // payload from one barrier to the next, bytes; 0: barrierBytes
}

// Events are calls out of a session. Each may be nil. They are made one at a
// time and must not block for long.
type Events struct {
	// Plan is told what is going to be done and why, before a byte moves (L3).
	Plan func(Plan)
	// Progress is told a few times a second how far the session is.
	Progress func(Progress)
	// Retry is told that a Sync is begun again, why, and after which pause.
	Retry func(err error, pause time.Duration)
	// Note is told what the user should know and that is no error.
	Note func(text string)
}

// oneAtATime makes the calls wait for each other.
func (e Events) oneAtATime() Events {
	var mu sync.Mutex
	if tell := e.Plan; tell != nil {
		e.Plan = func(p Plan) {
			mu.Lock()
			defer mu.Unlock()
			tell(p)
		}
	}
	if tell := e.Retry; tell != nil {
		e.Retry = func(err error, pause time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			tell(err, pause)
		}
	}
	if tell := e.Note; tell != nil {
		e.Note = func(text string) {
			mu.Lock()
			defer mu.Unlock()
			tell(text)
		}
	}
	if tell := e.Progress; tell != nil {
		e.Progress = func(p Progress) {
			mu.Lock()
			defer mu.Unlock()
			tell(p)
		}
	}
	return e
}

// Progress is how far a session is. Bytes.
type Progress struct {
	Phase     string        // "plan", "transfer", "flush", "verify", "seal"; "apply": a stage is, the target is written
	Done      int64         // candidate bytes compared and, where they differed, sent
	Total     int64         // candidate bytes
	Divergent int64         // found so far
	Raw       int64         // payload sent so far, before compression
	Wire      int64         // bytes on the link so far, both ways
	Elapsed   time.Duration // since the session began
}

// undo is how the session asks for an undo log.
func (o Options) undo() uint8 {
	switch {
	case o.Undo && o.UndoBestEffort:
		return undoBest
	case o.Undo:
		return undoMust
	}
	return 0
}

const (
	defaultLeaf   = 64 << 10
	defaultWindow = 12 << 20
	maxStreams    = 16
	minWindow     = 2 << 20
	maxWindow     = 1 << 30
	// pieceSize is the granularity of what is sent. Absolute offsets that are
	// multiples of it cut the volume into pieces; the last may be shorter.
	pieceSize = 4 << 10
)

// filled returns o with defaults in place of zeroes, or says what is wrong with it.
func (o Options) filled() (Options, error) {
	if o.Verify == 0 {
		o.Verify = VerifyChanged
	}
	if o.Hash == 0 {
		o.Hash = merkle.BLAKE3
	}
	if o.Codec == "" {
		o.Codec = "auto"
	}
	if o.Streams == 0 {
		o.Streams = 1
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Workers == 0 {
		o.Workers = max(4, 2*runtime.GOMAXPROCS(0))
	}
	if o.Checkpoint == 0 {
		o.Checkpoint = barrierTime
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Idle == 0 {
		o.Idle = 15 * time.Minute
	}
	if o.KeepAlive == 0 && o.Timeout > 0 {
		o.KeepAlive = min(5*time.Second, o.Timeout/3)
	}
	o.Events = o.Events.oneAtATime()
	if o.Live != nil {
		if err := o.Live.check(o); err != nil {
			return o, err
		}
	}
	switch {
	case o.Verify > VerifyFull:
		return o, usagef("verify is %v: changed or full", o.Verify)
	case o.Leaf != 0 && (o.Leaf < pieceSize || o.Leaf > 4<<20 || o.Leaf&(o.Leaf-1) != 0):
		return o, usagef("leaf of %d bytes: a power of two from 4096 to 4194304", o.Leaf)
	case o.Streams < 1 || o.Streams > maxStreams:
		return o, usagef("%d streams: 1 to %d", o.Streams, maxStreams)
	case o.Window < minWindow || o.Window > maxWindow:
		return o, usagef("window of %d bytes: 2 MiB to 1 GiB", o.Window)
	case o.Checkpoint < 0:
		return o, usagef("a checkpoint every %v: more than 0", o.Checkpoint)
	case o.RetryFor < 0:
		return o, usagef("retry for %v: 0 (not at all) or more", o.RetryFor)
	case o.Limit < 0:
		return o, usagef("limit of %d bytes a second: 0 (none) or more", o.Limit)
	case o.Seal != 0 && o.Seal != merkle.SHA256 && o.Seal != merkle.BLAKE3:
		return o, usagef("seal with %v: sha256 or blake3", o.Seal)
	case o.Hash != merkle.SHA256 && o.Hash != merkle.BLAKE3:
		return o, usagef("hash with %v: sha256 or blake3", o.Hash)
	case o.Workers < 1 || o.Workers > 256:
		return o, usagef("%d workers: 1 to 256", o.Workers)
	}
	return o, nil
}
