package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/internal/journal"
	"github.com/failback/failback/internal/quiesce"
	"github.com/failback/failback/internal/throttle"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/dial"
	"github.com/failback/failback/transport/message"
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// outcomeError adds to an error what a command knows about the state it leaves
// behind and the way on.
type outcomeError struct {
	error
	state string // what holds now, may be empty
	next  string // what to do, may be empty
}

func (e *outcomeError) Unwrap() error { return e.error }

// stagedError is an error of a sync that was staged: what to do after one that was not
// does not hold.
type stagedError struct{ error }

func (e *stagedError) Unwrap() error { return e.error }

// failure is what a person and a program are told when a command did not do
// what it was asked to. Its JSON form is the one object on stdout.
type failure struct {
	Schema string `json:"schema"`
	Result string `json:"result"` // usage, refused, failed
	Error  string `json:"error"`
	Volume string `json:"volume,omitempty"`
	Reason string `json:"reason"`
	State  string `json:"state,omitempty"`
	Next   string `json:"next"`

	Report *failback.Report `json:"report,omitempty"` // of a sync that was done and left something behind

	exit int
	mend string // what Next says before it says how to go on; "": it is not of two parts
}

// explain decides by class what an error means. An error of no known class is
// a failure that repeating may mend.
func explain(ctx context.Context, err error) failure {
	f := failure{Result: "failed", Error: err.Error(), exit: exitFailed}
	f.classify(ctx, err)
	var done *leftoverError
	if errors.As(err, &done) {
		f.Report = done.report
	}
	var out *outcomeError
	if errors.As(err, &out) {
		f.State = out.state
		var staged *stagedError
		switch {
		case f.Next == "":
			f.Next = out.next
		case f.mend != "" && errors.As(err, &staged):
			f.Next = f.mend + "; " + out.next
		}
	}
	return f
}

func (f *failure) classify(ctx context.Context, err error) {
	var (
		usage    *usageError
		libUsage *failback.UsageError
		address  *dial.AddressError
		refused  *failback.RefusedError
		verify   *failback.VerifyError
		peer     *failback.PeerError
		ssh      *dial.SSHError
		restless *quiesce.RefusedError
		fast     *throttle.RefusedError
		left     *throttle.LeftError
	)
	switch {
	case errors.As(err, &usage), errors.As(err, &libUsage):
		f.Result, f.Reason, f.exit = "usage", "usage", exitUsage
	case errors.As(err, &address):
		f.Result, f.Reason, f.Next, f.exit = "usage", address.Reason, address.Next, exitUsage
	case errors.As(err, &refused):
		f.refuse(refused.Volume, refused.Reason, refused.Next)
	case errors.As(err, &restless):
		f.refuse(restless.Volume, restless.Reason, restless.Next)
	case errors.As(err, &fast):
		f.refuse(fast.Group, fast.Reason, fast.Next)
	case errors.As(err, &left):
		f.Volume, f.Reason = left.Group, "a limit is still in force"
	case f.classifyTrack(err):
	case errors.As(err, &verify):
		f.Volume, f.Reason, f.Next = verify.Volume, "the medium does not hold what was written", "check the device and its log, then run the same command again, with --repair to have it sent once more"
	case ctx.Err() != nil:
		f.Error, f.Reason = "interrupted", "interrupted"
	case errors.As(err, &peer):
		f.fromPeer(peer)
	case errors.As(err, &ssh):
		f.Error, f.Reason = ssh.Error(), "ssh ended" // all that happened to the link came of that
	case errors.Is(err, failback.ErrProtocol):
		f.Reason, f.Next = "protocol violation", "compare failback version on both sides; if they are the same it is a fault of ours: report it"
	default:
		f.classifyFile(err)
	}
}

// classifyFile knows the errors of files and of the system.
func (f *failure) classifyFile(err error) {
	// An undo log's errors say themselves what kind they are.
	var undo interface {
		error
		Class() string
		Next() string
	}
	switch {
	case errors.Is(err, merkle.ErrVersion), errors.Is(err, cbt.ErrVersion):
		f.Reason, f.Next = "made by another version", "use the failback that made it, or make it again with this one"
	case errors.As(err, &undo):
		f.Reason, f.Next = undo.Class(), undo.Next()
	case errors.Is(err, journal.ErrVersion):
		f.Reason, f.Next = "made by another version", "use the failback that made it, or sync without --resume"
	case errors.Is(err, journal.ErrCorrupt), errors.Is(err, journal.ErrNotJournal):
		f.Reason, f.Next = "not a whole resume journal", "sync without --resume: both sides will be compared"
	case errors.Is(err, merkle.ErrCorrupt):
		f.Reason, f.Next = "corrupt digest file", "it proves nothing any more: make it again with failback digest, from a volume you trust"
	case errors.Is(err, cbt.ErrCorrupt), errors.Is(err, cbt.ErrNotMap):
		f.Reason, f.Next = "not a whole dirty map", "leave it out: without a map everything is compared by hash and nothing is missed"
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ENODEV):
		f.repeat("the device failed", "check the device and the kernel's log (dmesg)")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.repeat("no space left", "make room there")
	case errors.Is(err, fs.ErrNotExist):
		f.Reason, f.Next = "no such file or device", "look at the path"
	case errors.Is(err, fs.ErrPermission):
		f.Reason, f.Next = "no permission", "run it as a user who may, often root"
	case errors.Is(err, fs.ErrExist):
		f.Reason = "exists already"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		f.Reason, f.Next = "the peer is silent", "look at the network and the peer, then run the same command again"
	case errors.Is(err, io.ErrUnexpectedEOF):
		f.Reason = "ended early"
	default:
		f.Reason = "error"
	}
}

// repeat is of what may go well when the command is run again.
func (f *failure) repeat(reason, mend string) {
	f.Reason, f.mend, f.Next = reason, mend, mend+", then run the same command again, a sync with --resume (unless it is a live or a staged one)"
}

func (f *failure) refuse(volume, reason, next string) {
	f.Result, f.Volume, f.Reason, f.Next, f.exit = "refused", volume, reason, next, exitRefused
}

func (f *failure) fromPeer(e *failback.PeerError) {
	switch e.Code {
	case message.CodeRefused:
		f.refuse(e.Volume, e.Text, e.Next)
		return
	case message.CodeVerification:
		f.Volume, f.Reason = e.Volume, "the medium does not hold what was written"
		f.Next = "check the device there and its log, then run the same command again, with --repair to have it sent once more"
		return
	case message.CodeUsage:
		f.Result, f.exit = "usage", exitUsage
	}
	f.Volume, f.Reason, f.Next = e.Volume, e.Text, e.Next
}

// text is what is printed on stderr. What the message says already is not said twice.
func (f failure) text(command string) string {
	var b strings.Builder
	b.WriteString(command + ": ")
	message, next := f.Error, f.Next
	if f.Result == "refused" && f.Volume != "" {
		message = "refused " + f.Volume + ": " + f.Reason
	}
	if next != "" {
		if cut, ok := strings.CutSuffix(message, next); ok {
			message = strings.TrimRight(cut, " ;:")
		}
	}
	b.WriteString(message + "\n")
	if f.State != "" {
		b.WriteString("  state: " + f.State + "\n")
	}
	if next != "" && !strings.Contains(message, next) {
		b.WriteString("  next:  " + next + "\n")
	}
	return b.String()
}

// writeJSON writes v as one line.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
