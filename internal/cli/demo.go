package cli

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/failback/failback/internal/demo"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	size := byteSize(512 << 20)
	c := &cobra.Command{
		Use:   "demo",
		Short: "Play an outage and the way home on this machine, and tell it with figures",
		Long: `Play an outage and the way home on this machine: two volumes, real content, a
database under load, a primary that is cut off with writes that never reached
the backup, work at the backup, and the way home with failback sync. Every
step is the command a person would type.

As root the volumes are ext4 on loop devices, and where the kernel can track
(failback track check) the application works during the way home; otherwise,
and with --plain, they are plain files that hold an archive and a log of the
demo's own. Everything it makes is gone afterwards, also after Ctrl-C.

Exit codes: 0 the result is proven, 2 usage, 3 failed or not proven.`,
		Example: `  sudo failback demo
  failback demo --plain --size 256MiB`,
		Args:        exactly(0, "none"),
		Annotations: map[string]string{schemaKey: demo.Schema},
	}
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "`DIR` for its files (default: a new one in $TMPDIR)")
	f.Var(&size, "size", "size of each volume")
	f.BoolVar(&o.Plain, "plain", false, "plain files, also as root")
	f.BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure; the story goes to stderr")
	return a.runs(c, func(ctx context.Context, _ []string) error { return a.demo(ctx, o, int64(size)) })
}

func (a *app) demo(ctx context.Context, o demo.Options, size int64) error {
	if size < demo.MinSize || size%(1<<20) != 0 {
		return usagef("--size %d: at least %s, in whole MiB", size, humanBytes(demo.MinSize))
	}
	o.Size, o.Out = size, a.stdout
	if a.json {
		o.Out = a.stderr
	}
	o.Command = func(ctx context.Context, args []string, stdout, stderr io.Writer) int {
		return Run(ctx, args, strings.NewReader(""), stdout, stderr)
	}
	result, err := demo.Run(ctx, o)
	if err != nil {
		return &outcomeError{err, "what the demo had made is gone again, except where it says otherwise above", "see to that, then run it again"}
	}
	if a.json {
		return writeJSON(a.stdout, result)
	}
	return nil
}
