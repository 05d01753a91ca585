// Package tracked tries the kernel's tracker on block devices that it is given,
// whatever drives them. It has tests only. Guests run them (see the command
// vmtest), and so may whoever wants to know of a device of theirs:
//
//	go test -c ./internal/vmtest/tracked
//	FAILBACK_SCRATCH="/dev/sdx /dev/vg/scratch" ./tracked.test -test.v
//
// The content of the devices is lost. They are copied whole into memory, so they
// have at most 256 MiB; a small partition or volume does.
//
// Read it in this order: stage_test.go, oracle_test.go (nothing is missed),
// session_test.go (nor while a session takes and proves, and little is reported
// for nothing), conformance_test.go.
package tracked
