// Package cli is the command line of failback: it turns words into the
// library's sides and options, and reports into lines or JSON.
//
// Read it in this order: [Run] (one command, start to exit code), failure.go
// (what an error says and which exit code it is), side.go (an argument becomes
// a side of a session), then the command you came for.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// The exit codes. docs/CLI.md says which command uses which.
const (
	exitDone      = 0 // diff, verify: the same
	exitDifferent = 1 // diff, verify; apply: in doubt
	exitUsage     = 2
	exitFailed    = 3 // diff, verify: could not tell
	exitRefused   = 4
)

// errDifferent ends diff, verify and apply with exitDifferent. Everything about it has been said.
var errDifferent = errors.New("different")

// errUntold ends track check with exitFailed, likewise.
var errUntold = errors.New("could not tell")

// app is one run of the program.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	json           bool // --json of the command that runs
	begun          bool // the command's own code runs: from here on an error is no usage error by itself
}

// Run runs the command that args name and returns its exit code. It is the
// whole program but for signals, which are expected to cancel ctx.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errDifferent):
		return exitDifferent
	case errors.Is(err, errUntold):
		return exitFailed
	}
	if !a.begun {
		err = &usageError{err}
		a.json = slices.Contains(args, "--json") // the flags may be what is wrong
	}
	f := explain(ctx, err)
	f.Schema = cmd.Annotations[schemaKey]
	if f.exit == exitRefused && cmd.Annotations[answerKey] != "" {
		f.exit = exitFailed // for a command that gives an answer, a refusal is "could not tell"
	}
	if f.exit == exitUsage && f.Next == "" {
		f.Next = "see " + cmd.CommandPath() + " --help"
	}
	if a.json {
		err = writeJSON(stdout, f)
	}
	fmt.Fprint(stderr, f.text(cmd.CommandPath()))
	if a.json && err != nil {
		fmt.Fprintf(stderr, "%s: write report: %v\n", cmd.CommandPath(), err)
	}
	return f.exit
}

// Annotations of a command.
const (
	schemaKey = "schema" // schema name of its JSON
	answerKey = "answer" // set if it answers a question by its exit code
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "failback",
		Short: "Make one volume equal another by sending only what differs, and prove it",
		Long: `failback makes one volume equal another by sending only what differs, and
proves it by digests read back from the medium.

A volume is an image file or a block device, here or elsewhere:

  PATH
  ssh://[user@]host[:port]/PATH       through your own ssh; failback must be installed there
  tls://host:port/NAME                failback serve with certificates made by failback pki
  unix:///path.sock?volume=NAME       failback serve on this machine
  tcp://127.0.0.1:port/NAME           loopback only, with --plain-tcp`,
		Example: `  failback sync /dev/vg/backup ssh://root@home/dev/vg/primary
  failback verify /dev/vg/backup ssh://root@home/dev/vg/primary`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          a.group,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(a.syncCommand(), a.diffCommand(), a.verifyCommand(), a.digestCommand(), a.serveCommand(), a.resumeInfoCommand(), a.undoCommand(), a.applyCommand(),
		a.trackCommand(), a.mapCommand(), a.pkiCommand(), a.demoCommand(), a.versionCommand(), a.holdCommand(), a.throttleCommand())
	return root
}

// group is the RunE of a command that only holds others.
func (a *app) group(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	fmt.Fprint(a.stderr, cmd.UsageString())
	return errors.New("which command?")
}

// runs makes f the code of c.
func (a *app) runs(c *cobra.Command, f func(ctx context.Context, args []string) error) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		a.begun = true
		return f(cmd.Context(), args)
	}
	return c
}
