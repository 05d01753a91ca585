// Command failback-bench measures failback on this machine. See the package documentation of bench.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `failback-bench COMMAND [flags]

  image [-percent rand-1]   make the images, or make the target differ from the source
  run SUITE ...             measure; "run -list" names the suites
  table FILE ...            print the table of raw figures kept from earlier runs
  floor KIND ...            one loop that does only what every program must: send, copy, hash, read
  link ...                  relay connections over a line with a delay and a limited rate
  shape ... -- COMMAND      run a command between two network namespaces with a slow, lossy line

The images lie in $FAILBACK_BENCH_DIR (default: failback-bench in the temporary directory).
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run returns the exit code: 0 done, 1 failed, 2 used wrongly.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"image": image, "run": measure, "table": table, "floor": floors, "link": link, "shape": shape,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		fmt.Fprint(stderr, usage)
		return 2
	}
	err := commands[args[0]](ctx, args[1:], stdout, stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp) || errors.Is(err, errUsage):
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stderr, "failback-bench %s: %v\n", args[0], err)
		}
		return 2
	default:
		fmt.Fprintf(stderr, "failback-bench %s: %v\n", args[0], err)
		return 1
	}
}

// errUsage is what a person has to type differently.
var errUsage = errors.New("usage")

func usagef(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

func newFlags(name string, stderr io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("failback-bench "+name, flag.ContinueOnError)
	f.SetOutput(stderr)
	return f
}

// parse reads flags and checks how many arguments follow; max below 0 is any number.
func parse(f *flag.FlagSet, args []string, least, most int) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usagef("%v", err)
	}
	if f.NArg() < least || (most >= 0 && f.NArg() > most) {
		return usagef("wrong number of arguments: %s", strings.Join(f.Args(), " "))
	}
	return nil
}
