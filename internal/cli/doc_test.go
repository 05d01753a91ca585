package cli

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/failback/failback"
	"github.com/failback/failback/internal/demo"
)

// TestDocumented holds docs/CLI.md to the code: each command has a section with
// each of its flags, and each JSON member is named.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/CLI.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, c := range leafCommands((&app{}).root()) {
		if c.Hidden {
			continue
		}
		if c.Example == "" {
			t.Errorf("%s --help has no example", c.CommandPath())
		}
		_, section, found := strings.Cut(text, "\n## "+c.CommandPath()+"\n")
		if !found {
			t.Errorf("docs/CLI.md has no section %q", c.CommandPath())
			continue
		}
		section, _, _ = strings.Cut(section, "\n## ")
		c.InitDefaultHelpFlag()
		for _, name := range flagNames(c) {
			if name != "help" && !strings.Contains(section, "--"+name) {
				t.Errorf("docs/CLI.md, section %q: no --%s", c.CommandPath(), name)
			}
		}
	}
	for _, v := range []any{
		failure{}, failback.Report{}, failback.Seconds{}, failback.LiveReport{}, failback.Round{}, compareJSON{}, extent{}, digestJSON{}, mapJSON{}, mapExtent{}, trackJSON{}, trackVolume{}, checkpoint{}, trackFeature{}, trackExtentsJSON{}, savedMap{}, pkiJSON{}, versionJSON{}, resumeJSON{}, undoJSON{}, applyJSON{}, demo.Result{},
	} {
		for _, member := range members(reflect.TypeOf(v)) {
			if !strings.Contains(text, "`"+member+"`") && !strings.Contains(text, `"`+member+`"`) {
				t.Errorf("docs/CLI.md does not say what %q of %T is", member, v)
			}
		}
	}
}

func leafCommands(c *cobra.Command) []*cobra.Command {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	var leaves []*cobra.Command
	for _, sub := range c.Commands() {
		leaves = append(leaves, leafCommands(sub)...)
	}
	return leaves
}

// flagNames reads them off the help, where hidden ones are not.
func flagNames(c *cobra.Command) []string {
	var names []string
	for line := range strings.Lines(c.LocalFlags().FlagUsages()) {
		if _, rest, ok := strings.Cut(line, "--"); ok {
			names = append(names, rest[:strings.IndexAny(rest, " [\n")])
		}
	}
	return names
}

func members(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}
