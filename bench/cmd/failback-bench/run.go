package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/failback/failback/bench"
)

// image makes the images, and makes the target differ where asked to.
func image(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("image", stderr)
	o := bench.ImageOptions{Log: stderr}
	imageFlags(fs, &o)
	differs := fs.String("differs", "0", "how the target is to differ: 0, rand-PERCENT, seq-PERCENT")
	if err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	d, err := bench.ParseDivergence(*differs)
	if err != nil {
		return usagef("%v", err)
	}
	set, err := bench.OpenSet(ctx, o)
	if err != nil {
		return err
	}
	div, err := set.Diverge(ctx, d)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(map[string]any{"source": set.Source, "target": set.Target, "info": set.Info,
		"differs": d.String(), "pieces": div.PieceList, "leaves": div.LeafList})
}

func imageFlags(fs interface {
	StringVar(*string, string, string, string)
	Int64Var(*int64, string, int64, string)
	Uint64Var(*uint64, string, uint64, string)
}, o *bench.ImageOptions) {
	fs.StringVar(&o.Dir, "dir", "", "directory of the images; default $FAILBACK_BENCH_DIR")
	fs.Int64Var(&o.Size, "size", 4<<30, "size of an image, in bytes")
	fs.Uint64Var(&o.Seed, "seed", 1, "chooses what differs")
}

// measure runs suites and keeps their raw figures.
func measure(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := newFlags("run", stderr)
	o := bench.ImageOptions{Log: stderr}
	imageFlags(fs, &o)
	b := &bench.Bench{}
	fs.StringVar(&b.Failback, "failback", "", "path of the failback binary")
	fs.BoolVar(&b.Slow, "slow", false, "with what takes minutes")
	rounds := fs.Int("rounds", 5, "runs of every case")
	cold := fs.Bool("cold", false, "with nothing of the images in the page cache")
	verbose := fs.Bool("v", false, "name the goals that were met too")
	names := fs.Bool("list", false, "name the suites")
	only := fs.String("only", "", "regular expression: run only scenarios whose name it matches, such as \"rand-1 \"")
	raw := fs.String("raw", "", "file that gets the raw figures; default one of today's beside the images")
	if err := parse(fs, args, 0, -1); err != nil {
		return err
	}
	pick, err := regexp.Compile(*only)
	if err != nil {
		return usagef("-only: %v", err)
	}
	if *names || fs.NArg() == 0 {
		for _, s := range bench.Suites() {
			fmt.Fprintf(stdout, "%-10s %s\n", s.Name, s.Asks)
		}
		fmt.Fprintf(stdout, "%-10s %s\n", "all", "all of these")
		return nil
	}
	suites, err := suiteNames(fs.Args())
	if err != nil {
		return err
	}
	if b.Set, err = bench.OpenSet(ctx, o); err != nil {
		return err
	}
	if b.Self, err = os.Executable(); err != nil {
		return err
	}
	if *raw == "" {
		*raw = filepath.Join(b.Set.Dir, "figures-"+time.Now().UTC().Format("20060102-150405")+".jsonl")
	}
	f, err := os.OpenFile(*raw, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := json.NewEncoder(f).Encode(bench.ThisMachine()); err != nil {
		return err
	}
	h := &bench.Harness{Set: b.Set, Rounds: *rounds, Raw: f, Log: stderr}
	for _, name := range suites {
		all, err := b.Scenarios(name, *cold)
		if err != nil {
			return err
		}
		if err := runAll(ctx, h, all, pick); err != nil {
			return err
		}
	}
	for _, m := range b.Missing {
		fmt.Fprintln(stderr, m)
	}
	fmt.Fprintf(stderr, "raw figures: %s\n", *raw)
	return readTable(stdout, *verbose, *raw)
}

// suiteNames checks names before anything is built for them; "all" stands for every suite.
func suiteNames(args []string) ([]string, error) {
	var known []string
	for _, s := range bench.Suites() {
		known = append(known, s.Name)
	}
	if slices.Equal(args, []string{"all"}) {
		return known, nil
	}
	for _, name := range args {
		if !slices.Contains(known, name) {
			return nil, usagef("suite %s: want all, or some of %s", name, strings.Join(known, " "))
		}
	}
	return args, nil
}

func runAll(ctx context.Context, h *bench.Harness, all []bench.Scenario, pick *regexp.Regexp) error {
	for _, sc := range all {
		if !pick.MatchString(sc.Name) {
			continue
		}
		if _, err := h.Run(ctx, sc); err != nil {
			return err
		}
	}
	return nil
}

func table(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := newFlags("table", stderr)
	verbose := fs.Bool("v", false, "name the goals that were met too")
	if err := parse(fs, args, 1, -1); err != nil {
		return err
	}
	return readTable(stdout, *verbose, fs.Args()...)
}

func readTable(stdout io.Writer, verbose bool, paths ...string) error {
	var all []bench.Record
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		recs, err := bench.ReadRecords(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		all = append(all, recs...)
	}
	sum := bench.Summarize(all)
	if err := bench.WriteTable(stdout, sum); err != nil {
		return err
	}
	return bench.WriteVerdicts(stdout, bench.Judge(sum), verbose)
}
