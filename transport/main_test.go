package transport

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestMain fails the run if a test left a goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if left := leaked(); left != "" {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked returns the stacks of goroutines that run code of this package, after
// giving those that are on their way out the time to go.
func leaked() string {
	var stacks []string
	for range 1000 {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		stacks = stacks[:0]
		for s := range strings.SplitSeq(string(buf), "\n\n") {
			if strings.Contains(s, "failback/transport") && !strings.Contains(s, "TestMain") {
				stacks = append(stacks, s)
			}
		}
		if len(stacks) == 0 {
			return ""
		}
		runtime.Gosched()
	}
	return strings.Join(stacks, "\n\n")
}
