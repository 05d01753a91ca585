// Package cbt, changed block tracking, records which parts of a volume were
// written since an epoch, and keeps that record sound: it may hold too much,
// never too little, and it forgets a range only when that range was proven to
// be durable on the other side.
//
// Read it in this order:
//
//   - [Extent] and the set algebra over lists of it ([Union], [Align], ...);
//   - [State] and [Run]: what can be said of a block;
//   - [DirtyMap]: the concurrent map in memory, [DirtyMap.Take] and
//     [DirtyMap.PutBack];
//   - [Tracker]: the contract of whoever fills such a map, and [Trust];
//   - [Writer]: the tracker for programs that write the volume themselves;
//   - [Map]: the same knowledge as a file, see also docs/format-map.md;
//   - [ParseRuns]: the same knowledge as text.
//
// Package cbttest holds the conformance suite that each tracker passes.
//
// States only ever rise, Clean to Discarded to Dirty, until they are taken.
// Marking is thus commutative and idempotent: no order of concurrent calls can
// lose a write, and putting back is marking once more.
package cbt
