package failback_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/failback/failback"
)

// Make one image equal another, and say what that took.
func ExampleSync() {
	dir, err := os.MkdirTemp("", "failback-example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	backup, primary := filepath.Join(dir, "backup.img"), filepath.Join(dir, "primary.img")
	image(backup, 'b')
	image(primary, 'p')

	report, err := bringHome(context.Background(), backup, primary)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s: %d of %d bytes differed\n", report.Result, report.DivergentBytes, report.VolumeBytes)
	// Output: equal: 4096 of 1048576 bytes differed
}

// bringHome is all an embedder needs.
func bringHome(ctx context.Context, from, to string) (*failback.Report, error) {
	source, err := failback.Open(from, failback.OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer source.Close()
	target, err := failback.Open(to, failback.OpenOptions{Write: true})
	if err != nil {
		return nil, err
	}
	defer target.Close()
	if err := failback.CheckPair(source, target); err != nil {
		return nil, err
	}
	return failback.Sync(ctx, failback.Side{Volume: source}, failback.Side{Volume: target}, failback.Options{})
}

// image makes a volume of 1 MiB that has one byte of its own.
func image(path string, mark byte) {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i)
	}
	b[70000] = mark
	if err := os.WriteFile(path, b, 0o600); err != nil {
		panic(err)
	}
}
