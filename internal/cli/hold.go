package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/failback/failback/internal/quiesce"
)

// holdCommand is the process that brings the writers of a volume to rest, or the
// guard of that process. Only failback itself starts it, see quiesce.Plan.Begin:
// what it reads and prints is between the two.
func (a *app) holdCommand() *cobra.Command {
	c := &cobra.Command{
		Use:       "hold [guard]",
		Short:     "Hold the writers of a volume for another failback",
		Hidden:    true,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"guard"},
	}
	return a.runs(c, func(_ context.Context, args []string) error {
		role := ""
		if len(args) > 0 {
			role = args[0]
		}
		return quiesce.Serve(role, a.stdin, a.stdout)
	})
}
