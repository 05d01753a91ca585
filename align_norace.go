//go:build !race

package failback

// raceBuild is false: buffers are mapped outside the Go heap.
const raceBuild = false
