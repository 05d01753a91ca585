// Command failback makes one volume equal another by sending only what
// differs, and proves it. docs/CLI.md describes every command.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/failback/failback/internal/cli"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// What a session holds is mapped outside the heap; what is on it is small
		// and short-lived. Collecting it sooner keeps the process under 64 MiB and
		// costs less than can be measured.
		debug.SetGCPercent(30)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole program. SIGINT and SIGTERM cancel its context once; a
// second signal ends the process, as if there were no handler.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)()
	return cli.Run(ctx, args, stdin, stdout, stderr)
}
