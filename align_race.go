//go:build race

package failback

// raceBuild keeps buffers on the Go heap: the race detector does not watch
// memory that was mapped behind the runtime's back.
const raceBuild = true
