package cli

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/failback/failback"
)

// line is one line of a summary.
type line struct{ label, text string }

// writeLines prints lines with their texts aligned. A line without text is left out.
func writeLines(w io.Writer, lines []line) error {
	var b strings.Builder
	for _, l := range lines {
		if l.text != "" {
			fmt.Fprintf(&b, "%-10s %s\n", l.label, l.text)
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write summary: %w", err)
	}
	return nil
}

func (a *app) showSync(r *failback.Report, o outputFlags) error {
	if a.json {
		return writeJSON(a.stdout, r)
	}
	if o.quiet {
		return nil
	}
	return writeLines(a.stdout, syncLines(r))
}

func syncLines(r *failback.Report) []line {
	return []line{
		{"source", r.Source},
		{"target", r.Target},
		{"result", syncResult(r)},
		{"rung", r.Rung + ": " + r.Reason},
		{"compared", fmt.Sprintf("%s of %s", humanBytes(r.CandidateBytes), humanBytes(r.VolumeBytes))},
		{"resumed", resumed(r)},
		{"differing", differing(r)},
		{"sent", sent(r)},
		{"source i/o", humanBytes(r.SourceReadBytes) + " read"},
		{"target i/o", fmt.Sprintf("%s read, %s written, %s read back", humanBytes(r.TargetReadBytes), humanBytes(r.TargetWrittenBytes), humanBytes(r.TargetVerifiedBytes))},
		{"stage", stageLine(r)},
		{"undo log", undoLine(r)},
		{"live", liveLine(r)},
		{"time", phases(r.Seconds)},
		{"root", deref(r.Root)},
	}
}

func syncResult(r *failback.Report) string {
	switch {
	case r.Result == failback.ResultPlanned:
		return "dry run, nothing was written"
	case r.Result != failback.ResultEqual:
		return r.Result
	case r.Verified == failback.VerifyFull.String():
		return "equal, proven over the whole of both"
	}
	return "equal, what was written is proven by reading it back"
}

// resumed says what an earlier session or attempt had done; "" for nothing.
func resumed(r *failback.Report) string {
	var parts []string
	if r.ResumedFrom > 0 {
		parts = append(parts, humanBytes(r.ResumedFrom)+" were done already")
	}
	if r.Attempts > 1 {
		parts = append(parts, fmt.Sprintf("%d attempts, the figures are of the last", r.Attempts))
	}
	return strings.Join(parts, "; ")
}

func differing(r *failback.Report) string {
	s := humanBytes(r.DivergentBytes)
	if r.VolumeBytes > 0 {
		s += fmt.Sprintf(" (%.2f%% of the volume)", float64(r.DivergentBytes)/float64(r.VolumeBytes)*100)
	}
	if r.ZeroBytes > 0 {
		s += fmt.Sprintf(", %s of it zeroes", humanBytes(r.ZeroBytes))
	}
	return s
}

// liveLine says how long the writers waited.
func liveLine(r *failback.Report) string {
	if r.Live == nil {
		return ""
	}
	text := fmt.Sprintf("the writers were at rest for %.0f ms", r.Live.PauseMS)
	if n := len(r.Live.Rounds); n > 0 {
		text += fmt.Sprintf(" (predicted %.0f), in the last of %d rounds", r.Live.PredictedMS, n)
	}
	if r.Live.Tries > 1 {
		text += fmt.Sprintf("; it took %d tries", r.Live.Tries)
	}
	if r.Live.Throttle > 0 {
		text += fmt.Sprintf("; until then they were slowed down to %s/s", humanBytes(r.Live.Throttle))
	}
	return text
}

func undoLine(r *failback.Report) string {
	if r.UndoBytes == 0 && r.UnsavedBytes == 0 {
		return ""
	}
	text := humanBytes(r.UndoBytes) + " saved before they were overwritten"
	if r.UnsavedBytes > 0 {
		text += ", " + humanBytes(r.UnsavedBytes) + " not: this sync cannot be undone as a whole"
	}
	return text
}

func sent(r *failback.Report) string {
	s := fmt.Sprintf("%s as %s on the link, %s back", humanBytes(r.RawBytes), humanBytes(r.WireBytesOut), humanBytes(r.WireBytesIn))
	for _, name := range slices.Sorted(maps.Keys(r.Codec)) {
		if n := r.Codec[name]; n > 0 {
			s += fmt.Sprintf("; %s %s", name, humanBytes(n))
		}
	}
	return s
}

func phases(s failback.Seconds) string {
	return fmt.Sprintf("%s: plan %.2f, transfer %.2f, flush %.2f, verify %.2f, seal %.2f", seconds(s.Total), s.Plan, s.Transfer, s.Flush, s.Verify, s.Seal)
}

func seconds(s float64) string { return humanTime(time.Duration(s * float64(time.Second))) }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
