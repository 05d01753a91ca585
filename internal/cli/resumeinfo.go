package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/failback/failback/internal/journal"
)

const schemaResume = "failback.resume/1"

// resumeJSON is what a resume journal says.
type resumeJSON struct {
	Schema string `json:"schema"`
	Result string `json:"result"` // under way, complete
	File   string `json:"file"`

	Source         string    `json:"source"`
	SourceIdentity string    `json:"source_identity"`
	SourceStamp    string    `json:"source_stamp"`
	Target         string    `json:"target"`
	TargetIdentity string    `json:"target_identity"`
	TargetStamp    string    `json:"target_stamp"`
	VolumeBytes    int64     `json:"volume_bytes"`
	DoneBytes      int64     `json:"done_bytes"`
	WrittenBytes   int64     `json:"written_bytes"`
	Touched        bool      `json:"touched"`
	Suspect        bool      `json:"suspect"`
	Run            string    `json:"run"`
	Undo           string    `json:"undo"`
	Stage          string    `json:"stage"`
	Started        time.Time `json:"started"`
	Updated        time.Time `json:"updated"`
}

func (a *app) resumeInfoCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "resume-info FILE",
		Short: "Print what the journal of an interrupted sync says",
		Long: `Print what FILE, the resume journal of an interrupted sync, says: of which two
volumes it is, how far that sync had come, and whether the target was written.
It lies beside an image file, as TARGET.fbj, or in the directory --state gave.

Exit codes: 0 printed, 2 usage, 3 FILE is missing, damaged or no journal.`,
		Example:     "  failback resume-info primary.img.fbj",
		Args:        exactly(1, "FILE"),
		Annotations: map[string]string{schemaKey: schemaResume},
	}
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout, also on failure")
	return a.runs(c, func(_ context.Context, args []string) error { return a.resumeInfo(args[0]) })
}

func (a *app) resumeInfo(path string) error {
	r, err := journal.Read(journal.Disk, path)
	if err != nil {
		return err
	}
	j := resumeJSON{
		Schema: schemaResume, Result: "under way", File: path,
		Source: r.Source.Name, SourceIdentity: r.Source.Identity, SourceStamp: r.Stamp, VolumeBytes: r.Source.Size,
		Target: r.Target.Name, TargetIdentity: r.Target.Identity, TargetStamp: r.Left,
		DoneBytes: r.Done, WrittenBytes: r.Written, Touched: r.Touched, Suspect: r.Suspect,
		Run: hex.EncodeToString(r.Run[:]), Undo: r.Undo, Stage: r.Stage, Started: r.Started.UTC(), Updated: r.Updated.UTC(),
	}
	if r.Complete {
		j.Result = "complete"
	}
	if a.json {
		return writeJSON(a.stdout, j)
	}
	return writeLines(a.stdout, []line{
		{"source", j.Source + " (" + j.SourceIdentity + ")"},
		{"stamp", j.SourceStamp},
		{"target", j.Target + " (" + j.TargetIdentity + ")"},
		{"state", resumeState(j)},
		{"done", fmt.Sprintf("%s of %s (%.1f%%), %s written", humanBytes(j.DoneBytes), humanBytes(j.VolumeBytes),
			float64(j.DoneBytes)/float64(j.VolumeBytes)*100, humanBytes(j.WrittenBytes))},
		{"begun", r.Started.Format(time.DateTime)},
		{"updated", r.Updated.Format(time.DateTime)},
		{"undo log", j.Undo},
		{"stage", j.Stage},
		{"run", j.Run},
	})
}

func resumeState(j resumeJSON) string {
	switch {
	case j.Result == "complete":
		return "complete: both sides were equal; nothing is left to do"
	case j.Stage != "" && j.Touched:
		return "interrupted while a stage was applied: the next sync onto the target finishes that first, or failback apply"
	case j.Suspect:
		return "interrupted, and nothing vouches for what the target holds: the next sync compares all of it, on its medium"
	case j.Touched:
		return "interrupted: the target holds a part of the change and is neither its old content nor the source's"
	}
	return "interrupted while comparing: the target was not written"
}
