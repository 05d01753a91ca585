package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/failback/failback/merkle"
	"github.com/failback/failback/transport/dial"
)

// outputFlags say how much is told and in which form. --json is app.json.
type outputFlags struct{ quiet, noProgress bool }

func (a *app) addOutputFlags(c *cobra.Command, o *outputFlags) {
	f := c.Flags()
	f.BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print no plan, no progress and no summary")
	f.BoolVar(&o.noProgress, "no-progress", false, "draw no progress line, also on a terminal")
}

// linkFlags say how a peer is reached or, for serve, how it reaches us.
type linkFlags struct {
	plainTCP   bool
	creds      dial.Credentials
	ssh        string
	sshOptions []string
	remote     string
	timeout    time.Duration
	idle       time.Duration
}

func (l *linkFlags) add(c *cobra.Command) {
	l.addShared(c)
	f := c.Flags()
	f.StringVar(&l.ssh, "ssh", "ssh", "`COMMAND` that ssh:// runs, with arguments if need be")
	f.StringArrayVar(&l.sshOptions, "ssh-option", nil, "one more argument `ARG` for ssh, such as -oPort=2222; may be repeated")
	f.StringVar(&l.remote, "remote-failback", "failback", "`PATH` of failback on the other side of ssh://")
}

// addShared adds what serve has too.
func (l *linkFlags) addShared(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&l.plainTCP, "plain-tcp", false, "allow tcp://: not encrypted, not authenticated, loopback only")
	f.StringVar(&l.creds.Dir, "pki", "", "`DIR` with ca.pem, NAME.pem and NAME-key.pem for tls:// (default $"+dial.PKIEnv+")")
	f.StringVar(&l.creds.CA, "ca", "", "CA certificate `FILE` for tls:// (PEM), instead of the one in --pki")
	f.StringVar(&l.creds.Cert, "cert", "", "`FILE` with our certificate for tls:// (PEM)")
	f.StringVar(&l.creds.Key, "key", "", "`FILE` with its private key (PEM; default: -key.pem beside --cert)")
	f.DurationVar(&l.timeout, "timeout", 30*time.Second, "silence after which a peer is given up")
	f.DurationVar(&l.idle, "idle", 15*time.Minute, "how long a session may say nothing but that its peer is alive")
}

func (l *linkFlags) options() (dial.Options, error) {
	o := dial.Options{AllowPlainTCP: l.plainTCP, RemoteFailback: l.remote, Credentials: l.creds}
	if l.timeout <= 0 {
		return o, usagef("--timeout %v: more than 0", l.timeout)
	}
	if l.idle <= 0 {
		return o, usagef("--idle %v: more than 0", l.idle)
	}
	if l.ssh == "" {
		return o, nil
	}
	words, err := dial.SplitCommand(l.ssh)
	if err != nil {
		return o, usagef("--ssh: %w", err)
	}
	o.SSH = append(words, l.sshOptions...)
	return o, nil
}

// hashName is a flag value: the name of a hash that may be kept.
type hashName merkle.Algorithm

// String is the name, "" for none.
func (h *hashName) String() string {
	if *h == 0 {
		return ""
	}
	return merkle.Algorithm(*h).String()
}

// Set parses s.
func (h *hashName) Set(s string) error {
	a, err := merkle.ParseAlgorithm(s)
	if err != nil {
		return fmt.Errorf("no hash %q: blake3 or sha256", s)
	}
	*h = hashName(a)
	return nil
}

// Type is the word for the value in help.
func (h *hashName) Type() string { return "HASH" }

// exactly is cobra.ExactArgs with the words of the synopsis in its message.
func exactly(n int, words string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("got %s, want %s", plural(len(args), "argument"), words)
		}
		return nil
	}
}

// atLeast is cobra.MinimumNArgs with the words of the synopsis in its message.
func atLeast(n int, words string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < n {
			return fmt.Errorf("got %s, want %s", plural(len(args), "argument"), words)
		}
		return nil
	}
}
