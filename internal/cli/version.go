package cli

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

const schemaVersion = "failback.version/1"

type versionJSON struct {
	Schema   string `json:"schema"`
	Result   string `json:"result"`
	Version  string `json:"version"`
	Revision string `json:"revision"` // of the source; empty where the build did not record it
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Example:     "  failback version --json",
		Args:        exactly(0, "none"),
		Annotations: map[string]string{schemaKey: schemaVersion},
	}
	c.Flags().BoolVar(&a.json, "json", false, "print one JSON object on stdout")
	return a.runs(c, func(context.Context, []string) error {
		v := version()
		if a.json {
			return writeJSON(a.stdout, v)
		}
		_, err := fmt.Fprintf(a.stdout, "failback %s %s %s %s\n", v.Version, v.Revision, v.Go, v.Platform)
		return err
	})
}

func version() versionJSON {
	v := versionJSON{Schema: schemaVersion, Result: "done", Version: "(devel)", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	return v
}
