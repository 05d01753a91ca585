package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/ebpf"
	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/dial"
	"github.com/failback/failback/transport/message"
)

// TestExplain: each class of error has its exit code, a reason and a way on.
func TestExplain(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("doing things: %w", err) }
	for _, c := range []struct {
		name   string
		err    error
		exit   int
		result string
		reason string
		next   bool // there must be one
	}{
		{"usage", usagef("no"), exitUsage, "usage", "usage", false},
		{"usage of the library", &failback.UsageError{Reason: "no"}, exitUsage, "usage", "usage", false},
		{"address", &dial.AddressError{Address: "x://", Reason: "unknown", Next: "write y"}, exitUsage, "usage", "unknown", true},
		{"refused", &failback.RefusedError{Volume: "/dev/x", Reason: "it is mounted", Next: "unmount it"}, exitRefused, "refused", "it is mounted", true},
		{"refused at the peer", &failback.PeerError{Code: message.CodeRefused, Text: "it is mounted", Next: "unmount it", Volume: "x"}, exitRefused, "refused", "it is mounted", true},
		{"no device to track", &ebpf.RefusedError{Device: "/dev/x", Reason: "it is zoned", Next: "track another"}, exitRefused, "refused", "it is zoned", true},
		{"tracked", ebpf.ErrTracked, exitRefused, "refused", ebpf.ErrTracked.Error(), true},
		{"not tracked", ebpf.ErrNotTracked, exitRefused, "refused", ebpf.ErrNotTracked.Error(), true},
		{"tracker is open", ebpf.ErrOpen, exitRefused, "refused", ebpf.ErrOpen.Error(), true},
		{"old kernel", &ebpf.UnsupportedError{Feature: "x", Since: "5.17"}, exitRefused, "refused", "x: not supported (needs Linux 5.17)", true},
		{"epoch lost", cbt.ErrEpochLost, exitRefused, "refused", "epoch lost", true},
		{"usage at the peer", &failback.PeerError{Code: message.CodeUsage, Text: "no"}, exitUsage, "usage", "no", false},
		{"volume at the peer", &failback.PeerError{Code: message.CodeVolume, Text: "input/output error"}, exitFailed, "failed", "input/output error", false},
		{"verification", &failback.VerifyError{Volume: "x"}, exitFailed, "failed", "the medium does not hold what was written", true},
		{"ssh", &dial.SSHError{Host: "h", Status: 255, Err: errors.New("exit status 255")}, exitFailed, "failed", "ssh ended", false},
		{"protocol", failback.ErrProtocol, exitFailed, "failed", "protocol violation", true},
		{"corrupt tree", &merkle.CorruptError{Err: errors.New("x"), Level: -1}, exitFailed, "failed", "corrupt digest file", true},
		{"no map", cbt.ErrNotMap, exitFailed, "failed", "not a whole dirty map", true},
		{"version", merkle.ErrVersion, exitFailed, "failed", "made by another version", true},
		{"missing", fs.ErrNotExist, exitFailed, "failed", "no such file or device", true},
		{"permission", fs.ErrPermission, exitFailed, "failed", "no permission", true},
		{"silence", os.ErrDeadlineExceeded, exitFailed, "failed", "the peer is silent", true},
		{"anything", errors.New("x"), exitFailed, "failed", "error", false},
	} {
		f := explain(t.Context(), wrap(c.err))
		if f.exit != c.exit || f.Result != c.result || f.Reason != c.reason || (c.next && f.Next == "") {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

// TestExplainInterrupted: what breaks after a signal is the signal's doing, but
// for what a signal cannot do.
func TestExplainInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f := explain(ctx, errors.New("write on closed pipe")); f.Reason != "interrupted" || f.exit != exitFailed {
		t.Errorf("after a signal: %+v", f)
	}
	if f := explain(ctx, &failback.VerifyError{Volume: "x"}); f.Reason == "interrupted" {
		t.Errorf("a bad medium after a signal: %+v", f)
	}
}

func TestFailureText(t *testing.T) {
	refused := explain(t.Context(), &failback.RefusedError{Volume: "/dev/x", Reason: "it is mounted", Next: "unmount it"})
	want := "failback sync: refused /dev/x: it is mounted\n  next:  unmount it\n"
	if got := refused.text("failback sync"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	address := explain(t.Context(), &dial.AddressError{Address: "x://y", Reason: "unknown", Next: "write z"})
	if got := address.text("failback sync"); strings.Count(got, "write z") != 1 {
		t.Errorf("the next step is not said once: %q", got)
	}
	out := explain(t.Context(), &outcomeError{errors.New("link down"), "b may hold a part", "run it again"})
	want = "failback sync: link down\n  state: b may hold a part\n  next:  run it again\n"
	if got := out.text("failback sync"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestStagedAdvice: what to do about a device, or a lack of room, does not tell a staged
// sync to go on with --resume, which is none of its flags; the journal that it needs is
// not to be done without; and what a live one has gathered is sent again.
func TestStagedAdvice(t *testing.T) {
	staged := &syncFlags{fall: recoverFlags{stage: stageFlags{dir: "/st"}}}
	for _, c := range []came{{moved: true}, {moved: true, applying: true}, {applying: true}} {
		for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
			f := explain(t.Context(), staged.outcome(fmt.Errorf("write b: %w", errno), "b", c))
			if strings.Contains(f.Next, "--resume") || !strings.Contains(f.Next, "run the same command again") || c.applying && !strings.Contains(f.Next, "failback apply") {
				t.Errorf("%v: %q", errno, f.Next)
			}
		}
	}
	staged.live.on = true
	if f := explain(t.Context(), staged.outcome(errors.New("x"), "b", came{moved: true})); strings.Contains(f.Next, "not sent again") || f.Next == "" {
		t.Errorf("live: %q", f.Next)
	}
}

func TestSyncOutcome(t *testing.T) {
	refused := &failback.RefusedError{Volume: "b"}
	if got := (&syncFlags{}).outcome(refused, "b", came{moved: true}); got != error(refused) {
		t.Errorf("a refusal touches nothing, yet: %v", got)
	}
	const apply, plan = "apply", "plan"
	staged := &syncFlags{fall: recoverFlags{stage: stageFlags{dir: "/st"}}}
	saved := &syncFlags{fall: recoverFlags{stage: stageFlags{dir: "/st"}, undo: "u.fbu"}}
	for _, c := range []struct {
		name        string
		s           *syncFlags
		far         bool
		seen        []string // phases, and the plan
		state, next string
	}{
		{"before the plan", &syncFlags{}, false, nil, "nothing was written", "run the same command again"},
		{"before the plan, there", &syncFlags{}, true, nil, "nothing of this sync was written", "run the same command again"},
		{"after the plan", &syncFlags{}, false, []string{plan}, "a part of the change", "--resume"},
		{"while another's is finished", &syncFlags{}, true, []string{apply}, "its journal says which", "failback apply TARGET DIR"},
		{"when another's was finished", &syncFlags{}, true, []string{apply, plan}, "a part of the change", "--resume"},
		{"while it gathers", staged, true, []string{plan}, "b is as it was: what had come was only staged", "run the same command again"},
		{"while it gathers, another's was finished", staged, true, []string{apply, plan}, "was made what an interrupted sync", "run the same command again"},
		{"while it is applied", staged, true, []string{plan, apply}, "its journal says which", "failback apply TARGET /st"},
		{"while it is applied, with an undo log", saved, true, []string{plan, apply}, "its journal says which", "another undo log"},
		{"while another's is finished, with a stage", staged, false, []string{apply}, "its journal says which", "failback apply TARGET DIR"},
	} {
		u := &ui{w: io.Discard}
		for _, x := range c.seen {
			if x == plan {
				u.plan(failback.Plan{})
				continue
			}
			u.progress(failback.Progress{Phase: x})
		}
		var out *outcomeError
		err := c.s.outcome(errors.New("x"), "b", came{moved: u.started(), applying: u.applies(), redone: u.finished(), far: c.far})
		if !errors.As(err, &out) || !strings.Contains(out.state, c.state) || !strings.Contains(out.next, c.next) {
			t.Errorf("%s: state %q, next %q", c.name, out.state, out.next)
		}
	}
}
