// Command testlog reads what go test -json writes and tells it in short: the
// closing line of each package, the whole output of tests that failed, and what
// was skipped with its reason. Other lines pass as they are. It exits with 1 if
// anything failed or if no test ran.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("testlog", flag.ContinueOnError)
	fs.SetOutput(stderr)
	name := fs.String("name", "test", "what the run is called in the list of skips")
	skips := fs.String("skips", "", "file that skipped tests are added to, with their reasons")
	closing := fs.String("closing", "", "file that the packages' closing lines are added to")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	l := &log{out: stdout, said: map[key]*strings.Builder{}, name: *name}
	err := l.read(stdin)
	err = errors.Join(err, add(*skips, l.skips), add(*closing, l.closing))
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "testlog: %v\n", err)
		return 1
	case l.ran == 0 && !l.failed:
		fmt.Fprintln(stderr, "testlog: no test ran")
		return 1
	case l.failed:
		return 1
	}
	return 0
}

// add appends lines to a file; no path, no file.
func add(path string, lines []string) error {
	if path == "" || len(lines) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// event is a line of go test -json, see go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// key names a test; Test is "" for what a package says outside of its tests.
type key struct{ Package, Test string }

type log struct {
	out     io.Writer
	name    string
	said    map[key]*strings.Builder // output of tests that have not ended
	skips   []string
	closing []string
	ran     int
	failed  bool
}

func (l *log) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case line == "":
		case strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &e) == nil && e.Action != "":
			if err := l.take(e); err != nil {
				return err
			}
		default:
			if _, err := io.WriteString(l.out, line); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take handles one event. A package's own output is printed at once, a test's
// only if the test fails.
func (l *log) take(e event) error {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Test == "" {
			return l.packageSays(e.Output)
		}
		if l.said[k] == nil {
			l.said[k] = &strings.Builder{}
		}
		l.said[k].WriteString(e.Output)
	case "pass", "skip":
		if e.Test == "" {
			return l.abandoned(e.Package)
		}
		l.ran++
		if e.Action == "skip" {
			l.skips = append(l.skips, fmt.Sprintf("%s: %s %s: %s", l.name, e.Package, e.Test, reason(l.output(k))))
		}
		delete(l.said, k)
	case "fail", "build-fail":
		l.failed = true
		if e.Test == "" {
			return l.abandoned(e.Package)
		}
		l.ran++
		_, err := io.WriteString(l.out, l.output(k))
		delete(l.said, k)
		return err
	}
	return nil
}

func (l *log) output(k key) string {
	if b := l.said[k]; b != nil {
		return b.String()
	}
	return ""
}

func (l *log) packageSays(line string) error {
	for _, start := range []string{"ok ", "FAIL\t", "?  "} {
		if strings.HasPrefix(line, start) {
			l.closing = append(l.closing, strings.TrimSuffix(line, "\n"))
		}
	}
	if line == "PASS\n" || line == "FAIL\n" {
		return nil
	}
	_, err := io.WriteString(l.out, line)
	return err
}

// abandoned prints what tests said that never ended: the process died in them.
func (l *log) abandoned(pkg string) error {
	for k, said := range l.said {
		if k.Package != pkg {
			continue
		}
		if _, err := io.WriteString(l.out, said.String()); err != nil {
			return err
		}
		delete(l.said, k)
	}
	return nil
}

// reason is what a skipped test said, less the framework's own lines.
func reason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "--- ") {
			continue
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}
