package bench

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// columns are what a table tells of a case, after its name.
var columns = []string{"runs", "total s", "min..max", "flush s", "user s", "sys s", "MiB", "MB read", "MB written", "ratio", "min..max"}

// WriteTable prints summaries as text, a block for each scenario. Totals count until the result is durable; MiB is the
// highest peak of memory, MB are those of the disk; ratios are to the case marked with a star.
func WriteTable(w io.Writer, all []Summary) error {
	for len(all) > 0 {
		n := 1
		for n < len(all) && all[n].Scenario == all[0].Scenario {
			n++
		}
		if err := writeBlock(w, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

func writeBlock(w io.Writer, block []Summary) error {
	rows := [][]string{append([]string{block[0].Scenario}, columns...)}
	for _, s := range block {
		rows = append(rows, s.row())
	}
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r[:min(len(r), len(width))] {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%-*s", width[0], r[0])
		for i, cell := range r[1:] {
			if i+1 == len(r)-1 && len(r) < len(width) { // an error, as long as it is
				fmt.Fprintf(&b, "  %s", cell)
				continue
			}
			fmt.Fprintf(&b, "  %*s", width[i+1], cell)
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

func (s Summary) row() []string {
	name, runs := s.Case, fmt.Sprint(s.Runs)
	if s.Case == s.Against {
		name += " *"
	}
	if s.Failed > 0 {
		runs = fmt.Sprintf("%d of %d", s.Runs, s.Runs+s.Failed)
	}
	if s.Runs == 0 {
		return []string{name, runs, s.Error}
	}
	f := s.Figures
	return []string{name, runs,
		fmt.Sprintf("%.3f", s.Total.Median), fmt.Sprintf("%.3f..%.3f", s.Total.Min, s.Total.Max),
		fmt.Sprintf("%.3f", f.Flush), fmt.Sprintf("%.2f", f.User), fmt.Sprintf("%.2f", f.System), s.memory(),
		fmt.Sprintf("%.0f", float64(f.DiskRead)/1e6), fmt.Sprintf("%.0f", float64(f.DiskWrite)/1e6),
		fmt.Sprintf("%.2f", s.Ratio.Median), fmt.Sprintf("%.2f..%.2f", s.Ratio.Min, s.Ratio.Max)}
}

// memory is the peak of the process, and of the server it talked to where there was one, in MiB.
func (s Summary) memory() string {
	if s.Server.PeakRSS == 0 {
		return fmt.Sprint(s.Figures.PeakRSS >> 20)
	}
	return fmt.Sprintf("%d+%d", s.Figures.PeakRSS>>20, s.Server.PeakRSS>>20)
}
