// Package faulty has volumes, files and links for tests that fail as real ones
// do: on order, by seed, and with a power cut that shows what was not durable.
//
// Read it in this order: [Rule] (what goes wrong, and when), [Faults] (the rules
// of one machine, its power switch and the log of what was done on it), [Volume],
// [File] and [Dir] (what a machine stores on), [Link] and [Dialer] (how it
// reaches others).
//
// A test runs once without rules, takes the steps that matter from
// [Faults.Log] or [Link.Frames], and then runs again for each of them, twice:
// the step did not happen, and it happened but the answer was lost
// ([Rule].After). Then [Volume.Crash] and [Dir.Crash] give what a seed's power
// cut left, and the code under test goes on from there:
//
//	machine := faulty.New(faulty.Rule{Op: faulty.Sync, On: "disk", N: 2, Kind: faulty.Cut, After: true})
//	v := faulty.NewVolume("disk", content, machine)
//	err := work(v)      // faulty.ErrPower
//	work(v.Crash(seed)) // finishes
//
// What is in memory here is all in memory: 2 bytes for each of a volume, and
// every write until the next Sync. Nothing waits on real time but what a rule
// orders, and all of it works in a testing/synctest bubble.
package faulty
