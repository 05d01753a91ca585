//go:build invariants

package failback

// invariantsBuild reports whether broken promises inside the package panic.
const invariantsBuild = true

// mangled fills buffers that enter or leave the pool, so that whoever counts on
// old contents, or reads after put, sees this and not luck.
const mangled = 0xdb

func mangle(p []byte) {
	for i := range p {
		p[i] = mangled
	}
}

func misused(what string) { panic("failback: " + what) }
