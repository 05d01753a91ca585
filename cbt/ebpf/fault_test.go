//go:build !race

package ebpf

// faultsPanic reports whether a fault in memory of the kernel becomes a panic. The
// race detector does the atomic operations outside of Go, where it ends the program.
const faultsPanic = true
