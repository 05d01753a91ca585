//go:build race

package ebpf

const faultsPanic = false
