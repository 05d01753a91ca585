package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// freezable is a volume whose file system can be brought to rest where it is
// mounted: it can be copied while its application works.
type freezable interface {
	volume
	mountPoint() string
}

// livePause is the longest pause that is asked for. It is long for the sake of
// slow disks; what it comes to is in the result.
const livePause = "5s"

// tracker says what records the writes to the backup, before there are any: the
// kernel, where it can and the volume can be frozen.
func (p *play) tracker(ctx context.Context) error {
	p.result.Tracker = "none"
	if _, ok := p.backup.(freezable); !ok {
		p.say("Tracker: none, for these are no block devices; the application will stop for the way home.")
		return nil
	}
	if lacking := p.lacking(ctx); lacking != "" {
		p.say("Tracker: none, for this kernel cannot (%s); the application will stop for the way home.", lacking)
		return nil
	}
	p.state = filepath.Join(p.Dir, "state")
	p.later(func(context.Context) error { return os.RemoveAll(p.state) })
	// Whatever it comes to: nothing is to go on being recorded.
	p.later(func(ctx context.Context) error { return p.untrack(ctx) })
	p.live, p.result.Tracker = true, "kernel"
	p.say("Tracker: the kernel's (eBPF). It records what is written to the backup from now on.")
	_, err := p.failback(ctx, 0, "track", "start", p.backup.path(), "--state", p.state)
	return err
}

// lacking names what keeps this kernel from tracking, "" for nothing.
func (p *play) lacking(ctx context.Context) string {
	var out, errs bytes.Buffer
	if p.Command(ctx, []string{"track", "check"}, &out, &errs) == 0 {
		return ""
	}
	for line := range bytes.Lines(out.Bytes()) {
		if !bytes.HasPrefix(line, []byte("yes")) {
			return string(bytes.Join(bytes.Fields(line), []byte(" ")))
		}
	}
	return "failback track check says why"
}

// untrack ends the record. It does nothing where there is none.
func (p *play) untrack(ctx context.Context) error {
	if !p.live {
		return nil
	}
	p.live = false
	var out, errs bytes.Buffer
	if code := p.Command(ctx, []string{"track", "stop", p.backup.path(), "--state", p.state}, &out, &errs); code != 0 && code != codeRefused {
		return fmt.Errorf("failback track stop: exit code %d: %s", code, bytes.TrimSpace(errs.Bytes()))
	}
	return nil
}

// codeRefused is the exit code of a command that was refused: what is not
// tracked is not stopped.
const codeRefused = 4

// recorded has what was written reach the backup, and returns how much of it has
// changed as the tracker knows it.
func (p *play) recorded(ctx context.Context) (int64, error) {
	dir := p.backup.(freezable).mountPoint()
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(unix.Syncfs(int(d.Fd())), d.Close()); err != nil {
		return 0, fmt.Errorf("write out %s: %w", dir, err)
	}
	r, err := p.failback(ctx, 0, "track", "status", p.backup.path(), "--json", "--state", p.state)
	if err != nil {
		return 0, err
	}
	if len(r.Volumes) != 1 {
		return 0, fmt.Errorf("failback track status tells of %d volumes", len(r.Volumes))
	}
	return r.Volumes[0].DirtyBytes, nil
}

// liveHome brings home what the backup holds while its application works, and
// then the rest, with the application stopped: the switch.
func (p *play) liveHome(ctx context.Context) (*report, error) {
	before := p.result.LastTransaction
	p.say("The application works on. It will wait once, for as long as the last round takes.")
	var live *report
	last, err := p.load(ctx, p.app, func(ctx context.Context) (err error) {
		live, err = p.failback(ctx, 0, "sync", "--live", "--json", "--state", p.state, "--pause", livePause,
			"--freeze", p.backup.(freezable).mountPoint(), p.backup.path(), p.primary.path())
		return err
	})
	if err != nil {
		return nil, err
	}
	p.result.LastTransaction = last
	p.result.Rounds, p.result.PauseMS, p.result.PredictedMS = len(live.Live.Rounds), live.Live.PauseMS, live.Live.PredictedMS
	p.result.LiveTransactions = last - before
	p.told(live)
	p.say("That took %d rounds. In the last one the application waited for %.0f ms (predicted %.0f); %d transactions were committed meanwhile.",
		p.result.Rounds, p.result.PauseMS, p.result.PredictedMS, p.result.LiveTransactions)
	begin := time.Now()
	if err := p.backup.stop(ctx); err != nil {
		return nil, err
	}
	p.say("The switch: the application stops at the backup, and what it wrote since then follows.")
	rest, err := p.failback(ctx, 0, "sync", "--live", "--json", "--state", p.state, "--on-quiesce", "true", p.backup.path(), p.primary.path())
	if err != nil {
		return nil, err
	}
	p.told(rest)
	p.result.SwitchSeconds = time.Since(begin).Seconds()
	p.result.SwitchRung, p.result.SwitchBytes = rest.Rung, rest.CandidateBytes
	p.say("It looked at %s (rung %s) and was over %.2f s after the application was told to stop.", size(rest.CandidateBytes), rest.Rung, p.result.SwitchSeconds)
	live.DivergentBytes += rest.DivergentBytes
	live.RawBytes += rest.RawBytes
	live.WireBytesOut += rest.WireBytesOut
	live.WireBytesIn += rest.WireBytesIn
	live.Seconds.Total += rest.Seconds.Total
	return live, p.untrack(ctx)
}
