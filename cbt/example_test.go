package cbt_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/failback/failback/cbt"
	"github.com/failback/failback/cbt/cbttest"
)

// A program that writes its volume itself wraps it, and from then on a session
// takes what was written, round after round.
func ExampleWrap() {
	const size = 8 << 20
	volume := cbttest.NewMemory(size) // any io.WriterAt
	w, err := cbt.Wrap(volume, size, cbt.WriterOptions{Identity: "vg0/data"})
	if err != nil {
		log.Fatal(err)
	}
	// Both sides are equal now: epoch 1 begins.
	if err := w.Seal(1); err != nil {
		log.Fatal(err)
	}
	w.WriteAt([]byte("hello"), 10_000)
	w.WriteAt([]byte("world"), 1<<20)

	taken, err := w.Take(context.Background(), 1)
	if err != nil {
		log.Fatal(err) // cbt.ErrEpochLost: compare in another way
	}
	var proven []cbt.Extent
	for r := range taken.Runs() {
		fmt.Println("send", r)
		proven = append(proven, r.Extent) // acknowledged as durable
		break                             // the connection is lost
	}
	w.PutBack(taken, proven)

	m, _ := w.Map()
	fmt.Println("left", m.Extents())
	// Output:
	// send [0x2000,0x3000) dirty
	// left [[0x100000,0x101000)]
}

func ExampleParseRuns() {
	const list = `
# offset length
0      4096
0x4000 100   # grows to a block
`
	m, _ := cbt.NewDirtyMap(1<<20, 0)
	for run, err := range cbt.ParseRuns(strings.NewReader(list), m.Size()) {
		if err != nil {
			log.Fatal(err)
		}
		m.Add(run)
	}
	for run := range m.Map().Runs() {
		fmt.Println(run)
	}
	// Output:
	// [0x0,0x1000) dirty
	// [0x4000,0x5000) dirty
}
