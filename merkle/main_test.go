package merkle

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
)

// TestMain fails if a goroutine outlives the tests. Benchmarks may leave one:
// the AVX-512 server cannot be stopped.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	bench := flag.Lookup("test.bench").Value.String()
	for range 1000 { // one that is done may still be on its way out
		if runtime.NumGoroutine() <= before {
			break
		}
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); code == 0 && bench == "" && n > before {
		buf := make([]byte, 1<<16)
		fmt.Fprintf(os.Stderr, "%d goroutines are left, %d were there before:\n%s", n, before, buf[:runtime.Stack(buf, true)])
		code = 1
	}
	os.Exit(code)
}
