// Package bench measures failback against what is possible on a machine and against the public tools of its field.
//
// A figure of this package is a ratio taken in one run: the command under test and what it is held against take turns on the
// same image, in the same state of the page cache, and the medians of several turns are compared. Every run's result is
// compared byte by byte before its figures count.
//
// Read it in this order: [Set] (the image, and copies of it that differ in a known way), [Figures] (what is measured of one
// run), [Harness] (runs that alternate), [Summarize] (medians, spreads, ratios), [Floor] (how fast the machine could do it at
// all), [Peers] (what others need), [Engine] (failback's own command lines), [Link] and [Network] (slower links).
//
// The command failback-bench below this directory is a thin shell around it.
package bench
