package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"strings"

	"github.com/failback/failback/bench"
	"github.com/failback/failback/bench/floor"
	"github.com/failback/failback/cbt"
)

// floors runs one loop and prints its figures as a JSON object.
func floors(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usagef("floor send|copy|hash|read ...")
	}
	var f floor.Result
	var err error
	switch args[0] {
	case "send":
		f, err = floorSend(ctx, args[1:], stderr)
	case "copy":
		f, err = floorCopy(ctx, args[1:], stderr)
	case "hash":
		f, err = floorHash(ctx, args[1:], stderr)
	case "read":
		f, err = floorRead(ctx, args[1:], stderr)
	default:
		err = usagef("floor %s: want send, copy, hash or read", args[0])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(f)
}

// list reads a list of extents; no list is none.
func list(path string) ([]cbt.Extent, error) {
	if path == "" {
		return nil, nil
	}
	return bench.ReadList(path)
}

func floorSend(ctx context.Context, args []string, stderr io.Writer) (floor.Result, error) {
	fs := newFlags("floor send", stderr)
	path := fs.String("list", "", "file with what is dirty, one \"offset length\" a line")
	s2 := fs.Bool("s2", false, "compress with s2")
	direct := fs.Bool("direct", false, "read past the page cache")
	back := fs.Bool("read-back", false, "read what was written from the medium afterwards")
	if err := parse(fs, args, 2, 2); err != nil {
		return floor.Result{}, err
	}
	x, err := list(*path)
	if err != nil {
		return floor.Result{}, err
	}
	o := floor.SendOptions{Source: fs.Arg(0), Target: fs.Arg(1), Extents: x, S2: *s2, Direct: *direct}
	f, err := floor.Send(ctx, o)
	if err != nil || !*back {
		return f, err
	}
	r, err := floor.ReadBack(ctx, o.Target, x)
	f.Seconds += r.Seconds
	return f, err
}

func floorCopy(ctx context.Context, args []string, stderr io.Writer) (floor.Result, error) {
	fs := newFlags("floor copy", stderr)
	path := fs.String("list", "", "file with what to copy, one \"offset length\" a line; default all")
	if err := parse(fs, args, 2, 2); err != nil {
		return floor.Result{}, err
	}
	x, err := list(*path)
	if err != nil {
		return floor.Result{}, err
	}
	return floor.Copy(ctx, fs.Arg(0), fs.Arg(1), x)
}

func floorHash(ctx context.Context, args []string, stderr io.Writer) (floor.Result, error) {
	fs := newFlags("floor hash", stderr)
	o := floor.HashOptions{}
	fs.StringVar(&o.Hash, "hash", "none", strings.Join(floor.Hashes(), ", "))
	fs.IntVar(&o.Unit, "unit", 0, "bytes hashed at once; default 4 KiB for gmac, else 64 KiB")
	fs.BoolVar(&o.Direct, "direct", false, "read past the page cache")
	if err := parse(fs, args, 1, -1); err != nil {
		return floor.Result{}, err
	}
	o.Paths = fs.Args()
	if _, err := rand.Read(o.Key[:]); err != nil {
		return floor.Result{}, err
	}
	return floor.Hash(ctx, o)
}

func floorRead(ctx context.Context, args []string, stderr io.Writer) (floor.Result, error) {
	fs := newFlags("floor read", stderr)
	path := fs.String("list", "", "file with what to read from the medium, one \"offset length\" a line")
	if err := parse(fs, args, 1, 1); err != nil {
		return floor.Result{}, err
	}
	x, err := list(*path)
	if err != nil {
		return floor.Result{}, err
	}
	return floor.ReadBack(ctx, fs.Arg(0), x)
}
