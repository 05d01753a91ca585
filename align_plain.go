//go:build !invariants

package failback

// invariantsBuild reports whether broken promises inside the package panic.
const invariantsBuild = false

func mangle([]byte) {}

func misused(string) {}
