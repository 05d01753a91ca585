// Package bench measures failback against what is possible on a machine and against the public tools of its field.
//
// A figure of this package is a ratio taken in one run: the command under test and what it is held against take turns on the
// same image, in the same state of the page cache, and the medians of several turns are compared. Every run's result is
// compared byte by byte before its figures count.
//
// Read it in this order: [Set] (the image, and copies of it that differ in a known way), [Figures] (what is measured of one
// run), [Harness] (runs that alternate), [Summarize] (medians, spreads, ratios), [Suites] (what is run), [Judge] (the goals).
// Package floor below it is how fast the machine could do it at all, package line makes slower lines.
//
// The command failback-bench below this directory is a thin shell around it:
//
//	go run ./bench/cmd/failback-bench image -differs rand-1       # make the images, once; the target then differs
//	go run ./bench/cmd/failback-bench run -list                   # what can be measured
//	go run ./bench/cmd/failback-bench run -failback ./failback exact merkle kept
//	go run ./bench/cmd/failback-bench run -failback ./failback -cold -rounds 3 -only 'rand-1 ' merkle
//	go run ./bench/cmd/failback-bench table figures-*.jsonl       # the tables of kept figures once more
package bench
