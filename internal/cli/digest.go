package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/merkle"
)

const schemaDigest = "failback.digest/1" // as in [failback.Report]

type digestFlags struct {
	out    outputFlags
	link   linkFlags
	output string
	hash   hashName
	leaf   byteSize
	resume bool
}

func (a *app) digestCommand() *cobra.Command {
	d := digestFlags{hash: hashName(merkle.BLAKE3)}
	c := &cobra.Command{
		Use:   "digest -o FILE VOLUME",
		Short: "Write a volume's Merkle tree to a file",
		Long: `Write the Merkle tree of VOLUME to FILE: 32 bytes for each leaf and a root that
stands for all of it. failback verify VOLUME FILE tells later whether, and
where, the volume has changed; failback sync takes it as --source-tree or
--target-tree.

Exit codes: 0 done, 2 usage, 3 failed, 4 refused.`,
		Example: `  failback digest -o db.fbt /dev/vg/db
  failback digest --hash sha256 --leaf 4KiB -o db.fbt db.img`,
		Args:        exactly(1, "VOLUME"),
		Annotations: map[string]string{schemaKey: schemaDigest},
	}
	f := c.Flags()
	f.StringVarP(&d.output, "output", "o", "", "the `FILE` to write (required)")
	f.Var(&d.hash, "hash", "blake3 or sha256")
	f.Var(&d.leaf, "leaf", "bytes under one hash, 4KiB to 4MiB, a power of two (default 64KiB)")
	f.BoolVar(&d.resume, "resume", false, "go on with a digest that was interrupted; VOLUME must not have changed since")
	d.link.add(c)
	a.addOutputFlags(c, &d.out)
	return a.runs(c, func(ctx context.Context, args []string) error { return a.digest(ctx, &d, args[0]) })
}

func (a *app) digest(ctx context.Context, d *digestFlags, volume string) error {
	if d.output == "" {
		return usagef("no file to write: give -o FILE")
	}
	link, err := d.link.options()
	if err != nil {
		return err
	}
	s, err := openVolume(volume, false, link)
	if err != nil {
		return err
	}
	u := a.ui(d.out)
	report, err := failback.Digest(ctx, s.Side, d.output, failback.Options{
		Hash: merkle.Algorithm(d.hash), Leaf: int64(d.leaf), Timeout: d.link.timeout, Idle: d.link.idle, Resume: d.resume, Events: u.events(),
	})
	u.done()
	if err = closeSides(err, s); err != nil {
		return &outcomeError{err, d.output + " is not a finished digest", "see to that, then run the same command again, with --resume if the volume does not change meanwhile"}
	}
	report.Source = volume
	return a.showDigest(report, d)
}

// digestJSON is the report of digest with the file it made.
type digestJSON struct {
	*failback.Report
	File string `json:"file"`
	Hash string `json:"hash"`
}

func (a *app) showDigest(r *failback.Report, d *digestFlags) error {
	if a.json {
		return writeJSON(a.stdout, digestJSON{Report: r, File: d.output, Hash: d.hash.String()})
	}
	if d.out.quiet {
		return nil
	}
	root := ""
	if r.Root != nil {
		root = *r.Root
	}
	return writeLines(a.stdout, []line{
		{"volume", fmt.Sprintf("%s, %s, %s read", r.Source, humanBytes(r.VolumeBytes), humanBytes(r.SourceReadBytes))},
		{"file", d.output},
		{"root", d.hash.String() + " " + root},
		{"time", seconds(r.Seconds.Total)},
	})
}
