// Package failback makes one volume equal another by sending only what
// differs, and proves it by digests read back from the medium.
//
// Read it in this order:
//
//   - [Volume] and [Open]: what a volume must do, and the one for files and devices;
//   - [Side], [Sync], [Compare], [Digest]: the jobs, and where each side is;
//   - plan.go: which part of the volumes is looked at, and why (the rung);
//   - state.go: a session as a pure state machine, its states drawn;
//   - unit.go, hash.go, compare.go: how both sides walk the same units and
//     find the pieces that differ;
//   - source.go and target.go: the two roles, step by step;
//   - logbook.go, resume.go, retry.go: the target's journal, and how an
//     interrupted session is gone on with;
//   - serve.go: how a volume is made reachable from elsewhere.
//
// The library writes to no log and starts nothing by itself: a function runs
// until its work is done, its context ends, or an error is final, and every
// goroutine it started has returned when it returns.
package failback
