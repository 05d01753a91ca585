package bench

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// A Spread is the median of some figures and how far they lie apart.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf returns the spread of x, which it sorts; of nothing it is zero.
func spreadOf(x []float64) Spread {
	if len(x) == 0 {
		return Spread{}
	}
	slices.Sort(x)
	n := len(x)
	return Spread{Median: (x[(n-1)/2] + x[n/2]) / 2, Min: x[0], Max: x[n-1]}
}

// A Summary is what the runs of one case in one scenario say.
type Summary struct {
	Scenario string         `json:"scenario"`
	Case     string         `json:"case"`
	Against  string         `json:"against"`
	Runs     int            `json:"runs"`   // that count
	Failed   int            `json:"failed"` // that do not
	Error    string         `json:"error,omitempty"`
	Total    Spread         `json:"total_seconds"` // until durable
	Ratio    Spread         `json:"ratio"`         // of totals to the case named Against, taken within each round
	Figures  Figures        // medians
	Server   Figures        // medians of the server's, where there was one
	Differ   Differ         // what truly differed before each
	Facts    map[string]any `json:"facts,omitempty"` // of the last run that counts
}

// Summarize groups records by scenario and case, in the order they first appear. Ratios are taken round by round, between
// runs that lie side by side in time: a machine that slows down for a while slows both.
func Summarize(all []Record) []Summary {
	type key struct{ scenario, name string }
	var order []key
	runs := map[key][]Record{}
	for _, r := range all {
		k := key{r.Scenario, r.Case}
		if _, ok := runs[k]; !ok {
			order = append(order, k)
		}
		runs[k] = append(runs[k], r)
	}
	out := make([]Summary, 0, len(order))
	for _, k := range order {
		against := runs[k][0].Against
		out = append(out, summarize(runs[k], runs[key{k.scenario, against}]))
	}
	return out
}

func summarize(runs, against []Record) Summary {
	s := Summary{Scenario: runs[0].Scenario, Case: runs[0].Case, Against: runs[0].Against}
	ref := map[int]float64{}
	for _, r := range against {
		if r.Error == "" {
			ref[r.Round] = r.Figures.Total()
		}
	}
	var totals, ratios []float64
	var good []Figures
	var servers []Figures
	for _, r := range runs {
		if r.Error != "" {
			s.Failed++
			s.Error = r.Error
			continue
		}
		s.Runs++
		s.Facts, s.Differ = r.Facts, r.Differ
		good = append(good, r.Figures)
		totals = append(totals, r.Figures.Total())
		if r.Server != nil {
			servers = append(servers, *r.Server)
		}
		if t := ref[r.Round]; t > 0 {
			ratios = append(ratios, r.Figures.Total()/t)
		}
	}
	s.Total, s.Ratio = spreadOf(totals), spreadOf(ratios)
	s.Figures, s.Server = medians(good), medians(servers)
	return s
}

// medians takes the median of every figure by itself. Memory is the exception: its peak is the highest of all runs.
func medians(runs []Figures) Figures {
	if len(runs) == 0 {
		return Figures{}
	}
	return Figures{
		Wall:       median(runs, func(f Figures) float64 { return f.Wall }),
		Flush:      median(runs, func(f Figures) float64 { return f.Flush }),
		User:       median(runs, func(f Figures) float64 { return f.User }),
		System:     median(runs, func(f Figures) float64 { return f.System }),
		PeakRSS:    slices.MaxFunc(runs, func(a, b Figures) int { return cmp.Compare(a.PeakRSS, b.PeakRSS) }).PeakRSS,
		DiskRead:   median(runs, func(f Figures) int64 { return f.DiskRead }),
		DiskWrite:  median(runs, func(f Figures) int64 { return f.DiskWrite }),
		CallsRead:  median(runs, func(f Figures) int64 { return f.CallsRead }),
		CallsWrite: median(runs, func(f Figures) int64 { return f.CallsWrite }),
	}
}

func median[T int64 | float64](runs []Figures, get func(Figures) T) T {
	x := make([]T, len(runs))
	for i, f := range runs {
		x[i] = get(f)
	}
	slices.Sort(x)
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

// ReadRecords reads the raw figures that a [Harness] wrote. Lines of another kind are passed over.
func ReadRecords(r io.Reader) ([]Record, error) {
	var out []Record
	in := bufio.NewScanner(r)
	in.Buffer(nil, 4*maxOutput)
	for line := 1; in.Scan(); line++ {
		var rec Record
		if err := json.Unmarshal(in.Bytes(), &rec); err != nil {
			return nil, fmt.Errorf("read records: line %d: %w", line, err)
		}
		if rec.Schema == recordSchema && rec.Case != "" {
			out = append(out, rec)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	return out, nil
}
