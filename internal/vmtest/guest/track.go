package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// trackerScenarios are about what the kernel's tracker sees on which device.
func trackerScenarios() []scenario {
	list := []scenario{
		{"tracker: what this kernel can do", func(g *guest) (string, error) { return g.check() }},
		{"tracker: its own tests", func(g *guest) (string, error) { return g.suite("/ebpf.test", "", "") }},
	}
	for _, k := range kinds {
		list = append(list, scenario{"tracker: " + k.name, func(g *guest) (string, error) { return g.tracked(k) }})
	}
	for _, k := range kinds {
		if slices.Contains(liveKinds, k.name) {
			list = append(list, scenario{"tracker: live sync of ext4 on " + k.name, func(g *guest) (string, error) { return g.live(k) }})
		}
	}
	for _, k := range kinds {
		if slices.Contains(slowKinds, k.name) {
			list = append(list, scenario{"throttle: writers to " + k.name, func(g *guest) (string, error) { return g.throttled(k) }})
		}
	}
	return list
}

// check has failback ask the kernel.
func (g *guest) check() (string, error) {
	o, err := g.failback("track", "check")
	if err == nil && o.code != 0 {
		err = fmt.Errorf("failback track check: %v\n%s", o, o.stdout)
	}
	return "\n" + o.stdout, err
}

// tracked tries the tracker on a kind of device.
func (g *guest) tracked(k kind) (string, error) {
	r, err := k.make(g)
	if err != nil {
		return "", fmt.Errorf("make the device: %w", err)
	}
	did, err := g.command(r.path, k.refused)
	if err == nil && k.refused == "" {
		var more string
		more, err = g.suite("/tracked.test", r.path, "")
		did += more
	}
	return did, errors.Join(err, r.end())
}

// trackDir is failback's state in these scenarios.
const trackDir = "/tmp/state"

// command has failback track a device, and returns what it says of it; or that it
// refuses it with these words.
func (g *guest) command(path, refused string) (string, error) {
	o, err := g.failback("track", "start", path, "--state", trackDir)
	switch {
	case err != nil:
		return "", err
	case refused != "" && o.code == 4 && strings.Contains(o.stderr, refused):
		return "refused, as it has to be: " + o.stderr, nil
	case refused != "" || o.code != 0:
		return "", fmt.Errorf("failback track start: %v; want it refused with %q", o, refused)
	}
	s, err := g.failback("track", "status", path, "--state", trackDir)
	err = errors.Join(err, g.must("track", "stop", path, "--state", trackDir), os.RemoveAll(trackDir))
	if err == nil && !strings.Contains(s.stdout, "yes: it has every write since epoch 1") {
		err = fmt.Errorf("failback track status: %v\n%s", s, s.stdout)
	}
	return "failback track: " + field(s.stdout, "trusted") + "; " + field(s.stdout, "kernel") + "\n", err
}

// field is what a table that failback prints has behind a word.
func field(text, word string) string {
	for l := range strings.Lines(text) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(l), " "); ok && name == word {
			return word + " " + strings.TrimSpace(rest)
		}
	}
	return ""
}

// slowKinds are devices whose writers are slowed down.
var slowKinds = []string{"SCSI disk", "loop device", "device-mapper, linear"}

// throttled has writers to a device slowed down by the kernel.
func (g *guest) throttled(k kind) (string, error) {
	r, err := k.make(g)
	if err != nil {
		return "", fmt.Errorf("make the device: %w", err)
	}
	did, err := g.suite("/throttle.test", r.path, "TestReal")
	return did, errors.Join(err, r.end())
}

// told is a line that a test logs.
var told = regexp.MustCompile(`^\s+\w+_test\.go:\d+: (.*)$`)

// suite runs a program of tests on a device, those that the host asks for or else
// these ("": all), and returns what it logs.
func (g *guest) suite(program, device, tests string) (string, error) {
	c := exec.Command(program, "-test.v", "-test.short", "-test.timeout", "15m", "-test.run", cmp.Or(g.Tests, tests))
	c.Env = append(os.Environ(), "FAILBACK_SCRATCH="+device)
	c.Dir = "/tmp"
	text, err := g.listen(c)
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, failures(text))
	}
	var said []string
	for line := range strings.Lines(text) {
		if m := told.FindStringSubmatch(strings.TrimRight(line, "\n")); m != nil && device != "" && !strings.HasPrefix(m[1], "started by") {
			said = append(said, m[1])
		}
	}
	passed, skipped := strings.Count(text, "--- PASS"), strings.Count(text, "--- SKIP")
	if passed == 0 {
		return "", fmt.Errorf("%s: no test was played\n%s", program, failures(text))
	}
	return fmt.Sprintf("%d tests passed, %d skipped\n%s", passed, skipped, strings.Join(said, "\n")), nil
}

// listen runs a command to its end and returns what it says.
func (g *guest) listen(c *exec.Cmd) (string, error) {
	said, err := c.StdoutPipe()
	if err != nil {
		return "", err
	}
	c.Stderr = c.Stdout
	if err := c.Start(); err != nil {
		return "", err
	}
	var text strings.Builder
	lines := bufio.NewReader(said)
	for end := error(nil); end == nil; {
		var line string
		line, end = lines.ReadString('\n')
		text.WriteString(line)
		if g.Debug && line != "" {
			say("%s", line)
		}
	}
	return text.String(), c.Wait()
}

// failures is the output of tests without those that passed.
func failures(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "=== ") || strings.Contains(line, "--- PASS") {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}
