package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// story prints what happens, a paragraph for each act.
type story struct{ w io.Writer }

// A story that cannot be told is not an error of the volumes: what write errors
// there are show up at the end, when the result is written.

func (s story) title(n int, text string) { fmt.Fprintf(s.w, "\n%d. %s\n", n, text) }

func (s story) say(format string, args ...any) { fmt.Fprintf(s.w, "   "+format+"\n", args...) }

func (s story) command(args []string) {
	fmt.Fprintf(s.w, "   $ failback %s\n", strings.Join(args, " "))
}

// quote prints what a command has said.
func (s story) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(s.w, "     %s\n", strings.TrimRight(line, "\n"))
	}
}

// report is what the demo needs of the JSON of sync and diff.
type report struct {
	Rung           string `json:"rung"`
	DivergentBytes int64  `json:"divergent_bytes"`
	RawBytes       int64  `json:"raw_bytes"`
	WireBytesOut   int64  `json:"wire_bytes_out"`
	WireBytesIn    int64  `json:"wire_bytes_in"`
	Seconds        struct {
		Total float64 `json:"total"`
	} `json:"seconds"`
	Extents []struct {
		Offset int64 `json:"offset"`
	} `json:"extents"`
	CandidateBytes int64 `json:"candidate_bytes"`
	Live           struct {
		Rounds      []struct{} `json:"rounds"`
		PauseMS     float64    `json:"pause_ms"`
		PredictedMS float64    `json:"predicted_pause_ms"`
	} `json:"live"`
	Volumes []struct { // of track status
		DirtyBytes int64 `json:"dirty_bytes"`
	} `json:"volumes"`
}

func (r *report) wire() int64 { return r.WireBytesOut + r.WireBytesIn }

// failback runs one command, which must end with the exit code want. With
// --json its report is returned, otherwise what it prints is quoted.
func (p *play) failback(ctx context.Context, want int, args ...string) (*report, error) {
	p.command(args)
	var out, errs bytes.Buffer
	code := p.Command(ctx, args, &out, &errs)
	p.quote(errs.String())
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if code != want {
		return nil, fmt.Errorf("failback %s: exit code %d, not %d", args[0], code, want)
	}
	var r report
	if !bytes.HasPrefix(out.Bytes(), []byte("{")) {
		p.quote(out.String())
		return &r, nil
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("read report of failback %s: %w", args[0], err)
	}
	return &r, nil
}

// sync runs failback sync and tells its figures.
func (p *play) sync(ctx context.Context, from, to string) (*report, error) {
	r, err := p.failback(ctx, 0, "sync", "--json", from, to)
	if err != nil {
		return nil, err
	}
	p.told(r)
	return r, nil
}

// told tells the figures of a sync.
func (p *play) told(r *report) {
	p.say("%s differed; %s went over the link (%s before compression), in %.2f s, written, read back and proven.",
		size(r.DivergentBytes), size(r.wire()), size(r.RawBytes), r.Seconds.Total)
}

// figures is the end of the story.
func (p *play) figures(r *Result) {
	fmt.Fprintf(p.w, "\nThe figures\n")
	row := func(what, here, whole string) { fmt.Fprintf(p.w, "   %-28s %14s %14s\n", what, here, whole) }
	row("", "way home", "full copy")
	row("volume", size(r.VolumeBytes), size(r.VolumeBytes))
	row("divergent", size(r.DivergentBytes), "")
	row("on the link", size(r.WireBytes), size(r.FullCopyWireBytes))
	row("seconds on this machine", fmt.Sprintf("%.2f", r.Seconds), fmt.Sprintf("%.2f", r.FullCopySeconds))
	row("at 100 Mbit/s, computed", fmt.Sprintf("%.1f s", linkSeconds(r.WireBytes)), fmt.Sprintf("%.1f s", linkSeconds(r.FullCopyWireBytes)))
	if r.Tracker == "kernel" {
		row("the application waited", fmt.Sprintf("%.0f ms", r.PauseMS), "")
		row("rounds", fmt.Sprintf("%d", r.Rounds), "")
		row("from stop to equal", fmt.Sprintf("%.2f s", r.SwitchSeconds), "")
	}
	p.say("")
	p.say("Written at the primary and lost to the backup: %s, %d transactions. Rung: %s. Tracker: %s.", size(r.TailBytes), r.TailTransactions, r.Rung, r.Tracker)
}

// linkSeconds is how long n bytes take at 100 Mbit/s, and nothing else.
func linkSeconds(n int64) float64 { return float64(n) * 8 / 100e6 }

// size is n bytes for people.
func size(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
