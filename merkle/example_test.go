package merkle_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/failback/failback/merkle"
)

// Two volumes that differ in one byte, compared by their trees.
func ExampleDiff() {
	ctx := context.Background()
	a := make([]byte, 10<<20)
	b := bytes.Clone(a)
	b[5<<20] = 1

	shape := merkle.Shape{Size: 10 << 20, Leaf: merkle.DefaultLeaf, Algorithm: merkle.BLAKE3}
	var trees []*merkle.File
	for _, volume := range [][]byte{a, b} {
		f, _, err := merkle.Build(ctx, bytes.NewReader(volume), shape, "", merkle.Options{Temporary: true})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer f.Close() // nothing to lose: it has no name
		trees = append(trees, f)
	}
	ranges, stats, err := merkle.Diff(ctx, trees[0], trees[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, r := range ranges {
		fmt.Printf("leaves %v, bytes [%d,%d)\n", r, r.First*shape.Leaf, r.End*shape.Leaf)
	}
	fmt.Println(stats.Batches, "request to each side")
	// Output:
	// leaves [80,81), bytes [5242880,5308416)
	// 1 request to each side
}

// Whoever has the root can be shown that a piece of the volume belongs to it.
func ExampleProof() {
	ctx := context.Background()
	volume := bytes.Repeat([]byte("failback "), 100_000)
	shape := merkle.Shape{Size: int64(len(volume)), Leaf: 4096, Algorithm: merkle.SHA256}
	f, _, err := merkle.Build(ctx, bytes.NewReader(volume), shape, "", merkle.Options{Temporary: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close() // nothing to lose: it has no name
	root, err := f.Root(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	p, err := merkle.Prove(ctx, f, merkle.Range{First: 7, End: 9})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.CheckData(root, volume[7*4096:9*4096]))
	fmt.Println(p.CheckData(root, volume[8*4096:10*4096]) != nil)
	// Output:
	// <nil>
	// true
}

// A kept tree follows the volume: only the leaves that changed are hashed.
func ExampleFile_Update() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir) // best effort
	volume := make([]byte, 1<<20)
	shape := merkle.Shape{Size: 1 << 20, Leaf: 4096, Algorithm: merkle.BLAKE3}
	f, _, err := merkle.Build(ctx, bytes.NewReader(volume), shape, filepath.Join(dir, "a.fbt"), merkle.Options{Epoch: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close() // synced by Update

	copy(volume[3*4096:], "written in epoch 2")
	h, err := merkle.NewHasher(shape)
	if err != nil {
		fmt.Println(err)
		return
	}
	changed := func(yield func(int64, merkle.Hash) bool) {
		yield(3, h.Leaf(volume[3*4096:4*4096]))
	}
	if _, err := f.Update(ctx, 2, changed); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("epoch", f.Epoch(), f.Verify(ctx))
	// Output: epoch 2 <nil>
}
