// Package merkle finds where two volumes differ, and proves that they do not.
//
// A tree has one hash for each leaf, a fixed-size piece of the volume, and
// above them nodes of up to sixteen children. Level 0 is the leaves, level k
// has one node for every sixteen of level k-1, and the top level has one node.
// The root binds that node to the facts it was made under: algorithm, leaf
// size and volume size.
//
//	level 2                    [0]                    top; root = H(facts, top)
//	level 1        [0]         [1]         [2]        each the hash of a group
//	level 0  [0 .. 15]   [16 .. 31]   [32 .. 36]      each the hash of a leaf
//
// Read it in this order: [Shape] (the coordinates), [Hasher] (what each hash
// covers), [NodeReader] (what a tree can be asked), [Diff] (where two trees
// differ), [File] (a tree on disk, read without loading it), [Builder] and
// [Build] (how a file comes to be), [Proof] (this leaf belongs to that root).
// [Tree] holds a small tree in memory.
//
// # What things cost
//
// n is the number of leaves, k the number of leaves asked for or changed, L the
// number of levels (eight for 16 TiB in leaves of 64 KiB). A node read is 32
// bytes; a group is sixteen nodes that lie together on disk.
//
//	Build         reads the allocated bytes once, hashes each leaf that is not zero, n/15 nodes
//	Builder.Seal  reads n·16/15 nodes, hashes n/15; all-zero stretches of 4096 are skipped
//	Open          reads the header and one node, hashes one
//	ReadNodes     reads k nodes and their ancestors, at most 16·k·(L-1); hashes k·(L-1) groups at most
//	Update        as ReadNodes for k changed leaves, hashes each touched group twice
//	Verify        reads n·16/15 nodes, hashes n/15
//	Diff          at most MaxBatches requests to each side, 16 to 256 nodes per level and differing path
//	Prove         reads at most 30 nodes per level; Check hashes the range and at most two groups per level
//
// Memory is bounded by the options and by the shape's 2^32 leaves at most,
// never by what a file or a peer says.
//
// # The format
//
// The bytes on disk are the tables above the code that reads them: the tree
// file in header.go and layout.go, the update journal in journal.go, the
// progress table of an unfinished build in progress.go, a proof in
// proofcodec.go. docs/format-tree.md has all of it in one place.
package merkle
