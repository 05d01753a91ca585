package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/cbt/ebpf"
	"github.com/failback/failback/transport/dial"
)

// TestUntrackable: the writers rest all the time only where the source cannot be
// tracked, not where somebody else tracks it.
func TestUntrackable(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"a device that nobody can track", fmt.Errorf("track: %w", &ebpf.RefusedError{Device: "/dev/x", Reason: "it is zoned"}), true},
		{"a kernel that cannot", fmt.Errorf("track: %w", &ebpf.UnsupportedError{Feature: "x"}), true},
		{"a user who may not", fmt.Errorf("track: %w", fs.ErrPermission), true},
		{"writes that did not end", errUndrained, true},
		{"another sync of it runs", fmt.Errorf("open: %w", ebpf.ErrOpen), false},
		{"another sync of it runs, and more is wrong", errors.Join(ebpf.ErrOpen, fs.ErrPermission), false},
		{"another one has begun to", fmt.Errorf("start: %w", ebpf.ErrTracked), false},
		{"who knows", errors.New("no memory"), false},
	} {
		if got := untrackable(c.err); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
		for _, still := range []bool{false, true} {
			var refused *failback.RefusedError
			err := (&liveFlags{still: still}).refuse("/dev/x", c.err)
			if !errors.As(err, &refused) || strings.Contains(refused.Next, "--or-at-rest") != (c.want && !still) {
				t.Errorf("%s: %v", c.name, err)
			}
			if taken := errors.Is(c.err, ebpf.ErrOpen) || errors.Is(c.err, ebpf.ErrTracked); taken == strings.Contains(err.Error(), "cannot be tracked") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
	}
}

// TestAtRestLimit: how long the writers may rest for a whole sync is said by who
// wants it.
func TestAtRestLimit(t *testing.T) {
	source, err := dial.Parse("/dev/x")
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--live --freeze /x --or-at-rest":                   "say with --pause-limit how long",
		"--live --freeze /x --or-at-rest --pause-limit 10s": "",
		"--live --freeze /x":                                "",
		"--bpffs /x":                                        "go with --live",
	} {
		var l liveFlags
		c := &cobra.Command{}
		l.add(c)
		if err := c.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		err := l.check(&syncFlags{}, source)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestAbandon: what the kernel does not come back from can be cancelled.
func TestAbandon(t *testing.T) {
	block, ended := make(chan struct{}), errors.New("ended")
	defer close(block)
	ctx, cancel := context.WithCancelCause(t.Context())
	begun := make(chan struct{})
	go func() { <-begun; cancel(ended) }()
	if err := abandon(ctx, func() error { close(begun); <-block; return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("abandoned: %v", err)
	}
	if err := abandon(t.Context(), func() error { return ended }); !errors.Is(err, ended) {
		t.Errorf("done: %v", err)
	}
}
