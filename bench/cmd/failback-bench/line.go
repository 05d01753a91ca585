package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"

	"github.com/failback/failback/bench/line"
)

// link relays between two unix sockets until it is told to end.
func link(ctx context.Context, args []string, _, stderr io.Writer) error {
	fs := newFlags("link LISTEN-SOCKET TO-SOCKET", stderr)
	var o line.Options
	fs.DurationVar(&o.Delay, "delay", 0, "how long a byte is on its way, in one direction")
	fs.Int64Var(&o.Rate, "rate", 0, "bytes a second in each direction; 0 is no limit")
	if err := parse(fs, args, 2, 2); err != nil {
		return err
	}
	if err := os.Remove(fs.Arg(0)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", fs.Arg(0))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var d net.Dialer
	relay, err := line.NewLink(l, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", fs.Arg(1)) }, o)
	if err != nil {
		return errors.Join(usagef("%v", err), l.Close())
	}
	err = relay.Run(ctx)
	up, down := relay.Bytes()
	fmt.Fprintf(stderr, "to the server %d bytes, to the client %d\n", up, down)
	return err
}

// shape runs a command at the near end of two namespaces, and a server at the far end before it.
func shape(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	fs := newFlags("shape -- COMMAND", stderr)
	var o line.NetworkOptions
	fs.Int64Var(&o.Rate, "rate", 0, "bits a second in each direction; 0 is no limit")
	fs.Float64Var(&o.Loss, "loss", 0, "share of packets that are dropped, 0 to 1")
	fs.IntVar(&o.MTU, "mtu", 1500, "bytes of a packet")
	far := fs.String("far", "", "command for sh at the far end, ended when the near one ends; $FAR is its address")
	if err := parse(fs, args, 1, -1); err != nil {
		return err
	}
	n, err := line.NewNetwork(o)
	if err != nil {
		return usagef("%v", err)
	}
	if err := n.Open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	env := append(os.Environ(), "NEAR="+n.Addr(line.Near), "FAR="+n.Addr(line.Far))
	if *far != "" {
		stop, err := background(append(n.In(line.Far), "sh", "-c", "exec "+*far), env, stderr)
		if err != nil {
			return err
		}
		defer stop()
	}
	argv := append(n.In(line.Near), fs.Args()...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, stdout, stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", fs.Arg(0), err)
	}
	return tellBytes(ctx, n, stderr)
}

func tellBytes(ctx context.Context, n *line.Network, w io.Writer) error {
	near, err := n.Bytes(ctx, line.Near)
	if err != nil {
		return err
	}
	far, err := n.Bytes(ctx, line.Far)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "near sent %d bytes, far %d, headers and repeats included\n", near, far)
	return nil
}

// background starts a command and returns what ends it and waits for its end.
func background(argv, env []string, stderr io.Writer) (stop func(), err error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, stderr, stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it was told to end
	}, nil
}
